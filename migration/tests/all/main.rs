//! The migration crate from outside: its two ends against each other, and against strangers.

mod common;
mod precopy;
mod reader;
