//! The block device: what every request does, and what is answered when it cannot be done.

mod bed;
mod hostile;
mod load;

use super::*;
use bed::wire::{DISCARD, FLUSH, GET_ID, IN, IOERR, OK, OUT, UNSUPP, WRITE_ZEROES};
use bed::{Answer, Bed, IN_AT, OUT_AT, SECTORS, UNTOUCHED, pattern};
use std::os::unix::fs::FileExt;

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

fn answer(status: u8, len: u32, data: Vec<u8>) -> Answer {
    Answer { status, len, data }
}

fn done(len: u32) -> Answer {
    answer(OK, len, Vec::new())
}

fn failed() -> Answer {
    answer(IOERR, 1, Vec::new())
}

#[test]
fn reads_return_sectors() {
    let mut bed = Bed::new();
    let disk = pattern(SECTORS);
    let read = |bed: &mut Bed, sector: u64, len: usize| {
        let at = usize::try_from(sector).unwrap() * 512;
        let expected = answer(
            OK,
            u32::try_from(len + 1).unwrap(),
            disk[at..at + len].to_vec(),
        );
        assert_eq!(bed.ask(IN, sector, &[], len), expected);
    };
    read(&mut bed, 0, 512);
    read(&mut bed, 77, 4096);
    read(&mut bed, SECTORS - 1, 512);
    read(&mut bed, SECTORS, 0);
    // As large as the bounce buffer, and larger.
    read(&mut bed, 5, 1 << 20);
    read(&mut bed, 5, (1 << 20) + 512);
    read(&mut bed, 0, 4 << 20);
    let stats = bed.device.stats();
    assert_eq!((stats.reads, stats.errors), (7, 0));
    assert_eq!(stats.bytes_read, 512 + 4096 + 512 + (6 << 20) + 512);
    assert_eq!(stats.bytes_written, 0);
}

#[test]
fn writes_reach_the_disk() {
    let mut bed = Bed::new();
    for (sector, len) in [(0, 512), (100, 4096), (7, 1 << 20), (9, (3 << 20) + 512)] {
        let data: Vec<u8> = (0..len).map(|n: u32| n.to_le_bytes()[1] ^ 0x5a).collect();
        assert_eq!(bed.ask(OUT, sector, &data, 0), done(1));
        assert_eq!(bed.on_disk(sector, u64::from(len / 512)), data);
    }
    let stats = bed.device.stats();
    assert_eq!((stats.writes, stats.bytes_read), (4, 0));
    assert_eq!(stats.bytes_written, 512 + 4096 + (4 << 20) + 512);
}

#[test]
fn requests_outside_the_disk_or_of_odd_length_change_nothing() {
    let mut bed = Bed::new();
    for (sector, len) in [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (1 << 55, 4096),
        (0, 511),
        (0, 513),
        (0, 1),
    ] {
        let refused = answer(IOERR, 0, vec![UNTOUCHED; len]);
        assert_eq!(bed.ask(IN, sector, &[], len), refused, "{sector} {len}");
        assert_eq!(bed.ask(OUT, sector, &vec![1; len], 0), failed());
    }
    assert_eq!(bed.on_disk(0, SECTORS), pattern(SECTORS));
    assert_eq!(bed.device.stats().errors, 16);
}

#[test]
fn flush_id_and_unknown_requests() {
    let mut bed = Bed::new();
    assert_eq!(bed.ask(FLUSH, 0, &[], 0), done(1));
    assert_eq!(bed.disk.flushes.load(Ordering::Relaxed), 1);
    let id = BlkOptions::default().id;
    assert_eq!(bed.ask(GET_ID, 0, &[], 20), answer(OK, 21, id.to_vec()));
    assert_eq!(bed.ask(GET_ID, 0, &[], 8), answer(OK, 9, id[..8].to_vec()));
    let longer = bed.ask(GET_ID, 0, &[], 30);
    assert_eq!((longer.status, longer.len), (OK, 20));
    assert_eq!(longer.data[20..], [UNTOUCHED; 10]);
    for kind in [2, 3, 5, 9, 10, 14, 16, 0x100, 0x8000_0000, u32::MAX] {
        assert_eq!(bed.ask(kind, 0, &[], 0), answer(UNSUPP, 1, Vec::new()));
    }
    let stats = bed.device.stats();
    assert_eq!((stats.flushes, stats.errors), (1, 10));
}

#[test]
fn discard_and_write_zeroes_clear_their_ranges() {
    for sparse in [true, false] {
        let mut bed = Bed::new();
        bed.disk.sparse.store(sparse, Ordering::Relaxed);
        let mut expected = pattern(SECTORS);
        let mut clear = |at: usize, sectors: usize| expected[at * 512..][..sectors * 512].fill(0);
        let two = [range(10, 3, 0), range(100, 4096, 1)].concat();
        assert_eq!(bed.ask(WRITE_ZEROES, 0, &two, 0), done(1));
        clear(10, 3);
        clear(100, 4096);
        let two = [range(20, 1, 0), range(SECTORS - 1, 1, 0)].concat();
        assert_eq!(bed.ask(DISCARD, 0, &two, 0), done(1));
        if sparse {
            clear(20, 1);
            clear(8191, 1);
        }
        assert_eq!(bed.on_disk(0, SECTORS), expected);
    }
}

#[test]
fn bad_ranges_of_discard_and_write_zeroes_are_refused_whole() {
    let mut bed = Bed::new();
    let good = range(0, 1, 0);
    let cases = [
        (vec![], IOERR),
        (good[..15].to_vec(), IOERR),
        ([good.clone(), vec![0]].concat(), IOERR),
        (good.repeat(17), IOERR),
        ([good.clone(), range(SECTORS, 1, 0)].concat(), IOERR),
        (range(SECTORS - 1, 2, 0), IOERR),
        (range(u64::MAX, 1, 0), IOERR),
        (range(0, 0, 0), IOERR),
        (range(0, u32::MAX, 0), IOERR),
        (range(0, 1, 2), UNSUPP),
        (range(0, 1, 0x8000_0001), UNSUPP),
    ];
    for kind in [DISCARD, WRITE_ZEROES] {
        for (data, status) in &cases {
            let answered = bed.ask(kind, 0, data, 0);
            assert_eq!(answered.status, *status, "{kind} {data:?}");
        }
    }
    assert_eq!(bed.ask(DISCARD, 0, &range(0, 1, 1), 0).status, UNSUPP);
    assert_eq!(bed.on_disk(0, SECTORS), pattern(SECTORS));
}

#[test]
fn a_read_only_device_reads_only() {
    let mut bed = Bed::with(BlkOptions {
        read_only: true,
        ..BlkOptions::default()
    });
    assert_eq!(bed.ask(OUT, 0, &[1; 512], 0), failed());
    assert_eq!(bed.ask(WRITE_ZEROES, 0, &range(0, 1, 0), 0), failed());
    assert_eq!(bed.ask(DISCARD, 0, &range(0, 1, 0), 0), failed());
    assert_eq!(bed.ask(IN, 1, &[], 512).status, OK);
    assert_eq!(bed.on_disk(0, SECTORS), pattern(SECTORS));
    let features = bed.device.features();
    assert_eq!(features & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
}

#[test]
fn without_the_flush_feature_every_write_is_durable_before_it_completes() {
    let mut bed = Bed::new();
    bed.device.negotiated(1 << 32);
    bed.ask(IN, 0, &[], 512);
    assert_eq!(bed.disk.flushes.load(Ordering::Relaxed), 0);
    assert_eq!(bed.ask(OUT, 0, &[1; 512], 0), done(1));
    assert_eq!(bed.disk.flushes.load(Ordering::Relaxed), 1);
    assert_eq!(bed.ask(OUT, 0, &vec![1; 2 << 20], 0), done(1));
    assert_eq!(bed.disk.flushes.load(Ordering::Relaxed), 2);
    bed.device.negotiated(1 << 32 | 1 << 9);
    assert_eq!(bed.ask(OUT, 0, &[1; 512], 0), done(1));
    assert_eq!(bed.disk.flushes.load(Ordering::Relaxed), 2);
}

#[test]
fn a_failing_disk_fails_the_requests_it_concerns() {
    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;
    let mut bed = Bed::new();
    for errno in [EIO, ENOSPC] {
        *bed.disk.fault.lock().unwrap() = Some((512 * 8..512 * 9, errno));
        // In one batch, with neighbours on both sides.
        let used = bed.ring().used_idx();
        for (slot, sector) in [(0, 7), (4, 8), (8, 9), (12, 8)] {
            let kind = if slot == 12 { OUT } else { IN };
            let data = if slot == 12 { (512, 0) } else { (0, 512) };
            bed.submit(slot, kind, sector, data.0, data.1);
        }
        bed.run().unwrap();
        let lens: Vec<_> = (0..4)
            .map(|n| bed.ring().used_at(used.wrapping_add(n)))
            .collect();
        assert_eq!(lens, [(0, 513), (4, 0), (8, 513), (12, 1)]);
        let statuses = [0, 4, 8, 12].map(|slot| bed.status(slot));
        assert_eq!(statuses, [OK, IOERR, OK, IOERR]);
        assert_eq!(bed.ask(FLUSH, 0, &[], 0), failed());
        assert_eq!(
            bed.ask(WRITE_ZEROES, 0, &range(0, 100, 0), 0),
            failed(),
            "{errno}"
        );
        // In the midst of a request of several buffers: what came before has been read.
        *bed.disk.fault.lock().unwrap() = Some((3 << 20..(3 << 20) + 1, errno));
        let read = bed.ask(IN, 0, &[], 4 << 20);
        assert_eq!((read.status, read.len), (IOERR, 3 << 20));
        assert_eq!(bed.ask(OUT, 0, &vec![0; 4 << 20], 0), failed());
        *bed.disk.fault.lock().unwrap() = None;
        assert_eq!(bed.ask(IN, 8, &[], 512).status, OK);
        *bed.disk.data.lock().unwrap() = pattern(SECTORS);
    }
}

#[test]
fn short_transfers_are_continued_and_a_truncated_disk_is_an_error() {
    let mut bed = Bed::new();
    bed.disk.most.store(100, Ordering::Relaxed);
    let expected = answer(OK, 4097, pattern(16)[4096..].to_vec());
    assert_eq!(bed.ask(IN, 8, &[], 4096), expected);
    assert_eq!(bed.ask(OUT, 8, &[9; 1024], 0), done(1));
    assert_eq!(bed.on_disk(8, 2), [9; 1024]);

    bed.disk.data.lock().unwrap().truncate(512 * 10 + 100);
    let cut = answer(IOERR, 0, vec![UNTOUCHED; 1024]);
    assert_eq!(bed.ask(IN, 10, &[], 1024), cut);
    assert_eq!(bed.ask(IN, 9, &[], 512).status, OK);
}

#[test]
fn data_in_unmapped_memory_fails_the_request_alone() {
    let mut bed = Bed::new();
    let unmap = |bed: &Bed, at: u64| bed.guest.dma.unmap(at, 4096);
    unmap(&bed, OUT_AT + 4096);
    assert_eq!(bed.ask(OUT, 0, &[1; 8192], 0), failed());
    assert_eq!(bed.ask(OUT, 0, &vec![1; 2 << 20], 0), failed());
    unmap(&bed, IN_AT);
    assert_eq!(bed.ask(IN, 0, &[], 8192).status, IOERR);
    assert_eq!(bed.ask(IN, 0, &[], 2 << 20).status, IOERR);
    assert_eq!(bed.ask(GET_ID, 0, &[], 20).status, IOERR);
    assert_eq!(bed.on_disk(0, SECTORS), pattern(SECTORS));
    bed.guest.map();
    assert_eq!(bed.ask(OUT, 0, &[1; 8192], 0), done(1));
}

#[test]
fn the_configuration_describes_the_disk() {
    let bed = Bed::with(BlkOptions {
        queues: 3,
        queue_size: 64,
        ..BlkOptions::default()
    });
    let device = &bed.device;
    let config = device.config();
    assert_eq!((config.len(), device.config_len()), (60, 60));
    assert_eq!(config[0..8], SECTORS.to_le_bytes());
    assert_eq!(config[12..16], 62u32.to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(config[34..36], 3u16.to_le_bytes());
    assert_eq!((device.num_queues(), device.queue_max_size(2)), (3, 64));
    assert!(!device.config_write(32, &[0]));
    assert_eq!(
        device.features(),
        1 << 2 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 14
    );
    assert_eq!((device.device_id(), device.pci_class()), (2, 0x01_0000));
}

#[test]
fn disks_that_cannot_be_served_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let open = |path: &Path| BlkDevice::open_path(path, BlkOptions::default()).unwrap_err();
    assert!(matches!(open(&path), BlkError::Open { .. }));
    let file = File::create_new(&path).unwrap();
    assert!(matches!(open(&path), BlkError::Empty));
    file.set_len(100).unwrap();
    assert!(matches!(open(&path), BlkError::NotSectors { size: 100 }));
    file.set_len(1024).unwrap();
    BlkDevice::open_path(&path, BlkOptions::default()).unwrap();

    let with = |file: File, options| BlkDevice::open(file, options).unwrap_err();
    let read_only = File::open(&path).unwrap();
    let error = with(read_only, BlkOptions::default());
    assert!(matches!(error, BlkError::NotWritable));
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    let reading = BlkOptions {
        read_only: true,
        ..BlkOptions::default()
    };
    assert!(matches!(
        with(File::from(pipe), reading),
        BlkError::NotADisk(_)
    ));
    let directory = File::open(dir.path()).unwrap();
    assert!(matches!(with(directory, reading), BlkError::NotADisk(_)));
    for (queues, queue_size) in [(0, 256), (65, 256), (1, 0), (1, 100), (1, 65535)] {
        let options = BlkOptions {
            queues,
            queue_size,
            ..reading
        };
        let file = File::open(&path).unwrap();
        assert!(matches!(with(file, options), BlkError::Queues { .. }));
    }
}

/// The same requests on a real file, so that the system calls are in it.
#[test]
fn a_file_behaves_like_the_disk_in_memory() {
    let mut bed = Bed::new();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&pattern(SECTORS), 0).unwrap();
    bed.device = BlkDevice::open(file.try_clone().unwrap(), BlkOptions::default()).unwrap();
    let on_file = |sector: u64, len: usize| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, sector * 512).unwrap();
        bytes
    };
    assert_eq!(bed.ask(OUT, 5, &[3; 1024], 0), done(1));
    assert_eq!(bed.ask(FLUSH, 0, &[], 0), done(1));
    assert_eq!(on_file(5, 1024), [3; 1024]);
    assert_eq!(bed.ask(IN, 5, &[], 1024), answer(OK, 1025, vec![3; 1024]));
    for (at, flags) in [(64, 0), (192, 1)] {
        assert_eq!(bed.ask(WRITE_ZEROES, 0, &range(at, 64, flags), 0), done(1));
        assert_eq!(on_file(at, 64 * 512), [0; 64 * 512]);
        assert_eq!(
            on_file(at - 1, 512),
            pattern(at)[(usize::try_from(at).unwrap() - 1) * 512..]
        );
    }
    assert_eq!(bed.ask(DISCARD, 0, &range(320, 64, 0), 0), done(1));
    assert_eq!(file.metadata().unwrap().len(), SECTORS * 512);
    file.set_len(4096).unwrap();
    assert_eq!(bed.ask(IN, 7, &[], 1024).status, IOERR);
    assert_eq!(bed.ask(IN, 7, &[], 512).status, OK);
}
