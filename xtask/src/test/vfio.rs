//! The part that is proof B: our driver inside a stock guest, on VFIO behind an IOMMU, harvests what
//! the device marked; the host compares memory byte by byte and does not ask the tracker.
//!
//! How device writes and CPU writes are told apart: only pages are compared that the device alone
//! writes between two looks at them, the buffers of reads. Before the first look the guest's CPU
//! fills each with what no block of the disk holds; the guest is stopped at both looks; in between
//! the CPU only reads them. So a page that differs was written by the device, and it must then hold
//! a block of the disk, which is checked too. Where a page lies in the guest's memory is known from
//! the maps that the server saw.

mod maps;
mod pages;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::Options;
use super::served::Served;
use crate::figures;
use crate::guest::{Guest, Running, VFIO_MODULES};
use crate::process;
use crate::testbed::{self, Platform, TestBed};
use crate::workspace::Workspace;
use maps::Maps;
use pages::{Judgement, Pages};

/// The devices of the guest: a name, how the tracker marks, and the queues. The third is the negative
/// control.
const DEVICES: [(&str, &str, &str); 4] = [
    ("bit", "bit", "split"),
    ("byte", "byte", "split"),
    ("off", "off", "split"),
    ("packed", "bit", "packed"),
];
const QUEUES: &str = "4";
const SEED: &str = "7";
const DISK: u64 = 64 << 20;
const AT_MOST: Duration = Duration::from_secs(180);
/// Of each round; more in the long variant.
const REQUESTS: u32 = 3000;
const REQUESTS_FULL: u32 = 20_000;
const ROUNDS: u32 = 3;
const SUSPENSIONS: [&str; 4] = ["resume", "restore", "resume", "restore"];

/// Debian 13's kernel has virtio-pci built in. The devices shall count no requests but ours.
const NO_VIRTIO: &str = "initcall_blacklist=virtio_pci_driver_init";

/// Gives each of our functions to vfio-pci and drives it, in the order of their addresses.
/// `tidemark track` fails, as it must, on the device that marks nothing: its code is a fact.
const SCRIPT: &str = "\
number=0
for device in /sys/bus/pci/devices/*; do
    [ \"$(cat $device/vendor):$(cat $device/device)\" = 0x1af4:0x1042 ] || continue
    address=$(basename $device)
    echo vfio-pci > $device/driver_override
    echo $address > /sys/bus/pci/drivers_probe
    fact driver$number \"$(basename \"$(readlink $device/driver)\")\"
    fact group$number \"$(cat $device/iommu_group/type)\"
    fact probe$number \"$(tidemark probe --target vfio:$address --json)\"
    code=0
    tidemark track --target vfio:$address --handshake /dev/ttyS1 --json OPTIONS \
        > /report || code=$?
    fact code$number $code
    fact report$number \"$(tail -n 1 /report)\"
    number=$((number + 1))
done
";

/// Runs the proof on one kernel, or on both.
pub fn run(workspace: &Workspace, options: &Options) -> Result<String> {
    let bed = testbed::ensure(workspace)?;
    let tidemark = workspace.tidemark()?;
    let in_guest = workspace.tidemark_static()?;
    let [bookworm, trixie] = bed.vfio_user_platforms();
    let platforms = match options.full {
        true => vec![bookworm, trixie],
        false => vec![trixie],
    };
    let requests = if options.full {
        REQUESTS_FULL
    } else {
        REQUESTS
    };
    let mut all = Vec::new();
    for platform in platforms {
        let proof = Proof {
            bed: &bed,
            tidemark: &tidemark,
            in_guest: &in_guest,
            platform,
            requests,
        };
        all.push(proof.run()?);
    }
    let compared: u64 = all.iter().filter_map(|one| one["compared"].as_u64()).sum();
    let kernels = all.len();
    figures::keep(workspace, "vfio", &Value::Array(all))?;
    Ok(format!(
        "{compared} pages compared on {kernels} kernel(s), 0 lost; without marks all are"
    ))
}

struct Proof<'a> {
    bed: &'a TestBed,
    tidemark: &'a Path,
    in_guest: &'a Path,
    platform: Platform<'a>,
    requests: u32,
}

/// One device of the guest, and what it serves.
struct Device {
    marking: &'static str,
    ring: &'static str,
    served: Served,
    disk: PathBuf,
    log: PathBuf,
}

impl Proof<'_> {
    fn run(&self) -> Result<Value> {
        let dir = self
            .bed
            .run_dir(&format!("vfio-{}", self.platform.name()))?;
        // A socket's path is limited to 108 bytes, which a deep workspace would exceed.
        let sockets = tempfile::tempdir()?;
        let suspensions: String = SUSPENSIONS
            .iter()
            .map(|how| format!(" --suspend {how}"))
            .collect();
        let track = format!(
            "--rounds {ROUNDS} --requests {} --writes 10 --journal {SEED}{suspensions}",
            self.requests
        );
        let script = SCRIPT.replace("OPTIONS", &track);
        let mut guest = Guest::new(self.bed, self.platform, &script);
        guest.iommu().cpus(2).modules(VFIO_MODULES)?;
        guest.kernel_arguments(NO_VIRTIO);
        guest.file("/bin/tidemark", self.in_guest);
        let mut devices = Vec::new();
        for (name, marking, ring) in DEVICES {
            let socket = sockets.path().join(name);
            let files = dir.join(name);
            let device = self.serve(&files, &socket, marking, ring)?;
            guest.vfio_user(&socket).watch(device.served.process())?;
            devices.push(device);
        }
        let vm = guest.start(&dir)?;
        let mut rounds = Vec::new();
        for device in &devices {
            let judged = judge(&vm, device).map_err(|error| vm.explained(error))?;
            rounds.push(judged);
        }
        let run = vm.finish(AT_MOST)?;
        let mut figures = Vec::new();
        for (number, (device, rounds)) in devices.into_iter().zip(rounds).enumerate() {
            let fact = |name: &str| run.serial.fact(&format!("{name}{number}"));
            ensure!(fact("driver")? == "vfio-pci", "the guest's driver");
            ensure!(fact("group")? == "DMA", "the guest's IOMMU is not strict");
            figures.push(device.figures(&rounds, &fact)?);
        }
        let compared: u64 = figures
            .iter()
            .filter_map(|one| one["compared"].as_u64())
            .sum();
        Ok(json!({
            "platform": self.platform.name(),
            "seconds": run.seconds,
            "compared": compared,
            "devices": figures,
        }))
    }

    /// A device whose files begin with `files`.
    fn serve(
        &self,
        files: &Path,
        socket: &Path,
        marking: &'static str,
        ring: &'static str,
    ) -> Result<Device> {
        let disk = files.with_extension("img");
        File::create(&disk)?.set_len(DISK)?;
        // A journal of no request: every sector says which it is.
        let mut format = Command::new(self.tidemark);
        format.args(["journal", "--requests", "0", "--seed", SEED, "--disk"]);
        process::capture(format.arg(&disk))?;
        let log = files.with_extension("maps");
        let mut command = Command::new(self.tidemark);
        command
            .args(["device", "vfio-user", "--queues", QUEUES])
            .args(["--marking", marking, "--ring", ring, "--socket-path"])
            .arg(socket)
            .arg("--disk")
            .arg(&disk)
            .arg("--dma-log")
            .arg(&log);
        Ok(Device {
            marking,
            ring,
            served: Served::spawn(&mut command)?,
            disk,
            log,
        })
    }
}

/// Looks at memory before and after each round of a device's, and holds what the guest harvested
/// against what changed.
fn judge(vm: &Running, device: &Device) -> Result<Vec<Judgement>> {
    let blocks = pages::Blocks::read(&device.disk)?;
    let mut judgements = Vec::new();
    for round in 1..=ROUNDS {
        let start = told(vm, "ready", round)?;
        vm.qmp().stop()?;
        let maps = Maps::read(&device.log)?;
        let before = Pages::look(vm, &maps, &start)?;
        vm.qmp().cont()?;
        vm.send("go")?;

        let report = told(vm, "done", round)?;
        vm.qmp().stop()?;
        // The program's own maps have not changed: its memory stays mapped while it runs.
        let after = Pages::look(vm, &Maps::read(&device.log)?, &start)?;
        vm.qmp().cont()?;
        vm.send("go")?;

        let dirty = report["dirty"].as_str().context("no harvest came")?;
        let judgement = before.judge(&after, dirty, &blocks)?;
        device.check(&judgement).with_context(|| {
            let Device { marking, ring, .. } = device;
            format!("round {round}, {ring} queues, marking {marking}: {judgement:?}")
        })?;
        judgements.push(judgement);
    }
    Ok(judgements)
}

/// The guest's next message.
fn told(vm: &Running, at: &str, round: u32) -> Result<Value> {
    let line = vm.line(AT_MOST)?;
    let message: Value =
        serde_json::from_str(&line).with_context(|| format!("the guest said {line:?}"))?;
    ensure!(
        message["at"] == at && message["round"] == round,
        "expected {at} of round {round}, the guest said {line}"
    );
    Ok(message)
}

impl Device {
    /// What a round must have shown.
    fn check(&self, judgement: &Judgement) -> Result<()> {
        let &Judgement {
            changed,
            lost,
            falsely_dirty,
            harvested,
            foreign,
            ..
        } = judgement;
        ensure!(changed > 500, "the device wrote too little");
        ensure!(
            foreign == 0,
            "pages changed that hold no block of the disk: the comparison is worth nothing"
        );
        match self.marking {
            "bit" => ensure!(lost == 0 && falsely_dirty == 0, "lost or falsely dirty"),
            // Whole bytes were marked, or it would be the other device.
            "byte" => ensure!(lost == 0 && falsely_dirty > 0, "lost, or marked by bits"),
            "off" => ensure!(
                lost == changed && harvested == 0,
                "marking is off, and yet pages were harvested: nothing is proved"
            ),
            other => bail!("no marking {other}"),
        }
        Ok(())
    }

    /// What the device did, by the guest's account and by the server's, which must agree.
    fn figures<'s>(
        self,
        rounds: &[Judgement],
        fact: &dyn Fn(&str) -> Result<&'s str>,
    ) -> Result<Value> {
        let parse = |name| -> Result<Value> {
            let text = fact(name)?;
            serde_json::from_str(text).with_context(|| format!("{name} is {text:?}"))
        };
        let (probe, report) = (parse("probe")?, parse("report")?);
        let code = if self.marking == "off" { "1" } else { "0" };
        ensure!(
            fact("code")? == code,
            "tidemark track ended with {}",
            fact("code")?
        );
        ensure!(probe["virtio_type"] == "block", "the probe found {probe}");
        ensure!(!probe["tracker"].is_null(), "the probe found no tracker");

        ensure!(
            report["packed"] == (self.ring == "packed"),
            "the guest's driver did not take {} queues: {report}",
            self.ring
        );
        let requests = &report["requests"];
        let number = |value: &Value| value.as_u64().unwrap_or(u64::MAX);
        let submitted = number(&requests["submitted"]);
        ensure!(
            submitted > 0 && number(&requests["completed"]) == submitted,
            "not every request completed: {requests}"
        );
        for fault in ["failed", "doubled", "lost"] {
            ensure!(requests[fault] == 0, "requests {fault}: {requests}");
        }
        ensure!(report["unannounced"] == 0, "interrupts were lost: {report}");
        let empty = Vec::new();
        let reported = report["rounds"].as_array().unwrap_or(&empty);
        let suspensions: Vec<&Value> = reported
            .iter()
            .flat_map(|round| round["suspensions"].as_array().unwrap_or(&empty))
            .collect();
        let sum = |of: &[&Value], name: &str| of.iter().map(|one| number(&one[name])).sum::<u64>();
        let all: Vec<&Value> = reported.iter().collect();
        ensure!(sum(&all, "wrong") == 0, "reads were wrong: {report}");
        ensure!(sum(&all, "harvests_in_flight") > 0, "no harvest beside I/O");
        ensure!(
            suspensions.len() == SUSPENSIONS.len() * reported.len()
                && sum(&suspensions, "disagreeing") == 0
                && sum(&suspensions, "carried") > 0,
            "the suspensions: {suspensions:?}"
        );
        // The other side counts as well: what is done twice there is seen here.
        let served = self.served.finish()?;
        let more = |ours: u64, theirs: &str| number(&served[theirs]).wrapping_sub(ours);
        let firmware = more(submitted, "requests");
        ensure!(
            // Before the kernel starts the firmware looks at the disks, sector by sector. No
            // request of ours has less than eight.
            more(sum(&all, "bytes_read"), "bytes_read") == firmware * 512
                && more(sum(&all, "bytes_written"), "bytes_written") == 0
                && firmware < 8
                && served["errors"] == 0,
            "{submitted} requests were submitted ({report}), the device did {served}"
        );
        let total = |count: fn(&Judgement) -> u64| rounds.iter().map(count).sum::<u64>();
        let milliseconds = |name: &str| {
            let mut all: Vec<f64> = suspensions
                .iter()
                .filter_map(|one| one[name].as_f64())
                .collect();
            all.sort_by(f64::total_cmp);
            json!({"median": all.get(all.len() / 2), "most": all.last()})
        };
        Ok(json!({
            "marking": self.marking,
            "ring": self.ring,
            "compared": total(|round| round.compared),
            "changed": total(|round| round.changed),
            "lost": total(|round| round.lost),
            "falsely_dirty": total(|round| round.falsely_dirty),
            "harvests": sum(&all, "harvests"),
            "harvests_in_flight": sum(&all, "harvests_in_flight"),
            "requests": submitted,
            "firmware_requests": firmware,
            "suspensions": suspensions.len(),
            "in_flight_at_suspend": sum(&suspensions, "in_flight"),
            "drained": sum(&suspensions, "drained"),
            "carried": sum(&suspensions, "carried"),
            "suspend_ms": milliseconds("suspend_ms"),
            "comeback_ms": milliseconds("comeback_ms"),
            "interrupts": report["interrupts"],
            "pasid_visible": probe["pasid"],
        }))
    }
}
