//! What faces a guest or a network, fed with bytes of any kind.
//!
//! A *target* turns bytes into a sequence of accesses, messages or files, and gives them to the
//! product. Its *oracles* then judge more than 'no crash': see [`oracle`]. libFuzzer makes the bytes
//! (`cargo xtask fuzz`); the same targets replay kept inputs as ordinary tests (`tests/replay.rs`).
//!
//! A *plant* makes the harness around the product break one promise, on inputs that have to be
//! found: it proves that the target gets there and that the oracle sees it. There are no plants in
//! the product.

#![forbid(unsafe_code)]

pub mod input;
pub mod oracle;
pub mod plant;
pub mod rig;
pub mod targets;

pub use plant::Plant;
pub use targets::{TARGETS, Target, target};
