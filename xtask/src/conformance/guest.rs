//! Devices of a foreign QEMU, judged from inside its guest: bound to vfio-pci behind an IOMMU, as a
//! maker of hardware does it.
//!
//! A report leaves the guest packed and as one line, over the line that carries no kernel messages.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{DISK, OPTIONS, Programs, check, not_empty, text};
use crate::guest::{Guest, VFIO_MODULES};
use crate::process;
use crate::testbed::{Platform, Qemu, TestBed};

/// A processor under TCG is slow, and so is all that it emulates; and a case may take only so many
/// times this in all, such as the one that goes once around all indices.
const LIMIT: &str = "15";
const AT_MOST: Duration = Duration::from_secs(900);
const NO_VIRTIO: &str = "initcall_blacklist=virtio_pci_driver_init";

/// A device of QEMU's.
#[derive(Clone, Copy)]
pub struct Function {
    /// What its column's name ends with.
    pub name: &'static str,
    /// What people call it.
    pub title: &'static str,
    /// `-device`, without what puts it in its place.
    pub device: &'static str,
    /// Whether it is judged on every change.
    pub quick: bool,
}

/// All devices that are judged.
pub const FUNCTIONS: [Function; 4] = [
    Function {
        name: "blk-split",
        title: "virtio-blk, split",
        device: "virtio-blk-pci",
        quick: true,
    },
    Function {
        name: "blk-packed",
        title: "virtio-blk, packed",
        device: "virtio-blk-pci,packed=on",
        quick: false,
    },
    Function {
        name: "rng-split",
        title: "virtio-rng, split",
        device: "virtio-rng-pci",
        quick: false,
    },
    Function {
        name: "rng-packed",
        title: "virtio-rng, packed",
        device: "virtio-rng-pci,packed=on",
        quick: false,
    },
];

/// Gives a function to vfio-pci, judges it, and keeps the report. All are judged at once.
const SCRIPT: &str = "\
take() {
    device=/sys/bus/pci/devices/$2
    echo vfio-pci > $device/driver_override
    [ ! -e $device/driver ] || echo $2 > $device/driver/unbind
    echo $2 > /sys/bus/pci/drivers_probe
    fact driver$1 \"$(basename \"$(readlink $device/driver)\")\"
}
conform() {
    code=0
    tidemark conform --target vfio:$2 OPTIONS --output /tmp/report$1 > /tmp/said$1 2>&1 || code=$?
    echo $code > /tmp/code$1
}
TAKE
CONFORM
wait
number=0
while [ $number -lt COUNT ]; do
    fact code$number \"$(cat /tmp/code$number)\"
    fact said$number \"$(tail -n 1 /tmp/said$number)\"
    [ -e /tmp/report$number ] || echo '{}' > /tmp/report$number
    gzip -c /tmp/report$number | base64 -w 0 >&3
    echo >&3
    number=$((number + 1))
done
";

/// Judges functions in one guest. Gives their reports and the seconds that it took.
pub fn judge(
    programs: &Programs<'_>,
    name: &str,
    qemu: &Qemu,
    functions: &[Function],
) -> Result<(Vec<Value>, f64)> {
    let bed = programs.bed;
    // Linux of the other release: its kernel has the function level reset that old ones have too,
    // and virtio-pci built in or not makes no difference here.
    let platform = Platform {
        qemu,
        kernel: &bed.kernel_bookworm,
    };
    let dir = bed.run_dir(&format!("conform-{name}"))?;
    let each = |line: &dyn Fn(usize, String) -> String| {
        let lines = (0..functions.len()).map(|number| line(number, address(number)));
        lines.collect::<Vec<_>>().join("\n")
    };
    let options = [&OPTIONS[..], &["--timeout", LIMIT]].concat().join(" ");
    let script = SCRIPT
        .replace("OPTIONS", &options)
        .replace("TAKE", &each(&|number, at| format!("take {number} {at}")))
        .replace(
            "CONFORM",
            &each(&|number, at| format!("conform {number} {at} &")),
        )
        .replace("COUNT", &functions.len().to_string());
    let mut guest = Guest::new(bed, platform, &script);
    guest.iommu().cpus(2).modules(VFIO_MODULES)?;
    guest.kernel_arguments(NO_VIRTIO);
    guest.file("/bin/tidemark", &programs.in_guest);
    for (number, function) in functions.iter().enumerate() {
        attach(&mut guest, &dir, number, function)?;
    }
    let vm = guest.start(&dir)?;
    let lines: Vec<String> = functions
        .iter()
        .map(|_| vm.line(AT_MOST))
        .collect::<Result<_>>()?;
    let run = vm.finish(AT_MOST)?;
    let mut reports = Vec::new();
    for (number, (line, function)) in lines.iter().zip(functions).enumerate() {
        let fact = |name: &str| run.serial.fact(&format!("{name}{number}"));
        let report = || -> Result<Value> {
            ensure!(fact("driver")? == "vfio-pci", "vfio-pci did not take it");
            check(fact("code")?.parse()?, fact("said")?)?;
            let report = unpack(bed, &dir.join(function.name), line)?;
            not_empty(&report)?;
            Ok(report)
        };
        reports.push(report().with_context(|| function.name)?);
    }
    Ok((reports, run.seconds))
}

/// Where the function of a number is: each has a root port, and so a bus, of its own.
fn address(number: usize) -> String {
    format!("0000:{:02x}:00.0", number + 1)
}

/// Behind a root port a virtio function is PCI Express, and has a function level reset.
fn attach(guest: &mut Guest<'_>, dir: &Path, number: usize, function: &Function) -> Result<()> {
    let slot = number + 1;
    let port = format!("pcie-root-port,id=port{number},chassis={slot},slot={slot}");
    let mut device = format!(
        "{},bus=port{number},disable-legacy=on,iommu_platform=on",
        function.device
    );
    if function.device.starts_with("virtio-blk") {
        let disk = dir.join(format!("{}.img", function.name));
        File::create(&disk)?.set_len(DISK)?;
        let drive = format!("if=none,id=disk{number},format=raw,file={}", text(&disk)?);
        device.push_str(&format!(",drive=disk{number}"));
        guest.arguments(["-drive", &drive]);
    }
    guest.arguments(["-device", &port, "-device", &device]);
    Ok(())
}

/// A report out of a guest's line.
fn unpack(bed: &TestBed, path: &Path, line: &str) -> Result<Value> {
    let (packed, json) = (path.with_extension("packed"), path.with_extension("json"));
    fs::write(&packed, line)?;
    let mut command = Command::new(bed.busybox());
    command.args(["sh", "-c", "base64 -d < \"$0\" | gunzip > \"$1\""]);
    process::capture(command.arg(&packed).arg(&json))?;
    let text = fs::read_to_string(&json)?;
    serde_json::from_str(&text).with_context(|| format!("no report in {}", json.display()))
}
