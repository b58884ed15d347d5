//! The targets: what is fuzzed, and which plants prove that it is.

mod admin;
mod colo;
mod command;
mod control;
mod frontend;
mod packed;
mod pci;
mod request;
mod ring;
mod split;
mod store;
mod stream;
mod tracker;
mod vfio_user;
mod vhost_user;

use crate::Plant;
use std::sync::OnceLock;

/// One thing to be fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// As on command lines, and the folder of its corpus.
    pub name: &'static str,
    /// What the bytes become.
    pub about: &'static str,
    /// Runs it; panics with the words of an oracle.
    pub run: fn(&[u8], Option<Plant>),
    /// The plants that it must find.
    pub plants: &'static [Plant],
}

/// All, in the order in which they are run.
pub const TARGETS: &[Target] = &[
    Target {
        name: "pci",
        about: "configuration space and BAR accesses, with DMA",
        run: pci::run,
        plants: &[Plant::OutsideGrant, Plant::Panic, Plant::NoReset],
    },
    Target {
        name: "split",
        about: "a split ring with a hostile driver",
        run: split::run,
        plants: &[
            Plant::Unmarked,
            Plant::OutsideGrant,
            Plant::Panic,
            Plant::LostHead,
            Plant::Livelock,
            Plant::NoReset,
            Plant::Memory,
        ],
    },
    Target {
        name: "packed",
        about: "a packed ring with a hostile driver",
        run: packed::run,
        plants: &[Plant::Unmarked, Plant::LostHead, Plant::Livelock],
    },
    Target {
        name: "admin",
        about: "administration commands, their chains and their data",
        run: admin::run,
        plants: &[Plant::NoAnswer, Plant::Accepts, Plant::OutsideGrant],
    },
    Target {
        name: "tracker",
        about: "the tracker's registers and recordings while requests run",
        run: tracker::run,
        plants: &[Plant::Unmarked, Plant::OutsideGrant],
    },
    Target {
        name: "stream",
        about: "streams of guests in both framings, and of pairs and devices",
        run: stream::run,
        plants: &[Plant::Accepts, Plant::Memory, Plant::Livelock],
    },
    Target {
        name: "vhost_user",
        about: "vhost-user messages with descriptors, while requests run",
        run: vhost_user::run,
        plants: &[
            Plant::NoAnswer,
            Plant::Descriptors,
            Plant::OutsideGrant,
            Plant::Unmarked,
        ],
    },
    Target {
        name: "vfio_user",
        about: "vfio-user messages with descriptors, while requests run",
        run: vfio_user::run,
        plants: &[
            Plant::NoAnswer,
            Plant::Descriptors,
            Plant::OutsideGrant,
            Plant::Unmarked,
        ],
    },
    Target {
        name: "colo",
        about: "the conversation of a checkpointed pair, heard by either side",
        run: colo::run,
        plants: &[Plant::Unmarked, Plant::Accepts],
    },
    Target {
        name: "control",
        about: "the agents' control API, HTTP and JSON",
        run: control::run,
        plants: &[Plant::NoAnswer, Plant::Accepts, Plant::Memory],
    },
    Target {
        name: "store",
        about: "the files of a store of checkpoints",
        run: store::run,
        plants: &[Plant::NoAnswer, Plant::Accepts],
    },
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// The environment variable that plants a bug in a fuzzer's process, by the plant's name.
pub const PLANT: &str = "TIDEMARK_FUZZ_PLANT";

/// Runs a target for libFuzzer, with the plant that the environment asks for.
///
/// # Panics
///
/// An oracle's words; or there is no such target or plant.
pub fn fuzz(name: &str, data: &[u8]) {
    static PLANTED: OnceLock<Option<Plant>> = OnceLock::new();
    let plant = PLANTED.get_or_init(|| {
        // libFuzzer's hook ends the process before anybody can catch the panic.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !migration::store::catches_panics() {
                hook(panic);
            }
        }));
        let name = std::env::var(PLANT).ok()?;
        let plant = Plant::named(&name);
        Some(plant.unwrap_or_else(|| panic!("{PLANT}={name} names no plant")))
    });
    let target = target(name).unwrap_or_else(|| panic!("no target {name}"));
    (target.run)(data, *plant);
}
