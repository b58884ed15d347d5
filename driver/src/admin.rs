//! The driver's end of an administration virtqueue (VIRTIO 1.4, "Administration Virtqueues").

use crate::error::DriverError;
use crate::memory::DmaMemory;
use crate::queue::Virtqueue;
use crate::transport::{Notifier, Transport};
use spec::admin::{CommandHeader, ResultHeader, opcode, status};
use spec::features::Features;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::bus::Interrupt;

/// Entries: one command at a time takes two of them.
const QUEUE_SIZE: u16 = 8;
/// Most bytes of a command: all that devices are asked to look at.
const COMMAND_BYTES: usize = 64 << 10;
/// Most bytes of a result.
pub const RESULT_BYTES: usize = 1 << 20;
/// How long a command may take: it may have to wait for a member to drain or to be reset.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How often a command is sent again that the device was too busy for.
const RETRIES: u32 = 100;
/// Looks at the used ring before an interrupt is waited for.
const LOOKS: u32 = 200;

/// What a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// One of [`spec::admin::group`].
    pub group: u16,
    /// The member: 0 for the function itself.
    pub member: u64,
}

impl Subject {
    /// The function that the queue belongs to.
    pub const ITSELF: Self = Self {
        group: spec::admin::group::SELF,
        member: 0,
    };

    /// A virtual function, numbered from 1.
    pub const fn virtual_function(member: u64) -> Self {
        let group = spec::admin::group::SR_IOV;
        Self { group, member }
    }
}

/// The answer to a command that succeeded.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The output word; 0 but for project commands.
    pub output: u32,
    /// The result, as much as the device wrote. What is missing is 0 (AQ-11).
    pub result: &'a [u8],
}

impl Answer<'_> {
    /// The structure at the beginning of the result; what was not written is 0.
    pub fn read<T: FromBytes + IntoBytes + FromZeros>(&self) -> T {
        let mut value = T::new_zeroed();
        let len = self.result.len().min(size_of::<T>());
        value.as_mut_bytes()[..len].copy_from_slice(&self.result[..len]);
        value
    }
}

/// An administration queue. One command is outstanding at a time, so that commands are in order
/// whatever the device does.
#[derive(Debug)]
pub struct AdminQueue {
    transport: Arc<Transport>,
    queue: Virtqueue,
    notifier: Notifier,
    interrupt: Arc<dyn Interrupt>,
    buffers: DmaMemory,
    result: Vec<u8>,
    /// A command was not answered: its buffers are the device's for ever.
    lost: bool,
}

impl AdminQueue {
    /// Sets up administration queue `number`, counted from 0, of a function whose features are
    /// negotiated. Commands can be sent once it has DRIVER_OK.
    ///
    /// # Errors
    /// [`DriverError::NotNegotiated`] without ADMIN_VQ, [`DriverError::NoSuchQueue`], or what
    /// setting up a queue or the bus says.
    pub fn new(transport: Arc<Transport>, number: u16) -> Result<Self, DriverError> {
        transport.require(Features::ADMIN_VQ)?;
        let (first, count) = transport.admin_queues()?;
        let index = first
            .checked_add(number)
            .filter(|_| number < count)
            .ok_or(DriverError::NoSuchQueue(number))?;
        let bus = transport.bus();
        let max = transport.queue_max_size(index)?;
        let size = QUEUE_SIZE.min(max);
        let ring = bus.dma_alloc(Virtqueue::bytes_needed(size))?;
        let buffers = bus.dma_alloc((COMMAND_BYTES + RESULT_BYTES) as u64)?;
        let queue = Virtqueue::new(ring, size, transport.features())?;
        // Vector 0 is left to configuration changes.
        let vector = index.saturating_add(1);
        let interrupt = bus.interrupt(vector)?;
        transport.setup_queue(index, &queue.setup(vector), None)?;
        let notifier = transport.notifier(index)?;
        Ok(Self {
            transport,
            queue,
            notifier,
            interrupt,
            buffers,
            result: Vec::new(),
            lost: false,
        })
    }

    /// The function that the queue belongs to.
    pub fn transport(&self) -> &Arc<Transport> {
        &self.transport
    }

    /// Sends a command and waits for its answer, of which `room` bytes of result are wanted, at most
    /// [`RESULT_BYTES`]. One that the device was too busy for is sent again (AQ-13).
    ///
    /// # Errors
    /// [`DriverError::Refused`] with the device's own words; [`DriverError::Timeout`] if there is no
    /// answer, after which this queue is of no use any more; what the ring or the bus says.
    pub fn command(
        &mut self,
        opcode: u16,
        subject: Subject,
        data: &[u8],
        room: usize,
    ) -> Result<Answer<'_>, DriverError> {
        let header = CommandHeader {
            opcode: opcode.into(),
            group_type: subject.group.into(),
            reserved1: [0; 12],
            group_member_id: subject.member.into(),
        };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(data);
        // AQ-9: both parts are multiples of 8 bytes.
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        if bytes.len() > COMMAND_BYTES {
            return Err(DriverError::BadChain {
                buffers: bytes.len(),
                size: self.queue.size(),
            });
        }
        let room = room.min(RESULT_BYTES - size_of::<ResultHeader>());
        let room = (size_of::<ResultHeader>() + room).next_multiple_of(8);
        let mut retries = 0;
        let (header, written) = loop {
            let written = self.send(&bytes, room)?;
            let header = self.read_header(written)?;
            if header.status.get() != status::EAGAIN || retries == RETRIES {
                break (header, written);
            }
            retries += 1;
            std::thread::sleep(Duration::from_millis(1));
        };
        let status = header.status.get();
        if status != status::OK {
            return Err(DriverError::Refused {
                opcode,
                subject: (subject.group, subject.member),
                status,
                qualifier: header.status_qualifier.get(),
            });
        }
        let len = written.saturating_sub(size_of::<ResultHeader>());
        self.result.resize(len, 0);
        let at = (COMMAND_BYTES + size_of::<ResultHeader>()) as u64;
        self.buffers.read(at, &mut self.result)?;
        Ok(Answer {
            output: header.output.get(),
            result: &self.result,
        })
    }

    /// Learns which commands of a group the device has, and uses exactly `wanted` and the lists
    /// (AC-14, AC-16).
    ///
    /// # Errors
    /// [`DriverError::CommandMissing`] for the first one that the device does not have; as
    /// [`command`](Self::command).
    pub fn use_commands(&mut self, group: u16, wanted: &[u16]) -> Result<(), DriverError> {
        let subject = Subject { group, member: 0 };
        let answer = self.command(opcode::LIST_QUERY, subject, &[], 8192)?;
        let supported = answer.result.to_vec();
        let has = |code: u16| {
            let byte = supported.get(usize::from(code / 8)).copied();
            byte.is_some_and(|byte| byte & (1 << (code % 8)) != 0)
        };
        if let Some(&missing) = wanted.iter().find(|code| !has(**code)) {
            return Err(DriverError::CommandMissing {
                group,
                opcode: missing,
            });
        }
        let used: BTreeSet<u16> = [opcode::LIST_QUERY, opcode::LIST_USE]
            .iter()
            .chain(wanted)
            .copied()
            .collect();
        let max = used.last().copied().unwrap_or(0);
        let mut list = vec![0_u8; spec::admin::list_words(max) * 8];
        for code in used {
            if let Some(byte) = list.get_mut(usize::from(code / 8)) {
                *byte |= 1 << (code % 8);
            }
        }
        self.command(opcode::LIST_USE, subject, &list, 0)?;
        Ok(())
    }

    /// Sends what stands in `bytes`; returns how much was written.
    fn send(&mut self, bytes: &[u8], room: usize) -> Result<usize, DriverError> {
        if self.lost {
            return Err(DriverError::QueueFull);
        }
        let iova = self.buffers.iova();
        self.buffers.write(0, bytes)?;
        let length = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let readable = (iova, length(bytes.len()));
        let writable = (iova + COMMAND_BYTES as u64, length(room));
        self.queue.add(&[readable], &[writable], 0)?;
        if self.queue.publish()? {
            self.notifier.notify(self.queue.published())?;
        }
        // Until the device gives the buffers back.
        self.lost = true;
        let begin = Instant::now();
        let mut looks = 0;
        let used = loop {
            if let Some(used) = self.queue.reap()? {
                break used;
            }
            if looks < LOOKS {
                looks += 1;
                std::thread::yield_now();
                continue;
            }
            if self.queue.enable_interrupts()? {
                continue;
            }
            let left = TIMEOUT.saturating_sub(begin.elapsed());
            if !self.interrupt.wait(left) && left.is_zero() {
                return Err(DriverError::Timeout {
                    what: "answered a command",
                    waited: TIMEOUT,
                    status: self.transport.status()?,
                });
            }
        };
        self.lost = false;
        Ok(usize::try_from(used.len).unwrap_or(0))
    }

    fn read_header(&self, written: usize) -> Result<ResultHeader, DriverError> {
        let mut header = ResultHeader::new_zeroed();
        let len = written.min(size_of::<ResultHeader>());
        let bytes = &mut header.as_mut_bytes()[..len];
        self.buffers.read(COMMAND_BYTES as u64, bytes)?;
        Ok(header)
    }
}

/// A command's name, for messages; its number if it has none.
pub(crate) fn command_name(code: u16) -> String {
    opcode::name(code).map_or_else(|| format!("{code:#x}"), str::to_owned)
}
