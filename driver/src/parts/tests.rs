use super::*;

fn part(part_type: u16, flags: u8, queue: u16, value: &[u8]) -> Part {
    let [a, b] = queue.to_le_bytes();
    Part {
        header: PartHeader {
            part_type: part_type.into(),
            flags,
            reserved: 0,
            selector: [a, b, 0, 0, 0, 0, 0, 0],
            length: u32::try_from(value.len()).unwrap().into(),
        },
        value: value.to_vec(),
    }
}

fn queue(index: u16, size: u16) -> Part {
    let mut value = size.to_le_bytes().to_vec();
    value.resize(32, 0);
    part(0x104, 0, index, &value)
}

const OFFERED: u64 = 1 << 32 | 1 << 29 | 1 << 9;

/// A device of two queues of 256 entries.
fn fresh() -> Parts {
    Parts(vec![
        part(0x100, 1, 0, &OFFERED.to_le_bytes()),
        part(0x101, 0, 0, &[0; 8]),
        part(0x102, 0, 18, &[2, 0]),
        part(0x103, 0, 0, &[0]),
        queue(0, 256),
        queue(1, 256),
        part(0x105, 0, 0, &[0; 8]),
        part(0x105, 0, 1, &[1, 0, 0, 0, 0, 0, 0, 0]),
        part(0x1f0, 0, 0, &[0; 8]),
        part(0x1f1, 1, 0, &[7; 60]),
    ])
}

fn with(change: impl FnOnce(&mut Vec<Part>)) -> Parts {
    let mut parts = fresh();
    change(&mut parts.0);
    parts
}

#[test]
fn bytes_and_parts_are_the_same() {
    let parts = fresh();
    let mut bytes = parts.to_bytes();
    assert_eq!(Parts::parse(&bytes).unwrap(), parts);
    bytes.extend([0; 7]);
    assert_eq!(Parts::parse(&bytes).unwrap(), parts, "padded");
    bytes.push(1);
    assert!(Parts::parse(&bytes).is_err());
    let cut = fresh().to_bytes();
    let error = Parts::parse(&cut[..cut.len() - 1]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("DEV_CFG: 60 bytes expected, 59 came"),
        "{error}"
    );
    let lie = part(0x103, 0, 0, &[0]).header;
    let lie = PartHeader {
        length: u32::MAX.into(),
        ..lie
    };
    assert!(Parts::parse(lie.as_bytes()).is_err());
}

#[test]
fn what_fits_is_taken_and_the_rest_named() {
    let here = fresh();
    let used = with(|parts| {
        parts[1].value = OFFERED.to_le_bytes().to_vec();
        parts[3].value = vec![0x0f];
        parts[4] = queue(0, 64);
        parts[8].value = vec![7; 8];
        // Known to the other device only, and optional.
        parts.push(part(0x2a0, 1, 0, &[1, 2, 3]));
    });
    here.can_take(&used).unwrap();
    let cases = [
        ("DEV_FEATURES", with(|p| p[0].value[0] ^= 1)),
        ("DRV_FEATURES", with(|p| p[1].value[0] |= 1)),
        ("num_queues", with(|p| p[2].value[0] = 3)),
        ("VQ_CFG of queue 1", with(|p| p[5] = queue(1, 512))),
        ("VQ_CFG of queue 2", with(|p| p.push(queue(2, 256)))),
        ("VQ_NOTIFY_CFG of queue 1", with(|p| p[7].value[0] = 2)),
        ("DEV_CFG", with(|p| p[9].value[32] = 0)),
        ("DEV_CFG", with(|p| p[9].value.push(0))),
        ("DEVICE_STATUS", with(|p| p[3].value.push(0))),
        ("part 0x2a0", with(|p| p.push(part(0x2a0, 0, 0, &[])))),
        (
            "VQ_STATE of queue 1",
            with(|p| p.push(part(0x1f0, 0, 1, &[0; 8]))),
        ),
        (
            "PCI_COMMON_CFG of offset 99",
            with(|p| p.push(part(0x102, 0, 99, &[0]))),
        ),
    ];
    for (name, theirs) in cases {
        let error = here.can_take(&theirs).unwrap_err().to_string();
        assert!(error.contains(name), "{name}: {error}");
    }
    // An older device, which knows nothing of where queues stand.
    let older = Parts(fresh().0[..8].to_vec());
    for (here, theirs) in [(&older, &here), (&here, &older)] {
        let error = here.can_take(theirs).unwrap_err().to_string();
        assert!(error.contains("VQ_STATE of queue 0"), "{error}");
    }
    // What is optional may be missing on either side.
    let without = Parts(fresh().0[..9].to_vec());
    without.can_take(&here).unwrap();
    here.can_take(&without).unwrap();
}
