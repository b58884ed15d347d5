//! A served disk, and a frontend with a guest's memory and ring.

use super::super::{VhostUserListener, VhostUserServer, VhostUserStats};
use crate::blk::{BlkDevice, BlkOptions, Disk};
use crate::queue::test_ring::{BASE, Guest, NEXT, TestRing, WRITE};
use crate::tracker::Marking;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(super) const HANG: Duration = Duration::from_secs(60);
/// A frontend's own addresses are not the guest's.
pub(super) const USER: u64 = 0x7000_0000_0000;
pub(super) const MEMORY: u64 = 8 << 20;
pub(super) const RING: u16 = 16;
pub(super) const LOG_ALL: u64 = 1 << 26;
pub(super) const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 28;
pub(super) const SECTORS: u64 = 4096;
/// Where the data of the request with head 3 n goes; headers and status bytes lie elsewhere.
pub(super) const DATA: u64 = BASE + 0x10_0000;
pub(super) const HEADERS: u64 = BASE + 0x8_0000;

/// A disk whose every sector begins with its number, and which can be told to wait.
#[derive(Debug)]
pub(super) struct TestDisk {
    data: Mutex<Vec<u8>>,
    /// While there is a receiver, every access says so and waits for a word.
    gate: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

#[derive(Debug)]
struct Shared(Arc<TestDisk>);

impl TestDisk {
    fn new() -> Arc<Self> {
        let mut data = vec![0x5a; usize::try_from(SECTORS * 512).unwrap()];
        for (sector, bytes) in (0u64..).zip(data.chunks_mut(512)) {
            bytes[..8].copy_from_slice(&sector.to_le_bytes());
        }
        Arc::new(Self {
            data: Mutex::new(data),
            gate: Mutex::new(None),
        })
    }

    /// Makes the next access wait; gives who is told of it, and who lets it go on.
    pub(super) fn close(&self) -> (Receiver<()>, Sender<()>) {
        let (at, arrives) = channel();
        let (go, word) = channel();
        *self.gate.lock().unwrap() = Some((at, word));
        (arrives, go)
    }

    fn pass(&self) {
        if let Some((at, go)) = self.gate.lock().unwrap().take() {
            let _ = at.send(());
            let _ = go.recv();
        }
    }

    pub(super) fn contents(&self) -> Vec<u8> {
        self.data.lock().unwrap().clone()
    }
}

impl Disk for Shared {
    fn size(&self) -> io::Result<u64> {
        Ok(SECTORS * 512)
    }
    fn pread(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.pass();
        let data = self.0.data.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        into.copy_from_slice(&data[at..at + into.len()]);
        Ok(into.len())
    }
    fn pwrite(&self, from: &[u8], offset: u64) -> io::Result<usize> {
        self.0.pass();
        let at = usize::try_from(offset).unwrap();
        self.0.data.lock().unwrap()[at..at + from.len()].copy_from_slice(from);
        Ok(from.len())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn punch(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn zero(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A server on a socket, in a thread of its own.
pub(super) struct Server {
    pub disk: Arc<TestDisk>,
    pub path: PathBuf,
    server: Arc<VhostUserServer>,
    thread: Option<JoinHandle<()>>,
    _dir: TempDir,
}

impl Server {
    pub(super) fn new(marking: Marking) -> Self {
        Self::offering(marking, false)
    }

    /// One that offers packed rings too, or not.
    pub(super) fn offering(marking: Marking, packed: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let disk = TestDisk::new();
        let options = BlkOptions {
            queues: 2,
            queue_size: 64,
            ..BlkOptions::default()
        };
        let device = BlkDevice::with_disk(Box::new(Shared(Arc::clone(&disk))), options).unwrap();
        let server = VhostUserServer::new(device, marking).unwrap();
        let server = Arc::new(server.offering_packed(packed));
        let listener = VhostUserListener::bind(&path).unwrap();
        let running = Arc::clone(&server);
        let thread = std::thread::spawn(move || running.run(listener.listener()).unwrap());
        Self {
            disk,
            path,
            server,
            thread: Some(thread),
            _dir: dir,
        }
    }

    pub(super) fn stats(&self) -> VhostUserStats {
        self.server.stats()
    }

    /// Waits for what another thread is about to count.
    pub(super) fn wait(&self, what: impl Fn(VhostUserStats) -> bool) {
        eventually(|| what(self.stats()));
    }

    /// Ends the server and waits for that.
    pub(super) fn stop(&mut self) {
        self.server.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

pub(super) fn eventually(mut what: impl FnMut() -> bool) {
    let began = Instant::now();
    while !what() {
        assert!(began.elapsed() < HANG, "it does not happen");
        std::thread::yield_now();
    }
}

pub(super) fn memfd(size: u64) -> File {
    use rustix::fs::{MemfdFlags, memfd_create};
    let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    file
}

/// A frontend, with its guest.
pub(super) struct Front {
    pub guest: Guest,
    pub front: Frontend,
    /// The same connection, for messages that the crate would not send.
    pub raw: UnixStream,
    pub kick: EventFd,
    pub call: EventFd,
    pub error: EventFd,
}

impl Front {
    /// Connects, negotiates everything, and hands over the memory.
    pub(super) fn new(server: &Server) -> Self {
        Self::with_guest(server, Guest::new(MEMORY))
    }

    pub(super) fn with_guest(server: &Server, guest: Guest) -> Self {
        let raw = UnixStream::connect(&server.path).unwrap();
        raw.set_read_timeout(Some(HANG)).unwrap();
        let mut front = Frontend::from_stream(raw.try_clone().unwrap(), 2);
        front.set_owner().unwrap();
        let offered = front.get_features().unwrap();
        assert_eq!(offered & FEATURES, FEATURES);
        let protocol = front.get_protocol_features().unwrap();
        front.set_protocol_features(protocol).unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        front.set_features(FEATURES).unwrap();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let front = Self {
            guest,
            front,
            raw,
            kick: event(),
            call: event(),
            error: event(),
        };
        front.front.set_mem_table(&[front.whole()]).unwrap();
        front
    }

    /// All of the guest's memory as one region.
    pub(super) fn whole(&self) -> VhostUserMemoryRegionInfo {
        self.region(0, MEMORY)
    }

    pub(super) fn region(&self, offset: u64, size: u64) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: BASE + offset,
            memory_size: size,
            userspace_addr: USER + offset,
            mmap_offset: offset,
            mmap_handle: self.guest.file.as_raw_fd(),
        }
    }

    pub(super) fn ring(&self) -> TestRing<'_> {
        TestRing::new(&self.guest, BASE, RING)
    }

    pub(super) fn addresses(&self) -> VringConfigData {
        let ring = self.ring();
        let user = |gpa| gpa - BASE + USER;
        VringConfigData {
            queue_max_size: RING,
            queue_size: RING,
            flags: 0,
            desc_table_addr: user(ring.desc),
            used_ring_addr: user(ring.used),
            avail_ring_addr: user(ring.avail),
            log_addr: None,
        }
    }

    /// Starts ring 0, from `base` on.
    pub(super) fn start(&mut self, base: u16) {
        self.prepare(base);
        self.front.set_vring_kick(0, &self.kick).unwrap();
        self.front.set_vring_enable(0, true).unwrap();
    }

    /// All but the kick descriptor and the enabling.
    pub(super) fn prepare(&mut self, base: u16) {
        self.front.set_vring_num(0, RING).unwrap();
        self.front.set_vring_base(0, base).unwrap();
        self.front.set_vring_addr(0, &self.addresses()).unwrap();
        self.front.set_vring_call(0, &self.call).unwrap();
        self.front.set_vring_err(0, &self.error).unwrap();
    }

    /// The flag of used-ring logging, on or off, with the log's address.
    pub(super) fn log_used(&mut self, at: Option<u64>) {
        let data = VringConfigData {
            flags: at.is_some().into(),
            log_addr: at,
            ..self.addresses()
        };
        self.front.set_vring_addr(0, &data).unwrap();
    }

    pub(super) fn log_all(&mut self, on: bool) {
        let features = FEATURES | if on { LOG_ALL } else { 0 };
        self.front.set_features(features).unwrap();
    }

    pub(super) fn set_log(&mut self, file: &File, offset: u64, size: u64) {
        let region = VhostUserDirtyLogRegion {
            mmap_size: size,
            mmap_offset: offset,
            mmap_handle: file.as_raw_fd(),
        };
        self.front.set_log_base(0, Some(region)).unwrap();
    }

    /// A table of what is in flight, made by the backend and put in force.
    pub(super) fn inflight(&mut self) -> (VhostUserInflight, File) {
        let asked = VhostUserInflight::new(0, 0, 1, RING);
        let (table, file) = self.front.get_inflight_fd(&asked).unwrap();
        self.front
            .set_inflight_fd(&table, file.as_raw_fd())
            .unwrap();
        (table, file)
    }

    /// Makes a request of 4 KiB available with the descriptors from `head` on: to read from or
    /// write to `sector`.
    pub(super) fn offer(&self, head: u16, write: bool, sector: u64) {
        let header = HEADERS + 64 * u64::from(head);
        let mut bytes = Vec::new();
        bytes.extend(u32::from(write).to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(sector.to_le_bytes());
        bytes.push(0xff);
        self.guest.write(header, &bytes);
        let ring = self.ring();
        let data = if write { NEXT } else { NEXT | WRITE };
        ring.set(head, header, 16, NEXT, head + 1);
        ring.set(head + 1, self.data(head), 4096, data, head + 2);
        ring.set(head + 2, header + 16, 1, WRITE, 0);
        ring.offer(head);
    }

    pub(super) fn data(&self, head: u16) -> u64 {
        DATA + 0x1000 * u64::from(head)
    }

    pub(super) fn status(&self, head: u16) -> u8 {
        self.guest.read(HEADERS + 64 * u64::from(head) + 16, 1)[0]
    }

    pub(super) fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Waits until the used index is `idx`.
    pub(super) fn used(&self, idx: u16) {
        eventually(|| self.ring().used_idx() == idx);
    }

    /// Carries out one request alone.
    pub(super) fn request(&self, write: bool, sector: u64) {
        let next = self.ring().used_idx().wrapping_add(1);
        self.offer(0, write, sector);
        self.kick();
        self.used(next);
        assert_eq!(self.status(0), 0);
    }

    /// A message as it goes over the wire.
    pub(super) fn send(&mut self, request: u32, flags: u32, size: u32, body: &[u8]) {
        let mut bytes = Vec::new();
        bytes.extend(request.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(size.to_ne_bytes());
        bytes.extend(body);
        self.raw.write_all(&bytes).unwrap();
    }

    /// The backend has closed the connection.
    pub(super) fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        self.raw.read_to_end(&mut rest).is_ok() || self.raw.write_all(&[0]).is_err()
    }
}
