//! One step of work on a request queue: gather, carry out, complete.
//!
//! The door to guest memory is open while requests are gathered and while they are completed, never
//! during disk I/O; in between, data waits in a bounce buffer of [`BUDGET`] bytes. A request that
//! does not fit into what is left of it is carried out last and by itself, a buffer at a time, so
//! that a chain which claims 4 GiB costs time but no memory.

use super::BlkDevice;
use super::disk::{read_all, write_all, zero_all};
use super::request::{Extent, Op, Request};
use crate::dma::{Dma, DmaGuard};
use crate::queue::{Cursor, Virtqueue};
use crate::virtio::{Progress, QueueError};
use spec::blk::{ID_BYTES, status};
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Requests carried out in one step.
const REQUESTS_MAX: usize = 32;
/// Descriptors after which no more requests are taken into a step: they are walked with the door
/// open, and an unmap waits for that.
const DESCRIPTORS_MAX: u32 = 4096;
/// Bytes of the bounce buffer, and so of the data of one step.
pub(super) const BUDGET: usize = 1 << 20;

/// A request on its way.
struct Job {
    request: Request,
    /// Where its data lies in the bounce buffer.
    bounce: Range<usize>,
    status: u8,
    /// Bytes of the chain written so far, from its first writable byte on.
    written: u64,
}

struct Gathered {
    jobs: Vec<Job>,
    /// Came last and does not fit.
    large: Option<Request>,
    /// The queue was found empty.
    drained: bool,
    /// Why no more can be popped, after all that was gathered.
    broken: Option<QueueError>,
}

pub(super) fn process(
    blk: &BlkDevice,
    queue: &mut Virtqueue,
    dma: &Dma,
    notify: &mut bool,
) -> Result<Progress, QueueError> {
    let mut bounce = blk.bounce.take();
    let result = step(blk, queue, dma, notify, &mut bounce);
    blk.bounce.give_back(bounce);
    result
}

fn step(
    blk: &BlkDevice,
    queue: &mut Virtqueue,
    dma: &Dma,
    notify: &mut bool,
    bounce: &mut [u8],
) -> Result<Progress, QueueError> {
    let Gathered {
        mut jobs,
        large,
        drained,
        broken,
    } = gather(blk, queue, &dma.enter(), bounce)?;

    for job in &mut jobs {
        job.status = carry_out(blk, &job.request.op, bounce, &job.bounce);
    }
    settle(blk, &mut jobs);
    let alone = large.is_some();
    if !jobs.is_empty() || !alone {
        let mem = dma.enter();
        complete(blk, queue, &mem, notify, &mut jobs, bounce)?;
        if drained && broken.is_none() && !alone && !queue.enable_notification(&mem)? {
            return Ok(Progress::Idle);
        }
    }
    if let Some(request) = large {
        let mut job = [carry_out_alone(blk, request, dma, bounce)];
        settle(blk, &mut job);
        complete(blk, queue, &dma.enter(), notify, &mut job, bounce)?;
    }
    broken.map_or(Ok(Progress::More), Err)
}

/// Pops requests and copies what they write, until the queue or the budget is exhausted.
fn gather(
    blk: &BlkDevice,
    queue: &mut Virtqueue,
    mem: &DmaGuard<'_>,
    bounce: &mut [u8],
) -> Result<Gathered, QueueError> {
    let mut gathered = Gathered {
        jobs: Vec::new(),
        large: None,
        drained: false,
        broken: None,
    };
    queue.disable_notification(mem)?;
    let mut filled = 0;
    let mut descriptors: u32 = 0;
    while gathered.jobs.len() < REQUESTS_MAX && descriptors < DESCRIPTORS_MAX {
        let popped = match queue.pop(mem) {
            Ok(Some(chain)) => {
                descriptors = descriptors.saturating_add(chain.descriptors);
                Request::parse(mem, chain, blk.limits).map(Some)
            }
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        let mut request = match popped {
            Ok(Some(request)) => request,
            Ok(None) => {
                gathered.drained = true;
                break;
            }
            Err(error) => {
                gathered.broken = Some(error);
                break;
            }
        };
        let Some(end) = usize::try_from(request.bytes())
            .ok()
            .and_then(|bytes| bytes.checked_add(filled))
            .filter(|&end| end <= bounce.len())
        else {
            gathered.large = Some(request);
            break;
        };
        if let Op::Write(_) = request.op
            && !request.data.read(mem, &mut bounce[filled..end])
        {
            request.op = Op::Refuse(status::IOERR);
        }
        gathered.jobs.push(Job {
            request,
            bounce: filled..end,
            status: status::IOERR,
            written: 0,
        });
        filled = end;
    }
    Ok(gathered)
}

/// Does what a request asks of the disk, with its data in the bounce buffer; returns its status.
fn carry_out(blk: &BlkDevice, op: &Op, bounce: &mut [u8], data: &Range<usize>) -> u8 {
    let disk = &*blk.disk;
    let done = match op {
        Op::Read(extent) => read_all(disk, &mut bounce[data.clone()], extent.offset),
        Op::Write(extent) => write_all(disk, &bounce[data.clone()], extent.offset),
        Op::Flush => disk.flush(),
        Op::GetId => Ok(()),
        Op::Discard(extents) => extents.iter().try_for_each(|extent| discard(blk, extent)),
        Op::WriteZeroes(ranges) => {
            // The bounce buffer holds other requests' data.
            let mut zeroes = blk.bounce.take();
            let done = ranges.iter().try_for_each(|(extent, unmap)| {
                zero_all(disk, extent.offset, extent.len, *unmap, &mut zeroes)
            });
            blk.bounce.give_back(zeroes);
            done
        }
        Op::Refuse(status) => return *status,
    };
    status_of(op, done)
}

fn status_of(op: &Op, done: io::Result<()>) -> u8 {
    match done {
        Ok(()) => status::OK,
        Err(error) => {
            tracing::warn!(?op, %error, "request failed");
            status::IOERR
        }
    }
}

/// DISCARD is a hint: storage that cannot give up a range keeps it.
fn discard(blk: &BlkDevice, extent: &Extent) -> io::Result<()> {
    match blk.disk.punch(extent.offset, extent.len) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
        done => done,
    }
}

/// Carries out a request of any size, a buffer at a time.
fn carry_out_alone(blk: &BlkDevice, mut request: Request, dma: &Dma, bounce: &mut [u8]) -> Job {
    let mut written = 0;
    let status = match request.op {
        Op::Read(extent) => chunks(extent, bounce.len(), |offset, len| {
            let data = bounce.get_mut(..len).ok_or(io::ErrorKind::InvalidData)?;
            read_all(&*blk.disk, data, offset)?;
            let stored = store(&dma.enter(), &mut request.data, data);
            written += stored;
            whole(stored, len)
        }),
        Op::Write(extent) => chunks(extent, bounce.len(), |offset, len| {
            let data = bounce.get_mut(..len).ok_or(io::ErrorKind::InvalidData)?;
            if !request.data.read(&dma.enter(), data) {
                return Err(io::ErrorKind::AddrNotAvailable.into());
            }
            write_all(&*blk.disk, data, offset)
        }),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    Job {
        status: status_of(&request.op, status),
        request,
        bounce: 0..0,
        written,
    }
}

fn chunks(
    extent: Extent,
    most: usize,
    mut each: impl FnMut(u64, usize) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < extent.len {
        let left = extent.len - done;
        let now = usize::try_from(left).map_or(most, |left| left.min(most));
        each(extent.offset + done, now)?;
        done += u64::try_from(now).unwrap_or(left);
    }
    Ok(())
}

fn whole(stored: u64, len: usize) -> io::Result<()> {
    if u64::try_from(len) == Ok(stored) {
        Ok(())
    } else {
        Err(io::ErrorKind::AddrNotAvailable.into())
    }
}

/// Stores data in guest memory and marks it; returns how many bytes could be stored.
fn store(mem: &DmaGuard<'_>, to: &mut Cursor, data: &[u8]) -> u64 {
    let mut burst = mem.burst();
    let stored = to.write(&mut burst, data);
    burst.commit();
    u64::try_from(stored).unwrap_or(u64::MAX)
}

/// What has to be true of the disk before completion is told, and what is counted.
fn settle(blk: &BlkDevice, jobs: &mut [Job]) {
    let changes = |job: &Job| {
        job.status == status::OK
            && matches!(
                job.request.op,
                Op::Write(_) | Op::WriteZeroes(_) | Op::Discard(_)
            )
    };
    // A driver that did not accept FLUSH cannot ask for durability, so every write has it (VIRTIO
    // 1.4, "Block Device / Device Operation", on writes becoming stable).
    if blk.writethrough.load(Ordering::Relaxed)
        && jobs.iter().any(changes)
        && let Err(error) = blk.disk.flush()
    {
        tracing::warn!(%error, "writes are not durable");
        for job in jobs.iter_mut().filter(|job| changes(job)) {
            job.status = status::IOERR;
        }
    }
}

/// Stores what requests return and their status bytes, marks that, then publishes them.
fn complete(
    blk: &BlkDevice,
    queue: &mut Virtqueue,
    mem: &DmaGuard<'_>,
    notify: &mut bool,
    jobs: &mut [Job],
    bounce: &[u8],
) -> Result<(), QueueError> {
    let mut burst = mem.burst();
    let mut answered = 0;
    for job in jobs.iter_mut() {
        let request = &mut job.request;
        let returned = match request.op {
            _ if job.status != status::OK => &[],
            Op::Read(_) => &bounce[job.bounce.clone()],
            Op::GetId => {
                let room = usize::try_from(request.room).unwrap_or(ID_BYTES);
                &blk.id[..room.min(ID_BYTES)]
            }
            _ => &[],
        };
        let stored = request.data.write(&mut burst, returned);
        if stored != returned.len() {
            job.status = status::IOERR;
        }
        job.written += u64::try_from(stored).unwrap_or(0);
        if burst.write(request.status_at, &[job.status]).is_err() {
            break;
        }
        blk.counters.count(&request.op, job.status);
        // The status byte counts only if nothing is missing before it: `len` promises that the
        // chain is written from its beginning.
        job.written += u64::from(job.written == request.room);
        answered += 1;
    }
    burst.commit();

    let mut pushed = Ok(());
    for job in &jobs[..answered] {
        let len = u32::try_from(job.written).unwrap_or(u32::MAX);
        pushed = queue.push(mem, job.request.head, len);
        if pushed.is_err() {
            break;
        }
    }
    *notify |= queue.needs_notification(mem)?;
    pushed?;
    match jobs.get(answered) {
        None => Ok(()),
        Some(job) => Err(QueueError::broken(format!(
            "chain {}: the status byte is no longer mapped",
            job.request.head
        ))),
    }
}
