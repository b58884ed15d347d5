//! Metrics of the vhost-user backend and of the mediator, as processes. Those of the vfio-user front
//! door stand in `device.rs`, and what each figure means is held in the crate `observe`.

use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use tempfile::{TempDir, tempdir};

/// A process that says when it listens, killed at the end.
struct Process(Child);

impl Process {
    fn start(program: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let listens = lines
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.contains("listening on"));
        assert!(listens.is_some(), "{args:?}");
        std::thread::spawn(move || lines.for_each(drop));
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const TIDEMARK: &str = env!("CARGO_BIN_EXE_tidemark");

struct Bed(TempDir);

impl Bed {
    fn new() -> Self {
        let bed = Self(tempdir().unwrap());
        let disk = File::create(bed.path("disk")).unwrap();
        disk.set_len(8 << 20).unwrap();
        bed
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// The value of a series in what the socket `metrics` answers.
    fn metric(&self, series: &str) -> f64 {
        let mut stream = UnixStream::connect(self.path("metrics")).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(series));
        let value = value.unwrap_or_else(|| panic!("no {series} in {text}"));
        value.trim().parse().unwrap()
    }
}

#[test]
fn a_backend_tells_who_connected() {
    let bed = Bed::new();
    let program = env!("CARGO_BIN_EXE_tidemark-vhost-user-blk");
    let (socket, disk, metrics) = (bed.path("socket"), bed.path("disk"), bed.path("metrics"));
    let args = [
        "--socket-path",
        &socket,
        "--blk-file",
        &disk,
        "--metrics-socket",
        &metrics,
    ];
    let _backend = Process::start(program, &args);
    let connections = || bed.metric("tidemark_client_connections_total{device=\"0\"}");
    assert_eq!(connections(), 0.0);
    for count in 1..=3 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // GET_FEATURES; its answer says that the connection is served.
        let question = [1_u32, 1, 0].map(u32::to_ne_bytes).concat();
        stream.write_all(&question).unwrap();
        stream.read_exact(&mut [0; 20]).unwrap();
        assert_eq!(connections(), f64::from(count));
    }
    assert!(bed.metric("process_resident_memory_bytes") > 1e6);

    // The socket for metrics is taken: the next one says so, and where.
    let other = bed.path("other");
    let args = ["--socket-path", &other, "--blk-file", &disk];
    let output = Command::new(program)
        .args(args)
        .args(["--metrics-socket", &metrics])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains(&metrics) && said.contains("in use"), "{said}");
}

#[test]
fn a_mediator_tells_what_its_status_tells() {
    let bed = Bed::new();
    let (device, disk) = (bed.path("device"), bed.path("disk"));
    let args = [
        "device",
        "vfio-user",
        "--keep",
        "--socket-path",
        &device,
        "--disk",
        &disk,
    ];
    let _device = Process::start(TIDEMARK, &args);
    let front = format!("vfio-user:{}", bed.path("front"));
    let (back, control) = (format!("vfio-user:{device}"), bed.path("control"));
    let metrics = bed.path("metrics");
    let args = ["mediate", "--keep", "--front", &front, "--back", &back];
    let more = ["--control", &control, "--metrics-socket", &metrics];
    let _mediator = Process::start(TIDEMARK, &[&args[..], &more].concat());

    assert_eq!(
        bed.metric("tidemark_mediator_device_alive{device=\"0\"}"),
        1.0
    );
    let before = bed.metric("tidemark_mediator_accesses_total{device=\"0\"}");
    let probed = Command::new(TIDEMARK)
        .args(["probe", "--target", &front])
        .output()
        .unwrap();
    assert!(probed.status.success(), "{probed:?}");
    let accesses = bed.metric("tidemark_mediator_accesses_total{device=\"0\"}");
    assert!(accesses > before, "{before} and then {accesses}");
    let args = ["mediate", "status", "--control", &control, "--json"];
    let status = Command::new(TIDEMARK).args(args).output().unwrap();
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["accesses"].as_f64(), Some(accesses));
    assert_eq!(
        bed.metric("tidemark_mediator_moves_total{device=\"0\"}"),
        0.0
    );
}
