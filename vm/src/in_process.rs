//! A whole move within one process: two guests, two memories, one socket pair. For tests and
//! benchmarks; `tidemark migrate` does the same with two processes.

use crate::error::VmError;
use crate::evidence::format_disk;
use crate::guest::{EmulatedGuest, Shape};
use crate::hypervisor::Limits;
use crate::incoming::Arrival;
use crate::machine::{Hosting, Remapper};
use crate::mover::{Move, Outcome, move_guest};
use migration::Cancel;
use migration::observe::Observer;
use migration::policy::Rounds;
use migration::precopy::Options;
use migration::receive::receive;
use migration::stream::live;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What to move, and how.
#[derive(Clone, Debug)]
pub struct InProcess {
    /// The guest.
    pub shape: Shape,
    /// Page size in bytes to track with.
    pub granularity: u64,
    /// When to stop the guest.
    pub policy: Rounds,
    /// Plain copies for comparison.
    pub plain_copies: u32,
    /// Requests before the move.
    pub before: u64,
    /// Requests at the destination.
    pub after: u64,
    /// What the destination's devices lack.
    pub destination: Limits,
}

/// Moves a guest; disks and evidence go to `folder`, which should be empty.
///
/// # Errors
/// [`VmError`] if the guest cannot even be started. What happens to a move stands in the outcome.
pub fn migrate_in_process(
    plan: &InProcess,
    folder: &Path,
    observer: &mut dyn Observer,
) -> Result<Outcome, VmError> {
    migrate_in_process_beside(plan, folder, observer, |_, _| {})
}

/// [`migrate_in_process`], with `beside` running on a thread of its own until it returns; it is
/// told by the flag when the move has ended.
///
/// # Errors
/// As [`migrate_in_process`].
pub fn migrate_in_process_beside(
    plan: &InProcess,
    folder: &Path,
    observer: &mut dyn Observer,
    beside: impl FnOnce(Remapper, &AtomicBool) + Send,
) -> Result<Outcome, VmError> {
    let mut disks: Vec<PathBuf> = Vec::new();
    for number in 0..plan.shape.devices {
        let path = folder.join(format!("disk{number}.img"));
        let _created = File::create(&path).map_err(VmError::file("create the disk", &path))?;
        format_disk(&path, number, plan.shape.blocks)?;
        disks.push(path);
    }
    let hosting = |side: &str| Hosting {
        disks: disks.clone(),
        evidence: Some(folder.to_owned()),
        side: side.to_owned(),
        limits: Limits::default(),
        hold: None,
        disk_fault: None,
    };
    let mut guest = EmulatedGuest::boot(&plan.shape, &hosting("source"))?;
    guest.run_for(plan.before, Duration::from_secs(20))?;
    let (here, there) = UnixStream::pair().map_err(VmError::system("make a socket pair"))?;
    let (cancel, ended) = (Cancel::default(), AtomicBool::new(false));
    let moving = Move {
        options: Options {
            policy: &plan.policy,
            granularity: plan.granularity,
            plain_copies: plan.plain_copies,
            bandwidth: None,
            cancel: &cancel,
        },
        evidence: folder,
        disks: &disks,
    };
    let destination = Hosting {
        limits: plan.destination,
        ..hosting("destination")
    };
    let (memory_max, after) = (plan.shape.memory, plan.after);
    std::thread::scope(|scope| {
        let arrival = scope.spawn(move || {
            let mut arrival = Arrival::new(destination, memory_max);
            let mut stream = live::Destination::new(there);
            match receive(&mut stream, &mut arrival) {
                Ok(_) => arrival
                    .finish(after, Duration::from_secs(20))
                    .map_err(|error| error.to_string())
                    .err(),
                Err(migration::MigrationError::Aborted) => None,
                Err(error) => Some(error.to_string()),
            }
        });
        let (remapper, ended) = (guest.remapper(), &ended);
        scope.spawn(move || beside(remapper, ended));
        let mut outcome = move_guest(&mut guest, vec![here.into()], &moving, observer);
        ended.store(true, Ordering::Release);
        match arrival.join() {
            Ok(None) => {}
            Ok(Some(trouble)) => outcome.troubles.push(trouble),
            Err(_) => outcome.troubles.push("the destination panicked".to_owned()),
        }
        Ok(outcome)
    })
}
