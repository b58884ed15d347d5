use super::*;
use crate::testing::memfd;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

#[derive(Debug, Default)]
struct Log(Mutex<Vec<(u64, u64)>>);
impl WriteLog for Log {
    fn wrote(&self, iova: u64, len: u64) {
        self.0.lock().unwrap().push((iova, len));
    }
}

#[test]
fn windows_and_log() {
    let file = memfd(0x3000);
    let log = Arc::new(Log::default());
    let memory = DmaMemory::from_file(&file, 0x1000, 0x2000, 0x8000)
        .unwrap()
        .with_log(log.clone());
    let part = memory.slice(0x10, 0x20).unwrap();
    assert_eq!((part.iova(), part.len()), (0x8010, 0x20));
    part.write(4, b"tide").unwrap();
    part.store_u16(0, 0x1234, Ordering::Release).unwrap();
    let mut back = [0; 6];
    memory.read(0x10, &mut back[..2]).unwrap();
    memory.read(0x14, &mut back[2..]).unwrap();
    assert_eq!(&back, b"\x34\x12tide");
    assert_eq!(*log.0.lock().unwrap(), [(0x8014, 4), (0x8010, 2)]);
    let mut file = file;
    file.seek(SeekFrom::Start(0x1014)).unwrap();
    let mut seen = [0; 4];
    file.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"tide");
}

#[test]
fn every_access_is_bounded() {
    let memory = DmaMemory::from_file(&memfd(0x1000), 0, 0x1000, 0).unwrap();
    assert!(memory.write(0xfff, &[1, 2]).is_err());
    assert!(memory.read(u64::MAX, &mut [0]).is_err());
    assert!(memory.slice(1, u64::MAX).is_err());
    assert!(memory.slice(0x1000, 0).unwrap().is_empty());
    assert!(memory.load_u64(0xff9, Ordering::Relaxed).is_err());
    assert_eq!(
        memory.load_u32(2, Ordering::Relaxed),
        Err(MemoryError::Misaligned {
            offset: 2,
            align: 4
        })
    );
    assert_eq!(memory.load_u16(0, Ordering::Release), Ok(0));
    assert_eq!(memory.slice(8, 21).unwrap().words().unwrap().len(), 2);
    assert_eq!(memory.slice(3, 21).unwrap().bytes().len(), 21);
    assert!(memory.slice(3, 21).unwrap().words().is_err());
    assert!(DmaMemory::from_file(&memfd(0x1000), 0, 0x2000, 0).is_err());
    assert!(DmaMemory::from_file(&memfd(0x1000), 0, 0x1000, u64::MAX).is_err());
    let (a, _b) = UnixStream::pair().unwrap();
    assert!(memory.writev_to(a.as_fd(), &[], &[(0xfff, 2)]).is_err());
    assert!(
        memory
            .read_exact_from(a.as_fd(), &[(0, 1), (0xfff, 2)])
            .is_err()
    );
}

#[test]
fn pages_travel_without_a_copy_in_between() {
    // More segments than one call takes, more bytes than a socket buffers.
    let pages = 1500_u64;
    let source = DmaMemory::from_file(&memfd(pages * 4096), 0, pages * 4096, 0).unwrap();
    let log = Arc::new(Log::default());
    let target = DmaMemory::from_file(&memfd(pages * 4096), 0, pages * 4096, 0)
        .unwrap()
        .with_log(log.clone());
    for page in 0..pages {
        source.write(page * 4096, &page.to_le_bytes()).unwrap();
    }
    let ranges: Vec<_> = (0..pages).rev().map(|page| (page * 4096, 4096)).collect();
    let (mut a, mut b) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| source.write_all_to(a.as_fd(), b"head", &ranges).unwrap());
        let mut head = [0; 4];
        b.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"head");
        target.read_exact_from(b.as_fd(), &ranges).unwrap();
    });
    for page in 0..pages {
        assert_eq!(target.load_u64(page * 4096, Ordering::Relaxed), Ok(page));
    }
    let logged: u64 = log.0.lock().unwrap().iter().map(|(_, len)| len).sum();
    assert_eq!(logged, pages * 4096);
    a.write_all(b"x").unwrap();
    drop(a);
    let end = target.read_exact_from(b.as_fd(), &[(0, 2)]).unwrap_err();
    assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
}
