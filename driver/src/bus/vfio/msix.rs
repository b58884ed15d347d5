//! One eventfd for each MSI-X vector.

use super::raw;
use crate::bus::{BusError, Interrupt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vfio_bindings::bindings::vfio::VFIO_PCI_MSIX_IRQ_INDEX;
use vfio_ioctls::VfioDevice;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Most vectors that MSI-X can have.
const VECTORS_MAX: u32 = 2048;

/// All vectors of a device, connected.
#[derive(Debug)]
pub(super) struct Vectors(Vec<Arc<Line>>);

impl Vectors {
    /// Connects all of them and so lets the device interrupt.
    pub(super) fn connect(device: &VfioDevice) -> Result<Self, BusError> {
        let refused = |why: String| BusError::Exhausted {
            what: "MSI-X interrupts".to_owned(),
            why,
        };
        let info = device.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX);
        let count = info.map_or(0, |info| info.count.min(VECTORS_MAX));
        if count == 0 {
            return Err(refused("the function has none".to_owned()));
        }
        let lines = (0..count)
            .map(|_| Line::new().map(Arc::new))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| refused(error.to_string()))?;
        let events = lines.iter().map(|line| &line.event).collect();
        device
            .enable_msix(events)
            .map_err(|error| refused(error.to_string()))?;
        Ok(Self(lines))
    }

    /// The receiving end of one vector.
    pub(super) fn line(&self, vector: u16) -> Result<Arc<dyn Interrupt>, BusError> {
        match self.0.get(usize::from(vector)) {
            Some(line) => Ok(Arc::clone(line) as Arc<dyn Interrupt>),
            None => Err(BusError::Exhausted {
                what: format!("interrupt vector {vector}"),
                why: format!("the function has {}", self.0.len()),
            }),
        }
    }
}

/// One vector.
#[derive(Debug)]
struct Line {
    event: EventFd,
    /// The same eventfd, to be waited for.
    readable: OwnedFd,
}

impl Line {
    fn new() -> std::io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let readable = raw::duplicate(&event)?;
        Ok(Self { event, readable })
    }
}

impl Interrupt for Line {
    fn wait(&self, timeout: Duration) -> bool {
        let begin = Instant::now();
        loop {
            let left = timeout.saturating_sub(begin.elapsed());
            // A time that the system cannot express is for ever.
            let left = Timespec::try_from(left).ok();
            let mut fds = [PollFd::new(&self.readable, PollFlags::IN)];
            match poll(&mut fds, left.as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                // Another thread may have fetched it since: then it has not fired for this one.
                Ok(1..) => return self.event.read().is_ok(),
                Ok(0) | Err(_) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_told_once() {
        let line = Line::new().unwrap();
        assert!(!line.wait(Duration::ZERO));
        line.event.write(1).unwrap();
        line.event.write(1).unwrap();
        assert!(line.wait(Duration::MAX));
        assert!(!line.wait(Duration::from_millis(1)));
    }
}
