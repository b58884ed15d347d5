//! The part in which backends are killed under load, again and again, and started anew: the guest's
//! journal proves that no request was lost and none done twice, and its kernel saw nothing odd.
//!
//! What was in flight is what the next backend finds in the table that QEMU keeps. The negative
//! control spoils that table between a kill and the start after it: the kernel must complain.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Options;
use super::backend::Backend;
use crate::figures;
use crate::guest::{Guest, Running};
use crate::testbed::{self, Platform, TestBed};
use crate::workspace::Workspace;

const AT_MOST: Duration = Duration::from_secs(120);
const KILLS: usize = 20;
/// A kill is worth something if it hits more than this many requests.
const MANY: u64 = 8;
const DISK: u64 = 32 << 20;
const SEED: u64 = 0x7469_6465;
/// A disk that is as slow as a real one, so that the emulated guest can get ahead of it.
const BACKEND: [&str; 2] = ["--slow-disk", "1"];

const WORK: &str = "\
fact driver \"$(basename \"$(readlink /sys/block/vda/device/driver)\")\"
tidemark journal --disk /dev/vda --depth 32 --writes 60 --progress 20 \
    --control - --json <&3 2>&3 >/tmp/report || true
fact journal \"$(tail -n 1 /tmp/report)\"
fact complaints \"$(dmesg | grep -c -e 'is not a head' -e 'I/O error' || true)\"
";
/// What Linux says of a used buffer that it did not offer.
const COMPLAINT: &str = "is not a head";

/// Both QEMUs.
pub fn run(workspace: &Workspace, _options: &Options) -> Result<String> {
    let bed = testbed::ensure(workspace)?;
    let tidemark = workspace.tidemark_static()?;
    let program = workspace.program("tidemark-vhost-user-blk")?;
    let [newest, _, oldest, _] = bed.platforms();
    let mut all = Vec::new();
    for platform in [oldest, newest] {
        let figures = Bed::new(&bed, platform, &tidemark, &program)?
            .killed()
            .with_context(|| format!("killed backends on {}", platform.name()))?;
        all.push(figures);
    }
    let control = Bed::new(&bed, newest, &tidemark, &program)?;
    let complaint = control.spoiled().context("the negative control")?;
    let figures = json!({ "seed": SEED, "runs": all, "control": complaint });
    figures::keep(workspace, "killed", &figures)?;
    Ok(format!("{} kills, nothing lost or doubled", 2 * KILLS))
}

struct Bed<'a> {
    bed: &'a TestBed,
    platform: Platform<'a>,
    tidemark: &'a Path,
    program: &'a Path,
    dir: PathBuf,
    disk: PathBuf,
    sockets: TempDir,
}

impl<'a> Bed<'a> {
    fn new(
        bed: &'a TestBed,
        platform: Platform<'a>,
        tidemark: &'a Path,
        program: &'a Path,
    ) -> Result<Self> {
        let dir = bed.run_dir(&format!("killed-{}", platform.name()))?;
        let disk = dir.join("disk.img");
        File::create(&disk)?.set_len(DISK)?;
        Ok(Self {
            bed,
            platform,
            tidemark,
            program,
            dir,
            disk,
            sockets: tempfile::tempdir()?,
        })
    }

    fn backend(&self) -> Result<Backend> {
        let socket = self.sockets.path().join("disk.sock");
        Backend::start(self.program, &socket, &self.disk, &BACKEND)
    }

    fn guest(&self) -> Result<Running> {
        let socket = self.sockets.path().join("disk.sock");
        let mut guest = Guest::new(self.bed, self.platform, WORK);
        guest.modules(&["virtio_pci", "virtio_blk"])?;
        guest.file("/bin/tidemark", self.tidemark);
        let pause = Some(Duration::from_secs(1));
        guest.memory(256).vhost_user_blk(&socket, 1, pause);
        guest.start(&self.dir)
    }

    fn killed(&self) -> Result<Value> {
        let mut random = SEED;
        let mut backend = self.backend()?;
        let vm = self.guest()?;
        let mut flying = Vec::new();
        let mut requests = 0;
        for _ in 0..KILLS {
            at_work(&vm, &backend, 1)?;
            let before = backend.report()?.requests;
            let more = next(&mut random) % 400;
            at_work(&vm, &backend, before + more)?;
            requests += backend.report()?.requests;
            backend.kill()?;
            backend = self.backend()?;
            // The guest goes on only when QEMU has connected again.
            at_work(&vm, &backend, 1)?;
            flying.push(backend.report()?.resubmitted);
        }
        vm.send("stop")?;
        let run = vm.finish(AT_MOST)?;
        let last = backend.finish()?;
        let journal: Value = serde_json::from_str(run.serial.fact("journal")?)?;
        let many = flying.iter().filter(|&&count| count > MANY).count();
        let figures = json!({
            "platform": self.platform.name(),
            "kills": KILLS,
            "in_flight": flying,
            "kills_with_many_in_flight": many,
            "requests": requests + last.requests,
            "journal": journal,
        });
        println!("{figures}");
        ensure!(journal["good"] == true, "the journal found {journal}");
        run.serial.expect("complaints", "0")?;
        ensure!(
            2 * many >= KILLS,
            "only {many} of {KILLS} kills hit more than {MANY} requests: {flying:?}"
        );
        fs::remove_dir_all(&self.dir)?;
        Ok(figures)
    }

    /// Spoils the table after a kill: one request in flight is said to be used already.
    fn spoiled(&self) -> Result<String> {
        let mut backend = self.backend()?;
        let vm = self.guest()?;
        for _ in 0..KILLS {
            let done = backend.report()?.requests;
            at_work(&vm, &backend, done + 100)?;
            backend.kill()?;
            let spoiled = spoil(&table(vm.pid())?)?;
            backend = self.backend()?;
            if spoiled {
                let said = vm.console(COMPLAINT, AT_MOST)?;
                fs::remove_dir_all(&self.dir)?;
                return Ok(said);
            }
        }
        bail!("no kill hit two requests")
    }
}

/// Waits until the backend has carried out so many requests; the guest's lines are the clock.
fn at_work(vm: &Running, backend: &Backend, requests: u64) -> Result<()> {
    while backend.report()?.requests < requests {
        vm.line(AT_MOST)?;
    }
    Ok(())
}

/// The in-flight table, as QEMU keeps it.
fn table(pid: u32) -> Result<File> {
    let dir = format!("/proc/{pid}/fd");
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {dir}"))? {
        let path = entry?.path();
        let name = fs::read_link(&path).unwrap_or_default();
        if name.to_string_lossy().contains("tidemark-inflight") {
            let file = File::options().read(true).write(true).open(&path);
            return file.with_context(|| format!("cannot open {}", path.display()));
        }
    }
    bail!("QEMU keeps no in-flight table in {dir}")
}

/// Makes the request that was popped first look like one whose end was published and not yet
/// noted, by the layout of the vhost-user protocol; false if there are not two in flight.
fn spoil(table: &File) -> Result<bool> {
    let mut bytes = vec![0; usize::try_from(table.metadata()?.len())?];
    table.read_exact_at(&mut bytes, 0)?;
    let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let entry = |head: u16| 16 + 16 * usize::from(head);
    let counter = |head: &u16| {
        let at = entry(*head) + 8;
        bytes.get(at..at + 8).map(<[u8]>::to_vec)
    };
    let flying: Vec<u16> = (0..word(10))
        .filter(|&head| bytes[entry(head)] == 1)
        .collect();
    let oldest = flying.iter().min_by_key(|head| {
        let bytes: Option<[u8; 8]> = counter(head).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_ne_bytes)
    });
    let Some(&head) = oldest.filter(|_| flying.len() >= 2) else {
        return Ok(false);
    };
    table.write_all_at(&head.to_ne_bytes(), 12)?;
    table.write_all_at(&word(14).wrapping_sub(1).to_ne_bytes(), 14)?;
    Ok(true)
}

/// The next number of a sequence that the seed decides (SplitMix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
