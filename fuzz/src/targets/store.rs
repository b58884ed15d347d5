//! The files of a store of checkpoints, changed behind its back: names, roots, indexes and pages.

use crate::Plant;
use crate::input::Input;
use crate::oracle::MemoryWatch;
use migration::DeviceRecord;
use migration::names::{Mode, Name};
use migration::store::{Address, Extent, Store, Wanted};
use migration::stream::{Context, SectionKind};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::TempDir;

const NAMES: [&str; 2] = ["one", "two"];

/// A store that is sound, and what its checkpoints are.
struct Template {
    folder: TempDir,
    /// Paths within it, and what is there.
    files: Vec<(PathBuf, Vec<u8>)>,
    /// The stream of each checkpoint.
    streams: [Vec<u8>; 2],
}

fn address(folder: &Path) -> Address {
    Address::parse(&folder.display().to_string(), None).expect("a folder")
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).expect("a name")
}

/// All that `name` stands for, or why not.
fn body(store: &Store, text: &str) -> Result<Vec<u8>, String> {
    let checkpoint = store.checkpoint(&name(text));
    let checkpoint = checkpoint.map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let written = checkpoint.write(&mut bytes);
    written.map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// A folder in memory if there is one: the store makes everything durable.
fn folder() -> TempDir {
    let fast = Path::new("/dev/shm");
    let place = if fast.is_dir() {
        tempfile::tempdir_in(fast)
    } else {
        tempfile::tempdir()
    };
    place.expect("a folder")
}

fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let folder = folder();
        let store = Store::open(&address(folder.path()), true).expect("a store");
        let device = |value| DeviceRecord {
            id: 1,
            options: Vec::new(),
            context: Context::of(SectionKind::Registers, vec![value; 16]),
        };
        let mut base = None;
        for (number, text) in (1..).zip(NAMES) {
            let mut deposit = store.deposit(base.as_ref()).expect("a deposit");
            let extent = match base {
                None => Extent::Whole,
                Some(_) => Extent::Increment,
            };
            deposit
                .pages(&[0, 1], &[[number; 4096], [7; 4096]].concat())
                .expect("pages");
            let sealed = deposit.seal(extent, b"fuzz", &[device(number)]);
            let sealed = sealed.expect("sealed");
            let wanted = [(name(text), Wanted::Put(&sealed))];
            store.commit(&wanted, Mode::Atomic).expect("named");
            base = Some(sealed.into_base(name(text)));
        }
        let streams = NAMES.map(|text| body(&store, text).expect("a body"));
        drop(store);
        let mut files = Vec::new();
        list(folder.path(), folder.path(), &mut files);
        files.sort();
        Template {
            folder,
            files,
            streams,
        }
    })
}

fn list(root: &Path, at: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(at).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            list(root, &path, files);
        } else {
            let bytes = fs::read(&path).expect("a file");
            let within = path.strip_prefix(root).expect("within").to_owned();
            files.push((within, bytes));
        }
    }
}

/// Runs the target.
pub fn run(data: &[u8], plant: Option<Plant>) {
    let mut input = Input::new(data);
    let template = template();
    assert!(template.folder.path().is_dir(), "the template is gone");
    let watch = MemoryWatch::begin();
    let folder = folder();
    let mut files = template.files.clone();
    for _ in 0..input.below(4) {
        let number = input.below(files.len());
        let (_, bytes) = &mut files[number];
        let (place, value) = (input.u32(), input.u8());
        let at = usize::try_from(place).unwrap_or(0) % bytes.len().max(1);
        match input.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.push(value),
            2 => bytes.clear(),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= value;
                }
            }
        }
    }
    // Bodies that are not as they were put, after all changes: two may undo each other.
    let mut damaged = files
        .iter()
        .zip(&template.files)
        .any(|(file, sound)| is_body(&file.0) && file != sound);
    let lost = input.once_in(8).then(|| input.below(files.len()));
    for (number, (path, bytes)) in files.iter().enumerate() {
        if lost == Some(number) {
            damaged |= is_body(path);
            continue;
        }
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap_or(&path)).expect("a folder");
        fs::write(path, bytes).expect("a file");
    }
    judge(folder.path(), template, damaged, plant);
    watch.end();
}

/// Whether the file holds a part of a checkpoint: all but the names and their lock.
fn is_body(path: &Path) -> bool {
    path.components().count() > 1
}

/// `oracle soundness`: what is given is what was put, and damage is told.
fn judge(folder: &Path, template: &Template, damaged: bool, plant: Option<Plant>) {
    let Ok(store) = Store::open(&address(folder), false) else {
        return;
    };
    let Ok(listed) = store.list(None) else {
        return;
    };
    for (text, stream) in NAMES.iter().zip(&template.streams) {
        if let Ok(mut bytes) = body(&store, text) {
            if plant == Some(Plant::Accepts) && damaged {
                bytes.push(0);
            }
            assert!(
                bytes == *stream,
                "oracle soundness: the checkpoint {text} is given, and is not what was put"
            );
        }
    }
    if let Ok(verified) = store.verify() {
        let told = !verified.faults.is_empty() && plant != Some(Plant::NoAnswer);
        assert!(
            !damaged || told || listed.len() < NAMES.len(),
            "oracle answers: a body is damaged, and nothing is told of it"
        );
    }
}
