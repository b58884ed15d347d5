//! Places for a store: a folder, and servers that others wrote, started here.

use migration::store::{Address, Store};
use std::path::{Path, PathBuf};

/// A place that lasts as long as its test.
pub struct Place {
    pub folder: tempfile::TempDir,
    pub bodies: String,
    pub names: Option<String>,
    /// Servers of the place, which end with it.
    #[cfg(any(feature = "etcd", feature = "s3"))]
    pub servers: Vec<crate::server::Server>,
}

impl Place {
    /// A folder.
    pub fn folder() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            bodies: folder.path().join("store").display().to_string(),
            folder,
            names: None,
            #[cfg(any(feature = "etcd", feature = "s3"))]
            servers: Vec::new(),
        }
    }

    pub fn open(&self) -> Store {
        let address = Address::parse(&self.bodies, self.names.as_deref()).unwrap();
        Store::open(&address, true).unwrap()
    }

    /// What the program is told about it.
    pub fn arguments(&self) -> Vec<String> {
        let mut all = vec!["--store".to_owned(), self.bodies.clone()];
        if let Some(names) = &self.names {
            all.extend(["--names".to_owned(), names.clone()]);
        }
        all
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The files of the store, lock files not among them.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        walk(Path::new(&self.bodies), &mut files);
        files.sort();
        files
    }

    /// The objects among them.
    pub fn objects(&self) -> Vec<PathBuf> {
        let mut files = self.files();
        let is = |path: &Path, ending: &str| path.extension().is_some_and(|e| e == ending);
        files.retain(|path| ["root", "index", "pack"].iter().any(|e| is(path, e)));
        files
    }
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => walk(&path, files),
            false if path.ends_with("lock") => {}
            false => files.push(path),
        }
    }
}
