//! What the two ring formats have in common: a queue that a hostile driver sets up, uses, suspends,
//! resets, unmaps, and of which progress is expected all the same.

use super::request;
use crate::Plant;
use crate::input::Input;
use crate::rig::{Options, PAGE, QUEUE_SIZE, Rig, Rings, feature, reg, status};

/// How a format is written and judged.
pub trait Format {
    /// A format's own bit of the features.
    const FEATURE: u64;
    /// Makes a chain available, well or badly.
    fn offer(&mut self, rig: &mut Rig, input: &mut Input<'_>, pieces: &[request::Piece]);
    /// Something else that only this format has.
    fn scribble(&mut self, rig: &mut Rig, input: &mut Input<'_>);
    /// The queue is a new one.
    fn begin(&mut self, rings: Rings);
    /// Nothing that is available is not used, given the queue's states.
    fn is_drained(&self, rig: &Rig, states: (u16, u16)) -> bool;
}

/// A driver of one queue.
struct Driver<F> {
    format: F,
    rings: Rings,
    /// The queue began with states of its own: buffers may be in flight for ever.
    odd_state: bool,
}

/// Runs one of the formats.
pub fn run<F: Format>(data: &[u8], plant: Option<Plant>, format: F) {
    let mut input = Input::new(data);
    let by_kernel = input.once_in(8);
    let options = Options {
        queues: 1,
        log: true,
        // The kernel's own I/O has no plants.
        file: by_kernel && plant.is_none(),
        ..Options::default()
    };
    let mut rig = Rig::new(options, plant);
    let mut driver = Driver {
        format,
        rings: Rings::of_queue(0, QUEUE_SIZE),
        odd_state: false,
    };
    driver.set_up(&mut rig, &mut input);
    while !input.is_empty() {
        driver.step(&mut rig, &mut input);
    }
    driver.judge_progress(&mut rig);
    if rig.features & feature::SUSPEND != 0 && rig.status() & 0x5f == 0x0f {
        driver.suspend(&mut rig);
    }
    rig.memory.judge_grants();
    rig.finish();
}

impl<F: Format> Driver<F> {
    fn set_up(&mut self, rig: &mut Rig, input: &mut Input<'_>) {
        let optional = [
            feature::INDIRECT,
            feature::EVENT_IDX,
            feature::NOTIFICATION_DATA,
            feature::BLK_FLUSH,
            feature::BLK_DISCARD | feature::BLK_WRITE_ZEROES,
        ];
        let mask = input.u8();
        let chosen = (0_u32..).zip(optional).filter(|(n, _)| mask >> n & 1 == 0);
        let features = chosen.fold(F::FEATURE, |sum, (_, bits)| sum | bits);
        rig.negotiate(
            features
                | feature::VERSION_1
                | feature::QUEUE_STATE
                | feature::SUSPEND
                | feature::RING_RESET,
        );
        self.enable(rig, input);
        rig.write8(reg::STATUS, 0x0f);
    }

    /// Gives the device the queue, mostly where it should be.
    fn enable(&mut self, rig: &mut Rig, input: &mut Input<'_>) {
        let size = input.pick(&[32, 8, 2, 1, 16, 4, 3, 0]);
        let mut rings = Rings::of_queue(0, size);
        if input.once_in(8) {
            rings.desc = request::address(input);
        }
        if input.once_in(8) {
            rings.driver = request::address(input);
        }
        if input.once_in(8) {
            rings.device = request::address(input);
        }
        self.odd_state = input.once_in(8);
        if self.odd_state {
            let (avail, used) = (input.u16(), input.u16());
            rig.write16(reg::QUEUE_SELECT, 0);
            rig.write16(reg::AVAIL_STATE, avail);
            rig.write16(reg::USED_STATE, used);
        }
        rig.put(0, &[0; 0x1000]);
        rig.enable(0, rings);
        self.rings = rings;
        self.format.begin(rings);
    }

    fn step(&mut self, rig: &mut Rig, input: &mut Input<'_>) {
        let slot = u16::from(input.u8());
        match input.below(16) {
            0..=4 => {
                let pieces = request::request(input, rig, slot);
                self.format.offer(rig, input, &pieces);
                if input.flag() {
                    rig.kick(0);
                }
            }
            5 => {
                let pieces = request::stray(input);
                self.format.offer(rig, input, &pieces);
                rig.kick(0);
            }
            6 => self.format.scribble(rig, input),
            7 => rig.kick(0),
            8 => {
                let at = request::address(input);
                let bytes = input.bytes(usize::from(slot % 32)).to_vec();
                rig.put(at, &bytes);
            }
            9 => self.judge_progress(rig),
            10 if rig.status() & 0x5f == 0x0f => {
                self.suspend(rig);
                rig.write8(reg::STATUS, 0x1f);
            }
            11 => {
                // Waits for the worker, not for ever.
                rig.write16(reg::QUEUE_SELECT, 0);
                rig.write16(reg::QUEUE_RESET, 1);
                let over = rig.wait(|rig| rig.read16(reg::QUEUE_RESET) == 0);
                assert!(over, "oracle reset: a queue's never ends");
                self.enable(rig, input);
            }
            12 => {
                let page = u64::from(input.u8()) % 48;
                let function = rig.function.clone();
                if rig.memory.is_granted(page * PAGE, PAGE) {
                    rig.memory.unmap(function.dma(), page);
                } else {
                    rig.memory.map(function.dma(), page);
                }
            }
            13 => self.set_up(rig, input),
            14 => {
                let at = u64::from(input.u8()) % 0x44;
                let bytes = input.bytes(usize::from(slot % 5)).to_vec();
                // Late writes to registers of a live queue are ignored. A queue that was reset could
                // be set up by them, elsewhere than the driver knows.
                if ![reg::STATUS, reg::QUEUE_RESET].contains(&at) {
                    rig.write(at, &bytes);
                }
            }
            _ => {
                rig.status();
            }
        }
    }

    /// `oracle progress` and, of a suspended device, that nothing is in flight.
    fn suspend(&mut self, rig: &mut Rig) {
        rig.write8(reg::STATUS, 0x1f);
        rig.judge_suspend();
        if rig.status() & (status::NEEDS_RESET | status::SUSPEND) == status::SUSPEND {
            let (avail, used) = rig.queue_state(0);
            assert!(
                self.odd_state || avail == used,
                "oracle progress: suspended with {avail:#x} available and {used:#x} used"
            );
            rig.memory.judge_grants();
            rig.memory.judge_marks();
        }
    }

    /// Whether what is expected of a queue can be expected: it is up, and its rings are there.
    fn is_served(&self, rig: &Rig) -> bool {
        let Rings {
            size,
            desc,
            driver,
            device,
        } = self.rings;
        let size = u64::from(size);
        let areas = [
            (desc, 16 * size),
            (driver, 8 + 2 * size),
            (device, 8 + 8 * size),
        ];
        let end = |(at, bytes): (u64, u64)| at.saturating_add(bytes);
        // What the device writes last may make something available that it has looked for before.
        let apart = |one: (u64, u64), other: (u64, u64)| end(one) <= other.0 || end(other) <= one.0;
        rig.status() & 0x5f == 0x0f
            && rig.read16(reg::QUEUE_ENABLE) == 1
            && !self.odd_state
            && areas
                .iter()
                .all(|&(at, bytes)| rig.memory.is_granted(at, bytes))
            && apart(areas[0], areas[1])
            && apart(areas[1], areas[2])
            && apart(areas[0], areas[2])
    }

    /// `oracle progress`: after a notification, all that is available is used, or the device says
    /// that it is broken.
    fn judge_progress(&mut self, rig: &mut Rig) {
        rig.write16(reg::QUEUE_SELECT, 0);
        if !self.is_served(rig) {
            return;
        }
        rig.kick(0);
        let done = rig.wait(|rig| {
            let states = rig.queue_state(0);
            rig.status() & status::NEEDS_RESET != 0 || self.format.is_drained(rig, states)
        });
        let (avail, used) = rig.queue_state(0);
        assert!(
            done,
            "oracle progress: something is available and not used, states {avail:#x} and {used:#x}, \
             status {:#04x}",
            rig.status()
        );
    }
}
