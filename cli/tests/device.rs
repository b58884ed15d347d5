//! `tidemark device vfio-user` as a process, driven over its sockets.

use driver::Transport;
use driver::blk::BlkQueue;
use driver::bus::Bus;
use driver::bus::vfio_user::VfioUserBus;
use driver::dirty::DirtySet;
use driver::queue::SplitQueue;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use tempfile::TempDir;
use vm::VmError;
use vm::exercise::{RoundReport, RoundStart, TrackOptions, Watcher};

/// A device's process, killed if a test forgets it.
struct Process {
    child: Child,
    /// What it said on stderr until it listened.
    said: Vec<String>,
}

impl Process {
    /// Starts, and waits for so many sockets.
    fn start(args: &[&str], sockets: usize) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidemark"))
            .args(["device", "vfio-user"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let mut lines = BufReader::new(stderr).lines().map(Result::unwrap);
        let mut said = Vec::new();
        let listens = |said: &[String]| {
            said.iter()
                .filter(|line| line.contains("listening on") || line.contains("connected by"))
                .count()
        };
        while listens(&said) < sockets {
            match lines.next() {
                Some(line) => said.push(line),
                None => break,
            }
        }
        // The pipe stays open for as long as the process writes to it.
        std::thread::spawn(move || lines.for_each(|line| eprintln!("device: {line}")));
        Self { child, said }
    }

    fn terminate(&self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
    }

    /// Its exit and its reports.
    fn end(mut self) -> (ExitStatus, Vec<Value>) {
        let mut text = String::new();
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        let reports = text.lines().map(|line| serde_json::from_str(line).unwrap());
        (self.child.wait().unwrap(), reports.collect())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn disk(dir: &TempDir, name: &str) -> String {
    let path = dir.path().join(name);
    File::create(&path).unwrap().set_len(64 << 20).unwrap();
    path.to_str().unwrap().to_owned()
}

fn socket(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_owned()
}

fn connect(path: &str) -> Arc<VfioUserBus> {
    VfioUserBus::connect(Path::new(path)).unwrap()
}

/// Brings the disk up and makes 64 writes of 256 KiB each available; nobody waits for them.
fn load(bus: &Arc<VfioUserBus>) {
    let transport = Transport::new(bus.clone()).unwrap();
    let features = transport
        .initialise(spec::features::Features::RING_INDIRECT_DESC)
        .unwrap();
    let ring = bus.dma_alloc(SplitQueue::bytes_needed(64)).unwrap();
    let area = bus.dma_alloc(BlkQueue::area_needed(64)).unwrap();
    let data = bus.dma_alloc(256 << 10).unwrap();
    let split = SplitQueue::new(ring, 64, features).unwrap();
    transport.setup_queue(0, &split.setup(1), None).unwrap();
    let mut queue = BlkQueue::new(split, area);
    transport.driver_ok().unwrap();
    for n in 0..64 {
        queue
            .write(n * 512, &[(data.iova(), 256 << 10)], n)
            .unwrap();
    }
    queue.publish().unwrap();
    transport.notify(0, 64).unwrap();
}

#[test]
fn a_signal_ends_it_with_requests_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, path) = (disk(&dir, "disk"), socket(&dir, "s"));
    let process = Process::start(&["--disk", &disk, "--socket-path", &path], 1);
    let bus = connect(&path);
    load(&bus);
    process.terminate();
    let (status, reports) = process.end();
    assert!(status.success(), "{status}");
    let report = &reports[0];
    assert!(report["requests"].as_u64().unwrap() <= 64, "{report}");
    assert_eq!(
        (&report["errors"], &report["dma_maps"]),
        (&0.into(), &3.into()),
        "{report}"
    );
    assert!(!Path::new(&path).exists(), "the socket is gone");
    assert!(
        bus.config_read(0, &mut [0; 4]).is_err(),
        "and so is the device"
    );
}

#[test]
fn several_devices_end_each_with_its_client() {
    let dir = tempfile::tempdir().unwrap();
    let disks = [disk(&dir, "d0"), disk(&dir, "d1")];
    let paths = [socket(&dir, "s0"), socket(&dir, "s1")];
    let log = socket(&dir, "log");
    let other = socket(&dir, "other");
    let args = [
        "--socket-path",
        &paths[0],
        "--disk",
        &disks[0],
        "--dma-log",
        &log,
        "--socket-path",
        &paths[1],
        "--disk",
        &disks[1],
        "--dma-log",
        &other,
    ];
    let process = Process::start(&args, 2);
    let buses = paths.each_ref().map(|path| connect(path));
    load(&buses[1]);
    let [first, second] = buses;
    first.dma_alloc(8192).unwrap();
    drop(second);
    drop(first);
    let (status, reports) = process.end();
    assert!(status.success(), "{status}");
    let maps = |disk: &str| {
        let report = reports
            .iter()
            .find(|report| report["disk"] == disk)
            .unwrap();
        report["dma_maps"].as_u64().unwrap()
    };
    assert_eq!((reports.len(), maps(&disks[0]), maps(&disks[1])), (2, 1, 3));
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(lines[0]["op"], "map");
    assert_eq!(
        (&lines[0]["size"], &lines[0]["offset"]),
        (&8192.into(), &0.into())
    );
    assert_eq!(lines[0]["perm"], "rw");
    assert!(lines[0]["ino"].is_u64() && lines[0]["iova"].is_u64());
    assert_eq!(lines[1]["op"], "end");
}

#[test]
fn it_keeps_serving_when_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, path) = (disk(&dir, "disk"), socket(&dir, "s"));
    let process = Process::start(&["--disk", &disk, "--socket-path", &path, "--keep"], 1);
    for _ in 0..3 {
        load(&connect(&path));
    }
    // A client that talks nonsense is not the last either.
    drop(UnixStream::connect(&path).unwrap());
    connect(&path).config_read(0, &mut [0; 4]).unwrap();
    process.terminate();
    let (status, reports) = process.end();
    assert!(status.success(), "{status}");
    assert_eq!(reports[0]["dma_maps"], 9);
}

#[test]
fn an_inherited_socket_listens_or_is_connected() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, path) = (disk(&dir, "disk"), socket(&dir, "s"));
    let listener = UnixListener::bind(&path).unwrap();
    let (client, connected) = UnixStream::pair().unwrap();
    let file = File::open(&disk).unwrap();
    // For all children of this process, who do not mind.
    fcntl_setfd(&listener, FdFlags::empty()).unwrap();
    fcntl_setfd(&connected, FdFlags::empty()).unwrap();
    fcntl_setfd(&file, FdFlags::empty()).unwrap();
    for (fd, why) in [(file.as_raw_fd(), "is no socket"), (999, "is not open")] {
        let process = Process::start(&["--disk", &disk, "--fd", &fd.to_string()], 1);
        let said = process.said.join("\n");
        let (status, _) = process.end();
        assert_eq!(status.code(), Some(3), "{said}");
        assert!(said.contains(why), "{said}");
    }
    let process = Process::start(
        &["--disk", &disk, "--fd", &listener.as_raw_fd().to_string()],
        1,
    );
    drop(listener);
    load(&connect(&path));
    let (status, reports) = process.end();
    assert!(status.success(), "{status}");
    assert_eq!(reports[0]["dma_maps"], 3);
    assert!(Path::new(&path).exists(), "the file is its maker's");

    let fd = connected.as_raw_fd().to_string();
    let process = Process::start(&["--disk", &disk, "--fd", &fd, "--keep"], 1);
    drop(connected);
    // VERSION 0.1 without any text: a header and four bytes; the answer has a text.
    let mut ask = vec![7, 0, 1, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ask.extend([0, 0, 1, 0]);
    (&client).write_all(&ask).unwrap();
    let mut answer = [0; 20];
    (&client).read_exact(&mut answer).unwrap();
    assert_eq!(answer[..4], [7, 0, 1, 0]);
    assert_eq!(answer[8..], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    drop(client);
    let (status, reports) = process.end();
    assert!(status.success(), "{status}");
    assert_eq!(reports.len(), 1, "no other client can come, --keep or not");
}

#[test]
fn each_device_has_a_socket_and_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, path) = (disk(&dir, "disk"), socket(&dir, "s"));
    for args in [
        vec!["--disk", &disk],
        vec!["--disk", &disk, "--disk", &disk, "--socket-path", &path],
        vec!["--disk", &disk, "--socket-path", &path, "--fd", "3"],
    ] {
        let (status, reports) = Process::start(&args, 1).end();
        assert_eq!((status.code(), reports.len()), (Some(2), 0), "{args:?}");
    }
}

/// The value of a series in what the socket answers.
fn metric(socket: &str, series: &str) -> f64 {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    let value = text.lines().find_map(|line| line.strip_prefix(series));
    let value = value.unwrap_or_else(|| panic!("no {series} in {text}"));
    value.trim().parse().unwrap()
}

/// Two devices, one of them used: the metrics tell them apart, and go with the process.
#[test]
fn metrics_tell_what_each_device_did() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (socket(&dir, "one"), socket(&dir, "two"));
    let metrics = socket(&dir, "metrics");
    let (first, second) = (disk(&dir, "1.img"), disk(&dir, "2.img"));
    let paths = ["--socket-path", &one, "--socket-path", &two];
    let disks = ["--disk", &first, "--disk", &second];
    let more = ["--metrics-socket", &metrics, "--keep"];
    let process = Process::start(&[&paths[..], &disks, &more].concat(), 2);

    let options = TrackOptions {
        rounds: 2,
        requests: 300,
        pages: 256,
        ..TrackOptions::default()
    };
    let report = vm::exercise::track(connect(&two), &options, &mut Nobody).unwrap();
    assert!(report.is_good(), "{report:?}");
    let reads = |device: u8| {
        let labels = format!("device=\"{device}\",type=\"read\",result=\"ok\"");
        metric(
            &metrics,
            &format!("tidemark_blk_requests_total{{{labels}}}"),
        )
    };
    assert_eq!(reads(0), 0.0);
    assert_eq!(reads(1), 600.0);
    assert!(metric(&metrics, "process_open_fds") > 0.0);

    process.terminate();
    let (status, reports) = process.end();
    assert!(status.success());
    assert_eq!(reports[1]["reads"], 600);
    assert!(!Path::new(&metrics).exists(), "the socket is still there");
}

struct Nobody;

impl Watcher for Nobody {
    fn ready(&mut self, _: &RoundStart) -> Result<(), VmError> {
        Ok(())
    }

    fn done(&mut self, _: &RoundReport, _: &DirtySet) -> Result<(), VmError> {
        Ok(())
    }
}
