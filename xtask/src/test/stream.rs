//! The part that holds our streams against Xen's own verifier, a public script: what it says of them
//! does not come from us.
//!
//! Its limits: Python 3 breaks its check of names, so a stream with names is checked again with the
//! one check mended (see `verify_names.py`); it cannot follow a stream of both layers through
//! checkpoints; and it lets through what our reader refuses.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Options;
use crate::process;
use crate::testbed::{self, Xen};
use crate::workspace::Workspace;

const WRAPPER: &str = include_str!("stream/verify_names.py");
/// Where the streams are that were written by hand from the format's documents.
const FIXTURES: &str = "migration/tests/all/fixtures";
/// Most of a stream that may be something else than pages.
const OVERHEAD: f64 = 0.003;

/// What a verifier said.
#[derive(Debug)]
struct Verdict {
    accepted: bool,
    text: String,
}

struct Bench<'a> {
    xen: &'a Xen,
    tidemark: PathBuf,
    wrapper: PathBuf,
    dir: tempfile::TempDir,
    accepted: u32,
    refused: u32,
}

/// Saved guests with one device and with three, and the hand-written streams: accepted whole, and
/// refused with one byte wrong.
pub fn run(workspace: &Workspace, _options: &Options) -> Result<String> {
    let bed = testbed::ensure(workspace)?;
    let dir = tempfile::tempdir()?;
    let wrapper = dir.path().join("verify_names.py");
    fs::write(&wrapper, WRAPPER)?;
    let mut bench = Bench {
        xen: &bed.xen,
        tidemark: workspace.tidemark()?,
        wrapper,
        dir,
        accepted: 0,
        refused: 0,
    };
    for devices in ["1", "3"] {
        let path = bench.saved(devices)?;
        bench.guest(&path)?;
    }
    let fixture = |name: &str| -> Result<Vec<u8>> {
        let path = workspace.root().join(FIXTURES).join(name);
        let text = fs::read_to_string(&path);
        from_hex(&text.with_context(|| format!("cannot read {}", path.display()))?)
    };
    for name in ["image-v2", "image-checkpoints", "image-pv"] {
        bench.image(name, &fixture(&format!("{name}.hex"))?)?;
    }
    let guest = bench.write("guest", &fixture("guest.hex")?)?;
    bench.guest(&guest)?;
    let both = bench.write("checkpointed", &fixture("checkpointed.hex")?)?;
    bench.ours(&both)?;
    Ok(format!(
        "Xen {}'s verify-stream-v2 accepted {} streams and refused {} damaged ones",
        bed.xen.version, bench.accepted, bench.refused
    ))
}

impl Bench<'_> {
    /// Saves a guest under its workload.
    fn saved(&self, devices: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(format!("{devices}.xl"));
        let mut command = Command::new(&self.tidemark);
        command.args(["migrate", "--json", "--memory", "64M", "--devices", devices]);
        command.args(["--to", &format!("file:{}", path.display())]);
        let text = process::capture(&mut command)?;
        let object = last_object(&text)?;
        ensure!(
            object["verified"] == true,
            "the saved guest was lost: {text}"
        );
        Ok(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes)?;
        Ok(path)
    }

    /// A stream of both layers, with names.
    fn guest(&mut self, path: &Path) -> Result<()> {
        let totals = self.ours(path)?;
        let stock = self.stock("libxl", path)?;
        let wrapped = self.wrapped(path)?;
        ensure!(
            stock.accepted || stock.text.contains("Data not NUL terminated"),
            "the stock verifier refused {} for another reason than its known fault:\n{}",
            path.display(),
            stock.text
        );
        ensure!(
            wrapped.accepted,
            "Xen's verifier refused {}:\n{}",
            path.display(),
            wrapped.text
        );
        self.accepted += 1;
        println!(
            "{}: {} bytes, {} states of devices: accepted by the verifier with its check of names \
             mended; {}",
            name(path),
            totals["bytes"],
            totals["devices"].as_array().map_or(0, Vec::len),
            if stock.accepted {
                "and as it is"
            } else {
                "as it is, it refuses any names"
            }
        );
        for (what, at, byte) in damages(&self.rows(path)?)? {
            self.damaged(path, &what, at, byte)?;
        }
        let end = fs::metadata(path)?.len();
        let whole = File::options().write(true).open(path)?;
        whole.set_len(end - 1)?;
        self.refused(path, "cut by a byte")
    }

    /// An image alone: what the stock verifier is for.
    fn image(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.write(name, bytes)?;
        let totals = self.ours(&path)?;
        let stock = self.stock("libxc", &path)?;
        ensure!(
            stock.accepted,
            "Xen's verifier refused {name}:\n{}",
            stock.text
        );
        self.accepted += 1;
        println!(
            "{name}: {} bytes, {} checkpoints: accepted by the stock verifier",
            totals["bytes"], totals["checkpoints"]
        );
        // A bit of the version, of the kind of domain, of the last record's type.
        for at in [15, 24, bytes.len() - 8] {
            let mut bytes = bytes.to_vec();
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 0x20;
            }
            let path = self.write(name, &bytes)?;
            let verdict = self.stock("libxc", &path)?;
            ensure!(
                !verdict.accepted,
                "{name} damaged at byte {at} was accepted"
            );
            self.refused += 1;
        }
        Ok(())
    }

    /// Changes a byte, sees both sides refuse the stream, and changes it back.
    fn damaged(&mut self, path: &Path, what: &str, at: u64, byte: u8) -> Result<()> {
        let file = File::options().read(true).write(true).open(path)?;
        let mut kept = [0];
        file.read_exact_at(&mut kept, at)?;
        file.write_all_at(&[byte], at)?;
        self.refused(path, what)?;
        Ok(file.write_all_at(&kept, at)?)
    }

    fn refused(&mut self, path: &Path, what: &str) -> Result<()> {
        let theirs = self.wrapped(path)?;
        ensure!(!theirs.accepted, "Xen's verifier accepted {what}");
        let output = Command::new(&self.tidemark)
            .args(["stream", "verify"])
            .arg(path)
            .output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(1) && text.contains("expected"),
            "`tidemark stream verify` ended with {} over {what}: {text}",
            output.status
        );
        self.refused += 1;
        println!(
            "{}: {what}: refused by both: {}",
            name(path),
            text.trim_end()
        );
        Ok(())
    }

    /// What our own reader says: the stream is whole, and hardly more than its pages.
    fn ours(&self, path: &Path) -> Result<Value> {
        let mut command = Command::new(&self.tidemark);
        command.args(["stream", "verify", "--json"]).arg(path);
        let object = last_object(&process::capture(&mut command)?)?;
        ensure!(object["whole"] == true, "not whole: {object}");
        let totals = object["totals"].clone();
        // The hand-written streams have a page or two.
        let many = totals["pages"].as_u64().is_some_and(|pages| pages > 1000);
        let overhead = object["overhead"].as_f64().context("no overhead")?;
        ensure!(
            !many || overhead <= OVERHEAD,
            "{overhead} of the stream is something else than pages"
        );
        Ok(totals)
    }

    fn rows(&self, path: &Path) -> Result<Vec<Value>> {
        let mut command = Command::new(&self.tidemark);
        command.args(["stream", "inspect", "--json"]).arg(path);
        let object = last_object(&process::capture(&mut command)?)?;
        object["rows"].as_array().cloned().context("no rows")
    }

    fn stock(&self, format: &str, path: &Path) -> Result<Verdict> {
        verdict(self.xen.python()?.arg(self.xen.verifier()), format, path)
    }

    fn wrapped(&self, path: &Path) -> Result<Verdict> {
        let mut command = self.xen.python()?;
        command.arg(&self.wrapper).arg(self.xen.verifier());
        verdict(&mut command, "libxl", path)
    }
}

/// Exit code 0 is accepted and 1 refused; anything else is a fault of the script.
fn verdict(command: &mut Command, format: &str, path: &Path) -> Result<Verdict> {
    command.args(["-v", "-f", format, "-i"]).arg(path);
    let output = command.stdin(Stdio::null()).output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let code = output.status.code();
    ensure!(
        matches!(code, Some(0 | 1)),
        "`{}` ended with {}\n{}",
        process::shown(command),
        output.status,
        process::tail(&text)
    );
    Ok(Verdict {
        accepted: code == Some(0),
        text,
    })
}

/// Bytes that must not be changed: what they are, where, and what they are changed to.
fn damages(rows: &[Value]) -> Result<Vec<(String, u64, u8)>> {
    let place = |record: &str, behind: u64, byte: u8, what: &str| -> Result<_> {
        let row = rows.iter().find(|row| row["record"] == record);
        let offset = row.and_then(|row| row["offset"].as_u64());
        let offset = offset.with_context(|| format!("the stream has no {record}"))?;
        Ok((format!("{what} changed"), offset + behind, byte))
    };
    let (pages, names) = (
        "libxc record PAGE_DATA",
        "libxl record EMULATOR_XENSTORE_DATA",
    );
    Ok(vec![
        place("the libxl header", 0, b'l', "the ident")?,
        place("the libxl header", 11, 4, "the version")?,
        place("the libxc headers", 3, 0xfe, "the marker of the image")?,
        place("the libxc headers", 15, 4, "the version of the image")?,
        place("the libxc headers", 28, 13, "the page shift")?,
        place(pages, 0, 0x33, "the type of a record")?,
        place(pages, 5, 0x21, "the length of pages")?,
        place(pages, 23, 0x50, "the type of a page")?,
        place(names, 16, 0, "the first letter of a name to NUL")?,
        place(
            "libxl record EMULATOR_CONTEXT",
            8,
            7,
            "the id of an emulator",
        )?,
    ])
}

fn last_object(text: &str) -> Result<Value> {
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("no JSON in the last line: {last:.200}"))
}

fn name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

/// Reads the text that fixtures are kept as: two digits are a byte, `xx*N` is that byte N times,
/// `#` starts a comment.
fn from_hex(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let code = text.lines().filter_map(|line| line.split('#').next());
    for word in code.flat_map(str::split_whitespace) {
        let (digits, count) = word.split_once('*').unwrap_or((word, "1"));
        let byte = u8::from_str_radix(digits, 16).with_context(|| format!("'{word}'"))?;
        bytes.extend(std::iter::repeat_n(byte, count.parse()?));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::from_hex;

    #[test]
    fn fixtures_are_text() {
        let bytes = from_hex("# nothing\n4c 69*2 # more\n00*0 ff").expect("hex");
        assert_eq!(bytes, [0x4c, 0x69, 0x69, 0xff]);
        assert!(from_hex("4").is_ok() && from_hex("zz").is_err());
    }
}
