use super::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::channel;

const SIZE: u64 = 64 * PAGE_SIZE;

fn disk(limit: u64) -> (File, HeldDisk) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(SIZE).unwrap();
    let held = HeldDisk::new(Box::new(file.try_clone().unwrap()), limit);
    (file, held)
}

fn read(disk: &HeldDisk, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    assert_eq!(disk.pread(&mut bytes, offset).unwrap(), len);
    bytes
}

fn stored(file: &File, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

#[test]
fn reads_see_what_is_held_and_the_storage_does_not() {
    let (file, disk) = disk(1 << 20);
    disk.pwrite(&[1; 8192], 0).unwrap();
    disk.hold();
    disk.pwrite(&[2; 512], 3584).unwrap();
    disk.pwrite(&[3; 4096], 4096 + 512).unwrap();
    assert_eq!(stored(&file, 0, 8192), [1; 8192]);
    let mut expected = vec![1; 3 * 4096];
    expected[3584..4096].fill(2);
    expected[4608..8704].fill(3);
    expected[8704..].fill(0);
    assert_eq!(read(&disk, 0, 3 * 4096), expected);
    // A checkpoint takes it along, and more is written before it is whole.
    disk.boundary();
    let sealed = disk.seal().unwrap();
    disk.go_on();
    disk.pwrite(&[4; 512], 3584).unwrap();
    expected[3584..4096].fill(4);
    assert_eq!(read(&disk, 0, 3 * 4096), expected);
    disk.release().unwrap();
    assert_eq!(stored(&file, 3584, 512), [2; 512], "only what was sealed");
    assert_eq!(read(&disk, 0, 3 * 4096), expected);
    // The other side makes the same of it.
    let (theirs, other) = super::tests::disk(1 << 20);
    other.check(&sealed).unwrap();
    other.apply(&sealed).unwrap();
    assert_eq!(stored(&theirs, 3584, 512), [2; 512]);
    assert_eq!(stored(&theirs, 4608, 4096), [3; 4096]);
    disk.let_out().unwrap();
    assert_eq!(stored(&file, 0, 3 * 4096), expected);
    assert_eq!(disk.held(), 0);
}

#[test]
fn a_seal_that_came_to_nothing_travels_with_the_next() {
    let (_, disk) = disk(1 << 20);
    disk.hold();
    disk.pwrite(&[1; 512], 0).unwrap();
    let first = disk.seal().unwrap();
    disk.pwrite(&[2; 512], 512).unwrap();
    let second = disk.seal().unwrap();
    assert_eq!((first.len(), second.len()), (HEAD + 512, HEAD + 1024));
    assert!(
        HeldDisk::new(Box::new(tempfile::tempfile().unwrap()), 0)
            .seal()
            .is_none()
    );
}

#[test]
fn a_full_disk_pushes_back_until_the_boundary() {
    let (_, disk) = disk(2 * PAGE_SIZE);
    let (ask, asked) = channel();
    disk.on_pressure(move || ask.send(()).unwrap());
    disk.hold();
    disk.pwrite(&[1; 8192], 0).unwrap();
    let other = disk.clone();
    let writer = std::thread::spawn(move || other.pwrite(&[2; 512], 8192).unwrap());
    asked.recv().unwrap();
    assert_eq!(disk.held(), 8192, "it waits");
    disk.boundary();
    assert_eq!(writer.join().unwrap(), 512);
    disk.seal().unwrap();
    disk.release().unwrap();
    disk.go_on();
    disk.pwrite(&[3; 512], 0).unwrap();
}

/// Counts how often the storage was asked to be durable.
#[derive(Debug)]
struct Flushes(File, Arc<Mutex<Vec<&'static str>>>);

impl Disk for Flushes {
    fn size(&self) -> io::Result<u64> {
        Disk::size(&self.0)
    }
    fn pread(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.pread(into, offset)
    }
    fn pwrite(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        self.1.lock().unwrap().push("write");
        self.0.pwrite(data, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.1.lock().unwrap().push("flush");
        Ok(())
    }
    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn zero(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[test]
fn a_flush_is_true_before_the_guest_goes_on() {
    let log = Arc::default();
    let file = tempfile::tempfile().unwrap();
    file.set_len(SIZE).unwrap();
    let disk = HeldDisk::new(Box::new(Flushes(file, Arc::clone(&log))), 1 << 20);
    disk.hold();
    disk.flush().unwrap();
    assert_eq!(*log.lock().unwrap(), ["flush"], "nothing is held: at once");
    disk.pwrite(&[1; 512], 0).unwrap();
    let (ask, asked) = channel();
    disk.on_pressure(move || ask.send(()).unwrap());
    let other = disk.clone();
    let flusher = std::thread::spawn(move || other.flush());
    asked.recv().unwrap();
    assert!(!flusher.is_finished());
    // The CPUs are stopped: the device may finish it, and nobody sees.
    disk.boundary();
    flusher.join().unwrap().unwrap();
    disk.seal().unwrap();
    assert_eq!(*log.lock().unwrap(), ["flush"]);
    disk.make_true().unwrap();
    assert_eq!(*log.lock().unwrap(), ["flush", "write", "flush"]);
    disk.release().unwrap();
    assert_eq!(log.lock().unwrap().len(), 3, "nothing is left to do");
}

#[test]
fn nobody_is_trusted() {
    let (_, disk) = disk(1 << 20);
    let run = |offset: u64, len: u64, data: usize| {
        let mut bytes = [offset.to_le_bytes(), len.to_le_bytes()].concat();
        bytes.resize(HEAD + data, 7);
        bytes
    };
    assert!(disk.check(&run(0, 512, 512)).is_ok());
    for bad in [
        run(0, 512, 511),
        run(0, 0, 0),
        run(SIZE, 512, 512),
        run(u64::MAX, 512, 512),
        run(0, u64::MAX, 512),
        vec![0; 15],
    ] {
        assert!(disk.check(&bad).is_err());
        assert!(disk.apply(&bad).is_err());
    }
    disk.hold();
    assert!(disk.pwrite(&[0; 100], 0).is_err(), "not a sector");
    assert!(disk.pwrite(&[0; 512], SIZE).is_err(), "beyond the end");
    assert!(disk.pwrite(&[0; 512], u64::MAX - 511).is_err());
}
