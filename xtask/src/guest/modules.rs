//! A kernel's modules: which files to insert, and in which order, for the modules that are wanted.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The index of one kernel's modules.
pub struct Modules {
    dir: PathBuf,
    /// File and dependencies by module name, as in `modules.dep`: the nearest dependency first.
    files: HashMap<String, (PathBuf, Vec<PathBuf>)>,
    /// Names that are part of the kernel's image and need no file.
    builtin: HashSet<String>,
}

impl Modules {
    /// Reads `modules.dep` and `modules.builtin` of `lib/modules/RELEASE`.
    pub fn read(dir: &Path) -> Result<Self> {
        let text = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok(Self::parse(
            dir,
            &text("modules.dep")?,
            &text("modules.builtin")?,
        ))
    }

    fn parse(dir: &Path, dep: &str, builtin: &str) -> Self {
        let mut files = HashMap::new();
        for (file, needs) in dep.lines().filter_map(|line| line.split_once(':')) {
            let needs = needs.split_whitespace().map(PathBuf::from).collect();
            files.insert(name(Path::new(file)), (PathBuf::from(file), needs));
        }
        let builtin = builtin.lines().map(|line| name(Path::new(line))).collect();
        Self {
            dir: dir.to_path_buf(),
            files,
            builtin,
        }
    }

    /// The files to insert, dependencies before what needs them, each once.
    pub fn load_order(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        let mut order: Vec<PathBuf> = Vec::new();
        for module in wanted {
            let module = module.replace('-', "_");
            if self.builtin.contains(&module) {
                continue;
            }
            let (file, needs) = self.files.get(&module).with_context(|| {
                format!(
                    "the kernel in {} has no module {module}",
                    self.dir.display()
                )
            })?;
            for path in needs.iter().rev().chain([file]) {
                let path = self.dir.join(path);
                if !order.contains(&path) {
                    order.push(path);
                }
            }
        }
        Ok(order)
    }
}

/// The name of a module from its file's: `kernel/vfio-pci.ko.xz` is `vfio_pci`.
fn name(file: &Path) -> String {
    let file = file.file_name().unwrap_or_default().to_string_lossy();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/virtio/virtio.ko:
kernel/virtio/virtio_ring.ko: kernel/virtio/virtio.ko
kernel/virtio/virtio-pci.ko.xz: kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko
kernel/block/virtio_blk.ko: kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko
";

    fn order(wanted: &[&str]) -> Result<Vec<String>> {
        let modules = Modules::parse(Path::new("m"), DEP, "kernel/fs/mbcache.ko\n");
        let order = modules.load_order(wanted)?;
        Ok(order
            .iter()
            .map(|path| path.display().to_string())
            .collect())
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let order = order(&["virtio_pci", "virtio-blk", "mbcache"]).expect("all are there");
        let expected = [
            "m/kernel/virtio/virtio.ko",
            "m/kernel/virtio/virtio_ring.ko",
            "m/kernel/virtio/virtio-pci.ko.xz",
            "m/kernel/block/virtio_blk.ko",
        ];
        assert_eq!(order, expected);
    }

    #[test]
    fn a_missing_module_is_named() {
        let error = order(&["ext4"]).expect_err("there is no ext4");
        assert!(error.to_string().contains("ext4"), "{error}");
    }
}
