//! The tracker's registers and recordings, while requests run and the bitmap's memory comes and
//! goes.

use super::command::{AdminQueue, COMMAND, QUEUE, RESULT, ROOM, command};
use super::request::{self, WRITE};
use crate::Plant;
use crate::input::Input;
use crate::rig::{Options, PAGE, PAGES, Rig, Rings, WRITABLE, feature, reg, status};

/// The page of the bitmap, where no request's buffer lies.
const BITMAP: u64 = 44;
const SIZE: u16 = 16;
const RECORD_START: u16 = 0x41;
const RECORD_STOP: u16 = 0x42;
const RECORD_READ: u16 = 0x43;

/// A bitmap that the device was given.
#[derive(Clone, Copy, Debug)]
struct Bitmap {
    address: u64,
    bytes: u64,
    power: u8,
}

struct Tracking {
    queue: AdminQueue,
    available: u16,
    bitmap: Option<Bitmap>,
    /// A recording is on, and nothing of it was read.
    recording: bool,
}

/// Runs the target.
pub fn run(data: &[u8], plant: Option<Plant>) {
    let mut input = Input::new(data);
    let options = Options {
        queues: 1,
        admin: 1,
        ..Options::default()
    };
    let mut rig = Rig::new(options, plant);
    let mut tracking = set_up(&mut rig);
    while !input.is_empty() {
        tracking.step(&mut rig, &mut input);
    }
    tracking.judge(&mut rig);
    rig.finish();
}

fn set_up(rig: &mut Rig) -> Tracking {
    assert!(
        rig.function.reset_and_wait(crate::oracle::PATIENCE),
        "oracle reset: not done before a new start"
    );
    let features = feature::VERSION_1 | feature::ADMIN_VQ | feature::SUSPEND;
    rig.negotiate(features | feature::QUEUE_STATE | feature::BLK_FLUSH | feature::INDIRECT);
    rig.put(0, &[0; 0x1000]);
    rig.enable(0, Rings::of_queue(0, SIZE));
    let queue = AdminQueue::enable(rig);
    rig.write8(reg::STATUS, 0x0f);
    rig.memory.rebase();
    Tracking {
        queue,
        available: 0,
        bitmap: None,
        recording: false,
    }
}

impl Tracking {
    fn step(&mut self, rig: &mut Rig, input: &mut Input<'_>) {
        if rig.status() & 0x5f != 0x0f {
            self.judge(rig);
            *self = set_up(rig);
        }
        match input.below(16) {
            0..=6 => self.offer(rig, input),
            7 => self.judge(rig),
            8 | 9 => self.configure(rig, input),
            10 => {
                self.judge(rig);
                self.record(rig);
            }
            11 => {
                let function = rig.function.clone();
                if rig.memory.is_granted(BITMAP * PAGE, PAGE) {
                    rig.memory.unmap(function.dma(), BITMAP);
                } else {
                    rig.memory.map(function.dma(), BITMAP);
                }
            }
            12 => self.poke(rig, input),
            13 => self.switch_off(rig),
            14 => {
                // Whoever reads records has nobody's leave to break anything.
                let bytes = input.bytes(24).to_vec();
                let opcode = input.pick(&[RECORD_START, RECORD_STOP, RECORD_READ]);
                self.recording = false;
                self.queue
                    .send(rig, &command(opcode, 0, 0, &bytes), ROOM, 24);
            }
            _ => {
                rig.write8(reg::STATUS, 0x1f);
                rig.judge_suspend();
                rig.write8(reg::STATUS, 0x1f);
                rig.wait(|rig| rig.status() & status::SUSPEND == 0);
            }
        }
    }

    /// A request whose buffers are apart from the bitmap.
    fn offer(&mut self, rig: &mut Rig, input: &mut Input<'_>) {
        let rings = Rings::of_queue(0, SIZE);
        let mut pieces = request::request(input, rig, self.available);
        pieces.retain(|&(at, len, flags)| {
            let end = at.saturating_add(len.into());
            flags & WRITE == 0 || end <= BITMAP * PAGE || at >= (BITMAP + 1) * PAGE
        });
        self.available = request::offer(rig, rings, 0, self.available, &pieces);
        rig.kick(0);
        self.drain(rig);
    }

    /// Waits until the device is at rest.
    fn drain(&self, rig: &mut Rig) {
        let wanted = self.available;
        let over = |rig: &mut Rig| {
            rig.status() & 0x5f != 0x0f || {
                let (avail, used) = rig.queue_state(0);
                avail == used && used == wanted
            }
        };
        assert!(
            rig.wait(over),
            "oracle progress: a request is not used, tracker {:?}",
            self.bitmap
        );
    }

    /// Programs the tracker: mostly soundly, and with all that is there as the driver's.
    fn configure(&mut self, rig: &mut Rig, input: &mut Input<'_>) {
        self.judge(rig);
        self.switch_off(rig);
        let sound = !input.once_in(4);
        let bitmap = if sound {
            Bitmap {
                address: BITMAP * PAGE + 8 * u64::from(input.u8() % 64),
                bytes: input.pick(&[8, 16, 4, 1, 64]),
                power: input.pick(&[0, 0, 1, 3]),
            }
        } else {
            Bitmap {
                address: request::address(input),
                bytes: u64::from(request::length(input)) << (input.u8() % 40),
                power: input.u8(),
            }
        };
        rig.put(BITMAP * PAGE, &[0; 4096]);
        rig.write64(reg::TRACKER_ADDR, bitmap.address);
        rig.write64(reg::TRACKER_LENGTH, bitmap.bytes);
        rig.write8(reg::TRACKER_POWER, bitmap.power);
        if input.once_in(4) {
            rig.write32(reg::TRACKER_PASID, input.u32());
        }
        rig.write8(reg::TRACKER_ENABLE, 1);
        if sound {
            rig.memory.rebase();
            self.bitmap = Some(bitmap);
            return;
        }
        // Its bits land wherever the driver wanted them, among data too.
        let last = bitmap.address.saturating_add(bitmap.bytes) / PAGE;
        for page in bitmap.address / PAGE..=last.min(PAGES) {
            rig.memory.exclude(page);
        }
        self.bitmap = None;
    }

    /// Writes to registers that are locked while it is on.
    fn poke(&mut self, rig: &mut Rig, input: &mut Input<'_>) {
        if self.bitmap.is_none() {
            return;
        }
        let places = [
            reg::TRACKER_POWER,
            reg::TRACKER_PASID,
            reg::TRACKER_ADDR,
            reg::TRACKER_ADDR + 4,
            reg::TRACKER_LENGTH,
            reg::TRACKER_LENGTH + 4,
        ];
        let (at, value) = (input.pick(&places), input.u32());
        rig.write32(at, value);
        rig.write8(at, value.to_le_bytes()[0]);
    }

    fn switch_off(&mut self, rig: &mut Rig) {
        self.judge(rig);
        rig.write8(reg::TRACKER_ENABLE, 0);
        self.bitmap = None;
    }

    fn record(&mut self, rig: &mut Rig) {
        let mut data = PAGE.to_le_bytes().to_vec();
        data.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        data.extend([0; 8]);
        data.extend((WRITABLE.end * PAGE).to_le_bytes());
        let stop = command(RECORD_STOP, 0, 0, &[]);
        self.queue.send(rig, &stop, ROOM, 24);
        let used = command(
            0x01,
            0,
            0,
            &[0x83, 0xff, 0x03, 0, 0, 0, 0, 0, 0x0f, 0, 0, 0, 0, 0, 0, 0],
        );
        self.queue.send(rig, &used, ROOM, 24);
        let start = command(RECORD_START, 0, 0, &data);
        let answer = self.queue.send(rig, &start, ROOM, 24);
        self.recording = answer.is_some_and(|answer| answer.status() == 0);
        if self.bitmap.is_none() {
            rig.memory.rebase();
        }
    }

    /// `oracle tracking`, of the bitmap and of the records.
    fn judge(&mut self, rig: &mut Rig) {
        self.drain(rig);
        rig.memory.judge_grants();
        if let Some(bitmap) = self.bitmap {
            let function = rig.function.clone();
            if !rig.memory.is_granted(BITMAP * PAGE, PAGE) {
                rig.memory.map(function.dma(), BITMAP);
            }
            judge_bitmap(rig, bitmap);
        }
        if std::mem::take(&mut self.recording) && rig.status() & 0x5f == 0x0f {
            self.judge_records(rig);
        }
    }

    fn judge_records(&mut self, rig: &mut Rig) {
        let changed = rig.memory.changed();
        let mut data = vec![0; 8];
        data.extend((WRITABLE.end * PAGE).to_le_bytes());
        data.extend([0; 8]);
        let read = command(RECORD_READ, 0, 0, &data);
        let Some(answer) = self.queue.send(rig, &read, ROOM, 24) else {
            return;
        };
        assert_eq!(
            answer.status(),
            0,
            "oracle answers: records that were started cannot be read"
        );
        let output = answer.output();
        let count = usize::try_from(output & 0x3fff_ffff).unwrap_or(0);
        let records: Vec<u64> = answer.bytes[8..]
            .chunks_exact(8)
            .take(count)
            .filter_map(|record| record.try_into().ok().map(u64::from_le_bytes))
            .collect();
        assert!(
            records.len() == count && records.iter().all(|at| at.is_multiple_of(PAGE)),
            "oracle tracking: {count} records of which not all are pages"
        );
        // More pages than there is room for records of a recording: all count as written.
        if output >> 31 != 0 {
            return;
        }
        let own = [
            u64::from(QUEUE),
            COMMAND / PAGE,
            RESULT / PAGE,
            RESULT / PAGE + 1,
            RESULT / PAGE + 2,
        ];
        for page in changed {
            // The bitmap's stores are the tracker's own.
            let told = records.contains(&(page * PAGE));
            assert!(
                told || own.contains(&page) || page == BITMAP || rig.memory.is_excluded(page),
                "oracle tracking: page {page} changed and is not recorded: lost"
            );
        }
    }
}

/// Every page that changed has its bit, and nothing beyond the bitmap is touched.
fn judge_bitmap(rig: &Rig, bitmap: Bitmap) {
    let now = rig.memory.now();
    let start = usize::try_from(bitmap.address).unwrap_or(0);
    let end = start + usize::try_from(bitmap.bytes).unwrap_or(0);
    let page = usize::try_from(BITMAP * PAGE).unwrap_or(0);
    let stray = (page..start)
        .chain(end..page + 4096)
        .find(|&at| now[at] != 0);
    assert_eq!(
        stray, None,
        "oracle grant: a mark outside the bitmap {bitmap:?}"
    );
    let bytes = &now[start..end];
    rig.memory.judge_marked(|page| {
        let bit = usize::try_from(page >> bitmap.power).unwrap_or(usize::MAX);
        // What lies beyond its last bit cannot be marked.
        page == BITMAP
            || bytes
                .get(bit / 8)
                .is_none_or(|byte| byte >> (bit % 8) & 1 != 0)
    });
}
