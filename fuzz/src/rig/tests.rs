//! Classes of bugs that need a whole function and its memory to be shown.

use super::*;

/// CVE-2024-3446: a device that is told to read or write its own registers, or another's, does
/// neither, and is not called again from within.
#[test]
fn a_buffer_at_a_bar_is_a_fault_and_no_register_write_cve_2024_3446() {
    const BAR: u64 = 0xfe00_0000;
    const HEADER: u64 = 0x20_000;
    const ANSWER: u64 = 0x21_000;
    let mut rig = Rig::new(
        Options {
            log: true,
            ..Options::default()
        },
        None,
    );
    // BAR 0 is where a buffer will be.
    let place = u32::try_from(BAR).expect("below 4 GiB").to_le_bytes();
    rig.function.config_write(0x10, &place);
    rig.function.config_write(0x04, &[0x06, 0]);
    rig.negotiate(feature::VERSION_1 | feature::QUEUE_STATE);
    let rings = Rings::of_queue(0, 8);
    rig.enable(0, rings);
    rig.write8(reg::STATUS, 0x0f);
    // A read of a sector of zeroes: at the status register it would be a reset.
    rig.put(HEADER, &[0; 16]);
    rig.put(ANSWER, &[0xff]);
    let chain = [(HEADER, 16, 1_u16), (BAR, 512, 3), (ANSWER, 1, 2)];
    for (index, (at, len, flags)) in (0_u16..).zip(chain) {
        let mut bytes = u64::to_le_bytes(at).to_vec();
        bytes.extend(u32::to_le_bytes(len));
        bytes.extend(flags.to_le_bytes());
        bytes.extend((index + 1).to_le_bytes());
        rig.put(rings.desc + 16 * u64::from(index), &bytes);
    }
    rig.put(rings.driver + 2, &[1, 0]);
    rig.kick(0);
    assert!(rig.wait(|rig| rig.memory.get::<1>(ANSWER) != [0xff]));
    assert_eq!(rig.memory.get::<1>(ANSWER), [1], "IOERR");
    assert_eq!(rig.status(), 0x0f, "the status register is as it was");
    rig.finish();
}
