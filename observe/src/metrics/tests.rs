//! A known run of I/O over a real front door, and callers who mean no good.

use super::strict::{Told, read};
use super::*;
use device::blk::{BlkDevice, BlkOptions};
use device::function::{AdminConfig, FunctionConfig, PciFunction};
use device::serve::vfio_user::{ServedFunction, VfioUserServer};
use device::serve::vhost_user::VhostUserServer;
use device::tracker::Marking;
use driver::bus::vfio_user::VfioUserBus;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;
use tempfile::{TempDir, tempdir};
use vm::exercise::{self, Comeback, RoundReport, RoundStart, TrackOptions, Watcher};

fn blk(queues: u16) -> Arc<BlkDevice> {
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(16 << 20).unwrap();
    let options = BlkOptions {
        queues,
        ..BlkOptions::default()
    };
    BlkDevice::open(disk, options).unwrap()
}

/// A device behind a front door, and its metrics.
struct Bed {
    dir: TempDir,
    gone: Arc<AtomicU64>,
    serving: thread::JoinHandle<()>,
    metrics: MetricsServer,
}

fn bed() -> Bed {
    let dir = tempdir().unwrap();
    let blk = blk(2);
    let config = FunctionConfig {
        admin: AdminConfig {
            queues: 1,
            ..AdminConfig::default()
        },
        ..FunctionConfig::default()
    };
    let function = PciFunction::new(config, Arc::clone(&blk) as _);
    let served = ServedFunction::new(function);
    let server =
        VfioUserServer::bind(&dir.path().join("device"), Arc::clone(&served) as _).unwrap();
    let gone = Arc::new(AtomicU64::new(0));
    let socket = MetricsSocket::bind(&dir.path().join("metrics")).unwrap();
    let source = FunctionSource::new(0, served, blk, Arc::clone(&gone));
    let metrics = socket.serve(vec![Box::new(source)]).unwrap();
    let served = Arc::clone(&gone);
    let serving = thread::spawn(move || {
        server.run().unwrap();
        served.fetch_add(1, Relaxed);
    });
    Bed {
        dir,
        gone,
        serving,
        metrics,
    }
}

/// Everything that the server says to `request`.
fn ask(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// What a scrape tells, read strictly.
fn scrape(path: &Path) -> Told {
    let answer = ask(path, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains("Content-Type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(
        head.contains(&format!("Content-Length: {}", body.len())),
        "{head}"
    );
    read(body).unwrap()
}

/// Scrapes after each round.
struct Scraping<'a> {
    path: &'a Path,
    rounds: Vec<(RoundReport, Told)>,
}

impl Watcher for Scraping<'_> {
    fn ready(&mut self, _: &RoundStart) -> Result<(), vm::VmError> {
        Ok(())
    }

    fn done(
        &mut self,
        report: &RoundReport,
        _: &driver::dirty::DirtySet,
    ) -> Result<(), vm::VmError> {
        self.rounds.push((report.clone(), scrape(self.path)));
        Ok(())
    }
}

#[test]
fn a_known_run_is_told_exactly() {
    let bed = bed();
    let path = bed.metrics.path().to_owned();
    let before = scrape(&path);
    assert_eq!(before.sum("tidemark_blk_requests_total"), 0.0);
    assert_eq!(
        before.value("tidemark_device_state{device=\"0\",state=\"reset\"}"),
        1.0
    );
    assert_eq!(before.value("tidemark_tracker_enabled{device=\"0\"}"), 0.0);

    let options = TrackOptions {
        rounds: 3,
        requests: 400,
        pages: 512,
        queues: 2,
        writes_percent: 30,
        suspensions: vec![Comeback::Resume, Comeback::Restore],
        ..TrackOptions::default()
    };
    let mut scraping = Scraping {
        path: &path,
        rounds: Vec::new(),
    };
    let bus = VfioUserBus::connect(&bed.dir.path().join("device")).unwrap();
    let report = exercise::track(bus, &options, &mut scraping).unwrap();
    assert!(report.is_good(), "{report:?}");
    bed.serving.join().unwrap();
    let after = scrape(&path);

    let (mut reads, mut writes, mut bytes_read, mut bytes_written) = (0, 0, 0, 0);
    for (round, told) in &scraping.rounds {
        reads += round.reads;
        writes += round.requests - round.reads;
        bytes_read += round.bytes_read;
        bytes_written += round.bytes_written;
        let of = |kind: &str| {
            told.value(&format!(
                "tidemark_blk_requests_total{{device=\"0\",type=\"{kind}\",result=\"ok\"}}"
            ))
        };
        assert_eq!(of("read"), reads as f64);
        assert_eq!(of("write"), writes as f64);
        assert_eq!(
            told.sum("tidemark_blk_requests_total"),
            (reads + writes) as f64
        );
        assert_eq!(told.sum("tidemark_blk_read_bytes_total"), bytes_read as f64);
        assert_eq!(
            told.sum("tidemark_blk_written_bytes_total"),
            bytes_written as f64
        );
        assert_eq!(told.value("tidemark_tracker_enabled{device=\"0\"}"), 1.0);
        let suspends = f64::from(round.round) * 2.0;
        assert_eq!(
            told.sum("tidemark_suspend_duration_seconds_count"),
            suspends
        );
        assert!(told.sum("tidemark_suspend_duration_seconds_sum") > 0.0);
        assert!(told.sum("tidemark_suspended_seconds_total") > 0.0);
        let state = "tidemark_device_state{device=\"0\",state=\"running\"}";
        assert_eq!(told.value(state), 1.0);
        assert_eq!(told.sum("tidemark_device_state"), 1.0);
    }
    assert!(writes > 0, "the run was to hold writes");
    assert_eq!(report.requests.completed, reads + writes);
    assert_eq!(
        after.sum("tidemark_blk_requests_total"),
        (reads + writes) as f64
    );
    // These are told by the batch, when it is done with: exact once the device is at rest.
    assert_eq!(
        after.sum("tidemark_queue_requests_total"),
        (reads + writes) as f64
    );
    assert_eq!(after.sum("tidemark_queue_requests_in_flight"), 0.0);
    // Every page that a read brought was marked: requests lie on whole pages here.
    let pages = after.sum("tidemark_tracker_written_pages_total");
    assert!(
        pages >= (bytes_read / 4096) as f64,
        "{pages} pages of {bytes_read} bytes"
    );
    // One comeback of two is a resume, the other a reset; a client that goes is one more.
    assert_eq!(after.sum("tidemark_resumes_total"), 3.0);
    assert!(after.sum("tidemark_resets_total") >= 4.0);
    assert_eq!(after.sum("tidemark_device_errors_total"), 0.0);
    assert_eq!(after.sum("tidemark_queues_broken_total"), 0.0);
    assert!(after.sum("tidemark_interrupts_total") >= report.interrupts as f64);
    assert!(after.sum("tidemark_notifications_total") > 0.0);
    assert!(after.sum("tidemark_dma_maps_total") > 0.0);
    assert_eq!(after.sum("tidemark_client_disconnects_total"), 1.0);
    assert_eq!(bed.gone.load(Relaxed), 1);
    assert!(after.sum("process_resident_memory_bytes") > 1e6);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as f64;
    let told = after.sum("process_open_fds");
    // Other tests of this process open and close some meanwhile.
    assert!(
        told > 3.0 && (told - open).abs() < 200.0,
        "{told} of {open}"
    );
    for (series, value) in &after.values {
        let grows = series.contains("_total");
        assert!(
            !grows || before.values.get(series).is_none_or(|old| old <= value),
            "{series}"
        );
    }
}

/// The book names every metric, and no other.
#[test]
fn the_book_names_what_is_told() {
    let page = include_str!("../../../docs/src/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let named: std::collections::BTreeMap<_, _> = rows
        .filter_map(|row| {
            let (name, rest) = row.split_once('`')?;
            let kind = rest.strip_prefix(" | ")?.split(' ').next()?;
            Some((name.to_owned(), kind.to_owned()))
        })
        .collect();
    let vhost = {
        let blk = blk(1);
        let server = VhostUserServer::new(Arc::clone(&blk) as _, Marking::Bit).unwrap();
        VhostUserSource::new(Arc::new(server), blk)
    };
    let function = {
        let blk = blk(1);
        let served = ServedFunction::new(PciFunction::new(
            FunctionConfig::default(),
            Arc::clone(&blk) as _,
        ));
        FunctionSource::new(0, served, blk, Arc::default())
    };
    let sources: [&dyn Source; 3] = [&Process::open().unwrap(), &function, &vhost];
    let mut told = std::collections::BTreeMap::new();
    for source in sources {
        let mut alone = Families::default();
        source.collect(&mut alone);
        told.extend(read(&alone.encode().unwrap()).unwrap().kinds);
    }
    let mut mediated = Families::default();
    let report = vm::mediate::Report {
        dirty_pages: Some(1),
        ..quiet()
    };
    super::mediator::tell(&report, 0, &mut mediated);
    told.extend(read(&mediated.encode().unwrap()).unwrap().kinds);
    // Told only of a device that has been given commands.
    told.insert(
        "tidemark_admin_commands_total".to_owned(),
        "counter".to_owned(),
    );
    assert_eq!(named, told);
}

/// A mediator that has done nothing yet.
fn quiet() -> vm::mediate::Report {
    vm::mediate::Report {
        device: "vfio-user:x".to_owned(),
        alive: true,
        driver_ok: false,
        lacks: None,
        moves: 0,
        takeovers: 0,
        failed_moves: 0,
        maps: 0,
        accesses: 0,
        doorbells: 0,
        dma_maps: 0,
        dma_unmaps: 0,
        dirty_pages: None,
    }
}

#[test]
fn other_requests_are_refused() {
    let bed = bed();
    let path = bed.metrics.path();
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        ("DELETE /metrics HTTP/1.1\r\n\r\n", "405"),
        ("\r\n\r\nnonsense\r\n\r\n", "400"),
    ] {
        let answer = ask(path, request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
    let head = ask(path, "HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(
        head.starts_with("HTTP/1.1 200 OK") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    let long = format!("GET /metrics HTTP/1.1\r\nA: {}", "b".repeat(4096));
    let mut stream = UnixStream::connect(path).unwrap();
    // It may be refused before all of it is sent.
    let _ = stream.write_all(long.as_bytes());
    let mut start = [0; 12];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 431");
    drop(stream);
    scrape(path);
}

/// A caller who says nothing, one who never ends his head, and one who does not read: each is given
/// up, and the next one is answered.
#[test]
fn slow_callers_do_not_keep_others() {
    let dir = tempdir().unwrap();
    let socket = MetricsSocket::bind(&dir.path().join("metrics")).unwrap();
    let server = socket
        .with_patience(Duration::from_secs(1))
        .serve(vec![Box::new(Flood)])
        .unwrap();
    let silent = UnixStream::connect(server.path()).unwrap();
    let mut endless = UnixStream::connect(server.path()).unwrap();
    endless.write_all(b"GET /metrics HTTP/1.1\r\nA:").unwrap();
    let mut deaf = UnixStream::connect(server.path()).unwrap();
    deaf.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let told = scrape(server.path());
    assert_eq!(told.sum("tidemark_flood_total"), 3_000.0);
    for mut caller in [silent, endless] {
        let mut text = String::new();
        // Closed without a word, or with what was not read lost.
        let read = caller.read_to_string(&mut text);
        assert!(text.is_empty(), "{read:?} {text}");
    }
    // What fits between the two was sent, and then no more: its end is missing.
    let mut text = String::new();
    let read = deaf.read_to_string(&mut text);
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{read:?}");
    assert!(
        !text.ends_with("2999\"} 1\n"),
        "all of it fitted: the test shows nothing"
    );
}

/// More than a socket buffers.
struct Flood;

impl Source for Flood {
    fn collect(&self, families: &mut Families) {
        for number in 0..3_000 {
            let label = format!("{:0>100}", number);
            let labels = [("number", label.as_str())];
            families.add(Kind::Counter, "tidemark_flood_total", "Many.", &labels, 1);
        }
    }
}

#[test]
fn a_server_that_ends_leaves_nothing() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("metrics");
    let server = MetricsSocket::bind(&path)
        .unwrap()
        .serve(Vec::new())
        .unwrap();
    // Even while somebody is being waited for.
    let mut caller = UnixStream::connect(&path).unwrap();
    caller.write_all(b"GET ").unwrap();
    drop(server);
    assert!(!path.exists());
    let _ = caller.shutdown(Shutdown::Write);
    let mut text = String::new();
    let _ = caller.read_to_string(&mut text);
    assert!(text.is_empty(), "{text}");
    MetricsSocket::bind(&path).unwrap();
}
