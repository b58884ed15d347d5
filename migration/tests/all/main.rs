//! The migration crate from outside: its two ends against each other, and against strangers.

mod bytes;
mod common;
mod cut;
mod damage;
mod fixtures;
mod lanes;
mod limits;
mod marker;
mod pair;
mod precopy;
mod reader;
mod records;
mod rules;
mod sources;
mod tls;
mod writes;
