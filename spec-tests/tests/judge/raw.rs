//! A small driver whose every step can be done otherwise.

use crate::ring::Ring;
use driver::bus::{Bus, Interrupt};
use driver::memory::DmaMemory;
use spec_tests::constants::{feature, status};
use spec_tests::judge::{Judge, JudgedBus, Plan};
use std::sync::Arc;
use std::time::Duration;

/// How long an interrupt may take that must come. What is exposed is answered by the wait itself.
const LIMIT: Duration = Duration::from_secs(5);
/// Reads of a register that must change.
const READS: usize = 64;
/// Bytes of memory for buffers.
const AREA: u64 = 1 << 20;

/// Where the structures are, by the capabilities.
#[derive(Clone, Copy, Debug, Default)]
pub struct Places {
    pub common: u64,
    pub notify: u64,
    pub multiplier: u64,
    pub isr: u64,
    pub device: u64,
    pub tracker: u64,
    /// Offsets of capabilities: of the common configuration, the window and the vendor's data.
    pub cap: u16,
    pub window: u16,
    pub vendor: u16,
}

/// The driver.
#[derive(Debug)]
pub struct Raw {
    pub bus: Arc<JudgedBus>,
    pub at: Places,
    pub features: u64,
    pub rings: Vec<Ring>,
    pub area: DmaMemory,
    next: u64,
    irqs: Vec<Arc<dyn Interrupt>>,
}

impl Raw {
    /// Finds the function.
    pub fn new(plan: Plan) -> Self {
        let bus = JudgedBus::new(Judge::new(plan).unwrap());
        let area = bus.dma_alloc(AREA).unwrap();
        let mut this = Self {
            bus,
            at: Places::default(),
            features: 0,
            rings: Vec::new(),
            area,
            next: 0,
            irqs: Vec::new(),
        };
        this.at = this.walk();
        this
    }

    pub fn config(&self, offset: u16, len: usize) -> u64 {
        let mut data = vec![0; len];
        self.bus.config_read(offset, &mut data).unwrap();
        number(&data)
    }

    pub fn set_config(&self, offset: u16, len: usize, value: u64) {
        let data = value.to_le_bytes();
        self.bus.config_write(offset, &data[..len]).unwrap();
    }

    /// Walks the capabilities: the first of each type whose BAR there can be.
    fn walk(&self) -> Places {
        let mut at = Places::default();
        assert_eq!(self.config(0, 2), 0x1af4);
        let id = self.config(2, 2);
        assert!((0x1000..0x1080).contains(&id));
        let mut cap = low16(self.config(0x34, 1));
        while cap != 0 {
            let kind = self.config(cap + 3, 1);
            if self.config(cap, 1) == 9 && kind == 9 {
                at.vendor = cap;
            } else if self.config(cap, 1) == 9 {
                let bar = self.config(cap + 4, 1);
                let offset = self.config(cap + 8, 4);
                match kind {
                    1 if bar == 0 && at.cap == 0 => (at.common, at.cap) = (offset, cap),
                    2 => (at.notify, at.multiplier) = (offset, self.config(cap + 16, 4)),
                    3 => at.isr = offset,
                    4 => at.device = offset,
                    5 => at.window = cap,
                    10 => at.tracker = offset,
                    _ => {}
                }
            }
            cap = low16(self.config(cap + 1, 1));
        }
        at
    }

    pub fn bar(&self, offset: u64, len: usize) -> u64 {
        let mut data = vec![0; len];
        self.bus.bar_read(0, offset, &mut data).unwrap();
        number(&data)
    }

    pub fn set_bar(&self, offset: u64, len: usize, value: u64) {
        let data = value.to_le_bytes();
        self.bus.bar_write(0, offset, &data[..len]).unwrap();
    }

    /// A field of the common configuration.
    pub fn get(&self, offset: u64, len: usize) -> u64 {
        self.bar(self.at.common + offset, len)
    }

    pub fn set(&self, offset: u64, len: usize, value: u64) {
        self.set_bar(self.at.common + offset, len, value);
    }

    pub fn status(&self) -> u8 {
        self.get(20, 1).to_le_bytes()[0]
    }

    pub fn set_status(&self, value: u8) {
        self.set(20, 1, u64::from(value));
    }

    pub fn until(&self, what: impl Fn(&Self) -> bool) {
        assert!((0..READS).any(|_| what(self)), "it never came");
    }

    /// Resets, and waits for it.
    pub fn reset(&mut self) {
        self.set_status(0);
        self.until(|d| d.status() == 0);
        self.rings.clear();
    }

    /// As far as features.
    pub fn begin(&mut self) {
        self.reset();
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::NEGOTIATING);
    }

    pub fn offered(&self) -> u64 {
        (0..2).fold(0, |sum, word| {
            self.set(0, 4, word);
            sum | self.get(4, 4) << (32 * word)
        })
    }

    pub fn accept(&mut self, bits: u64) {
        for word in 0..2 {
            self.set(8, 4, word);
            self.set(12, 4, bits >> (32 * word) & 0xffff_ffff);
        }
        self.features = bits;
    }

    /// Features up to and with FEATURES_OK, read back.
    pub fn agree(&mut self, wanted: u64) {
        let offered = self.offered();
        self.accept(offered & wanted);
        self.set_status(status::AGREED);
        assert_eq!(self.status(), status::AGREED);
    }

    /// The configuration's vector, and lines for all.
    pub fn vectors(&mut self) {
        use device::serve::vfio_user::Served;
        let vectors = self.bus.judge().vectors();
        self.irqs = (0..vectors)
            .map(|vector| self.bus.interrupt(vector).unwrap())
            .collect();
        self.set(16, 2, u64::from(vectors - 1));
        assert_eq!(self.get(16, 2), u64::from(vectors - 1));
    }

    pub fn select(&self, queue: u16) {
        self.set(22, 2, u64::from(queue));
    }

    pub fn addresses(&self, addresses: [u64; 3]) {
        for (at, address) in (32..).step_by(8).zip(addresses) {
            self.set(at, 4, address & 0xffff_ffff);
            self.set(at + 4, 4, address >> 32);
        }
    }

    /// A ring for the selected queue, and everything but queue_enable.
    pub fn prepare(&mut self, queue: u16) -> Ring {
        self.select(queue);
        let size = low16(self.get(24, 2));
        self.set(24, 2, u64::from(size));
        let ring = Ring::new(&*self.bus, size, self.features);
        self.addresses(ring.addresses());
        let vector = queue.min(low16(self.irqs.len() as u64) - 1);
        self.set(26, 2, u64::from(vector));
        assert_eq!(self.get(26, 2), u64::from(vector));
        ring
    }

    /// Sets a queue up and enables it.
    pub fn queue(&mut self, queue: u16) {
        let ring = self.prepare(queue);
        self.set(28, 2, 1);
        self.rings.push(ring);
    }

    pub fn queues(&mut self) {
        let mut count = low16(self.get(18, 2));
        if self.features & feature::ADMIN_VQ != 0 {
            count += low16(self.get(62, 2));
        }
        for queue in 0..count {
            self.queue(queue);
        }
    }

    pub fn ready(&self) {
        self.set_status(status::RUNNING);
    }

    /// All of initialisation.
    pub fn up(&mut self, wanted: u64) {
        self.begin();
        self.agree(wanted);
        self.vectors();
        self.queues();
        self.ready();
    }

    /// The capacity, read whole.
    pub fn capacity(&self) -> u64 {
        for _ in 0..READS {
            let before = self.get(21, 1);
            let low = self.bar(self.at.device, 4);
            let high = self.bar(self.at.device + 4, 4);
            if self.get(21, 1) == before {
                return low | high << 32;
            }
        }
        panic!("the configuration never settles");
    }

    /// Memory that holds `bytes`; its address.
    pub fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let len = (bytes.len() as u64).next_multiple_of(64);
        if self.next + len > AREA {
            self.next = 0;
        }
        let at = self.next;
        self.area.write(at, bytes).unwrap();
        self.next += len;
        self.area.iova() + at
    }

    pub fn look(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.area
            .read(address - self.area.iova(), &mut data)
            .unwrap();
        data
    }

    /// What a doorbell takes.
    pub fn doorbell(&self, queue: u16) -> (u64, usize, u64) {
        let wide = self.features & feature::NOTIFICATION_DATA != 0;
        self.select(queue);
        let mut value = u64::from(queue);
        if self.features & feature::NOTIF_CONFIG_DATA != 0 {
            value = self.get(56, 2);
        }
        let place = self.at.notify + self.get(30, 2) * self.at.multiplier;
        if wide {
            value |= u64::from(self.rings[usize::from(queue)].next_place()) << 16;
        }
        (place, if wide { 4 } else { 2 }, value)
    }

    pub fn notify(&self, queue: u16) {
        let (place, len, value) = self.doorbell(queue);
        self.set_bar(place, len, value);
    }

    /// Makes a buffer available, without a notification.
    pub fn expose(&mut self, queue: u16, pieces: &[(u64, u32, bool)]) {
        self.rings[usize::from(queue)].expose(pieces);
    }

    /// Waits until everything exposed is used; the last used length.
    pub fn wait(&mut self, queue: u16) -> u32 {
        let line = usize::from(queue).min(self.irqs.len() - 1);
        let ring = &mut self.rings[usize::from(queue)];
        let mut last = 0;
        for _ in 0..READS {
            while let Some(len) = ring.reap() {
                last = len;
            }
            if ring.pending() == 0 {
                return last;
            }
            assert!(self.irqs[line].wait(LIMIT), "no interrupt came");
        }
        panic!("buffers are not used");
    }

    /// A buffer from one end to the other.
    pub fn send(&mut self, queue: u16, pieces: &[(u64, u32, bool)]) -> u32 {
        self.expose(queue, pieces);
        self.notify(queue);
        self.wait(queue)
    }

    /// The pieces of a disk request.
    pub fn request(
        &mut self,
        kind: u32,
        sector: u64,
        out: &[u8],
        room: usize,
    ) -> Vec<(u64, u32, bool)> {
        let mut header = Vec::new();
        header.extend(kind.to_le_bytes());
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        let mut pieces = vec![(self.bytes(&header), 16, false)];
        if !out.is_empty() {
            pieces.push((self.bytes(out), low32(out.len()), false));
        }
        if room > 0 {
            pieces.push((self.bytes(&vec![0; room]), low32(room), true));
        }
        pieces.push((self.bytes(&[0xff]), 1, true));
        pieces
    }

    /// A disk request from one end to the other; its status.
    pub fn disk(&mut self, kind: u32, sector: u64, out: &[u8], room: usize) -> u8 {
        let pieces = self.request(kind, sector, out, room);
        let status = pieces[pieces.len() - 1].0;
        self.send(0, &pieces);
        self.look(status, 1)[0]
    }

    /// A command from one end to the other: status and result, as long as it was used.
    pub fn command(&mut self, opcode: u16, group: u16, member: u64, data: &[u8]) -> (u16, Vec<u8>) {
        let mut header = Vec::new();
        header.extend(opcode.to_le_bytes());
        header.extend(group.to_le_bytes());
        header.extend([0; 12]);
        header.extend(member.to_le_bytes());
        header.extend(data);
        header.resize(header.len().next_multiple_of(8), 0);
        let out = self.bytes(&header);
        let room = self.bytes(&[0; 64]);
        let used = self.send(1, &[(out, low32(header.len()), false), (room, 64, true)]);
        let answer = self.look(room, usize::try_from(used).unwrap());
        (low16(number(&answer[..2])), answer[8..].to_vec())
    }

    /// LIST_QUERY and LIST_USE of all that is reported.
    pub fn list(&mut self, group: u16) -> u16 {
        let (_, list) = self.command(0, group, 0, &[]);
        self.command(1, group, 0, &list).0
    }

    pub fn suspend(&self) {
        self.set_status(status::SUSPEND_OR_RESUME);
        self.until(|d| d.status() == status::SUSPENDED);
    }

    pub fn resume(&self) {
        self.set_status(status::SUSPEND_OR_RESUME);
        self.until(|d| d.status() == status::RUNNING);
    }

    /// Resets a queue and sets it up again.
    pub fn again(&mut self, queue: u16) {
        self.select(queue);
        self.set(58, 2, 1);
        self.until(|d| d.get(58, 2) == 0);
        let ring = self.prepare(queue);
        self.set(28, 2, 1);
        self.rings[usize::from(queue)] = ring;
    }

    /// The driver will not come back.
    pub fn gone(&self) {
        self.bus.judge().finish();
    }
}

pub fn number(bytes: &[u8]) -> u64 {
    let fold = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
    bytes.iter().take(8).rev().fold(0, fold)
}

pub fn low16(value: u64) -> u16 {
    u16::try_from(value).unwrap()
}

pub fn low32(value: usize) -> u32 {
    u32::try_from(value).unwrap()
}
