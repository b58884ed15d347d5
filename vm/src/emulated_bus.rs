//! An emulated function as a driver reaches it.

use device::function::{InterruptSink, MsixOwner, PciFunction};
use driver::bus::{Bus, BusError, Interrupt};
use driver::memory::DmaMemory;
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vm_memory::Permissions;

/// First IOVA of memory that the bus gives itself: above any guest memory.
const SIDE_BASE: u64 = 1 << 46;
/// PCI capability id of MSI-X.
const CAP_MSIX: u8 = 0x11;
/// Bytes of configuration space that hold conventional capabilities.
const CAPS_END: u16 = 256;
/// How long a function level reset may take: PCI Express allows 100 ms, an emulation under load
/// may need longer.
const RESET_TIMEOUT: Duration = Duration::from_secs(10);

/// A bus with one emulated function on it, in this process.
#[derive(Debug)]
pub struct EmulatedBus {
    function: Arc<PciFunction>,
    vectors: Arc<Vectors>,
    side: Mutex<u64>,
}

impl EmulatedBus {
    /// Plugs a function in. Its interrupts come here from now on.
    pub fn new(function: Arc<PciFunction>) -> Arc<Self> {
        Self::with_memory_at(function, SIDE_BASE)
    }

    /// [`new`](Self::new), with the memory that the bus gives from IOVA `base` on: for drivers that
    /// have no guest memory beside it.
    pub fn with_memory_at(function: Arc<PciFunction>, base: u64) -> Arc<Self> {
        let vectors = Arc::new(Vectors {
            all: (0..function.vectors()).map(|_| Arc::default()).collect(),
        });
        let sink: Arc<dyn InterruptSink> = Arc::clone(&vectors) as Arc<dyn InterruptSink>;
        function.set_interrupts(sink, MsixOwner::Function);
        Arc::new(Self {
            function,
            vectors,
            side: Mutex::new(base),
        })
    }

    /// The function.
    pub fn function(&self) -> &Arc<PciFunction> {
        &self.function
    }

    fn msix(&self) -> Result<(u16, u8, u64), BusError> {
        let byte = |at: u16| -> Result<u8, BusError> {
            let mut data = [0];
            self.config_read(at, &mut data)?;
            let [byte] = data;
            Ok(byte)
        };
        let mut at = u16::from(byte(0x34)?);
        // A list of capabilities can hold at most this many; a longer one goes in circles.
        for _ in 0..CAPS_END / 4 {
            if !(0x40..CAPS_END - 12).contains(&at) {
                break;
            }
            if byte(at)? == CAP_MSIX {
                let mut table = [0; 4];
                self.config_read(at + 4, &mut table)?;
                let table = u32::from_le_bytes(table);
                let bar = u8::try_from(table & 7).unwrap_or(0);
                return Ok((at, bar, u64::from(table & !7)));
            }
            at = u16::from(byte(at + 1)?);
        }
        Err(exhausted("an interrupt", "the function has no MSI-X"))
    }
}

fn exhausted(what: &str, why: impl std::fmt::Display) -> BusError {
    BusError::Exhausted {
        what: what.to_owned(),
        why: why.to_string(),
    }
}

impl Bus for EmulatedBus {
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<(), BusError> {
        self.function.config_read(offset, data);
        Ok(())
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), BusError> {
        self.function.config_write(offset, data);
        Ok(())
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
        in_bar(bar, offset, data.len())?;
        self.function.bar_read(bar, offset, data);
        Ok(())
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), BusError> {
        in_bar(bar, offset, data.len())?;
        self.function.bar_write(bar, offset, data);
        Ok(())
    }

    fn dma_alloc(&self, len: u64) -> Result<DmaMemory, BusError> {
        let refused = |why: &dyn std::fmt::Display| exhausted("memory", why);
        let len = len
            .checked_next_multiple_of(4096)
            .filter(|len| *len != 0)
            .ok_or_else(|| refused(&format!("{len} bytes")))?;
        let file = memory_file("tidemark-side", len).map_err(|error| refused(&error))?;
        let mut next = self.side.lock().unwrap_or_else(PoisonError::into_inner);
        let iova = *next;
        let memory = DmaMemory::from_file(&file, 0, len, iova).map_err(|error| refused(&error))?;
        self.function
            .dma()
            .map(iova, len, &file, 0, Permissions::ReadWrite)
            .map_err(|error| refused(&error))?;
        *next = iova.saturating_add(len);
        Ok(memory)
    }

    fn interrupt(&self, vector: u16) -> Result<Arc<dyn Interrupt>, BusError> {
        let line = self.vectors.all.get(usize::from(vector)).cloned();
        let line = line.ok_or_else(|| {
            let count = self.vectors.all.len();
            exhausted("this vector", format!("{vector} of {count}"))
        })?;
        let (cap, bar, table) = self.msix()?;
        // The address means nothing here: the sink gets the vector's number. Unmasked last.
        let entry = table + 16 * u64::from(vector);
        self.bar_write(bar, entry, &0xfee0_0000_u32.to_le_bytes())?;
        self.bar_write(bar, entry + 4, &0_u32.to_le_bytes())?;
        self.bar_write(bar, entry + 8, &u32::from(vector).to_le_bytes())?;
        self.bar_write(bar, entry + 12, &0_u32.to_le_bytes())?;
        let mut control = [0; 2];
        self.config_read(cap + 2, &mut control)?;
        let enabled = u16::from_le_bytes(control) & 0x3fff | 0x8000;
        self.config_write(cap + 2, &enabled.to_le_bytes())?;
        Ok(line)
    }

    fn reset(&self) -> Result<(), BusError> {
        if self.function.reset_and_wait(RESET_TIMEOUT) {
            return Ok(());
        }
        Err(BusError::Unreachable {
            doing: "resetting the function",
            source: io::ErrorKind::TimedOut.into(),
        })
    }
}

fn in_bar(bar: u8, offset: u64, len: usize) -> Result<(), BusError> {
    let end = u64::try_from(len).ok().and_then(|n| offset.checked_add(n));
    match end {
        Some(end) if end <= PciFunction::bar_size(bar) => Ok(()),
        _ => Err(BusError::OutOfRange { bar, offset, len }),
    }
}

/// An anonymous file of zeroes that can be mapped more than once.
pub(crate) fn memory_file(name: &str, len: u64) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.set_len(len)?;
    Ok(file)
}

#[derive(Debug)]
struct Vectors {
    all: Vec<Arc<Line>>,
}

impl InterruptSink for Vectors {
    fn signal(&self, vector: u16) {
        if let Some(line) = self.all.get(usize::from(vector)) {
            *line.fired.lock().unwrap_or_else(PoisonError::into_inner) = true;
            line.changed.notify_all();
        }
    }
}

#[derive(Debug, Default)]
struct Line {
    fired: Mutex<bool>,
    changed: Condvar,
}

impl Interrupt for Line {
    fn wait(&self, timeout: Duration) -> bool {
        let until = Instant::now().checked_add(timeout);
        let mut fired = self.fired.lock().unwrap_or_else(PoisonError::into_inner);
        while !*fired {
            let left = until.map_or(timeout, |u| u.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(fired, left);
            (fired, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        *fired = false;
        true
    }
}
