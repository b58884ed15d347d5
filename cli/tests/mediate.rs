//! `tidemark mediate` between processes: moves, and takeovers after a server was killed.

use driver::Transport;
use driver::blk::{BlkQueue, Outcome};
use driver::bus::vfio_user::VfioUserBus;
use driver::bus::{Bus, Interrupt};
use driver::memory::DmaMemory;
use driver::queue::SplitQueue;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);
/// Entries of the queue, the default of `--queue-size`: more than a device takes at once, so that
/// some are in flight when the first have completed.
const ENTRIES: u16 = 256;
/// Requests, one to an entry.
const REQUESTS: u64 = ENTRIES as u64;

fn tidemark(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command.args(args);
    command
}

/// A process that says when it listens, killed at the end.
struct Process(Child);

impl Process {
    fn start(args: &[&str]) -> Self {
        let mut command = tidemark(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
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

    /// SIGKILL, and the end of it.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for its own end; its last line.
    fn report(mut self) -> Value {
        let mut text = String::new();
        let mut stdout = self.0.stdout.take().unwrap();
        stdout.read_to_string(&mut text).unwrap();
        assert!(self.0.wait().unwrap().success());
        serde_json::from_str(text.lines().last().unwrap()).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Bed {
    dir: TempDir,
    disk: PathBuf,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        File::create(&disk).unwrap().set_len(8 << 20).unwrap();
        Self { dir, disk }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// A server on the disk that keeps its table in `table`.
    fn serve(&self, socket: &str, table: &str) -> Process {
        Process::start(&[
            "device",
            "vfio-user",
            "--keep",
            "--slow-disk",
            "2",
            "--disk",
            self.disk.to_str().unwrap(),
            "--socket-path",
            &self.path(socket),
            "--inflight",
            &self.path(table),
        ])
    }

    fn mediate(&self, back: &str) -> Process {
        Process::start(&[
            "mediate",
            "--front",
            &format!("vfio-user:{}", self.path("front")),
            "--back",
            &format!("vfio-user:{}", self.path(back)),
            "--control",
            &self.path("control"),
        ])
    }

    fn shift(&self, to: &str, more: &[&str]) -> Output {
        let (to, control) = (format!("vfio-user:{}", self.path(to)), self.path("control"));
        let mut args = vec![
            "mediate",
            "move",
            "--json",
            "--control",
            &control,
            "--to",
            &to,
        ];
        args.extend(more);
        tidemark(&args).output().unwrap()
    }

    /// Waits until the server has taken requests again, by its table: vhost-user's layout.
    fn wait_for_work(&self, table: &str) {
        let table = File::open(self.path(table)).unwrap();
        let until = Instant::now() + PATIENCE;
        loop {
            let mut bytes = vec![0; 16 + 16 * usize::from(ENTRIES)];
            table.read_exact_at(&mut bytes, 0).unwrap();
            if bytes[16..].iter().step_by(16).any(|flag| *flag != 0) {
                return;
            }
            assert!(Instant::now() < until, "the server does nothing");
            std::thread::yield_now();
        }
    }

    fn status(&self) -> Value {
        let control = self.path("control");
        let output = tidemark(&["mediate", "status", "--json", "--control", &control]).output();
        json(&output.unwrap())
    }
}

fn json(output: &Output) -> Value {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn failed(output: &Output, code: i32, why: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(why), "{said}");
}

/// A driver with so many writes in flight, one to each sector.
struct Driver {
    queue: BlkQueue,
    transport: Transport,
    interrupt: Arc<dyn Interrupt>,
    data: DmaMemory,
    round: u8,
}

impl Driver {
    fn start(front: &Path) -> Self {
        let bus = VfioUserBus::connect(front).unwrap();
        let transport = Transport::new(bus.clone()).unwrap();
        let features = transport
            .initialise(spec::features::Features::RING_INDIRECT_DESC)
            .unwrap();
        let ring = bus.dma_alloc(SplitQueue::bytes_needed(ENTRIES)).unwrap();
        let area = bus.dma_alloc(BlkQueue::area_needed(ENTRIES)).unwrap();
        let data = bus.dma_alloc(REQUESTS * 512).unwrap();
        let split = SplitQueue::new(ring, ENTRIES, features).unwrap();
        transport.setup_queue(0, &split.setup(1), None).unwrap();
        let interrupt = bus.interrupt(1).unwrap();
        let mut queue = BlkQueue::new(split, area);
        queue.ring_mut().enable_interrupts().unwrap();
        transport.driver_ok().unwrap();
        Self {
            queue,
            transport,
            interrupt,
            data,
            round: 0,
        }
    }

    fn submit(&mut self) {
        self.round += 1;
        for n in 0..REQUESTS {
            self.data.write(n * 512, &[self.round; 512]).unwrap();
            let buffer = (self.data.iova() + n * 512, 512);
            self.queue.write(n, &[buffer], n).unwrap();
        }
        self.queue.publish().unwrap();
        self.transport
            .notify(0, self.queue.ring().published())
            .unwrap();
    }

    /// Waits until some have completed.
    fn wait(&mut self, done: &mut Vec<u64>, at_least: usize) {
        let until = Instant::now() + PATIENCE;
        while done.len() < at_least {
            assert!(Instant::now() < until, "{} completed", done.len());
            while let Some(completion) = self.queue.complete().unwrap() {
                assert_eq!(completion.outcome, Outcome::Ok);
                done.push(completion.token);
            }
            if done.len() < at_least && !self.queue.ring_mut().enable_interrupts().unwrap() {
                assert!(self.interrupt.wait(PATIENCE), "a request is lost");
            }
        }
    }

    /// Waits for the rest; each has completed once and is on the disk.
    fn judge(&mut self, mut done: Vec<u64>, disk: &Path) {
        self.wait(&mut done, usize::from(ENTRIES));
        done.sort_unstable();
        assert_eq!(done, (0..REQUESTS).collect::<Vec<_>>());
        let mut bytes = vec![0; 512 * usize::from(ENTRIES)];
        File::open(disk)
            .unwrap()
            .read_exact_at(&mut bytes, 0)
            .unwrap();
        assert!(bytes.iter().all(|byte| *byte == self.round));
    }
}

#[test]
fn a_fresh_server_takes_over_from_a_killed_one() {
    let bed = Bed::new();
    let mut server = bed.serve("a", "table-a");
    let mediator = bed.mediate("a");
    let mut driver = Driver::start(Path::new(&bed.path("front")));
    let mut flying = 0;
    for (next, last, table) in [("b", "table-a", "table-b"), ("c", "table-b", "table-c")] {
        driver.submit();
        let mut done = Vec::new();
        driver.wait(&mut done, 3);
        bed.wait_for_work(last);
        server.kill();
        failed(&bed.shift("nowhere", &[]), 1, "nowhere");

        let fresh = bed.serve(next, last);
        failed(&bed.shift(next, &[]), 1, "--inflight FILE");
        assert_eq!(bed.status()["alive"], false);
        let report = json(&bed.shift(next, &["--inflight", &bed.path(last)]));
        assert_eq!(
            (&report["takeover"], &report["queues"]),
            (&true.into(), &1.into())
        );
        flying += report["in_flight"].as_u64().unwrap();
        driver.judge(done, &bed.disk);

        // And on: an ordinary move, to a server with a table of its own.
        let other = bed.serve(&format!("{next}2"), table);
        driver.submit();
        let report = json(&bed.shift(&format!("{next}2"), &[]));
        assert_eq!(
            (&report["takeover"], &report["in_flight"]),
            (&false.into(), &0.into())
        );
        driver.judge(Vec::new(), &bed.disk);
        fresh.kill();
        server = other;
        assert_eq!(bed.status()["alive"], true);
    }
    assert!(flying > 0, "no kill caught a request in flight");
    drop(driver);
    let report = mediator.report();
    assert_eq!(
        (&report["takeovers"], &report["moves"]),
        (&2.into(), &2.into())
    );
}

/// The negative control: a server that does not know what was in flight cannot take over.
#[test]
fn a_table_that_is_ignored_loses_requests() {
    let bed = Bed::new();
    let server = bed.serve("a", "table-a");
    let _mediator = bed.mediate("a");
    let mut driver = Driver::start(Path::new(&bed.path("front")));
    driver.submit();
    let mut done = Vec::new();
    driver.wait(&mut done, 3);
    bed.wait_for_work("table-a");
    server.kill();
    // It has a table, and nothing is in it.
    let _fresh = bed.serve("b", "table-b");
    let table = bed.path("table-a");
    let refused = bed.shift("b", &["--inflight", &table]);
    failed(&refused, 1, "does not take the device's state");
    // One without any does not know better, and the requests stay in flight for ever.
    let ignorant = Process::start(&[
        "device",
        "vfio-user",
        "--disk",
        bed.disk.to_str().unwrap(),
        "--socket-path",
        &bed.path("c"),
    ]);
    let report = json(&bed.shift("c", &["--inflight", &table]));
    let flying = usize::try_from(report["in_flight"].as_u64().unwrap()).unwrap();
    assert!(flying > 0);
    let before = usize::from(ENTRIES) - flying;
    driver.wait(&mut done, before);
    while driver.interrupt.wait(Duration::from_millis(500)) {
        while let Some(completion) = driver.queue.complete().unwrap() {
            done.push(completion.token);
        }
    }
    assert_eq!(done.len(), before, "{flying} requests are lost");
    drop(ignorant);
}

#[test]
fn arguments_and_errors() {
    let bed = Bed::new();
    let control = bed.path("control");
    let to = format!("vfio-user:{}", bed.path("a"));
    for (args, code, why) in [
        (vec!["mediate"], 2, "--front"),
        (
            vec!["mediate", "--front", "emulated", "--back", &to],
            2,
            "--front vfio-user:PATH",
        ),
        (
            vec!["mediate", "--front", &to, "--back", &to],
            3,
            "connecting to its vfio-user socket",
        ),
        (
            vec!["mediate", "--front", &to, "--back", "emulated"],
            3,
            "was expected",
        ),
        (
            vec!["mediate", "status", "--control", &control],
            3,
            "--control socket was expected",
        ),
        (
            vec!["mediate", "move", "--control", &control, "--to", "x"],
            2,
            "expected emulated",
        ),
    ] {
        failed(&tidemark(&args).output().unwrap(), code, why);
    }
}
