//! A function behind a vfio-user socket, driven without any VM.

#[cfg(test)]
mod tests;
mod wire;

use super::{Access, Bus, BusError, Interrupt, RelayBus};
use crate::memory::DmaMemory;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wire::{
    Connection, DmaMap, DmaUnmap, IrqInfo, RegionAccess, RegionInfo, SetIrqs, argsz, command,
};
use zerocopy::{FromBytes, IntoBytes};

/// How long any answer but that to a reset is waited for.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long a reset may take.
const RESET_PATIENCE: Duration = Duration::from_secs(10);
/// Where memory of the bus's own is mapped, unless somebody says otherwise: low, so that a tracker's
/// bitmap that begins with address 0 stays small, and not at 0, which means "none" to a driver.
pub const OWN_MEMORY: u64 = 1 << 20;

/// Indices of VFIO's PCI regions and interrupts.
const CONFIG: u32 = 7;
const BARS: u32 = 6;
const MSIX: u32 = 2;
const MSIX_INDEX: u32 = MSIX;
/// `vfio_irq_set` flags: DATA_EVENTFD or DATA_NONE, ACTION_TRIGGER.
const CONNECT: u32 = 1 << 2 | 1 << 5;
const DISABLE: u32 = 1 | 1 << 5;
/// DMA_MAP's flags.
const MAP_READ: u32 = 1;
const MAP_WRITE: u32 = 2;
/// Most data of one access, so that it fits every server's limit.
const CHUNK: usize = 4096;
/// Bytes of configuration space, with and without PCI Express's.
const CONFIG_SIZES: [u64; 2] = [256, 4096];
const MAP_ALIGN: u64 = 4096;

/// A function behind a vfio-user socket.
///
/// Every access is a message and its answer, one at a time; a server that gives none within
/// [`PATIENCE`] counts as gone, for good.
#[derive(Debug)]
pub struct VfioUserBus {
    connection: Mutex<Connection>,
    bars: [u64; 6],
    config: u64,
    vectors: u16,
    /// Where the next memory of the bus's own goes.
    own: Mutex<u64>,
}

impl VfioUserBus {
    /// Connects to the server that listens on `path`.
    ///
    /// # Errors
    /// [`BusError::Unreachable`] if nobody listens, the server serves somebody else, or what
    /// answers is not a PCI function behind vfio-user 0.x.
    pub fn connect(path: &Path) -> Result<Arc<Self>, BusError> {
        Self::connect_with(path, OWN_MEMORY)
    }

    /// As [`connect`](Self::connect); memory of the bus's own is mapped from `own` on, a multiple
    /// of 4096.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_with(path: &Path, own: u64) -> Result<Arc<Self>, BusError> {
        let mut connection = Connection::open(path, PATIENCE)?;
        let mut bars = [0; 6];
        for (index, size) in (0..).zip(&mut bars) {
            *size = region_size(&mut connection, index)?;
        }
        let config = region_size(&mut connection, CONFIG)?;
        if !CONFIG_SIZES.contains(&config) {
            let why = format!("configuration space of {config} bytes, 256 or 4096 expected");
            let source = io::Error::new(io::ErrorKind::InvalidData, why);
            return Err(connection.breaks("looking for a PCI function", source));
        }
        let vectors = vectors(&mut connection)?;
        Ok(Arc::new(Self {
            connection: Mutex::new(connection),
            bars,
            config,
            vectors,
            own: Mutex::new(own),
        }))
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Part by part, no longer than any server takes.
    fn read_region(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
        const DOING: &str = "reading its registers";
        let mut connection = self.connection();
        for (offset, part) in parts(offset).zip(data.chunks_mut(CHUNK)) {
            let access = access(region, offset, part.len());
            let reply = connection.call(DOING, command::REGION_READ, &[access.as_bytes()], None)?;
            let bytes = reply.get(size_of::<RegionAccess>()..);
            match bytes.filter(|bytes| bytes.len() == part.len()) {
                Some(bytes) => part.copy_from_slice(bytes),
                None => {
                    let why = format!("{} bytes were asked for", part.len());
                    return Err(connection.breaks(DOING, invalid(&reply, &why)));
                }
            }
        }
        Ok(())
    }

    fn write_region(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), BusError> {
        let mut connection = self.connection();
        for (offset, part) in parts(offset).zip(data.chunks(CHUNK)) {
            let access = access(region, offset, part.len());
            let body = [access.as_bytes(), part];
            connection.call("writing its registers", command::REGION_WRITE, &body, None)?;
        }
        Ok(())
    }

    fn in_bar(&self, bar: u8, offset: u64, len: usize) -> Result<u32, BusError> {
        let end = u64::try_from(len).ok().and_then(|n| offset.checked_add(n));
        match end {
            Some(end) if end <= self.bar_size(bar) => Ok(u32::from(bar)),
            _ => Err(BusError::OutOfRange { bar, offset, len }),
        }
    }

    fn in_config(&self, offset: u16, len: usize) -> bool {
        let end = u64::try_from(len).unwrap_or(u64::MAX);
        u64::from(offset).saturating_add(end) <= self.config
    }
}

/// The offsets of an access's parts.
fn parts(offset: u64) -> impl Iterator<Item = u64> {
    let step = u64::try_from(CHUNK).unwrap_or(u64::MAX);
    std::iter::successors(Some(offset), move |at| Some(at.wrapping_add(step)))
}

fn access(region: u32, offset: u64, len: usize) -> RegionAccess {
    RegionAccess {
        offset: offset.into(),
        region: region.into(),
        // At most CHUNK.
        count: u32::try_from(len).unwrap_or(u32::MAX).into(),
    }
}

fn region_size(connection: &mut Connection, index: u32) -> Result<u64, BusError> {
    const DOING: &str = "asking for its regions";
    let ask = RegionInfo {
        argsz: argsz::<RegionInfo>(),
        index: index.into(),
        ..RegionInfo::default()
    };
    let reply = connection.call(DOING, command::GET_REGION_INFO, &[ask.as_bytes()], None)?;
    match RegionInfo::read_from_prefix(&reply) {
        Ok((info, _)) if info.index.get() == index => Ok(info.size.get()),
        _ => Err(connection.breaks(DOING, invalid(&reply, "a region was expected"))),
    }
}

fn vectors(connection: &mut Connection) -> Result<u16, BusError> {
    const DOING: &str = "asking for its interrupts";
    let ask = IrqInfo {
        argsz: argsz::<IrqInfo>(),
        index: MSIX_INDEX.into(),
        ..IrqInfo::default()
    };
    let reply = connection.call(DOING, command::GET_IRQ_INFO, &[ask.as_bytes()], None)?;
    // PCI knows at most 2048.
    let count = |info: IrqInfo| u16::try_from(info.count.get()).ok();
    match IrqInfo::read_from_prefix(&reply) {
        Ok((info, _)) => count(info).filter(|count| *count <= 2048),
        Err(_) => None,
    }
    .ok_or_else(|| connection.breaks(DOING, invalid(&reply, "at most 2048 vectors expected")))
}

fn invalid(reply: &[u8], why: &str) -> io::Error {
    let why = format!("an answer of {} bytes; {why}", reply.len());
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn exhausted(what: &str, why: impl std::fmt::Display) -> BusError {
    BusError::Exhausted {
        what: what.to_owned(),
        why: why.to_string(),
    }
}

impl Bus for VfioUserBus {
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<(), BusError> {
        // Beyond a conventional function's space there is nothing, as on a bus.
        data.fill(0xff);
        if self.in_config(offset, data.len()) {
            self.read_region(CONFIG, offset.into(), data)?;
        }
        Ok(())
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), BusError> {
        if self.in_config(offset, data.len()) {
            self.write_region(CONFIG, offset.into(), data)?;
        }
        Ok(())
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
        let region = self.in_bar(bar, offset, data.len())?;
        self.read_region(region, offset, data)
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), BusError> {
        let region = self.in_bar(bar, offset, data.len())?;
        self.write_region(region, offset, data)
    }

    fn dma_alloc(&self, len: u64) -> Result<DmaMemory, BusError> {
        let refused = |why: io::Error| exhausted("memory", why);
        let len = len
            .checked_next_multiple_of(MAP_ALIGN)
            .filter(|len| *len != 0)
            .ok_or_else(|| exhausted("memory", format!("{len} bytes")))?;
        let file = rustix::fs::memfd_create("tidemark-dma", MemfdFlags::CLOEXEC)
            .map(File::from)
            .map_err(|error| refused(error.into()))?;
        file.set_len(len).map_err(refused)?;
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = DmaMemory::from_file(&file, 0, len, *own).map_err(refused)?;
        self.map(*own, len, Access::ReadWrite, file.as_fd(), 0)?;
        *own = own.saturating_add(len);
        Ok(memory)
    }

    fn interrupt(&self, vector: u16) -> Result<Arc<dyn Interrupt>, BusError> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|error| exhausted("an eventfd", error))?;
        self.connect_vector(vector, Some(event.as_fd()))?;
        Ok(Arc::new(EventFd(event.into())))
    }

    fn reset(&self) -> Result<(), BusError> {
        let doing = "resetting it";
        let mut connection = self.connection();
        let patient = connection.set_patience(RESET_PATIENCE);
        patient.map_err(|source| BusError::Unreachable { doing, source })?;
        connection.call(doing, command::RESET, &[], None)?;
        let patient = connection.set_patience(PATIENCE);
        patient.map_err(|source| BusError::Unreachable { doing, source })
    }
}

impl RelayBus for VfioUserBus {
    fn bar_size(&self, bar: u8) -> u64 {
        const _: () = assert!(BARS == 6);
        self.bars.get(usize::from(bar)).copied().unwrap_or(0)
    }

    fn vectors(&self) -> u16 {
        self.vectors
    }

    fn map(
        &self,
        iova: u64,
        size: u64,
        access: Access,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<(), BusError> {
        let flags = match access {
            Access::Read => MAP_READ,
            Access::Write => MAP_WRITE,
            Access::ReadWrite => MAP_READ | MAP_WRITE,
        };
        let map = DmaMap {
            argsz: argsz::<DmaMap>(),
            flags: flags.into(),
            offset: offset.into(),
            address: iova.into(),
            size: size.into(),
        };
        self.connection().call(
            "mapping memory",
            command::DMA_MAP,
            &[map.as_bytes()],
            Some(file),
        )?;
        Ok(())
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<(), BusError> {
        let unmap = DmaUnmap {
            argsz: argsz::<DmaUnmap>(),
            flags: 0.into(),
            address: iova.into(),
            size: size.into(),
        };
        self.connection().call(
            "unmapping memory",
            command::DMA_UNMAP,
            &[unmap.as_bytes()],
            None,
        )?;
        Ok(())
    }

    fn connect_vector(&self, vector: u16, event: Option<BorrowedFd<'_>>) -> Result<(), BusError> {
        if vector >= self.vectors {
            let why = format!("{vector} of {}", self.vectors);
            return Err(exhausted("this vector", why));
        }
        // VFIO: an eventfd for the vector, or none, which takes away the one that it has.
        let set = SetIrqs {
            argsz: argsz::<SetIrqs>(),
            flags: CONNECT.into(),
            index: MSIX_INDEX.into(),
            start: u32::from(vector).into(),
            count: 1.into(),
        };
        self.connection().call(
            "connecting interrupts",
            command::SET_IRQS,
            &[set.as_bytes()],
            event,
        )?;
        Ok(())
    }

    fn bar_post(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), BusError> {
        let region = self.in_bar(bar, offset, data.len())?;
        let access = access(region, offset, data.len());
        let body = [access.as_bytes(), data];
        self.connection()
            .post("ringing a doorbell", command::REGION_WRITE, &body)
    }

    fn hangup(&self) -> Option<OwnedFd> {
        self.connection().duplicate().ok()
    }
}

impl Drop for VfioUserBus {
    /// Takes all interrupts away; memory goes with the connection.
    fn drop(&mut self) {
        let set = SetIrqs {
            argsz: argsz::<SetIrqs>(),
            flags: DISABLE.into(),
            index: MSIX_INDEX.into(),
            ..SetIrqs::default()
        };
        let connection = self.connection.get_mut();
        let connection = connection.unwrap_or_else(PoisonError::into_inner);
        // The connection ends now, which does the same; a server that is gone does not matter.
        let _ = connection.post("leaving", command::SET_IRQS, &[set.as_bytes()]);
    }
}

/// An interrupt vector's eventfd.
#[derive(Debug)]
struct EventFd(File);

impl EventFd {
    fn take(&self) -> bool {
        (&self.0).read(&mut [0; 8]).is_ok()
    }
}

impl Interrupt for EventFd {
    fn wait(&self, timeout: Duration) -> bool {
        let until = Instant::now().checked_add(timeout);
        loop {
            if self.take() {
                return true;
            }
            let left = until.map_or(timeout, |u| u.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            let limit = Timespec::try_from(left).ok();
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            // Interrupted or not: the eventfd and the clock decide.
            let _ = poll(&mut fds, limit.as_ref());
        }
    }
}
