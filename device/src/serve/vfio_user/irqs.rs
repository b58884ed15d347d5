//! SET_IRQS, judged: which interrupts, what to do with them, and with which eventfds.

use super::message::{IrqInfo, SetIrqs};
use super::served::{IrqRequest, Refusal, Served};
use rustix::io::Errno;
use std::fs::{self, File};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_NORESIZE, VFIO_IRQ_SET_ACTION_MASK,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_BOOL,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS,
};

const DATA: u32 = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_DATA_BOOL | VFIO_IRQ_SET_DATA_EVENTFD;
const ACTION: u32 =
    VFIO_IRQ_SET_ACTION_MASK | VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_ACTION_TRIGGER;

/// The answer to DEVICE_GET_IRQ_INFO. All kinds that VFIO knows are there; only MSI-X has vectors.
pub(super) fn info(served: &dyn Served, index: u32) -> Result<IrqInfo, Refusal> {
    let (flags, count) = match index {
        VFIO_PCI_MSIX_IRQ_INDEX => (
            VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE,
            u32::from(served.vectors()),
        ),
        _ => (0, 0),
    };
    known(index)?;
    Ok(IrqInfo {
        flags: flags.into(),
        index: index.into(),
        count: count.into(),
        ..IrqInfo::default()
    })
}

fn known(index: u32) -> Result<(), Refusal> {
    if index < VFIO_PCI_NUM_IRQS {
        return Ok(());
    }
    let why = format!("interrupts of kind {index}, there are {VFIO_PCI_NUM_IRQS}");
    Err(Refusal::invalid(why))
}

/// Carries SET_IRQS out, or nothing of it.
pub(super) fn set(
    served: &dyn Served,
    ask: &SetIrqs,
    data: &[u8],
    fds: Vec<OwnedFd>,
) -> Result<(), Refusal> {
    let index = ask.index.get();
    known(index)?;
    if index != VFIO_PCI_MSIX_IRQ_INDEX {
        // All of none may be disabled, as VMMs do when they leave.
        return requests(ask, data, fds.len(), 0).map(drop);
    }
    let vectors = usize::from(served.vectors());
    for request in requests(ask, data, fds.len(), vectors)? {
        let eventfds = match request {
            IrqRequest::Connect(_) => fds.into_iter().map(eventfd).collect::<Result<_, _>>()?,
            IrqRequest::DisableAll | IrqRequest::Trigger(_) => {
                served.interrupts(request, Vec::new());
                continue;
            }
        };
        // The only one: there is one range for eventfds.
        served.interrupts(request, eventfds);
        break;
    }
    Ok(())
}

/// What a message comes to: one request, or one for each run of vectors that are to be raised.
pub(super) fn requests(
    ask: &SetIrqs,
    data: &[u8],
    fds: usize,
    vectors: usize,
) -> Result<Vec<IrqRequest>, Refusal> {
    let SetIrqs {
        flags,
        start,
        count,
        ..
    } = ask;
    let (flags, start, count) = (flags.get(), start.get(), count.get());
    let bad = |why: &str| {
        let text = format!("SET_IRQS with flags {flags:#x}, start {start}, count {count}: {why}");
        Refusal::invalid(text)
    };
    if flags & !(DATA | ACTION) != 0
        || (flags & DATA).count_ones() != 1
        || (flags & ACTION).count_ones() != 1
    {
        return Err(bad("one DATA and one ACTION flag expected"));
    }
    let eventfds = flags & VFIO_IRQ_SET_DATA_EVENTFD != 0;
    if fds != 0 && !eventfds {
        return Err(bad("descriptors, none expected"));
    }
    let bytes = match flags & VFIO_IRQ_SET_DATA_BOOL {
        0 => 0,
        _ => usize::try_from(count).unwrap_or(usize::MAX),
    };
    if data.len() != bytes {
        return Err(bad(&format!(
            "{} bytes of data, {bytes} expected",
            data.len()
        )));
    }
    let all = (start, count) == (0, 0);
    if all && flags == VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER {
        return Ok(vec![IrqRequest::DisableAll]);
    }
    let range = range(start, count).filter(|range| !range.is_empty() && range.end <= vectors);
    let range = range.ok_or_else(|| bad(&format!("there are {vectors} vectors")))?;
    if flags & VFIO_IRQ_SET_ACTION_TRIGGER == 0 {
        // Which is not announced: a VMM masks MSI-X by itself, as over the kernel's VFIO.
        let why = "these interrupts cannot be masked here";
        return Err(Refusal::new(Errno::NOTTY, why));
    }
    if eventfds {
        if fds != 0 && fds != range.len() {
            return Err(bad(&format!("{fds} eventfds, none or {count} expected")));
        }
        return Ok(vec![IrqRequest::Connect(range)]);
    }
    if bytes == 0 {
        return Ok(vec![IrqRequest::Trigger(range)]);
    }
    let chosen = range.zip(data).filter(|(_, wanted)| **wanted != 0);
    Ok(chosen
        .map(|(vector, _)| IrqRequest::Trigger(vector..vector + 1))
        .collect())
}

fn range(start: u32, count: u32) -> Option<Range<usize>> {
    let start = usize::try_from(start).ok()?;
    Some(start..start.checked_add(usize::try_from(count).ok()?)?)
}

/// Interrupts are sent with the function's locks held, so what is written to must never block. A
/// full pipe would; an eventfd does only after 2^64 - 2 interrupts that nobody fetched.
fn eventfd(fd: OwnedFd) -> Result<File, Refusal> {
    let file = File::from(fd);
    let name = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    // Without /proc the client is believed.
    if name.map_or(true, |name| name.to_string_lossy().contains("[eventfd")) {
        return Ok(file);
    }
    Err(Refusal::invalid(
        "something else than an eventfd for a vector",
    ))
}
