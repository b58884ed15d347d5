//! The live view of a device: rounds of harvesting, where memory was dirty, queues, and whether it
//! is suspended.
//!
//! A [`Feed`] tells what happens, a [`View`] holds it, and whoever shows it takes it from there: the
//! terminal, lines, or the picture that is left at the end. None of them knows where it came from.

mod events;
mod feed;
pub mod heat;
mod lines;
mod picture;
mod terminal;
#[cfg(test)]
mod tests;
mod track;
mod view;

pub use events::read_events;
pub use feed::{Feed, Update};
pub use lines::show_lines;
pub use picture::{html, svg};
pub use terminal::show_terminal;
pub use track::watch_device;
pub use view::{Life, Queue, Round, View};
