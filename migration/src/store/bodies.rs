//! Where bodies are: objects in a folder, or wherever S3 is spoken. Written once, never changed.

use super::STEPS;
use super::error::{StoreError, damaged, file};
use super::record::{Hash, ObjectId, Reference, hash};
use futures_util::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use uuid::Uuid;

/// Objects on their way at a time.
const AT_ONCE: usize = 4;
/// Longest object that is taken into memory. A root holds device states, of which a stream may
/// have 128 MiB each.
const OBJECT_MAX: u64 = 4 << 30;

/// The objects of a store.
#[derive(Debug)]
pub(super) struct Bodies {
    place: Arc<dyn ObjectStore>,
    /// Before every object's path.
    prefix: ObjectPath,
    runtime: Arc<Runtime>,
    /// If it is a folder on this host.
    folder: Option<PathBuf>,
}

impl Bodies {
    /// In a folder, which is made if it is not there.
    pub(super) fn in_folder(folder: &Path, runtime: Arc<Runtime>) -> Result<Self, StoreError> {
        fs::create_dir_all(folder).map_err(file("making the folder", folder))?;
        let place = LocalFileSystem::new_with_prefix(folder);
        let place = place.map_err(failed("opening", &folder.display()))?;
        Ok(Self {
            // What has a name is on the disk, whatever dies.
            place: Arc::new(place.with_fsync(true)),
            prefix: ObjectPath::default(),
            runtime,
            folder: Some(folder.to_owned()),
        })
    }

    /// In a bucket; who may use it say the environment's variables that the tools of S3 know, such as
    /// `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
    #[cfg(feature = "s3")]
    pub(super) fn in_bucket(
        bucket: &str,
        prefix: &str,
        endpoint: Option<&str>,
        runtime: Arc<Runtime>,
    ) -> Result<Self, StoreError> {
        use object_store::aws::AmazonS3Builder;
        // The client takes what the process has; another choice that was made before is as good.
        let chosen = rustls::crypto::ring::default_provider().install_default();
        tracing::debug!(ok = chosen.is_ok(), "cryptography of TLS");
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
        if let Some(endpoint) = endpoint {
            let plain = endpoint.starts_with("http://");
            builder = builder.with_endpoint(endpoint).with_allow_http(plain);
        }
        let place = builder
            .build()
            .map_err(failed("opening the bucket", &bucket))?;
        Ok(Self {
            place: Arc::new(place),
            prefix: ObjectPath::from(prefix),
            runtime,
            folder: None,
        })
    }

    fn path(&self, id: &ObjectId) -> ObjectPath {
        let path = self.prefix.clone().join("bodies");
        let whole = id.to_string();
        whole.split('/').fold(path, |path, part| path.join(part))
    }

    /// Starts to write objects.
    pub(super) fn writes(&self) -> Writes<'_> {
        Writes {
            bodies: self,
            under_way: JoinSet::new(),
            bytes: 0,
        }
    }

    /// A whole object, which is what it was.
    pub(super) fn get(&self, reference: &Reference) -> Result<Vec<u8>, StoreError> {
        if reference.bytes > OBJECT_MAX {
            let expected = format!("an object of at most {OBJECT_MAX} bytes");
            return Err(damaged(reference.id, expected, reference.bytes));
        }
        let path = self.path(&reference.id);
        let got = self.runtime.block_on(async {
            let got = self.place.get(&path).await?;
            // Before anything is allocated for it.
            if got.meta.size != reference.bytes {
                return Ok(Err(got.meta.size));
            }
            got.bytes().await.map(Ok)
        });
        match got.map_err(|error| lost(reference, error))? {
            Ok(bytes) if hash(&bytes) == reference.hash => Ok(bytes.into()),
            Ok(_) => Err(damaged(reference.id, "its own bytes", "others")),
            Err(size) => {
                let expected = format!("{} bytes", reference.bytes);
                Err(damaged(reference.id, expected, size))
            }
        }
    }

    /// Parts of an object, as they are: who asks knows what they must be.
    pub(super) fn parts(
        &self,
        reference: &Reference,
        parts: &[Range<u64>],
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let path = self.path(&reference.id);
        let got = self.runtime.block_on(self.place.get_ranges(&path, parts));
        let got = got.map_err(|error| lost(reference, error))?;
        Ok(got.into_iter().map(Vec::from).collect())
    }

    /// All objects that are there, with their sizes. What is called otherwise is none of ours.
    pub(super) fn list(&self) -> Result<Vec<(ObjectId, u64)>, StoreError> {
        let prefix = self.prefix.clone().join("bodies");
        let listed = self.runtime.block_on(async {
            let all = self.place.list(Some(&prefix));
            let ours = all.try_filter_map(|meta| async move {
                let mut parts = meta.location.parts().rev();
                let (last, folder) = (parts.next(), parts.next());
                let id = last.zip(folder);
                let id =
                    id.and_then(|(last, folder)| ObjectId::parse(folder.as_ref(), last.as_ref()));
                Ok(id.map(|id| (id, meta.size)))
            });
            ours.try_collect().await
        });
        listed.map_err(failed("listing", &prefix))
    }

    /// Removes objects; those that are gone already are fine.
    pub(super) fn remove(&self, ids: &[ObjectId]) -> Result<(), StoreError> {
        let paths: Vec<_> = ids.iter().map(|id| Ok(self.path(id))).collect();
        let paths = futures_util::stream::iter(paths).boxed();
        self.runtime.block_on(async {
            let mut removed = self.place.delete_stream(paths);
            while let Some(one) = removed.next().await {
                match one {
                    Ok(path) => tracing::debug!(target: STEPS, %path, "object removed"),
                    Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(failed("removing", &"an object")(error)),
                }
            }
            Ok(())
        })
    }

    /// The folders of puts, if it is a folder on this host.
    pub(super) fn folders(&self) -> Result<Vec<(Uuid, PathBuf)>, StoreError> {
        let Some(folder) = self.folder.as_ref().map(|folder| folder.join("bodies")) else {
            return Ok(Vec::new());
        };
        let mut folders = Vec::new();
        for path in entries(&folder)? {
            let put = path.file_name().and_then(|name| name.to_str());
            if let Some(put) = put.and_then(|put| Uuid::try_parse(put).ok()) {
                folders.push((put, path));
            }
        }
        Ok(folders)
    }

    /// Removes what killed puts left in their folders besides objects: files that were being
    /// written, and folders without any. The folders must have been there before it was known who
    /// is announced.
    pub(super) fn sweep(
        &self,
        folders: Vec<(Uuid, PathBuf)>,
        announced: &BTreeSet<Uuid>,
    ) -> Result<(), StoreError> {
        for (put, folder) in folders {
            if announced.contains(&put) {
                continue;
            }
            for path in entries(&folder)? {
                let name = path.file_name().and_then(|name| name.to_str());
                let object = name.and_then(|name| ObjectId::parse(&put.to_string(), name));
                if object.is_none() {
                    fs::remove_file(&path).map_err(file("removing", &path))?;
                }
            }
            // Goes only if nothing is in it.
            match fs::remove_dir(&folder).map_err(|error| (error.kind(), error)) {
                Ok(()) | Err((ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound, _)) => {}
                Err((_, error)) => return Err(file("removing", &folder)(error)),
            }
        }
        Ok(())
    }
}

/// The paths in a folder; none if there is no folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let read = match fs::read_dir(folder) {
        Ok(read) => read,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(file("listing", folder)(error)),
    };
    let paths = read.map(|entry| entry.map(|entry| entry.path()));
    paths
        .collect::<Result<_, _>>()
        .map_err(file("listing", folder))
}

/// Objects that are being written, a few at a time.
#[derive(Debug)]
pub(super) struct Writes<'b> {
    bodies: &'b Bodies,
    under_way: JoinSet<Result<(), StoreError>>,
    bytes: u64,
}

impl Writes<'_> {
    /// Starts to write an object; waits while there are too many under way.
    pub(super) fn put(&mut self, id: ObjectId, bytes: Vec<u8>) -> Result<Reference, StoreError> {
        let digest: Hash = hash(&bytes);
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let (place, path) = (Arc::clone(&self.bodies.place), self.bodies.path(&id));
        self.bodies.runtime.block_on(async {
            while self.under_way.len() >= AT_ONCE {
                self.one().await?;
            }
            self.under_way.spawn(async move {
                let put = place.put(&path, bytes.into()).await;
                put.map_err(failed("writing", &path))?;
                tracing::debug!(target: STEPS, %path, "object written");
                Ok(())
            });
            Ok::<_, StoreError>(())
        })?;
        self.bytes += size;
        Ok(Reference {
            id,
            bytes: size,
            hash: digest,
        })
    }

    async fn one(&mut self) -> Result<(), StoreError> {
        match self.under_way.join_next().await {
            None => Ok(()),
            Some(Ok(done)) => done,
            Some(Err(error)) => Err(StoreError::Names {
                doing: "writing an object",
                place: "a task".to_owned(),
                cause: error.to_string(),
            }),
        }
    }

    /// Waits until all are durable; the bytes of all of them.
    pub(super) fn finish(mut self) -> Result<u64, StoreError> {
        let runtime = Arc::clone(&self.bodies.runtime);
        runtime.block_on(async {
            while !self.under_way.is_empty() {
                self.one().await?;
            }
            Ok(self.bytes)
        })
    }
}

fn lost(reference: &Reference, error: object_store::Error) -> StoreError {
    match error {
        object_store::Error::NotFound { .. } => {
            let expected = format!("{} bytes", reference.bytes);
            damaged(reference.id, expected, "nothing: it is not there")
        }
        error => failed("reading", &reference.id)(error),
    }
}

fn failed(
    doing: &'static str,
    object: &dyn std::fmt::Display,
) -> impl FnOnce(object_store::Error) -> StoreError {
    let object = object.to_string();
    move |cause| StoreError::Bodies {
        doing,
        object,
        cause: Box::new(cause),
    }
}
