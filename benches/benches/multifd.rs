//! Moving random memory over two connections, against QEMU's own `migrate` with two multifd channels:
//! the same memory, unix sockets, a guest that stands still, and no limit on the bandwidth. After
//! each run the destination's memory is compared with the source's, byte for byte.
//!
//! What is judged is a move between places that are ready for it: all of the memory is there and
//! mapped on both sides, as a source's is that has run, and a destination's under QEMU with
//! `prealloc=on` and in `tidemark receive`. Beside it stands the same move with memory that nobody
//! has touched: there both wait for the kernel to find page after page, and little is left to tell
//! them apart.

use benches::memory::Random;
use benches::{Bound, Line, Mode, finish, settle, wanted};
use driver::memory::DmaMemory;
use migration::observe::Silent;
use migration::policy::XenDefault;
use migration::precopy::{Options, migrate};
use migration::receive::receive_over;
use migration::stream::Connection;
use migration::stream::parallel::{Parallel, join};
use migration::{Cancel, DeviceRecord, Guest, GuestError, Incoming, NamedSource, Paused};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const MEMORY: u64 = 2 << 30;
const CONNECTIONS: usize = 2;
const RUNS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);

fn memfd() -> File {
    let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::empty()).expect("a memfd");
    rustix::fs::ftruncate(&fd, MEMORY).expect("2 GiB of memory");
    fd.into()
}

fn random(file: &File) {
    let mut numbers = Random(11);
    let mut block = vec![0; 1 << 20];
    for at in (0..MEMORY).step_by(block.len()) {
        for (word, value) in block.chunks_exact_mut(8).zip(&mut numbers) {
            word.copy_from_slice(&value.to_le_bytes());
        }
        file.write_all_at(&block, at).expect("memory");
    }
}

fn compare(source: &File, destination: &File) {
    let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in (0..MEMORY).step_by(one.len()) {
        source.read_exact_at(&mut one, at).expect("memory");
        destination.read_exact_at(&mut other, at).expect("memory");
        assert!(one == other, "the memories differ in the MiB at {at:#x}");
    }
}

/// Memory, and nothing that writes it.
struct Still(DmaMemory);

impl Guest for Still {
    fn describe(&self) -> Vec<u8> {
        b"memory".to_vec()
    }
    fn memory(&self) -> Vec<DmaMemory> {
        vec![self.0.clone()]
    }
    fn sources(&mut self) -> &mut [NamedSource] {
        &mut []
    }
    fn pause(&mut self) -> Result<Paused, GuestError> {
        Ok(Paused::default())
    }
    fn resume(&mut self) -> Result<(), GuestError> {
        Ok(())
    }
    fn save(&mut self) -> Result<Vec<DeviceRecord>, GuestError> {
        Ok(Vec::new())
    }
}

impl Incoming for Still {
    fn prepare(&mut self, _: &[u8]) -> Result<(), GuestError> {
        Ok(())
    }
    fn memory(&self) -> Vec<DmaMemory> {
        vec![self.0.clone()]
    }
    fn poison(&mut self) -> Result<(), GuestError> {
        Ok(())
    }
    fn restore(&mut self, _: DeviceRecord) -> Result<(), GuestError> {
        Ok(())
    }
    fn ready(&mut self) -> Result<Duration, GuestError> {
        Ok(Duration::ZERO)
    }
    fn go(&mut self) -> Result<(), GuestError> {
        Ok(())
    }
}

/// What the memory of both sides is like when a move begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// All of it is there and mapped.
    Present,
    /// Nothing is mapped, and at the destination nothing is there.
    Untouched,
}

/// Maps all of a window's pages as ones that are written, and leaves their bytes as they are.
fn touch(window: &DmaMemory) {
    let mut byte = [0];
    for page in (0..window.len()).step_by(4096) {
        window.read(page, &mut byte).expect("memory");
        window.write(page, &byte).expect("memory");
    }
}

fn ours(source: &File, before: Before) -> Duration {
    let there = memfd();
    let map = |file: &File| {
        let window = DmaMemory::from_file(file, 0, MEMORY, 0).expect("a mapping");
        if before == Before::Present {
            touch(&window);
        }
        window
    };
    let (near, far): (Vec<_>, Vec<_>) = (0..CONNECTIONS)
        .map(|_| Connection::pair().expect("a socket pair"))
        .unzip();
    let mut arrival = Still(map(&there));
    let destination = std::thread::spawn(move || {
        let (mut stream, lanes) = join(far).expect("joined connections");
        receive_over(&mut stream, lanes, &mut arrival).expect("a guest");
    });
    let mut guest = Still(map(source));
    let cancel = Cancel::default();
    let options = Options {
        policy: &XenDefault,
        granularity: 4096,
        plain_copies: 0,
        bandwidth: None,
        cancel: &cancel,
    };
    let begin = Instant::now();
    let mut stream = Parallel::new(near).expect("connections");
    migrate(&mut guest, &mut stream, &options, &mut Silent).expect("a move");
    let elapsed = begin.elapsed();
    destination.join().expect("a destination");
    compare(source, &there);
    elapsed
}

/// A QEMU with its monitor.
struct Qemu {
    child: Child,
    monitor: BufReader<UnixStream>,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // One that has ended needs no end.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

impl Qemu {
    fn start(root: &Path, memory: &File, before: Before, folder: &Path, incoming: bool) -> Self {
        let socket = folder.join(if incoming { "to" } else { "from" });
        let prealloc = if before == Before::Present {
            "on"
        } else {
            "off"
        };
        let mut command = qemu(root);
        let path = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
        command
            .args(["-S", "-nodefaults", "-display", "none", "-accel", "tcg"])
            .args(["-m", "2G", "-machine", "q35,memory-backend=ram"])
            .arg("-object")
            .arg(format!(
                "memory-backend-file,id=ram,size=2G,mem-path={path},share=on,prealloc={prealloc}"
            ))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()));
        if incoming {
            command.args(["-incoming", "defer"]);
        }
        let child = command.stdin(Stdio::null()).spawn().expect("QEMU starts");
        let begin = Instant::now();
        let monitor = loop {
            match UnixStream::connect(&socket) {
                Ok(monitor) => break monitor,
                Err(error) => assert!(begin.elapsed() < PATIENCE, "no monitor: {error}"),
            }
            std::thread::park_timeout(Duration::from_millis(10));
        };
        monitor.set_read_timeout(Some(PATIENCE)).expect("a limit");
        let mut qemu = Self {
            child,
            monitor: BufReader::new(monitor),
        };
        qemu.line();
        qemu.ask("qmp_capabilities", json!({}));
        let multifd = json!([{"capability": "multifd", "state": true}]);
        qemu.ask("migrate-set-capabilities", json!({"capabilities": multifd}));
        let parameters = json!({"multifd-channels": CONNECTIONS, "max-bandwidth": 1_u64 << 40});
        qemu.ask("migrate-set-parameters", parameters);
        qemu
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.monitor.read_line(&mut line).expect("QEMU speaks");
        serde_json::from_str(&line).expect("JSON")
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let ask = json!({"execute": command, "arguments": arguments});
        writeln!(self.monitor.get_mut(), "{ask}").expect("QEMU listens");
        loop {
            let line = self.line();
            assert!(line.get("error").is_none(), "{command}: {line}");
            if let Some(answer) = line.get("return") {
                return answer.clone();
            }
        }
    }
}

/// QEMU of the test bed, with its own libraries.
fn qemu(root: &Path) -> Command {
    let dirs = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|dir| root.join(dir));
    let loader = dirs.iter().map(|dir| dir.join("ld-linux-x86-64.so.2"));
    let loader = loader
        .into_iter()
        .find(|path| path.is_file())
        .expect("a loader");
    let mut command = Command::new(loader);
    command
        .env(
            "QEMU_MODULE_DIR",
            root.join("usr/lib/x86_64-linux-gnu/qemu"),
        )
        .args(["--inhibit-cache", "--library-path"])
        .arg(format!("{}:{}", dirs[0].display(), dirs[1].display()))
        .arg(root.join("usr/bin/qemu-system-x86_64"))
        .arg("-L")
        .arg(root.join("usr/share/qemu"))
        .arg("-L")
        .arg(root.join("usr/share/seabios"));
    command
}

fn theirs(root: &Path, source: &File, before: Before) -> Duration {
    let folder = tempfile::tempdir().expect("a folder");
    let there = memfd();
    let uri = format!("unix:{}", folder.path().join("stream").display());
    let mut to = Qemu::start(root, &there, before, folder.path(), true);
    to.ask("migrate-incoming", json!({"uri": uri}));
    let mut from = Qemu::start(root, source, before, folder.path(), false);
    from.ask("migrate", json!({"uri": uri}));
    let begin = Instant::now();
    loop {
        let state = from.ask("query-migrate", json!({}));
        match state["status"].as_str() {
            Some("completed") => {
                let until = Instant::now();
                while to.ask("query-migrate", json!({}))["status"] != "completed" {
                    assert!(until.elapsed() < PATIENCE, "the destination does not end");
                }
                compare(source, &there);
                let total = state["total-time"].as_u64().expect("a time");
                return Duration::from_millis(total);
            }
            Some("failed" | "cancelled") => panic!("QEMU did not migrate: {state}"),
            _ => assert!(begin.elapsed() < PATIENCE, "{state}"),
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Where QEMU is, if the test bed has been set up.
fn bed() -> Option<PathBuf> {
    let given = std::env::var_os("TIDEMARK_TESTBED").map(PathBuf::from);
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/testbed");
    let root = given.unwrap_or(own).join("qemu-backports");
    root.join("usr/bin/qemu-system-x86_64")
        .is_file()
        .then_some(root)
}

fn version(root: &Path) -> String {
    let output = qemu(root).arg("--version").output().expect("QEMU starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<&str> = text.split_whitespace().take(4).collect();
    words.last().copied().unwrap_or("?").to_owned()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a figure for people; far below 2^53 bytes"
)]
fn judge((root, source): (&Path, &File), before: Before, name: String, bound: Bound) -> Line {
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        let theirs = theirs(root, source, before);
        let ours = ours(source, before);
        runs.push((theirs.as_secs_f64() / ours.as_secs_f64(), ours, theirs));
    }
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (figure, ours, theirs) = runs[RUNS / 2];
    let rate = |time: Duration| MEMORY as f64 / time.as_secs_f64() / 1e9;
    Line {
        name,
        bound,
        figure,
        spread: [runs[0].0, runs[RUNS - 1].0],
        detail: format!("{:.2} GB/s : {:.2} GB/s", rate(ours), rate(theirs)),
    }
}

fn main() -> ExitCode {
    if !wanted("multifd") {
        return ExitCode::SUCCESS;
    }
    let Some(root) = bed() else {
        eprintln!("no QEMU in the test bed: `cargo xtask setup` installs it");
        return ExitCode::FAILURE;
    };
    settle();
    let source = memfd();
    random(&source);
    let peer = format!("QEMU {}'s migrate with as many channels", version(&root));
    let name = |memory| {
        format!("multifd/2 GiB of random memory{memory} over {CONNECTIONS} connections / {peer}")
    };
    let lines = [
        judge(
            (&root, &source),
            Before::Present,
            name(""),
            Bound::AtLeast(2.0),
        ),
        judge(
            (&root, &source),
            Before::Untouched,
            name(", untouched,"),
            Bound::None,
        ),
    ];
    lines.iter().for_each(|line| line.print(Mode::from_args()));
    finish(&lines)
}
