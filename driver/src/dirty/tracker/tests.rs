use super::*;
use crate::testing::{FakeBus, memory};
use spec::features::Features;
use std::slice::from_ref;

const RAM: u64 = 1 << 28;

fn source(bus: &Arc<FakeBus>, bytes: u64) -> (TrackerSource, DmaMemory) {
    let transport = Arc::new(Transport::new(bus.clone()).unwrap());
    transport.initialise(Features::empty()).unwrap();
    let bitmap = memory(bytes, 0x8000_0000);
    // A predecessor's marks.
    bitmap.store_u64(0, !0, Ordering::Relaxed).unwrap();
    let source = TrackerSource::new(transport, bitmap.clone(), HarvestWidth::Word).unwrap();
    (source, bitmap)
}

fn mark(bitmap: &DmaMemory, bit: u64) {
    let word = &bitmap.words().unwrap()[usize::try_from(bit / 64).unwrap()];
    word.fetch_or((1_u64 << (bit % 64)).to_le(), Ordering::Release);
}

fn report(source: &mut TrackerSource, range: Range<u64>) -> Vec<u64> {
    let mut set = DirtySet::new(RAM / 4096);
    source.report(range, &mut set).unwrap();
    set.iter().collect()
}

#[test]
fn pages_are_reported_once_within_what_was_asked() {
    let bus = FakeBus::new(1 << 32);
    let (mut source, bitmap) = source(&bus, 0x2000);
    assert_eq!(source.regions(), from_ref(&(0x8_0000..0x8_0002)));
    let mut set = DirtySet::new(10);
    assert!(matches!(
        source.report(0..RAM, &mut set),
        Err(DirtyError::NotStarted)
    ));
    assert!(matches!(source.stop(), Err(DirtyError::NotStarted)));
    let ranges = [0..0x10_0000, 0x20_0000..RAM];
    assert_eq!(source.start(&ranges, 4096).unwrap(), 4096);
    assert!(source.start(&ranges, 4096).is_err(), "twice");
    {
        let registers = bus.registers();
        assert_eq!(registers.tracker[..2], [1, 0]);
        assert_eq!(registers.tracker[8..16], 0x8000_0000_u64.to_le_bytes());
        assert_eq!(registers.tracker[16..24], (RAM / 4096 / 8).to_le_bytes());
        let on = registers
            .written
            .iter()
            .rposition(|(at, data)| (*at, &data[..]) == (0x4000, &[1]));
        let programmed = registers.written.iter().rposition(|(at, _)| *at > 0x4000);
        assert!(programmed < on, "DT-7");
    }
    for bit in [3, 64, 0x150, 0x200, 0xffff] {
        mark(&bitmap, bit);
    }
    // 0x150 lies between the ranges. What was not asked for waits.
    assert_eq!(report(&mut source, 0..65 * 4096), [3, 64]);
    mark(&bitmap, 3);
    assert_eq!(report(&mut source, 0x20_0000..RAM), [0x200, 0xffff]);
    let mut back = DirtySet::new(RAM / 4096);
    back.insert(0x300);
    back.insert(0x151);
    source.put_back(&back).unwrap();
    assert_eq!(
        bitmap.load_u64(0x60, Ordering::Relaxed),
        Ok(0),
        "not into the device's bitmap"
    );
    assert_eq!(report(&mut source, 0..RAM), [3, 0x300]);
    assert!(report(&mut source, 0..RAM).is_empty());
    source.stop().unwrap();
    assert_eq!(bus.registers().tracker[0], 0);
    source.start(&ranges, 4096).unwrap();
    assert!(report(&mut source, 0..RAM).is_empty());
}

#[test]
fn a_set_that_is_too_small_loses_nothing() {
    let (mut source, bitmap) = source(&FakeBus::new(1 << 32), 0x2000);
    source.start(from_ref(&(0..RAM)), 0).unwrap();
    mark(&bitmap, 5);
    mark(&bitmap, 500);
    let mut small = DirtySet::new(10);
    source.report(0..RAM, &mut small).unwrap();
    assert_eq!(small.iter().collect::<Vec<_>>(), [5]);
    assert_eq!(report(&mut source, 0..RAM), [500]);
}

#[test]
fn a_raised_granularity_is_expanded_and_clipped() {
    for (gra_min, gra_when_on) in [(2, 0), (0, 2)] {
        let bus = FakeBus::new(1 << 32);
        bus.registers().gra_min = gra_min;
        bus.registers().gra_when_on = gra_when_on;
        let (mut source, bitmap) = source(&bus, 0x2000);
        assert_eq!(source.start(from_ref(&(0x6000..RAM)), 4096).unwrap(), 16384);
        assert_eq!(source.granularity(), Some(16384));
        mark(&bitmap, 1);
        mark(&bitmap, 70);
        mark(&bitmap, 71);
        let expected: Vec<u64> = [6, 7].into_iter().chain(280..288).collect();
        assert_eq!(report(&mut source, 0..RAM), expected);
        bitmap.store_u64(8, !0, Ordering::Relaxed).unwrap();
        assert_eq!(report(&mut source, 0..RAM), (256..512).collect::<Vec<_>>());
    }
}

#[test]
fn a_small_bitmap_means_large_granules() {
    let (mut source, _) = source(&FakeBus::new(1 << 32), 0x1000);
    assert_eq!(source.start(from_ref(&(0..RAM)), 4096).unwrap(), 8192);
    source.stop().unwrap();
    assert!(source.start(from_ref(&(0..u64::MAX)), 4096).is_err());
    assert!(source.start(from_ref(&(0..RAM)), 5000).is_err());
    assert!(source.start(from_ref(&(0..RAM)), 1 << 31).is_err());
    assert!(source.start(&[], 4096).is_err());
    assert!(source.start(from_ref(&(5..5)), 4096).is_err());
}

#[test]
fn a_device_that_answers_nonsense_is_refused_and_off() {
    let bus = FakeBus::new(1 << 32);
    bus.registers().gra_when_on = 19;
    let (mut source, _) = source(&bus, 0x2000);
    assert!(source.start(from_ref(&(0..RAM)), 4096).is_err());
    assert_eq!(bus.registers().tracker[0], 0);
}

#[test]
fn a_reset_by_somebody_else_meanwhile_is_programmed_over() {
    // Off, length, address, exponent and on are seven writes: two for each of 64 bits.
    for writes in 1..=7 {
        let bus = FakeBus::new(1 << 32);
        bus.registers().reset_after = Some(writes);
        let (mut source, _) = source(&bus, 0x2000);
        assert_eq!(source.start(from_ref(&(0..RAM)), 16384).unwrap(), 16384);
        let registers = bus.registers();
        assert_eq!(registers.reset_after, None, "it was reset");
        assert_eq!(registers.tracker[..2], [1, 2], "after {writes} writes");
        assert_eq!(registers.tracker[8..16], 0x8000_0000_u64.to_le_bytes());
        assert_eq!(registers.tracker[16..24], (RAM / 16384 / 8).to_le_bytes());
    }
}
