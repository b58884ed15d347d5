//! Who is judged by `tidemark conform` and `tidemark judge`, and how: the columns of the matrix.
//!
//! Every column gives one report of `--format json`. What runs on the host is started by the suite
//! itself (`--restart`), so that one that dies is started again; functions of foreign QEMUs are
//! judged inside a guest, over VFIO.

mod driver;
mod guest;
pub mod matrix;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::process::{self, Watched};
use crate::testbed::{Kernel, Qemu, TestBed};
use crate::workspace::Workspace;

/// What every column is run with: everything that is required or recommended, and the medium may
/// be written, because it is made for this.
const OPTIONS: [&str; 6] = [
    "--level",
    "should",
    "--seed",
    "1",
    "--allow-write",
    "--format=json",
];
/// Seconds that a target may take for anything it must do.
const HOST_LIMIT: &str = "3";
/// No run on the host takes longer, whatever its target does.
const AT_MOST: Duration = Duration::from_secs(900);
/// Bytes of each disk.
const DISK: u64 = 16 << 20;

/// An implementation.
#[derive(Clone)]
pub struct Column {
    /// Name, unique in the matrix.
    pub id: String,
    title: String,
    how: String,
    place: Place,
    /// Whether it is this project's, and must keep every clause.
    pub ours: bool,
    /// Whether it is judged on every change, and not in the long variant only.
    pub quick: bool,
}

#[derive(Clone)]
enum Place {
    /// In the suite's own process.
    Emulated,
    /// A server on the host, by its `--target` without the path and its command with `SOCKET` and
    /// `DISK` in place of paths.
    Served {
        target: &'static str,
        command: String,
    },
    /// A device of QEMU's, inside a guest.
    Function(guest::Function),
    /// A driver.
    Driver(driver::Driver),
}

/// What a column's run gave.
pub struct Judged {
    /// What the matrix needs: `id`, `title`, `how`, `report`.
    pub value: Value,
    /// Seconds it took; that of the guest where several share one.
    pub seconds: f64,
}

impl Judged {
    /// What was judged elsewhere.
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        let value = serde_json::from_str(&text)
            .with_context(|| format!("{} is no JSON", path.display()))?;
        Ok(Self {
            value,
            seconds: 0.0,
        })
    }
}

/// Programs that columns are made of.
pub struct Programs<'a> {
    bed: &'a TestBed,
    tidemark: PathBuf,
    backend: PathBuf,
    in_guest: PathBuf,
}

impl<'a> Programs<'a> {
    /// Builds them.
    pub fn new(workspace: &Workspace, bed: &'a TestBed) -> Result<Self> {
        Ok(Self {
            bed,
            tidemark: workspace.tidemark()?,
            backend: workspace.program("tidemark-vhost-user-blk")?,
            in_guest: workspace.tidemark_static()?,
        })
    }

    /// Every implementation, in the order of the matrix.
    pub fn columns(&self) -> Vec<Column> {
        let mut all = vec![Column {
            id: "tidemark".into(),
            title: "Tidemark, emulated block".into(),
            how: "in the suite's own process".into(),
            place: Place::Emulated,
            ours: true,
            quick: true,
        }];
        for ring in ["split", "packed"] {
            let tidemark = self.tidemark.display();
            let server = format!(
                "{tidemark} device vfio-user --keep --queues 2 --ring {ring} \
                 --socket-path SOCKET --disk DISK"
            );
            all.push(Column {
                id: format!("tidemark-vfio-user-{ring}"),
                title: format!("Tidemark, block over vfio-user, {ring}"),
                how: format!("`tidemark device vfio-user --ring {ring}` over its socket"),
                place: Place::Served {
                    target: "vfio-user",
                    command: server,
                },
                ours: true,
                quick: true,
            });
        }
        for ring in ["split", "packed"] {
            let server = format!(
                "{} --ring {ring} --socket-path SOCKET --blk-file DISK",
                self.backend.display()
            );
            all.push(Column {
                id: format!("tidemark-vhost-user-{ring}"),
                title: format!("Tidemark, block over vhost-user, {ring}"),
                how: format!("`tidemark-vhost-user-blk --ring {ring}`, rings only"),
                place: Place::Served {
                    target: "vhost-user",
                    command: server,
                },
                ours: true,
                quick: true,
            });
        }
        for (name, qemu, quick) in self.qemus() {
            let daemon = qemu.storage_daemon.display();
            all.push(Column {
                id: format!("{name}-storage-daemon"),
                title: format!("qemu-storage-daemon {}", qemu.version),
                how: "its vhost-user-blk export, writable, two queues; rings only".into(),
                place: Place::Served {
                    target: "vhost-user",
                    command: format!(
                        "{daemon} --blockdev driver=file,node-name=disk,filename=DISK \
                         --export type=vhost-user-blk,id=export,node-name=disk,writable=on,\
                         num-queues=2,addr.type=unix,addr.path=SOCKET"
                    ),
                },
                ours: false,
                quick,
            });
        }
        for (name, qemu, quick) in self.qemus() {
            for function in guest::FUNCTIONS {
                all.push(Column {
                    id: format!("{name}-{}", function.name),
                    title: format!("QEMU {} {}", qemu.version, function.title),
                    how: format!(
                        "`-device {}` behind a root port, over VFIO in a guest",
                        function.device
                    ),
                    place: Place::Function(function),
                    ours: false,
                    quick: quick && function.quick,
                });
            }
        }
        all.push(Column {
            id: "tidemark-driver".into(),
            title: "Tidemark, driver".into(),
            how: "`tidemark suspend` on the function that watches it".into(),
            place: Place::Driver(driver::Driver::Ours),
            ours: true,
            quick: true,
        });
        let kernels: [fn(&TestBed) -> &Kernel; 2] =
            [|bed| &bed.kernel_bookworm, |bed| &bed.kernel_trixie];
        for (name, kernel) in ["linux-bookworm", "linux-trixie"].into_iter().zip(kernels) {
            all.push(Column {
                id: name.into(),
                title: format!("Linux {}, drivers", kernel(self.bed).release),
                how: "virtio_pci, virtio_blk and virtio_rng on the function that watches them"
                    .into(),
                place: Place::Driver(driver::Driver::Linux(kernel)),
                ours: false,
                quick: true,
            });
        }
        all.push(Column {
            id: "seabios".into(),
            title: format!(
                "SeaBIOS of QEMU {}, driver",
                self.bed.qemu_backports.version
            ),
            how: "it boots from the disk that watches it".into(),
            place: Place::Driver(driver::Driver::Firmware),
            ours: false,
            quick: true,
        });
        all
    }

    /// The foreign QEMUs by the names that columns have for them, and which is for every change.
    fn qemus(&self) -> [(&'static str, &Qemu, bool); 2] {
        [
            ("qemu-backports", &self.bed.qemu_backports, true),
            ("qemu-bookworm", &self.bed.qemu_bookworm, false),
        ]
    }

    /// Judges the columns, in their order.
    pub fn judge(&self, columns: &[Column]) -> Result<Vec<Judged>> {
        let mut all = Vec::new();
        for column in columns {
            let report = match &column.place {
                Place::Function(_) | Place::Driver(_) => continue,
                Place::Emulated => self.on_host(column, &["--target", "emulated"], None),
                Place::Served { target, command } => {
                    self.on_host(column, &[], Some((target, command)))
                }
            };
            let (report, seconds) = report.with_context(|| column.id.clone())?;
            all.push(column.judged(report, seconds));
        }
        for (name, qemu, _) in self.qemus() {
            let mut functions = Vec::new();
            let mine: Vec<&Column> = columns
                .iter()
                .filter(|column| column.id.starts_with(name))
                .filter(|column| match column.place {
                    Place::Function(function) => {
                        functions.push(function);
                        true
                    }
                    _ => false,
                })
                .collect();
            if mine.is_empty() {
                continue;
            }
            let (reports, seconds) = guest::judge(self, name, qemu, &functions)
                .with_context(|| format!("in the guest of {name}"))?;
            for (column, report) in mine.into_iter().zip(reports) {
                all.push(column.judged(report, seconds));
            }
        }
        for column in columns {
            if let Place::Driver(driver) = column.place {
                let (report, seconds) =
                    driver::judge(self, &column.id, driver).with_context(|| column.id.clone())?;
                all.push(column.judged(report, seconds));
            }
        }
        Ok(all)
    }

    /// Runs `tidemark conform` on the host, and gives its report and the time.
    fn on_host(
        &self,
        column: &Column,
        target: &[&str],
        served: Option<(&str, &str)>,
    ) -> Result<(Value, f64)> {
        let dir = self.bed.run_dir(&format!("conform-{}", column.id))?;
        let output = dir.join("report.json");
        // A socket's path is limited to 108 bytes, which a deep workspace would exceed.
        let sockets = tempfile::tempdir()?;
        let mut command = Command::new(&self.tidemark);
        command.arg("conform").args(target).args(OPTIONS);
        command
            .args(["--timeout", HOST_LIMIT, "--output"])
            .arg(&output);
        if let Some((target, server)) = served {
            let (socket, disk) = (sockets.path().join("socket"), dir.join("disk.img"));
            File::create(&disk)?.set_len(DISK)?;
            let server = server
                .replace("SOCKET", &socket.display().to_string())
                .replace("DISK", &disk.display().to_string());
            command.args(["--target", &format!("{target}:{}", socket.display())]);
            command.args(["--restart", &server]);
        }
        let log = dir.join("said.log");
        let said = File::create(&log)?;
        command.stdout(said.try_clone()?).stderr(said);
        let began = Instant::now();
        let mut running = Watched::spawn(&mut command)?;
        let status = running.wait(AT_MOST)?;
        let status = status.context("it takes too long, and was ended")?;
        let seconds = began.elapsed().as_secs_f64();
        let code = status.code().unwrap_or(-1);
        check(code, &fs::read_to_string(&log)?)?;
        let text = fs::read_to_string(&output)
            .with_context(|| format!("no report in {}", output.display()))?;
        // Where the run was is nobody's concern, and another place the next time.
        let text = [sockets.path(), dir.as_path(), self.bed.dir.as_path()]
            .iter()
            .fold(text, |text, path| {
                text.replace(&path.display().to_string(), "")
            });
        Ok((serde_json::from_str(&text)?, seconds))
    }
}

impl Column {
    /// Whether a driver is judged, not a device.
    pub fn is_driver(&self) -> bool {
        matches!(self.place, Place::Driver(_))
    }

    fn judged(&self, report: Value, seconds: f64) -> Judged {
        println!("{}: {} in {seconds:.1} s", self.id, totals(&report));
        Judged {
            value: json!({
                "id": self.id, "title": self.title, "how": self.how, "report": report,
            }),
            seconds,
        }
    }
}

/// Whether `tidemark conform` did what was asked, whatever it found.
fn check(code: i32, said: &str) -> Result<()> {
    match code {
        0 | 1 => Ok(()),
        3 => bail!("the target cannot be reached:\n{}", process::tail(said)),
        code => bail!("it ended with {code}:\n{}", process::tail(said)),
    }
}

/// The entries of a report.
fn entries(report: &Value) -> &[Value] {
    report["entries"].as_array().map_or(&[], Vec::as_slice)
}

/// How often each outcome was found.
fn totals(report: &Value) -> String {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for entry in entries(report) {
        *counts
            .entry(entry["outcome"].as_str().unwrap_or("?"))
            .or_default() += 1;
    }
    let parts: Vec<_> = counts
        .iter()
        .map(|(outcome, count)| format!("{count} {outcome}"))
        .collect();
    parts.join(", ")
}

/// What counts as a failure, one a line.
pub fn failures(report: &Value) -> Vec<String> {
    let failed = |entry: &&Value| {
        let outcome = entry["outcome"].as_str().unwrap_or("");
        matches!(outcome, "fail" | "inconclusive" | "unexpected-pass")
    };
    let told = |entry: &Value| {
        let word = |name: &str| entry[name].as_str().unwrap_or("").to_owned();
        format!(
            "{} in {}: {} {}",
            word("clause"),
            word("case"),
            word("outcome"),
            entry["saw"]
        )
    };
    entries(report).iter().filter(failed).map(told).collect()
}

/// Requires that a report judged something.
fn not_empty(report: &Value) -> Result<()> {
    ensure!(!entries(report).is_empty(), "the report has no entry");
    Ok(())
}

/// Where the matrix is kept.
fn docs(workspace: &Workspace) -> PathBuf {
    workspace.root().join("docs/matrix")
}

/// The path of a file as an argument.
fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is no UTF-8", path.display()))
}
