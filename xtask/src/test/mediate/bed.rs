//! Servers on one disk, the mediator before them, and the guest on the mediator.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::AT_MOST;
use crate::guest::{Guest, Running};
use crate::process;
use crate::test::served::Served;
use crate::testbed::{Platform, TestBed};

const DISK: u64 = 32 << 20;

/// The journal works until the host says `stop`. Its progress goes to the host line by line.
const WORK: &str = "\
fact driver \"$(basename \"$(readlink /sys/block/vda/device/driver)\")\"
tidemark journal --disk /dev/vda --depth 32 --writes 60 --progress 50 \
    --control - --json <&3 2>&3 >/tmp/report || true
fact journal \"$(tail -n 1 /tmp/report)\"
fact sectors \"$(awk '{ print $7 }' /sys/block/vda/stat)\"
fact complaints \"$(dmesg | grep -c -i -e 'is not a head' -e 'I/O error' -e 'blocked for' \
    -e 'vda.*error' -e 'virtio.*fail' || true)\"
";

/// What a guest did.
pub struct Work {
    /// The journal's own report.
    pub journal: Value,
    /// What the kernel wrote to the disk.
    pub bytes_written: u64,
}

pub struct Bed<'a> {
    tidemark: &'a Path,
    pub dir: PathBuf,
    disk: PathBuf,
    /// A socket's path is limited to 108 bytes, which a deep workspace would exceed.
    sockets: TempDir,
}

impl<'a> Bed<'a> {
    pub fn new(tidemark: &'a Path, dir: PathBuf) -> Result<Self> {
        let disk = dir.join("disk.img");
        File::create(&disk)?.set_len(DISK)?;
        Ok(Self {
            tidemark,
            dir,
            disk,
            sockets: tempfile::tempdir()?,
        })
    }

    /// Where something listens.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.sockets.path().join(name)
    }

    fn target(&self, name: &str) -> String {
        format!("vfio-user:{}", self.socket(name).display())
    }

    /// Where a server notes what it has in flight.
    pub fn table(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.inflight"))
    }

    /// A server that takes one client after the other, and notes what it has in flight.
    pub fn serve(&self, name: &str, table: &str, more: &[&str]) -> Result<Served> {
        let mut command = self.server(name);
        command.arg("--inflight").arg(self.table(table)).args(more);
        Served::spawn(&mut command)
    }

    pub fn serve_without_table(&self, name: &str) -> Result<Served> {
        Served::spawn(&mut self.server(name))
    }

    fn server(&self, name: &str) -> Command {
        let mut command = Command::new(self.tidemark);
        command.args(["device", "vfio-user", "--keep", "--disk"]);
        command.arg(&self.disk).arg("--socket-path");
        command.arg(self.socket(name));
        command
    }

    /// A mediator before the server of this name.
    pub fn mediate(&self, back: &str, more: &[&str]) -> Result<Served> {
        let mut command = Command::new(self.tidemark);
        command.args(["mediate", "--front", &self.target("front")]);
        command.args(["--back", &self.target(back), "--control"]);
        command.arg(self.socket("control")).args(more);
        // Where the tables are, and the streams are kept.
        command.arg("--allow").arg(&self.dir);
        Served::spawn(&mut command)
    }

    /// A guest with the mediator's disk, ready to work on it.
    pub fn guest<'b>(
        &self,
        bed: &'b TestBed,
        platform: Platform<'b>,
        tidemark: &Path,
    ) -> Result<Guest<'b>> {
        let mut guest = Guest::new(bed, platform, WORK);
        guest.modules(&["virtio_pci", "virtio_blk"])?;
        guest.file("/bin/tidemark", tidemark).memory(256);
        guest.vfio_user(&self.socket("front"));
        Ok(guest)
    }

    /// Moves the device.
    pub fn shift(&self, to: &str, more: &[&str]) -> Result<Value> {
        let mut command = self.control("move");
        command.args(["--to", &self.target(to)]).args(more);
        answer(&mut command)
    }

    /// Verifies the stream in which a device's state went: all of the one that was moved with this
    /// report.
    pub fn travelled(&self, stream: &Path, report: &Value) -> Result<()> {
        let mut command = Command::new(self.tidemark);
        command.args(["stream", "verify", "--json"]).arg(stream);
        let verified = answer(&mut command)?;
        let devices = verified["totals"]["devices"].as_array().map(Vec::len);
        ensure!(
            devices == Some(1) && verified["totals"]["bytes"] == report["stream_bytes"],
            "expected one device in {}, got {verified} for {report}",
            stream.display()
        );
        Ok(())
    }

    pub fn status(&self) -> Result<Value> {
        answer(&mut self.control("status"))
    }

    fn control(&self, what: &str) -> Command {
        let mut command = Command::new(self.tidemark);
        command.args(["mediate", what, "--json", "--control"]);
        command.arg(self.socket("control"));
        command
    }

    /// Lets the guest finish, and judges what it says.
    pub fn end(&self, vm: Running) -> Result<Work> {
        vm.send("stop")?;
        let run = vm.finish(AT_MOST)?;
        run.serial.expect("driver", "virtio_blk")?;
        let journal: Value = serde_json::from_str(run.serial.fact("journal")?)?;
        ensure!(journal["good"] == true, "the journal found {journal}");
        ensure!(
            journal["max_in_flight"] == 32,
            "the journal was not at full depth: {journal}"
        );
        run.serial.expect("complaints", "0")?;
        let sectors: u64 = run.serial.fact("sectors")?.parse()?;
        Ok(Work {
            journal,
            bytes_written: sectors * 512,
        })
    }

    /// Everything went well: nobody needs the logs.
    pub fn remove(self) -> Result<()> {
        Ok(fs::remove_dir_all(&self.dir)?)
    }
}

fn answer(command: &mut Command) -> Result<Value> {
    let text = process::capture(command)?;
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("the answer is {last:?}"))
}
