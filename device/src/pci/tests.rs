//! Configuration space as firmware and kernels walk it. Numbers are typed again.

use super::*;
use crate::transport::caps::Pasid;

const BLOCK: Announce = Announce {
    queues: 3,
    config_len: 60,
    tracker: true,
    pasid: Pasid::Absent,
    vfs: None,
};

fn space(what: Announce) -> ConfigSpace {
    ConfigSpace::new(2, 0x01_00_00, what)
}

fn get(space: &ConfigSpace, offset: usize, len: usize) -> u32 {
    let mut data = vec![0; len];
    space.read(offset, &mut data, false);
    number(&data).expect("at most four bytes")
}

/// (offset, id, bytes up to cap_len or 4) along the list.
fn walk(space: &ConfigSpace) -> Vec<(usize, u8)> {
    let mut found = vec![];
    let mut at = usize::try_from(get(space, 0x34, 1)).unwrap();
    while at != 0 {
        assert!(
            at >= 0x40 && at.is_multiple_of(4) && found.len() < 48,
            "{found:?}"
        );
        found.push((at, u8::try_from(get(space, at, 1)).unwrap()));
        at = usize::try_from(get(space, at + 1, 1)).unwrap();
    }
    found
}

/// (cfg_type, cap_len, bar, offset, length) of every virtio capability.
fn virtio(space: &ConfigSpace) -> Vec<(u32, u32, u32, u32, u32)> {
    walk(space)
        .into_iter()
        .filter(|(_, id)| *id == 9)
        .map(|(at, _)| {
            let byte = |offset| get(space, at + offset, 1);
            (
                byte(3),
                byte(2),
                byte(4),
                get(space, at + 8, 4),
                get(space, at + 12, 4),
            )
        })
        .collect()
}

#[test]
fn header() {
    let space = space(BLOCK);
    assert_eq!(get(&space, 0, 4), 0x1042_1af4);
    assert_eq!(get(&space, 6, 2), 0x10, "capability list");
    assert_eq!(get(&space, 8, 4), 0x0100_0001, "class 010000, revision 1");
    assert_eq!(get(&space, 0x0e, 1), 0, "header type 0");
    assert_eq!(get(&space, 0x2c, 4), 0x1100_1af4);
    assert_eq!(get(&space, 0x3d, 1), 0, "no interrupt pin");
}

#[test]
fn bars_are_sized() {
    let mut space = space(BLOCK);
    for bar in 0..6 {
        space.write(0x10 + 4 * bar, &[0xff; 4]);
    }
    let sizes: Vec<u32> = (0..6).map(|bar| get(&space, 0x10 + 4 * bar, 4)).collect();
    assert_eq!(sizes, [0xffff_c000, 0xffff_e000, 0, 0, 0, 0]);
    space.write(0x10, &0xfebf_1234_u32.to_le_bytes());
    assert_eq!(get(&space, 0x10, 4), 0xfebf_0000);
    space.write(0x30, &[0xff; 4]);
    assert_eq!(get(&space, 0x30, 4), 0, "no ROM");
}

#[test]
fn the_capability_list() {
    let space = space(BLOCK);
    let ids: Vec<u8> = walk(&space).iter().map(|(_, id)| *id).collect();
    assert_eq!(ids, [0x11, 0x10, 9, 9, 9, 9, 9, 9]);
    assert_eq!(
        virtio(&space),
        [
            (1, 16, 0, 0, 68),
            (2, 20, 0, 0x3000, 12),
            (3, 16, 0, 0x1000, 1),
            (5, 20, 0, 0, 0),
            (4, 16, 0, 0x2000, 60),
            (0x0a, 16, 0, 0x3800, 32),
        ]
    );
    assert_eq!(get(&space, 0x9c + 16, 4), 4, "notify_off_multiplier");
    assert_eq!(get(&space, 0x40 + 2, 2), 3, "four vectors");
    assert_eq!((get(&space, 0x44, 4), get(&space, 0x48, 4)), (1, 0x1001));
    assert_ne!(get(&space, 0x50 + 4, 4) & 1 << 28, 0, "FLR");
}

#[test]
fn optional_capabilities_leave_no_gap() {
    let kinds = |config_len, tracker| {
        let what = Announce {
            config_len,
            tracker,
            ..BLOCK
        };
        virtio(&space(what))
            .iter()
            .map(|cap| cap.0)
            .collect::<Vec<_>>()
    };
    assert_eq!(kinds(60, false), [1, 2, 3, 5, 4]);
    assert_eq!(kinds(0, true), [1, 2, 3, 5, 0x0a]);
    assert_eq!(kinds(0, false), [1, 2, 3, 5]);
}

#[test]
fn pasid_capability() {
    let with = |pasid| space(Announce { pasid, ..BLOCK });
    assert_eq!(get(&with(Pasid::Absent), 0x100, 4), 0);
    let mut absent = with(Pasid::Absent);
    assert!(!absent.write(0x106, &[1, 0]).pasid);
    assert!(!absent.pasid_enabled());
    let mut disabled = with(Pasid::Disabled);
    assert_eq!(get(&disabled, 0x100, 4), 0x0001_001b);
    assert_eq!(get(&disabled, 0x104, 4), 0x0000_1400);
    assert!(!disabled.pasid_enabled());
    assert!(disabled.write(0x106, &[0xff, 0xff]).pasid);
    assert_eq!(get(&disabled, 0x106, 2), 1);
    assert!(disabled.pasid_enabled());
    disabled.reset();
    assert!(!disabled.pasid_enabled());
    assert!(with(Pasid::Enabled).pasid_enabled());
}

#[test]
fn only_the_listed_bits_are_writable() {
    let mut space = space(Announce {
        pasid: Pasid::Enabled,
        ..BLOCK
    });
    let before = space.bytes.clone();
    let asked = space.write(0, &[0xff; CONFIG_SIZE]);
    assert_eq!(
        asked,
        Asked {
            msix: true,
            pasid: true,
            flr: true,
            window: true,
            vfs: false
        }
    );
    let changed: Vec<usize> = (0..CONFIG_SIZE)
        .filter(|i| before[*i] != space.bytes[*i])
        .collect();
    let mut expected = vec![
        0x04, 0x05, 0x11, 0x12, 0x13, 0x15, 0x16, 0x17, 0x3c, 0x43, 0x58, 0x59,
    ];
    expected.push(0xc4);
    expected.extend(0xc8..0xd4);
    assert_eq!(changed, expected);
    assert_eq!(get(&space, 4, 2), 0x0546);
    assert_eq!(get(&space, 0x42, 2), 0xc003);
    assert_eq!(get(&space, 0x58, 2), 0x7fff, "the reset bit reads 0");
    assert_eq!(space.msix_control(), (true, true));
    space.reset();
    assert_eq!(space.bytes, before);
}

#[test]
fn the_window_is_checked() {
    let mut space = space(BLOCK);
    let mut point = |bar: u8, offset: u32, length: u32| {
        space.write(0xc4, &[bar]);
        space.write(0xc8, &offset.to_le_bytes());
        space.write(0xcc, &length.to_le_bytes());
        space
            .window()
            .map(|window| (window.bar, window.offset, window.length))
    };
    assert_eq!(point(0, 0x14, 1), Some((0, 0x14, 1)));
    assert_eq!(point(1, 0x16, 2), Some((1, 0x16, 2)));
    assert_eq!(point(9, 0xffff_fffc, 4), Some((9, 0xffff_fffc, 4)));
    for (offset, length) in [(0, 0), (0, 3), (0, 8), (1, 2), (2, 4), (0, u32::MAX)] {
        assert_eq!(point(0, offset, length), None, "{length} at {offset}");
    }
    assert!(space.write(0xd3, &[7]).window);
    assert!(!space.write(0xd4, &[7]).window);
}

#[test]
fn any_access_is_survived() {
    let mut space = space(BLOCK);
    for offset in [0, 1, 0xfff, 0x1000, usize::MAX] {
        for len in [0, 1, 3, 8, 5000] {
            let mut data = vec![0; len];
            space.read(offset, &mut data, true);
            let inside = CONFIG_SIZE.saturating_sub(offset).min(len);
            assert!(data[inside..].iter().all(|byte| *byte == 0xff));
            space.write(offset, &data);
        }
    }
}

#[test]
fn interrupt_status() {
    let space = space(BLOCK);
    let mut data = [0; 4];
    space.read(4, &mut data, true);
    assert_eq!(data, [0, 0, 0x18, 0]);
}
