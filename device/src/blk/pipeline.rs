//! One step of work on a request queue: requests are gathered, carried out, and completed in the
//! order in which they were popped.
//!
//! The door to guest memory is open while requests are gathered and completed, never during disk
//! I/O; in between, data waits in buffers of at most [`BUDGET`] bytes. Where the kernel does the
//! I/O by itself, new requests are gathered as soon as the first ones are completed, so that the
//! storage always has as many as the driver offers; a step still ends with nothing in flight.
//!
//! A request that has to be by itself waits until all before it are completed, and nothing is
//! gathered behind it: one that changes what completed writes mean (FLUSH, and DISCARD and
//! WRITE_ZEROES, which go around the buffers), and one that does not fit into a buffer. That one is
//! carried out a buffer at a time, so that a chain which claims 4 GiB costs time but no memory.

use super::BlkDevice;
use super::buffer::{Buffer, Spares};
use super::counters::Activity;
use super::disk::{read_all, write_all, zero_all};
use super::request::{Extent, Op, Request};
use super::ring::{Direction, Ring};
use crate::dma::{Dma, DmaGuard};
use crate::queue::{Cursor, Virtqueue};
use crate::virtio::{Progress, QueueError};
use spec::blk::{ID_BYTES, status};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;

/// Requests in flight at once, and so entries of a [`Ring`].
pub(super) const REQUESTS_MAX: u8 = 64;
/// Requests after which a step takes no more, for the sake of other queues.
const STEP_MAX: u32 = 1024;
/// Descriptors after which a step takes no more requests: they are walked with the door open, and
/// an unmap waits for that.
const DESCRIPTORS_MAX: u32 = 4096;
/// Of many requests with the kernel, one in so many is waited for at once: a driver that is woken
/// for each by itself is busy with waking, and so are we.
const COALESCE: usize = 4;
/// Requests through the page cache that are carried out before the first of them is completed. They
/// take no time but ours, and the driver has the next ones ready while it is at these.
const CACHED_MAX: usize = 16;
/// Bytes of data in flight, and so of the largest buffer.
pub(super) const BUDGET: usize = 1 << 20;

/// What one worker needs for one queue.
#[derive(Debug)]
pub(super) struct Lane {
    spares: Spares,
    /// None if the disk is not a file, or the system has no io_uring for us.
    ring: Option<Ring>,
}

impl Lane {
    pub(super) fn new(ring: Option<Ring>) -> Self {
        Self {
            spares: Spares::default(),
            ring,
        }
    }
}

/// A request on its way.
#[derive(Debug)]
struct Job {
    request: Request,
    /// Its data, unless the kernel has it.
    data: Option<Buffer>,
    /// Bytes of its data.
    bytes: usize,
    /// The status to answer, once the request is carried out.
    status: Option<u8>,
    /// Bytes of the chain written so far, from its first writable byte on.
    written: u64,
}

struct Pipeline<'a> {
    blk: &'a BlkDevice,
    /// Told what is in flight, if somebody counts the queue's.
    activity: Option<&'a Activity>,
    lane: &'a mut Lane,
    /// In the order of popping.
    jobs: VecDeque<Job>,
    /// Jobs that were completed before the first of `jobs`: its number. Numbers are tags in the
    /// ring.
    first: u64,
    /// Jobs, from the front, whose I/O has begun.
    launched: usize,
    /// Bytes of data of `jobs`.
    bytes: usize,
    popped: u32,
    /// Descriptors of what was popped.
    descriptors: u32,
    /// Has to be by itself.
    alone: Option<Request>,
    /// The queue was found empty, last time.
    drained: bool,
    /// Why no more can be popped, after all that was gathered.
    broken: Option<QueueError>,
}

pub(super) fn process(
    blk: &BlkDevice,
    activity: Option<&Activity>,
    queue: &mut Virtqueue,
    dma: &Dma,
    notify: &mut dyn FnMut(),
) -> Result<Progress, QueueError> {
    let _turn = blk.turn();
    let mut lane = blk.lanes.take();
    let mut pipeline = Pipeline {
        blk,
        activity,
        lane: &mut lane,
        jobs: VecDeque::new(),
        first: 0,
        launched: 0,
        bytes: 0,
        popped: 0,
        descriptors: 0,
        alone: None,
        drained: false,
        broken: None,
    };
    let result = pipeline.run(queue, dma, notify);
    if result.is_err() {
        // The queue is broken, and what it has with the kernel must not come back to another one.
        pipeline.abandon();
    }
    blk.lanes.give_back(lane);
    if let Some(activity) = activity {
        activity.in_flight(0);
    }
    result
}

impl Pipeline<'_> {
    fn run(
        &mut self,
        queue: &mut Virtqueue,
        dma: &Dma,
        notify: &mut dyn FnMut(),
    ) -> Result<Progress, QueueError> {
        {
            let mem = dma.enter();
            queue.disable_notification(&mem)?;
            self.gather(queue, &mem);
        }
        loop {
            self.launch();
            if self.jobs.is_empty() {
                let Some(request) = self.alone.take() else {
                    break;
                };
                let job = self.carry_out_alone(request, dma);
                self.jobs.push_back(job);
                self.launched = 1;
            }
            self.advance();
            let ready = self.settle();
            let mut used = false;
            let completed = {
                let mem = dma.enter();
                let completed = self.complete(queue, &mem, &mut used, ready);
                if completed.is_ok() {
                    self.gather(queue, &mem);
                }
                completed
            };
            if used {
                // Now, and not at the end of the step: a driver that is told late asks late.
                notify();
            }
            completed?;
        }
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        if self.drained && !queue.enable_notification(&dma.enter())? {
            return Ok(Progress::Idle);
        }
        Ok(Progress::More)
    }

    /// Pops requests and copies what they write, until the queue or a limit is exhausted.
    fn gather(&mut self, queue: &mut Virtqueue, mem: &DmaGuard<'_>) {
        self.take(queue, mem);
        if let Some(activity) = self.activity {
            activity.in_flight(self.jobs.len() + usize::from(self.alone.is_some()));
        }
    }

    fn take(&mut self, queue: &mut Virtqueue, mem: &DmaGuard<'_>) {
        self.drained = false;
        while self.alone.is_none()
            && self.broken.is_none()
            && self.jobs.len() < usize::from(REQUESTS_MAX)
            && self.popped < STEP_MAX
            && self.descriptors < DESCRIPTORS_MAX
        {
            let popped = match queue.pop(mem) {
                Ok(Some(chain)) => {
                    self.descriptors = self.descriptors.saturating_add(chain.descriptors);
                    Request::parse(mem, chain, self.blk.limits).map(Some)
                }
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            };
            match popped {
                Ok(Some(request)) => self.accept(request, mem),
                Ok(None) => {
                    self.drained = true;
                    return;
                }
                Err(error) => self.broken = Some(error),
            }
            self.popped += 1;
        }
    }

    fn accept(&mut self, mut request: Request, mem: &DmaGuard<'_>) {
        let by_itself = matches!(request.op, Op::Flush | Op::Discard(_) | Op::WriteZeroes(_));
        let bytes = usize::try_from(request.bytes()).unwrap_or(usize::MAX);
        let fits = self
            .bytes
            .checked_add(bytes)
            .is_some_and(|sum| sum <= BUDGET);
        if by_itself || !fits {
            self.alone = Some(request);
            return;
        }
        let mut data = (bytes != 0).then(|| self.lane.spares.take(bytes));
        if let (Op::Write(_), Some(data)) = (&request.op, &mut data)
            && !request.data.read(mem, data.bytes_mut())
        {
            request.op = Op::Refuse(status::IOERR);
        }
        self.bytes += bytes;
        self.jobs.push_back(Job {
            request,
            data,
            bytes,
            status: None,
            written: 0,
        });
    }

    /// Begins the I/O of the jobs that were gathered, or does it.
    fn launch(&mut self) {
        let blk = self.blk;
        // A flush is paid for by as many writes as there are.
        let most = if blk.direct || blk.writethrough.load(Ordering::Relaxed) {
            usize::MAX
        } else {
            CACHED_MAX
        };
        let waiting = self.jobs.iter_mut().zip(self.first..).skip(self.launched);
        for (job, number) in waiting.take(most) {
            self.launched += 1;
            let (direction, extent) = match &job.request.op {
                Op::Read(extent) => (Direction::Read, *extent),
                Op::Write(extent) => (Direction::Write, *extent),
                Op::Refuse(status) => {
                    job.status = Some(*status);
                    continue;
                }
                // Nothing to do, or nothing that comes here.
                _ => {
                    job.status = Some(status::OK);
                    continue;
                }
            };
            if let (Some(ring), Some(file)) = (&mut self.lane.ring, blk.asynchronous(direction))
                && let Some(buffer) = job.data.take()
            {
                match ring.prepare(number, direction, file, extent.offset, buffer) {
                    Ok(()) => continue,
                    Err(buffer) => job.data = Some(buffer),
                }
            }
            let done = match (&mut job.data, direction) {
                (None, _) => Ok(()),
                (Some(data), Direction::Read) => {
                    read_all(&*blk.disk, data.bytes_mut(), extent.offset)
                }
                (Some(data), Direction::Write) => {
                    write_all(&*blk.disk, data.bytes(), extent.offset)
                }
            };
            job.status = Some(status_of(&job.request.op, done));
        }
    }

    /// Submits what was begun, and returns when the first job at least is carried out.
    fn advance(&mut self) {
        loop {
            let Some(ring) = &mut self.lane.ring else {
                return;
            };
            let wait = match self.jobs.front() {
                Some(job) if job.status.is_none() => 1.max(ring.in_flight() / COALESCE),
                _ => 0,
            };
            let (jobs, first) = (&mut self.jobs, self.first);
            let turned = ring.turn(wait, |number, buffer, result| {
                let index = usize::try_from(number.wrapping_sub(first)).ok();
                if let Some(job) = index.and_then(|index| jobs.get_mut(index)) {
                    job.status = Some(status_of(&job.request.op, result));
                    job.data = Some(buffer);
                }
            });
            if let Err(error) = turned {
                tracing::error!(%error, "io_uring fails; disk I/O goes on one request at a time");
                self.lane.ring = None;
                for job in self.jobs.iter_mut().filter(|job| job.status.is_none()) {
                    job.status = Some(status::IOERR);
                }
            }
            if self.jobs.front().is_none_or(|job| job.status.is_some()) {
                return;
            }
        }
    }

    /// Waits for what is with the kernel and forgets it.
    fn abandon(&mut self) {
        while let Some(ring) = self.lane.ring.as_mut().filter(|ring| ring.in_flight() != 0) {
            if ring.turn(1, |_, _, _| {}).is_err() {
                // Dropped, it keeps the memory that it cannot get back.
                self.lane.ring = None;
            }
        }
    }

    /// What has to be true of the disk before completion is told; returns how many jobs, from the
    /// front, are then to be completed.
    fn settle(&mut self) -> usize {
        let done = |job: &&mut Job| job.status.is_some();
        let changes = |job: &Job| {
            job.status == Some(status::OK)
                && matches!(
                    job.request.op,
                    Op::Write(_) | Op::WriteZeroes(_) | Op::Discard(_)
                )
        };
        let mut ready: Vec<_> = self.jobs.iter_mut().take_while(done).collect();
        // A driver that did not accept FLUSH cannot ask for durability, so every write has it
        // (VIRTIO 1.4, "Block Device / Device Operation", on writes becoming stable).
        if self.blk.writethrough.load(Ordering::Relaxed)
            && ready.iter().any(|job| changes(job))
            && let Err(error) = self.blk.disk.flush()
        {
            tracing::warn!(%error, "writes are not durable");
            for job in ready.iter_mut().filter(|job| changes(job)) {
                job.status = Some(status::IOERR);
            }
        }
        ready.len()
    }

    /// Carries out a request of any kind and size, a buffer at a time.
    fn carry_out_alone(&mut self, mut request: Request, dma: &Dma) -> Job {
        let disk = &*self.blk.disk;
        let mut buffer = self.lane.spares.take(BUDGET);
        let bounce = buffer.bytes_mut();
        let mut written = 0;
        let done = match &request.op {
            Op::Flush => disk.flush(),
            Op::Discard(extents) => extents.iter().try_for_each(|at| discard(self.blk, at)),
            Op::WriteZeroes(ranges) => ranges.iter().try_for_each(|(extent, unmap)| {
                zero_all(disk, extent.offset, extent.len, *unmap, bounce)
            }),
            Op::Read(extent) => chunks(*extent, bounce.len(), |offset, len| {
                let data = bounce.get_mut(..len).ok_or(io::ErrorKind::InvalidData)?;
                read_all(disk, data, offset)?;
                let stored = store(&dma.enter(), &mut request.data, data);
                written += stored;
                whole(stored, len)
            }),
            Op::Write(extent) => chunks(*extent, bounce.len(), |offset, len| {
                let data = bounce.get_mut(..len).ok_or(io::ErrorKind::InvalidData)?;
                if !request.data.read(&dma.enter(), data) {
                    return Err(io::ErrorKind::AddrNotAvailable.into());
                }
                write_all(disk, data, offset)
            }),
            Op::GetId | Op::Refuse(_) => Err(io::ErrorKind::InvalidInput.into()),
        };
        self.lane.spares.give_back(buffer);
        Job {
            status: Some(status_of(&request.op, done)),
            request,
            data: None,
            bytes: 0,
            written,
        }
    }

    /// Stores what the first `ready` requests return and their status bytes, marks that, then
    /// publishes them.
    fn complete(
        &mut self,
        queue: &mut Virtqueue,
        mem: &DmaGuard<'_>,
        used: &mut bool,
        ready: usize,
    ) -> Result<(), QueueError> {
        let blk = self.blk;
        let mut burst = mem.burst();
        let mut answered = 0;
        for job in self.jobs.iter_mut().take(ready) {
            let request = &mut job.request;
            let mut status = job.status.unwrap_or(status::IOERR);
            let returned = match (&request.op, &job.data) {
                _ if status != status::OK => &[],
                (Op::Read(_), Some(data)) => data.bytes(),
                (Op::GetId, _) => {
                    let room = usize::try_from(request.room).unwrap_or(ID_BYTES);
                    &blk.id[..room.min(ID_BYTES)]
                }
                _ => &[],
            };
            let stored = request.data.write(&mut burst, returned);
            if stored != returned.len() {
                status = status::IOERR;
            }
            job.written += u64::try_from(stored).unwrap_or(0);
            if burst.write(request.status_at, &[status]).is_err() {
                break;
            }
            blk.counters.count(&request.op, status);
            // The status byte counts only if nothing is missing before it: `len` promises that the
            // chain is written from its beginning.
            job.written += u64::from(job.written == request.room);
            answered += 1;
        }
        burst.commit();

        let mut pushed = Ok(());
        for job in self.jobs.iter().take(answered) {
            let len = u32::try_from(job.written).unwrap_or(u32::MAX);
            pushed = queue.push(mem, job.request.head, len);
            if pushed.is_err() {
                break;
            }
        }
        *used |= queue.needs_notification(mem)?;
        pushed?;
        if let Some(job) = self.jobs.get(answered).filter(|_| answered < ready) {
            return Err(QueueError::broken(format!(
                "chain {}: the status byte is no longer mapped",
                job.request.head
            )));
        }
        if let Some(activity) = self.activity {
            activity.answered(ready);
        }
        for job in self.jobs.drain(..ready) {
            self.bytes -= job.bytes;
            if let Some(buffer) = job.data {
                self.lane.spares.give_back(buffer);
            }
            self.first += 1;
        }
        self.launched -= ready;
        Ok(())
    }
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
