//! Where device and driver meet: the emulated bus, the emulated guest that moves, and the mediator.

#![forbid(unsafe_code)]

mod asking;
mod backup;
mod cpu_log;
mod emulated_bus;
mod error;
pub mod evidence;
pub mod exercise;
mod faulty;
pub mod guest;
pub mod held;
mod hosted;
mod hypervisor;
mod in_process;
mod incoming;
pub mod journal;
mod machine;
pub mod mediate;
mod mover;
mod seat;
pub mod soak;
mod target;

pub use backup::Backup;
pub use cpu_log::{CpuLog, CpuLogSource};
pub use emulated_bus::EmulatedBus;
pub use error::VmError;
pub use faulty::{DiskError, DiskFault};
pub use hosted::Hosted;
pub use hypervisor::{Limits, Means};
pub use in_process::{InProcess, migrate_in_process, migrate_in_process_beside};
pub use incoming::{After, Arrival};
pub use machine::{Hosting, MarkingMode, Remapper};
pub use mover::{Move, Outcome, finish_at_home, move_guest, save_guest, send_guest};
pub use seat::{Seat, SeatedGuest, serve_seat};
pub use target::{Target, TargetError};
