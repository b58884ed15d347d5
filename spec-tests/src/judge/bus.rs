//! The way to a served function within one process.

use device::serve::vfio_user::{IrqRequest, Map, Served};
use driver::bus::{Bus, BusError, Interrupt};
use driver::memory::DmaMemory;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vm_memory::Permissions;

use super::Judge;

/// First address of memory that the bus gives.
const FIRST_IOVA: u64 = 1 << 20;

/// A bus with a judging function on it. While a driver waits for an interrupt, what it has exposed
/// is answered: nothing depends on how fast anybody is.
#[derive(Debug)]
pub struct JudgedBus {
    judge: Arc<Judge>,
    next: Mutex<u64>,
}

impl JudgedBus {
    /// Plugs the function in.
    pub fn new(judge: Arc<Judge>) -> Arc<Self> {
        Arc::new(Self {
            judge,
            next: Mutex::new(FIRST_IOVA),
        })
    }

    /// The function.
    pub fn judge(&self) -> &Arc<Judge> {
        &self.judge
    }
}

fn refused(what: &str, why: impl std::fmt::Display) -> BusError {
    BusError::Exhausted {
        what: what.to_owned(),
        why: why.to_string(),
    }
}

impl Bus for JudgedBus {
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<(), BusError> {
        self.judge.config_read(offset, data);
        Ok(())
    }
    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), BusError> {
        self.judge.config_write(offset, data);
        Ok(())
    }
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
        self.judge.bar_read(bar, offset, data);
        Ok(())
    }
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), BusError> {
        self.judge.bar_write(bar, offset, data);
        Ok(())
    }
    fn dma_alloc(&self, len: u64) -> Result<DmaMemory, BusError> {
        let size = len.next_multiple_of(4096).max(4096);
        let file = rustix::fs::memfd_create("tidemark-judged", MemfdFlags::CLOEXEC);
        let file = File::from(file.map_err(|error| refused("memory", error))?);
        file.set_len(size)
            .map_err(|error| refused("memory", error))?;
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = DmaMemory::from_file(&file, 0, size, *next);
        let memory = memory.map_err(|error| refused("memory", error))?;
        let map = self.judge.map(Map {
            iova: *next,
            size,
            perm: Permissions::ReadWrite,
            memory: Some((file, 0)),
        });
        map.map_err(|error| refused("memory", error))?;
        *next += size;
        Ok(memory)
    }
    fn interrupt(&self, vector: u16) -> Result<Arc<dyn Interrupt>, BusError> {
        if vector >= self.judge.vectors() {
            return Err(refused(
                "this vector",
                format!("{vector} of {}", self.judge.vectors()),
            ));
        }
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let ours = File::from(fd.map_err(|error| refused("an eventfd", error))?);
        let theirs = ours
            .try_clone()
            .map_err(|error| refused("an eventfd", error))?;
        let range = usize::from(vector)..usize::from(vector) + 1;
        self.judge
            .interrupts(IrqRequest::Connect(range), vec![theirs]);
        Ok(Arc::new(Line {
            judge: Arc::clone(&self.judge),
            event: ours,
        }))
    }
    fn reset(&self) -> Result<(), BusError> {
        Served::reset(&*self.judge).map_err(|error| refused("a reset", error))
    }
}

#[derive(Debug)]
struct Line {
    judge: Arc<Judge>,
    event: File,
}

impl Line {
    fn fired(&self) -> bool {
        let mut count = [0; 8];
        matches!((&self.event).read(&mut count), Ok(8))
    }
}

impl Interrupt for Line {
    fn wait(&self, timeout: Duration) -> bool {
        if self.fired() {
            return true;
        }
        self.judge.settle(true);
        if self.fired() {
            return true;
        }
        let mut fds = [PollFd::new(&self.event, PollFlags::IN)];
        let timeout = Timespec::try_from(timeout).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => self.fired(),
            Err(error) => {
                io::Error::from(error).kind() != io::ErrorKind::Interrupted && self.fired()
            }
        }
    }
}
