//! An owner with its members, and a driver of its administration queues with pencil and paper.

use crate::function::{AdminConfig, FunctionConfig, PciFunction};
use crate::rng::RngDevice;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use vm_memory::Permissions;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);
const MEMORY: u64 = 4 << 20;
/// VERSION_1 and ADMIN_VQ: no EVENT_IDX, 16-bit doorbells.
pub(super) const FEATURES: u64 = 1 << 32 | 1 << 41;
/// Commands 0 and 1, and 0x40 to 0x43.
pub(super) const LISTS_OF_SELF: [u64; 2] = [3, 15];
/// 64 KiB of command, and as much and more of result, for each queue.
const QUEUE_BYTES: u64 = 1 << 20;
const COMMAND: u64 = 0x1_0000;
const RESULT: u64 = 0x4_0000;

pub(super) struct Bench {
    pub(super) owner: Arc<PciFunction>,
    pub(super) members: Vec<Arc<PciFunction>>,
    pub(super) memory: File,
    features: u64,
    queues: u16,
    next: [AtomicU16; 2],
}

pub(super) fn memory() -> File {
    let file = File::from(memfd_create("admin", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(MEMORY).unwrap();
    file
}

pub(super) fn map(function: &PciFunction, file: &File) {
    function
        .dma()
        .map(0, MEMORY, file, 0, Permissions::ReadWrite)
        .unwrap();
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(super) fn list_words(answer: &[u8]) -> Vec<u64> {
    answer[8..]
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect()
}

fn function(admin: AdminConfig, members: Vec<Arc<PciFunction>>) -> Arc<PciFunction> {
    let config = FunctionConfig {
        admin,
        ..FunctionConfig::default()
    };
    if members.is_empty() {
        return PciFunction::new(config, RngDevice::seeded(1));
    }
    PciFunction::owner(config, RngDevice::seeded(1), members).unwrap()
}

/// Writes a status, features and one queue of a function, as `bring_up` of a driver would.
pub(super) fn negotiate(function: &PciFunction, features: u64) {
    let write = |at: u64, data: &[u8]| function.bar_write(0, at, data);
    for status in [0, 1, 3] {
        write(0x14, &[status]);
    }
    for half in 0..2_u32 {
        write(8, &half.to_le_bytes());
        let bits = u32::try_from(features >> (32 * half) & 0xffff_ffff).unwrap();
        write(12, &bits.to_le_bytes());
    }
    write(0x14, &[0x0b]);
}

pub(super) fn set_queue(function: &PciFunction, index: u16, areas: [u64; 3]) {
    let write = |at: u64, data: &[u8]| function.bar_write(0, at, data);
    write(0x16, &index.to_le_bytes());
    for (at, address) in [0x20, 0x28, 0x30].into_iter().zip(areas) {
        write(at, &address.to_le_bytes()[..4]);
        write(at + 4, &address.to_le_bytes()[4..]);
    }
    write(0x1c, &1_u16.to_le_bytes());
}

impl Bench {
    pub(super) fn new(queues: u16, members: usize) -> Self {
        Self::negotiated(queues, members, FEATURES)
    }

    pub(super) fn negotiated(queues: u16, members: usize, features: u64) -> Self {
        let admin = AdminConfig {
            queues,
            ..AdminConfig::default()
        };
        Self::configured(admin, members, features)
    }

    pub(super) fn configured(admin: AdminConfig, members: usize, features: u64) -> Self {
        let members: Vec<_> = (0..members)
            .map(|_| PciFunction::new(FunctionConfig::default(), RngDevice::seeded(9)))
            .collect();
        Self::over(admin, members, features)
    }

    /// The owner of this function, which is enabled, with all commands in use.
    pub(super) fn owning(admin: AdminConfig, member: Arc<PciFunction>) -> Self {
        let bench = Self::over(admin, vec![member], FEATURES);
        bench.enable_vfs(1);
        bench.use_lists();
        bench
    }

    fn over(admin: AdminConfig, members: Vec<Arc<PciFunction>>, features: u64) -> Self {
        let bench = Self {
            owner: function(admin, members.clone()),
            members,
            memory: memory(),
            features,
            queues: admin.queues,
            next: Default::default(),
        };
        map(&bench.owner, &bench.memory);
        bench.bring_up();
        bench
    }

    /// With all members enabled and all commands in use.
    pub(super) fn with_lists(queues: u16, members: usize) -> Self {
        Self::ready(
            AdminConfig {
                queues,
                ..AdminConfig::default()
            },
            members,
        )
    }

    pub(super) fn with_opcodes(table: bool) -> Self {
        let admin = AdminConfig {
            queues: 1,
            table_opcodes: table,
            ..AdminConfig::default()
        };
        Self::ready(admin, 1)
    }

    pub(super) fn ready(admin: AdminConfig, members: usize) -> Self {
        let bench = Self::configured(admin, members, FEATURES);
        bench.enable_vfs(u16::try_from(members).unwrap());
        bench.use_lists();
        bench
    }

    /// What such a function offers.
    pub(super) fn offering(queues: u16, members: usize) -> u64 {
        let bench = Self::negotiated(queues, members, 1 << 32);
        let mut bits = 0;
        for half in 0..2_u32 {
            bench.write(0, &half.to_le_bytes());
            bits |= u64::from(u32_at(&bench.register(4, 4), 0)) << (32 * half);
        }
        bits
    }

    pub(super) fn bring_up(&self) {
        negotiate(&self.owner, self.features);
        self.memory.write_all_at(&vec![0; 0x40_0000], 0).unwrap();
        for (queue, next) in (0..self.queues).zip(&self.next) {
            next.store(0, Ordering::Relaxed);
            let at = Self::at(queue);
            set_queue(&self.owner, 1 + queue, [at, at + 0x1000, at + 0x2000]);
        }
        self.write(0x14, &[0x0f]);
    }

    pub(super) fn reset(&self) {
        assert!(self.owner.reset_and_wait(PATIENCE));
    }

    pub(super) fn enable_vfs(&self, count: u16) {
        self.owner.config_write(0x148, &[0]);
        self.owner.config_write(0x150, &count.to_le_bytes());
        self.owner.config_write(0x148, &[u8::from(count != 0)]);
    }

    pub(super) fn use_lists(&self) {
        for group in [0, 1] {
            let list = self.command(0, group, 0, &[], 64);
            if u16_at(&list, 0) == 0 {
                assert_eq!(self.status(1, group, 0, &list[8..], 8), (0, 0));
            }
        }
    }

    fn at(queue: u16) -> u64 {
        u64::from(queue) * QUEUE_BYTES
    }

    pub(super) fn write(&self, at: u64, data: &[u8]) {
        self.owner.bar_write(0, at, data);
    }
    pub(super) fn write16(&self, at: u64, value: u16) {
        self.write(at, &value.to_le_bytes());
    }
    fn register(&self, at: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.owner.bar_read(0, at, &mut data);
        data
    }
    pub(super) fn register16(&self, at: u64) -> u16 {
        u16_at(&self.register(at, 2), 0)
    }
    pub(super) fn config16(&self, at: u16) -> u16 {
        let mut data = [0; 2];
        self.owner.config_read(at, &mut data);
        u16::from_le_bytes(data)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).unwrap();
    }
    pub(super) fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    /// Makes a command available: its bytes, and `room` bytes for the answer at `result`.
    pub(super) fn submit_at(&self, queue: u16, bytes: &[u8], result: u64, room: usize) -> u16 {
        let at = Self::at(queue) + COMMAND;
        self.put(at, bytes);
        self.offer(queue, (at, bytes.len()), (result, room))
    }

    /// One whose bytes are nowhere.
    pub(super) fn submit_unmapped(&self, queue: u16, room: usize) -> u16 {
        self.offer(queue, (1 << 40, 64), (Self::at(queue) + RESULT, room))
    }

    fn offer(&self, queue: u16, command: (u64, usize), result: (u64, usize)) -> u16 {
        let at = Self::at(queue);
        let n = self.next[usize::from(queue)].fetch_add(1, Ordering::Relaxed);
        let head = n % 32 * 2;
        let len = |len: usize| u32::try_from(len).unwrap();
        // A descriptor of no bytes stands for a part that is empty.
        let parts = [
            (command.0, len(command.1), 1_u16, head + 1),
            (result.0, len(result.1), 2, 0),
        ];
        for (i, (addr, len, flags, next)) in (head..).zip(parts) {
            let mut desc = addr.to_le_bytes().to_vec();
            desc.extend(len.to_le_bytes());
            desc.extend(flags.to_le_bytes());
            desc.extend(next.to_le_bytes());
            self.put(at + 16 * u64::from(i), &desc);
        }
        self.put(at + 0x1004 + 2 * u64::from(n % 64), &head.to_le_bytes());
        self.put(at + 0x1002, &n.wrapping_add(1).to_le_bytes());
        let doorbell = u64::from(1 + queue);
        self.write(0x3000 + 4 * doorbell, &(1 + queue).to_le_bytes());
        n
    }

    pub(super) fn submit(&self, queue: u16, bytes: &[u8], room: usize) -> u16 {
        let result = Self::at(queue) + RESULT;
        self.put(result, &vec![0xcc; room]);
        self.submit_at(queue, bytes, result, room)
    }

    pub(super) fn used(&self, queue: u16) -> u16 {
        u16_at(&self.get(Self::at(queue) + 0x2002, 2), 0)
    }

    /// Waits for the command of this number; bytes that were written.
    pub(super) fn finish(&self, queue: u16, n: u16) -> usize {
        let begin = Instant::now();
        while self.used(queue) != n.wrapping_add(1) {
            assert!(begin.elapsed() < PATIENCE, "command {n} is not answered");
            std::thread::yield_now();
        }
        let entry = Self::at(queue) + 0x2004 + 8 * u64::from(n % 64);
        usize::try_from(u32_at(&self.get(entry, 8), 4)).unwrap()
    }

    /// A command as bytes: what was written, and the buffer.
    pub(super) fn raw(&self, queue: u16, bytes: &[u8], room: usize) -> (usize, Vec<u8>) {
        let n = self.submit(queue, bytes, room);
        let len = self.finish(queue, n);
        (len, self.result(queue, room))
    }

    pub(super) fn result(&self, queue: u16, len: usize) -> Vec<u8> {
        self.get(Self::at(queue) + RESULT, len)
    }

    pub(super) fn encode(opcode: u16, group: u16, member: u64, data: &[u8]) -> Vec<u8> {
        let mut bytes = opcode.to_le_bytes().to_vec();
        bytes.extend(group.to_le_bytes());
        bytes.extend([0xee; 12]);
        bytes.extend(member.to_le_bytes());
        bytes.extend(data);
        bytes
    }

    /// The answer, as long as it was written.
    pub(super) fn command(
        &self,
        opcode: u16,
        group: u16,
        member: u64,
        data: &[u8],
        room: usize,
    ) -> Vec<u8> {
        let (len, mut bytes) = self.raw(0, &Self::encode(opcode, group, member, data), room);
        assert!(len % 8 == 0, "whole words");
        bytes.truncate(len);
        bytes
    }

    pub(super) fn status(
        &self,
        opcode: u16,
        group: u16,
        member: u64,
        data: &[u8],
        room: usize,
    ) -> (u16, u16) {
        let answer = self.command(opcode, group, member, data, room);
        let failed = u16_at(&answer, 0) != 0;
        assert!(!failed || answer.len() == 8, "no result of a failure");
        (u16_at(&answer, 0), u16_at(&answer, 2))
    }

    pub(super) fn limits(&self, get: u8, set: u8) {
        let data = [0, 0, 0, 0, 0, 0, 0, 0, get, set];
        assert_eq!(self.status(9, 0, 0, &data, 8), (0, 0));
    }
    pub(super) fn create(&self, member: u64, id: u8, purpose: u8) -> (u16, u16) {
        let mut data = vec![0, 0, 0, 0, id, 0, 0, 0];
        data.extend([0; 8]);
        data.push(purpose);
        self.status(0x0a, 1, member, &data, 8)
    }
    pub(super) fn destroy(&self, member: u64, id: u8) -> (u16, u16) {
        self.status(0x0d, 1, member, &[0, 0, 0, 0, id, 0, 0, 0], 8)
    }
}
