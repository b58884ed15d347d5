//! Sets on a virtual clock, with every fault; and one in real time.

mod defects;
mod faults;
mod layers;
mod parts;
mod race;
mod sim;
