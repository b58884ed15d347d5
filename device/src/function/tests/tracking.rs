//! The tracker's registers, and what reaches the door to memory.

use super::*;

const T_ENABLE: u64 = 0x3800;
const T_POWER: u64 = 0x3801;
const T_PASID: u64 = 0x3804;
const T_ADDR: u64 = 0x3808;
const T_LENGTH: u64 = 0x3810;

fn program(bench: &Bench, addr: u32, length: u32) {
    bench.write32(T_ADDR, addr);
    bench.write32(T_ADDR + 4, 1);
    bench.write32(T_LENGTH, length);
    bench.write32(T_LENGTH + 4, 0);
    bench.write8(T_POWER, 2);
}

fn last(bench: &Bench) -> Option<TrackerConfig> {
    bench.told(|told| told.tracker.last().copied())
}

const ON: TrackerConfig = TrackerConfig {
    enabled: true,
    gra_power: 2,
    bitmap_addr: 0x1_0000_2000,
    bitmap_length: 0x80,
    marking: Marking::Bit,
};

#[test]
fn it_is_switched_on_and_off_in_any_state() {
    let bench = Bench::new(FunctionConfig::default());
    program(&bench, 0x2000, 0x80);
    assert_eq!(last(&bench), None, "nothing is in force before enable");
    bench.write8(T_ENABLE, 1);
    assert_eq!(last(&bench), Some(ON));
    program(&bench, 0x4000, 0x40);
    bench.write8(T_ENABLE, 1);
    bench.write8(T_ENABLE, 7);
    assert_eq!(
        bench.told(|told| told.tracker.len()),
        1,
        "locked, and no news"
    );
    assert_eq!(bench.read32(T_ADDR), 0x2000);
    bench.write8(T_ENABLE, 0);
    assert_eq!(last(&bench), Some(TrackerConfig::default()));

    let bench = Bench::running(FunctionConfig::default());
    bench.write8(STATUS, 0x1f);
    program(&bench, 0x2000, 0x80);
    bench.write8(T_ENABLE, 1);
    assert_eq!(last(&bench), Some(ON), "while suspended");
}

#[test]
fn resets_clear_it_before_they_are_done() {
    let resets: [fn(&Bench); 3] = [
        |bench| bench.write8(STATUS, 0),
        |bench| bench.core.reset(),
        |bench| bench.core.config_write(0x58, &[0, 0x80]),
    ];
    for reset in resets {
        let bench = Bench::running(FunctionConfig::default());
        program(&bench, 0x2000, 0x80);
        bench.write8(T_ENABLE, 1);
        reset(&bench);
        assert_eq!(bench.status(), 0);
        assert_eq!(last(&bench), Some(TrackerConfig::default()), "DT-6");
        assert_eq!(bench.read(T_ENABLE, 32), [0; 32]);
    }
}

#[test]
fn an_unaligned_bitmap_is_refused() {
    let bench = Bench::new(FunctionConfig::default());
    program(&bench, 0x2004, 0x80);
    bench.write8(T_ENABLE, 1);
    assert_eq!((bench.read(T_ENABLE, 1), last(&bench)), (vec![0], None));
    bench.write32(T_ADDR, 0x2008);
    bench.write8(T_ENABLE, 1);
    assert_eq!(bench.read(T_ENABLE, 1), [1]);
}

#[test]
fn only_the_functions_own_pasid_is_tracked() {
    let config = FunctionConfig {
        pasid: Pasid::Disabled,
        dma_pasid: 7,
        ..FunctionConfig::default()
    };
    let bench = Bench::new(config);
    program(&bench, 0x2000, 0x80);
    bench.write32(T_PASID, 9);
    assert_eq!(bench.read32(T_PASID), 0, "DT-5");
    bench.write8(T_ENABLE, 1);
    assert_eq!(last(&bench), Some(ON), "without PASIDs all DMA is covered");
    bench.core.config_write(0x106, &[1, 0]);
    assert_eq!(
        last(&bench).map(|config| config.enabled),
        Some(false),
        "pasid 0 is not 7"
    );
    bench.write8(T_ENABLE, 0);
    bench.write32(T_PASID, 7);
    bench.write8(T_ENABLE, 1);
    assert_eq!(last(&bench), Some(ON));
    bench.core.reset();
    let mut control = [0; 2];
    bench.core.config_read(0x106, &mut control);
    assert_eq!(control, [0, 0]);
}

#[test]
fn marking_and_granularity_are_the_functions() {
    let config = FunctionConfig {
        marking: Marking::Byte,
        min_gra_power: 9,
        ..FunctionConfig::default()
    };
    let bench = Bench::new(config);
    program(&bench, 0x2000, 0x80);
    assert_eq!(bench.read(T_POWER, 1), [9], "DT-4");
    bench.write8(T_ENABLE, 1);
    assert_eq!(
        last(&bench),
        Some(TrackerConfig {
            gra_power: 9,
            marking: Marking::Byte,
            ..ON
        })
    );
}

#[test]
fn a_function_without_a_tracker_has_no_registers_for_it() {
    let bench = Bench::new(FunctionConfig {
        tracker: false,
        ..FunctionConfig::default()
    });
    program(&bench, 0x2000, 0x80);
    bench.write8(T_ENABLE, 1);
    assert_eq!(
        (bench.read(T_ENABLE, 32), last(&bench)),
        (vec![0; 32], None)
    );
}
