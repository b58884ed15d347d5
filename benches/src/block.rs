//! A block device behind vhost-user, driven at full depth, with every byte accounted for.

pub mod client;
pub mod content;
pub mod server;
