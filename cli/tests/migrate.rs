//! `tidemark migrate` and `receive` as people run them: results, exit codes, one clear line.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn tidemark(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command.args(args).env_remove("RUST_LOG");
    command
}

fn output(args: &[&str]) -> Output {
    tidemark(args).output().unwrap()
}

fn json(output: &[u8]) -> serde_json::Value {
    let text = std::str::from_utf8(output).unwrap();
    serde_json::from_str(text.lines().last().expect("a last line")).unwrap()
}

/// A small guest, so that a run takes a second or two.
const SMALL: [&str; 8] = [
    "migrate",
    "--json",
    "--memory",
    "64M",
    "--disk-size",
    "8M",
    "--queues",
    "2",
];

#[test]
fn without_arguments_it_says_what_it_can_do() {
    let output = output(&[]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let first = text.find("Try first:\n  tidemark migrate ");
    assert!(first.is_some_and(|at| at < 200), "{text}");
    for command in ["migrate", "receive", "device", "conform", "judge"] {
        assert!(text.contains(&format!("\n  {command} ")), "{text}");
    }
    assert!(!text.contains("  soak"), "hidden commands stay so: {text}");
}

#[test]
fn a_move_between_processes_is_proved() {
    for workload in ["random", "zipf", "sequential"] {
        let output = tidemark(&SMALL)
            .args(["--workload", workload])
            .output()
            .unwrap();
        let figures = json(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{figures:#}");
        assert_eq!(figures["verified"], true);
        assert_eq!(figures["memory"]["compared"], 64 << 8);
        assert!(
            figures["redirtied_rounds"].as_u64() >= Some(3),
            "{figures:#}"
        );
        assert!(figures["in_flight_at_suspend"].as_u64() > Some(0));
        assert!(figures["requests_at_destination"].as_u64() > Some(0));
    }
}

#[test]
fn two_devices_and_byte_marking() {
    let output = tidemark(&SMALL)
        .args(["--devices", "2", "--tracker", "bytes", "--gra", "64K"])
        .output()
        .unwrap();
    let figures = json(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{figures:#}");
    assert_eq!(figures["granularity"][2]["bytes"], 64 << 10);
}

#[test]
fn without_the_tracker_pages_are_lost_and_it_says_so() {
    for workload in ["random", "zipf", "sequential"] {
        let output = tidemark(&SMALL)
            .args(["--tracker", "off", "--workload", workload])
            .output()
            .unwrap();
        let figures = json(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{figures:#}");
        assert_eq!(figures["verified"], false);
        assert!(figures["lost_pages"].as_u64() > Some(0), "{figures:#}");
        assert_eq!(figures["source_whole"], true, "{figures:#}");
    }
}

#[test]
fn records_and_parts_are_proved_with_their_control() {
    for (tracker, records, state) in [
        ("records", "262144", "regs"),
        ("bitmap", "1", "parts"),
        ("records", "16", "parts"),
    ] {
        let output = tidemark(&SMALL)
            .args(["--tracker", tracker, "--records", records, "--state", state])
            .output()
            .unwrap();
        let figures = json(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{figures:#}");
        assert_eq!(figures["verified"], true);
    }
    let output = tidemark(&SMALL)
        .args(["--tracker", "records-off", "--state", "parts"])
        .output()
        .unwrap();
    let figures = json(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{figures:#}");
    assert!(figures["lost_pages"].as_u64() > Some(0), "{figures:#}");
    assert_eq!(figures["source_whole"], true, "{figures:#}");
}

/// Its owner's records outlive what a guest does to its device; the device's bitmap does not.
#[test]
fn a_guest_that_resets_its_device_is_moved_by_records_alone() {
    for (tracker, code) in [("records", 0), ("bitmap", 1)] {
        let output = tidemark(&SMALL)
            .args(["--tracker", tracker, "--reset-every", "200"])
            .output()
            .unwrap();
        let figures = json(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{figures:#}");
        assert_eq!(figures["verified"], code == 0, "{figures:#}");
        assert!(figures["resets"].as_u64() > Some(2), "{figures:#}");
        let lost = figures["lost_pages"].as_u64().unwrap();
        assert_eq!(lost == 0, code == 0, "{figures:#}");
    }
}

/// The error line and the exit code of a run that must fail.
fn refused(args: &[&str], code: i32, says: &str) {
    let output = output(args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    assert!(text.contains(says), "{args:?}: {text}");
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn wrong_usage_is_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let evidence = path("evidence");
    let empty = path("empty");
    std::fs::write(&empty, b"").unwrap();
    let small = path("small");
    std::fs::write(&small, vec![0; 8192]).unwrap();
    let precious = path("precious");
    std::fs::write(&precious, vec![7; 16 << 20]).unwrap();

    refused(&["migrate", "--memory", "1X"], 2, "1X");
    refused(&["migrate", "--memory", "1000"], 2, "4 KiB");
    refused(&["migrate", "--memory", "0"], 2, "4 KiB");
    refused(&["migrate", "--memory", "64K"], 2, "memory");
    refused(&["migrate", "--queues", "0"], 2, "queues");
    refused(&["migrate", "--devices", "0"], 2, "devices");
    refused(&["migrate", "--queues", "65"], 2, "queues");
    refused(&["migrate", "--gra", "5K"], 2, "power of two");
    refused(&["migrate", "--workload", "gentle"], 2, "gentle");
    refused(&["migrate", "--disk-size", "4K"], 2, "disk");
    refused(&["migrate", "--disk", &path("missing")], 2, "missing");
    refused(&["migrate", "--disk", &empty], 2, "disk");
    refused(&["migrate", "--disk", &small], 2, "disk");
    refused(&["migrate", "--disk", &precious], 2, "--overwrite");
    refused(
        &["migrate", "--disk", &precious, "--disk", &small],
        2,
        "one for each",
    );
    refused(&["migrate", "--to", "carrier:pigeon"], 2, "unix:PATH");
    refused(&["migrate", "--to", "unix:/x"], 2, "--disk");
    assert_eq!(std::fs::read(&precious).unwrap(), vec![7; 16 << 20]);

    let disk = path("disk");
    std::fs::write(&disk, vec![0; 8 << 20]).unwrap();
    let nobody = format!("unix:{}", path("nobody"));
    let to = [
        "migrate",
        "--memory",
        "64M",
        "--disk",
        &disk,
        "--evidence",
        &evidence,
    ];
    let to: Vec<&str> = to.into_iter().chain(["--to", nobody.as_str()]).collect();
    refused(&to, 3, "cannot reach");
}

/// Kills the destination when the source logs the round; the source must go on, whole.
fn killed_in_round(round: &str) {
    let mut source = tidemark(&SMALL)
        .env("RUST_LOG", "info")
        .env("NO_COLOR", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(source.stderr.take().unwrap());
    let (mut line, mut pid, mut seen) = (String::new(), None, String::new());
    while log.read_line(&mut line).unwrap() > 0 {
        if let Some(at) = line.find("pid=") {
            pid = line[at + 4..].trim().parse::<i32>().ok();
        }
        seen += &line;
        if line.contains(&format!("round={round} ")) {
            let pid = rustix::process::Pid::from_raw(pid.expect("the log names the process"));
            let killed = rustix::process::kill_process(pid.unwrap(), rustix::process::Signal::KILL);
            killed.unwrap();
            break;
        }
        line.clear();
    }
    log.read_to_string(&mut seen).unwrap();
    let mut out = Vec::new();
    source.stdout.take().unwrap().read_to_end(&mut out).unwrap();
    let status = source.wait().unwrap();
    let figures = json(&out);
    assert_eq!(status.code(), Some(1), "round {round}: {figures:#}");
    assert_eq!(figures["moved"], false, "round {round}: {figures:#}");
    assert_eq!(figures["source_whole"], true, "round {round}: {figures:#}");
    assert_eq!(figures["requests"]["lost"], 0);
    assert!(seen.contains("the destination vanished"), "{seen}");
    assert!(!seen.contains("panicked"), "{seen}");
    let lines = seen.lines().filter(|line| line.starts_with("tidemark: "));
    assert_eq!(lines.count(), 1, "one clear line: {seen}");
}

#[test]
fn a_destination_that_is_killed_leaves_the_source_whole() {
    for round in ["1", "2", "4", "5"] {
        killed_in_round(round);
    }
}

#[test]
fn a_receiver_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (disk, evidence) = (at("disk"), at("evidence"));
    let socket = format!("unix:{}", at("socket"));
    std::fs::write(&disk, vec![0; 8 << 20]).unwrap();
    std::fs::create_dir(Path::new(&evidence)).unwrap();
    let mut receiver = tidemark(&["receive", "--json", "--listen", &socket])
        .args(["--disk", &disk, "--evidence", &evidence])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(receiver.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.starts_with("listening on "), "{line}");
    let source = tidemark(&["migrate", "--json", "--memory", "64M", "--queues", "2"])
        .args(["--disk", &disk, "--evidence", &evidence, "--to", &socket])
        .output()
        .unwrap();
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    assert_eq!(receiver.wait().unwrap().code(), Some(0));
    assert_eq!(json(&rest)["drained"], true);
    let figures = json(&source.stdout);
    assert_eq!(source.status.code(), Some(0), "{figures:#}");
}

#[test]
fn a_guest_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.xl");
    let file = path.to_str().unwrap();
    let saved = tidemark(&["migrate", "--json", "--memory", "64M", "--devices", "2"])
        .args(["--to", &format!("file:{file}")])
        .output()
        .unwrap();
    let figures = json(&saved.stdout);
    assert_eq!(saved.status.code(), Some(0), "{figures:#}");
    assert_eq!(figures["verified"], true);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let run = |command: &str| {
        tidemark(&["stream", command, "--json", file])
            .output()
            .unwrap()
    };
    let verified = json(&run("verify").stdout);
    assert_eq!(verified["whole"], true);
    assert!(verified["overhead"].as_f64() <= Some(0.003), "{verified:#}");
    let shown = json(&run("inspect").stdout);
    assert_eq!(shown["totals"], verified["totals"]);
    let rows = shown["rows"].as_array().unwrap();
    assert_eq!(rows.first().unwrap()["record"], "the libxl header");
    assert_eq!(rows.last().unwrap()["record"], "libxl record END");
    let bytes: u64 = rows.iter().filter_map(|row| row["bytes"].as_u64()).sum();
    let length = std::fs::metadata(&path).unwrap().len();
    assert_eq!(bytes, length, "every byte is in a row");

    let whole = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    whole.set_len(length - 1).unwrap();
    let cut = run("verify");
    let text = String::from_utf8_lossy(&cut.stderr).into_owned();
    assert_eq!(cut.status.code(), Some(1), "{text}");
    assert!(
        text.contains("ends at byte") && text.contains("libxl record"),
        "{text}"
    );
    refused(&["stream", "verify", "/nowhere/at/all"], 2, "cannot open");
    refused(&["receive", "--disk", file], 2, "--listen");
}

/// For each of two sides, by which options it shows a certificate and knows the other's.
fn certificates(folder: &Path) -> [Vec<String>; 2] {
    let names = ["source", "destination"];
    let path = |name: &str, what: &str| {
        let path = folder.join(format!("{name}.{what}"));
        path.to_str().unwrap().to_owned()
    };
    for name in names {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        std::fs::write(path(name, "pem"), certificate).unwrap();
        std::fs::write(path(name, "key"), key.serialize_pem()).unwrap();
    }
    [(names[0], names[1]), (names[1], names[0])].map(|(own, peer)| {
        vec![
            format!("--tls-cert={}", path(own, "pem")),
            format!("--tls-key={}", path(own, "key")),
            format!("--tls-peer={}", path(peer, "pem")),
        ]
    })
}

/// A receiver of one's own at an address, and a source that sends there.
fn over(at: &str, args: &[&str]) -> (serde_json::Value, Option<i32>) {
    let folder = tempfile::tempdir().unwrap();
    let keys = match at.starts_with("tls:") {
        true => certificates(folder.path()),
        false => Default::default(),
    };
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (disk, evidence) = (path("disk"), path("evidence"));
    let at = at.replace("FOLDER", folder.path().to_str().unwrap());
    std::fs::write(&disk, vec![0; 8 << 20]).unwrap();
    std::fs::create_dir(Path::new(&evidence)).unwrap();
    let mut receiver = tidemark(&["receive", "--listen", &at])
        .args(["--disk", &disk, "--evidence", &evidence])
        .args(args.iter().filter(|arg| arg.starts_with("--connections")))
        .args(&keys[1])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(receiver.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    let to = line.trim_end().strip_prefix("listening on ").unwrap();
    let source = tidemark(&["migrate", "--json", "--memory", "64M", "--queues", "2"])
        .args(["--disk", &disk, "--evidence", &evidence, "--to", to])
        .args(args)
        .args(&keys[0])
        .output()
        .unwrap();
    std::io::copy(&mut out, &mut std::io::sink()).unwrap();
    assert_eq!(receiver.wait().unwrap().code(), Some(0));
    (json(&source.stdout), source.status.code())
}

#[test]
fn over_tcp_tls_and_several_connections() {
    for (at, args) in [
        ("tcp:127.0.0.1:0", &[][..]),
        ("tcp:127.0.0.1:0", &["--connections=3"]),
        ("tls:127.0.0.1:0", &[]),
        ("tls:127.0.0.1:0", &["--connections=4"]),
        ("unix:FOLDER/socket", &["--connections=2"]),
    ] {
        let (figures, code) = over(at, args);
        assert_eq!(code, Some(0), "{at}: {figures:#}");
        assert_eq!(figures["verified"], true, "{at}");
    }
}

#[test]
fn what_connections_do_not_allow_is_refused() {
    let own = ["--disk", "/x", "--evidence", "/y"];
    let with = |args: &[&'static str]| [&["migrate"], args, &own[..]].concat();
    refused(&["migrate", "--postcopy"], 2, "post-copy is refused");
    refused(&["migrate", "--to", "tcp:127.0.0.1:1"], 2, "--disk");
    refused(&["migrate", "--to", "tcp:nowhere"], 2, "tcp:HOST:PORT");
    refused(&["migrate", "--to", "tls:127.0.0.1:1"], 2, "--disk");
    let tls = "receive --disk /dev/null --listen tls:127.0.0.1:0";
    refused(&tls.split(' ').collect::<Vec<_>>(), 2, "--tls-cert");
    let files = " --tls-cert /x --tls-key /x --tls-peer /x";
    let missing = format!("{tls}{files}");
    refused(
        &missing.split(' ').collect::<Vec<_>>(),
        2,
        "/x: expected a certificate",
    );
    let plain = format!("receive --disk /dev/null --listen tcp:127.0.0.1:0{files}");
    refused(&plain.split(' ').collect::<Vec<_>>(), 2, "there is no TLS");
    refused(
        &["migrate", "--to", "file:/x", "--connections=2"],
        2,
        "one plain stream",
    );
    refused(&["migrate", "--connections=0"], 2, "1..=64");
    refused(&["migrate", "--max-bandwidth=0"], 2, "at least 1 byte");
    refused(
        &with(&["--policy=xen", "--downtime-limit=5"]),
        2,
        "--policy downtime",
    );
    let public = [
        "receive",
        "--disk",
        "/dev/null",
        "--listen",
        "tcp:0.0.0.0:0",
    ];
    refused(&public, 2, "--insecure");
}

#[test]
fn progress_for_machines_is_one_object_a_line() {
    let output = tidemark(&SMALL).arg("--progress=json").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    let (result, events) = lines.split_last().unwrap();
    assert_eq!(result["verified"], true);
    let of = |kind: &str| events.iter().filter(|e| e["event"] == kind).count();
    let rounds = result["rounds"].as_array().unwrap().len();
    assert_eq!((of("round"), of("round_end")), (rounds, rounds));
    let dirty = events.iter().find(|e| e["event"] == "dirty").unwrap();
    assert!(dirty["dirty_pages"].as_u64() > Some(0), "{dirty}");
    assert!(
        dirty["estimated_downtime_seconds"].as_f64() > Some(0.0),
        "{dirty}"
    );
}

#[test]
fn a_guest_that_does_not_converge_ends_as_asked() {
    let run = |how: &str, megabytes: u32| {
        let output = tidemark(&SMALL)
            .args(["--plain-copies=0", "--downtime-limit=60"])
            .arg(format!("--max-bandwidth={megabytes}M"))
            .args(["--max-rounds=4", "--unconverged", how])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), json(&output.stdout), text)
    };
    let (code, figures, text) = run("stop", 8);
    assert_eq!(code, Some(1), "{figures:#}");
    assert!(text.contains("does not converge"), "{text}");
    assert_eq!(figures["source_whole"], true, "{figures:#}");
    assert!(figures["pages_put_back"].as_u64() > Some(0), "{figures:#}");
    // How fast the guest is depends on the machine: less and less bandwidth, until it is too much.
    let throttled = [100, 50, 25].into_iter().any(|megabytes| {
        let (code, figures, text) = run("throttle", megabytes);
        assert_eq!(code, Some(0), "{megabytes} MB/s: {text}: {figures:#}");
        let rounds = figures["rounds"].as_array().unwrap();
        let slowest = rounds.iter().filter_map(|r| r["throttle"].as_u64()).max();
        slowest >= Some(20)
    });
    assert!(throttled, "it always converged by itself");
}

#[test]
fn a_signal_cancels_and_the_guest_stays() {
    let source = tidemark(&SMALL)
        .args(["--progress=json", "--max-bandwidth=8M", "--plain-copies=0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&source);
    let mut source = source;
    let mut out = BufReader::new(source.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.contains("\"round\""), "{line}");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    let mut text = String::new();
    source
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(source.wait().unwrap().code(), Some(1), "{text}");
    for says in ["cancelled", "the guest runs on at its source, whole"] {
        assert!(text.contains(says), "{text}");
    }
    assert_eq!(json(&rest)["source_whole"], true);
}

#[test]
fn through_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (disk, evidence) = (path("disk"), path("evidence"));
    std::fs::write(&disk, vec![0; 8 << 20]).unwrap();
    std::fs::create_dir(Path::new(&evidence)).unwrap();
    let mut source = tidemark(&["migrate", "--to", "-", "--memory", "64M", "--queues", "2"])
        .args(["--disk", &disk, "--evidence", &evidence])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let received = tidemark(&["receive", "--json", "--from", "-"])
        .args(["--disk", &disk, "--evidence", &evidence])
        .stdin(source.stdout.take().unwrap())
        .output()
        .unwrap();
    assert_eq!(source.wait().unwrap().code(), Some(0));
    assert_eq!(received.status.code(), Some(0), "{received:?}");
    assert_eq!(json(&received.stdout)["drained"], true);
}
