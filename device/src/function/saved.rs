//! The state of a whole function, for another that takes its place: the parts that VIRTIO 1.4 defines,
//! and what PCI and the project's tracker add to them (project rule).

use super::PciFunction;
use super::inner::{Core, lock};
use crate::pci::CONFIG_SIZE;
use spec::{Le16, Le32, Le64};
use std::time::Duration;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 4] = *b"TMfn";
const VERSION: u16 = 1;
/// Bytes of a vector in the MSI-X table.
const VECTOR: usize = 16;

/// What a state begins with. Configuration space follows, the MSI-X table, and the parts.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 4],
    version: Le16,
    vectors: Le16,
    tracker_on: u8,
    gra_power: u8,
    reserved: Le16,
    pasid: Le32,
    bitmap_addr: Le64,
    bitmap_length: Le64,
}
const _: () = assert!(size_of::<Head>() == 32);

/// Why a state is not taken. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a device's state that does not fit: {0}; one of a device with the same options was expected"
)]
pub struct SavedError(String);

fn bad(why: impl Into<String>) -> SavedError {
    SavedError(why.into())
}

impl PciFunction {
    /// Stops the function, as the owner of a group stops a member (VIRTIO 1.4, DEV_MODE_SET): nothing
    /// moves any more, and its driver does not know. False if that is not so within `timeout`; it
    /// goes on stopping.
    pub fn stop_and_wait(&self, timeout: Duration) -> bool {
        self.core.set_stopped_and_wait(true, timeout)
    }

    /// Lets a stopped function go on. False if it cannot within `timeout`.
    pub fn start_and_wait(&self, timeout: Duration) -> bool {
        self.core.set_stopped_and_wait(false, timeout)
    }

    /// Whether it is stopped. A function level reset makes it run.
    pub fn is_stopped(&self) -> bool {
        self.core.registers().mode.is_stopped()
    }

    /// Whether its state is all in [`save`](Self::save): it has no administration queues, whose
    /// objects are not.
    pub fn is_movable(&self) -> bool {
        self.core.admin.is_none()
    }

    /// The state of a stopped function.
    pub fn save(&self) -> Vec<u8> {
        self.core.save()
    }

    /// Takes the state of another function, which has the same options: all of it or nothing. The
    /// function is stopped; it goes on where the other was when it is started.
    ///
    /// # Errors
    ///
    /// [`SavedError`].
    pub fn load(&self, state: &[u8]) -> Result<(), SavedError> {
        self.core.load(state)
    }
}

impl Core {
    fn save(&self) -> Vec<u8> {
        let parts = self.parts();
        let registers = self.registers();
        let interrupts = lock(&self.interrupts);
        let (on, gra_power, pasid, bitmap_addr, bitmap_length) = registers.tracker.saved();
        let vectors = interrupts.table().len();
        let head = Head {
            magic: MAGIC,
            version: VERSION.into(),
            vectors: u16::try_from(vectors).unwrap_or(u16::MAX).into(),
            tracker_on: on.into(),
            gra_power,
            reserved: 0.into(),
            pasid: pasid.into(),
            bitmap_addr: bitmap_addr.into(),
            bitmap_length: bitmap_length.into(),
        };
        let mut state = head.as_bytes().to_vec();
        state.extend_from_slice(registers.pci.bytes());
        state.extend_from_slice(interrupts.table().as_flattened());
        for part in &parts {
            state.extend_from_slice(part.header.as_bytes());
            state.extend_from_slice(&part.value);
        }
        state
    }

    fn load(&self, state: &[u8]) -> Result<(), SavedError> {
        let (head, rest) = Head::read_from_prefix(state)
            .map_err(|_| bad(format!("it has {} bytes", state.len())))?;
        if (head.magic, head.version.get(), head.reserved.get()) != (MAGIC, VERSION, 0) {
            return Err(bad("it does not begin as version 1 of one does"));
        }
        let vectors = usize::from(head.vectors.get());
        let short = || bad("it ends too early");
        let (config, rest) = rest.split_at_checked(CONFIG_SIZE).ok_or_else(short)?;
        let (table, parts) = rest.split_at_checked(vectors * VECTOR).ok_or_else(short)?;
        let tracker = {
            let registers = self.registers();
            if let Some(at) = registers.pci.differs(config) {
                return Err(bad(format!("byte {at:#x} of configuration space differs")));
            }
            let here = lock(&self.interrupts).table().len();
            if vectors != here {
                return Err(bad(format!("it has {vectors} vectors, {here} here")));
            }
            let saved = (
                head.tracker_on == 1,
                head.gra_power,
                head.pasid.get(),
                head.bitmap_addr.get(),
                head.bitmap_length.get(),
            );
            let tracker = registers.tracker.restored(saved);
            tracker
                .filter(|_| head.tracker_on <= 1 && (self.config.tracker || head.tracker_on == 0))
                .ok_or_else(|| bad("its tracker could not be here"))?
        };
        // The last that may be refused, and the first that changes anything.
        match self.set_parts(parts) {
            Ok(true) => {}
            Ok(false) => return Err(bad("the function is being reset")),
            Err(error) => return Err(bad(error.to_string())),
        }
        {
            let _door = lock(&self.door);
            let mut registers = self.registers();
            registers.pci.restore(config);
            registers.tracker = tracker;
            let control = registers.pci.msix_control();
            lock(&self.interrupts).restore(table, control);
        }
        self.put_tracker_in_force();
        Ok(())
    }
}
