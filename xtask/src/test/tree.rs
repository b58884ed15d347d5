//! A file tree that is the same in every run, and the comparison of two trees.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// Sizes at which a block device, a page or a ring might go wrong.
const EDGES: [usize; 12] = [
    0,
    1,
    511,
    512,
    513,
    4095,
    4096,
    4097,
    65_535,
    65_536,
    1 << 20,
    3 << 20,
];
/// Most other files are smaller than this.
const USUAL: u64 = 160 << 10;
/// The sparse file: its length, and where it has data. Offsets are whole sectors, for `dd`.
pub const SPARSE_LENGTH: u64 = 16 << 20;
/// Offset and length of each piece of data in the sparse file.
pub const SPARSE_PIECES: [(u64, usize); 3] =
    [(4096, 4096), (1 << 20, 12_345), (SPARSE_LENGTH - 512, 512)];

/// What a tree holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Folders, files and links.
    pub entries: usize,
    /// Regular files.
    pub files: u64,
    /// Their bytes, holes included.
    pub bytes: u64,
}

/// Fills a folder with files of mixed sizes and modes in nested folders, with symbolic links of
/// all kinds and with names that need care. Every call makes the same.
pub fn make(root: &Path, files: usize) -> Result<()> {
    let mut random = Random(0x7469_6465_6d61_726b);
    for number in 0..files {
        let folder = root.join(format!("d{}/e{}", number % 7, number % 3));
        fs::create_dir_all(&folder)?;
        let size = match EDGES.get(number) {
            Some(size) => *size,
            None => usize::try_from(random.next() % USUAL)?,
        };
        let path = folder.join(match number % 50 {
            1 => format!("a name with spaces {number}"),
            2 => format!("grüße-{number}-✓"),
            3 => format!("{number}-{}", "long".repeat(55)),
            _ => format!("f{number}"),
        });
        fs::write(&path, random.bytes(size))?;
        let mode = [0o644, 0o755, 0o600, 0o444][number % 4];
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    fs::create_dir(root.join("empty"))?;
    symlink("d0/e0/f0", root.join("to-file"))?;
    symlink("d1", root.join("to-folder"))?;
    symlink("not/there", root.join("dangling"))?;
    symlink("../d0/../d1/e1", root.join("d2/upwards"))?;
    // ext4 keeps a target of 60 bytes or more in a block of its own.
    symlink("far/".repeat(50), root.join("long-link"))?;
    Ok(())
}

/// The data of the sparse file, piece by piece.
pub fn sparse_pieces() -> Vec<Vec<u8>> {
    let mut random = Random(0x7370_6172_7365);
    SPARSE_PIECES
        .iter()
        .map(|(_, length)| random.bytes(*length))
        .collect()
}

/// Makes the sparse file as the guest is told to make its own.
pub fn make_sparse(path: &Path) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(SPARSE_LENGTH)?;
    for ((offset, _), piece) in SPARSE_PIECES.iter().zip(sparse_pieces()) {
        file.write_all_at(&piece, *offset)?;
    }
    fs::set_permissions(path, Permissions::from_mode(0o644))?;
    Ok(())
}

/// Requires that both trees hold the same names, kinds, modes, link targets and bytes. The copy
/// may also have the folder that mke2fs makes.
pub fn compare(source: &Path, copy: &Path) -> Result<Totals> {
    let (mut expected, mut found) = (BTreeMap::new(), BTreeMap::new());
    list(source, Path::new(""), &mut expected)?;
    list(copy, Path::new(""), &mut found)?;
    found.remove(Path::new("lost+found"));

    let mut differences = Vec::new();
    let mut totals = Totals {
        entries: expected.len(),
        ..Totals::default()
    };
    for (path, node) in &expected {
        match found.remove(path) {
            None => differences.push(format!("{} is missing", path.display())),
            Some(other) if other != *node => {
                differences.push(format!("{} is {other:?}, not {node:?}", path.display()));
            }
            Some(_) => {
                if let Node::File { size, .. } = node {
                    totals.files += 1;
                    totals.bytes += size;
                    if let Some(at) = first_difference(&source.join(path), &copy.join(path))? {
                        differences.push(format!("{} differs from byte {at} on", path.display()));
                    }
                }
            }
        }
    }
    differences.extend(
        found
            .keys()
            .map(|path| format!("{} is too much", path.display())),
    );
    let first: Vec<_> = differences.iter().take(10).cloned().collect();
    ensure!(
        differences.is_empty(),
        "{} of {} entries differ; the first: {}",
        differences.len(),
        expected.len(),
        first.join("; ")
    );
    Ok(totals)
}

/// What is at one path of a tree.
#[derive(Debug, PartialEq, Eq)]
enum Node {
    Folder { mode: u32 },
    File { mode: u32, size: u64 },
    Link { target: PathBuf },
}

fn list(root: &Path, below: &Path, nodes: &mut BTreeMap<PathBuf, Node>) -> Result<()> {
    let dir = root.join(below);
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        let metadata = entry.metadata()?;
        let mode = metadata.permissions().mode() & 0o7777;
        let node = if metadata.is_dir() {
            list(root, &path, nodes)?;
            Node::Folder { mode }
        } else if metadata.is_symlink() {
            Node::Link {
                target: fs::read_link(entry.path())?,
            }
        } else if metadata.is_file() {
            Node::File {
                mode,
                size: metadata.len(),
            }
        } else {
            bail!(
                "{} is no folder, file or symbolic link",
                entry.path().display()
            );
        };
        nodes.insert(path, node);
    }
    Ok(())
}

fn first_difference(one: &Path, other: &Path) -> Result<Option<usize>> {
    let (one, other) = (fs::read(one)?, fs::read(other)?);
    if one == other {
        return Ok(None);
    }
    let common = one
        .iter()
        .zip(&other)
        .take_while(|(left, right)| left == right)
        .count();
    Ok(Some(common))
}

/// SplitMix64: enough that no two sectors are alike.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.next().to_le_bytes());
        words
            .take(length.div_ceil(8))
            .flatten()
            .take(length)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_trees_compare_equal_and_each_change_is_found() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        make(&one, 60)?;
        make(&other, 60)?;
        make_sparse(&one.join("sparse"))?;
        make_sparse(&other.join("sparse"))?;
        fs::create_dir(other.join("lost+found"))?;
        let totals = compare(&one, &other)?;
        assert_eq!(totals.files, 61);

        let fails = |what: &str| {
            let error = compare(&one, &other).expect_err(what).to_string();
            assert!(error.contains(what), "{error}");
        };
        fs::write(other.join("extra"), "")?;
        fails("extra is too much");
        fs::remove_file(other.join("extra"))?;

        let piece = SPARSE_PIECES[1].0;
        File::options()
            .write(true)
            .open(other.join("sparse"))?
            .write_all_at(&[0, 0], piece)?;
        fails("sparse differs from byte");
        make_sparse(&other.join("sparse"))?;

        fs::remove_file(other.join("to-folder"))?;
        fails("to-folder is missing");
        symlink("d2", other.join("to-folder"))?;
        fails("to-folder is Link");
        Ok(())
    }
}
