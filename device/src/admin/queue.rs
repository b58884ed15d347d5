//! Administration queues: from chains of descriptors to commands and back.
//!
//! Commands of one queue are carried out in their order (AQ-6), one at a time. One that has to wait
//! is given back to the queue and the queue sleeps; a member that moves wakes it.

use super::{Admin, AdminAnswer, Command, Refusal, Reply};
use crate::dma::{Dma, DmaGuard};
use crate::queue::{Chain, Cursor, Virtqueue};
use crate::virtio::{Progress, QueueError};
use spec::admin::{ResultHeader, opcode, qualifier, status};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use zerocopy::IntoBytes;

/// Commands of one step.
const COMMANDS_MAX: usize = 8;
/// Bytes of a command that are looked at: all that any command has, and many parts.
const DATA_MAX: u64 = 64 << 10;
const HEADER: usize = size_of::<ResultHeader>();

impl Admin {
    /// One step of the work of administration queue `queue`, counted from 0.
    pub(super) fn process(
        &self,
        queue: u16,
        ring: &mut Virtqueue,
        dma: &Dma,
        notify: &mut dyn FnMut(),
    ) -> Result<Progress, QueueError> {
        let Some(waits) = self.waits.get(usize::from(queue)) else {
            return Ok(Progress::Idle);
        };
        for _ in 0..COMMANDS_MAX {
            let (chain, bytes) = {
                let mem = dma.enter();
                let Some(chain) = ring.pop(&mem)? else {
                    let more = ring.enable_notification(&mem)?;
                    return Ok(if more { Progress::More } else { Progress::Idle });
                };
                let bytes = readable(&mem, &chain);
                (chain, bytes)
            };
            let (opcode, answer) = self.answer(waits, &chain, bytes.as_deref(), dma);
            let mem = dma.enter();
            if let Err(Refusal::Wait) = answer {
                ring.unpop();
                ring.enable_notification(&mem)?;
                return Ok(Progress::Idle);
            }
            self.count(opcode, &answer);
            let len = write(&mem, chain.writable, answer);
            ring.push(&mem, chain.head, len)?;
            if ring.needs_notification(&mem)? {
                drop(mem);
                notify();
            }
        }
        Ok(Progress::More)
    }

    fn answer(
        &self,
        waits: &AtomicBool,
        chain: &Chain,
        bytes: Option<&[u8]>,
        dma: &Dma,
    ) -> (Option<u16>, Result<Reply, Refusal>) {
        let room = writable(&dma.enter(), chain).saturating_sub(HEADER);
        // What is not mapped is not missing: a command that cannot be read is none.
        let Some(bytes) = bytes else {
            return (None, Err(Refusal::einval(qualifier::INVALID_COMMAND)));
        };
        let command = Command::read(bytes, room);
        // A member that moves between the two looks wakes the queue; one that moved before the
        // second has been seen by it.
        let mut answer = self.execute(&command);
        if let Err(Refusal::Wait) = answer {
            waits.store(true, Ordering::Release);
            fence(Ordering::SeqCst);
            answer = self.execute(&command);
        }
        if !matches!(answer, Err(Refusal::Wait)) {
            waits.store(false, Ordering::Release);
        }
        tracing::debug!(
            opcode = command.opcode,
            group = command.group_type,
            member = command.member,
            answer = ?answer.as_ref().map(|reply| reply.output),
            "administration command"
        );
        (Some(command.opcode), answer)
    }

    fn count(&self, opcode: Option<u16>, answer: &Result<Reply, Refusal>) {
        let (status, qualifier) = match answer {
            Err(Refusal::Status(status, qualifier)) => (*status, *qualifier),
            Err(Refusal::Wait) => return,
            Ok(_) => (status::OK, qualifier::OK),
        };
        let answer = AdminAnswer {
            opcode: opcode.filter(|opcode| opcode::name(*opcode).is_some()),
            status,
            qualifier,
        };
        let answered = self.answered.lock();
        let mut answered = answered.unwrap_or_else(PoisonError::into_inner);
        *answered.entry(answer).or_default() += 1;
    }
}

/// The device-readable part, as far as it is looked at; `None` if that is not all mapped.
fn readable(mem: &DmaGuard<'_>, chain: &Chain) -> Option<Vec<u8>> {
    let len = usize::try_from(chain.readable_len().min(DATA_MAX)).unwrap_or(0);
    let mut bytes = vec![0; len];
    let read = Cursor::new(chain.readable.clone()).read(mem, &mut bytes);
    read.then_some(bytes)
}

/// Bytes of the device-writable part from its beginning on that are mapped for it.
fn writable(mem: &DmaGuard<'_>, chain: &Chain) -> usize {
    let mut room = 0_usize;
    for &(iova, len) in &chain.writable {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if !mem.is_writable(iova, len) {
            break;
        }
        room = room.saturating_add(len);
    }
    room
}

/// Writes an answer in multiples of 8 bytes (AQ-5), as far as the buffer goes; returns how much.
fn write(mem: &DmaGuard<'_>, buffers: Vec<(u64, u32)>, answer: Result<Reply, Refusal>) -> u32 {
    let (status, status_qualifier, reply) = match answer {
        Ok(reply) => (status::OK, qualifier::OK, reply),
        Err(Refusal::Status(status, qualifier)) => (status, qualifier, Reply::default()),
        // Not reached: it is not answered.
        Err(Refusal::Wait) => (status::EAGAIN, qualifier::TRYAGAIN, Reply::default()),
    };
    let header = ResultHeader {
        status: status.into(),
        status_qualifier: status_qualifier.into(),
        output: reply.output.into(),
    };
    let mut burst = mem.burst();
    let mut cursor = Cursor::new(buffers);
    let mut written = cursor.write(&mut burst, header.as_bytes());
    let mut result = reply.result;
    result.resize(result.len().next_multiple_of(8), 0);
    if written == HEADER {
        written += cursor.write(&mut burst, &result);
    }
    if let Some((recorder, taken)) = reply.records {
        let records = taken.records.as_bytes();
        let out = if written == HEADER {
            cursor.write(&mut burst, records)
        } else {
            0
        };
        // Memory went away between the two looks at it. WR-3: what did not arrive is not read.
        if written == HEADER && out == records.len() {
            recorder.delivered(taken);
        } else {
            recorder.put_back(taken);
        }
        written += out;
    }
    burst.commit();
    u32::try_from(written).unwrap_or(u32::MAX)
}
