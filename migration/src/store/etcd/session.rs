//! A connection to etcd: ranges, transactions, and leases that are kept alive.

use crate::store::STEPS;
use crate::store::error::StoreError;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, KeyValue, PutOptions, SortOrder,
    SortTarget, Txn, TxnOp, TxnOpResponse, WatchOptions,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// How long a member may take to answer, and be silent on a connection, before it is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// gRPC's number for what is not there: a lease that has run out.
const NOT_FOUND: i32 = 5;

/// A key with what stands behind it.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

impl From<&KeyValue> for Found {
    fn from(found: &KeyValue) -> Self {
        Self {
            key: found.key().to_vec(),
            value: found.value().to_vec(),
        }
    }
}

/// A connection, and the prefix of all keys.
pub(super) struct Session {
    client: Client,
    runtime: Arc<Runtime>,
    prefix: Vec<u8>,
    place: String,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Session").field(&self.place).finish()
    }
}

/// A lease that is renewed until it is dropped, and then given back.
pub(super) struct Lease {
    id: i64,
    client: Client,
    runtime: Arc<Runtime>,
    renewal: JoinHandle<()>,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lease").field(&self.id).finish()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewal.abort();
        let revoked = self.runtime.block_on(self.client.lease_revoke(self.id));
        // If nobody hears that, it expires.
        tracing::debug!(lease = self.id, ok = revoked.is_ok(), "lease");
    }
}

impl Session {
    pub(super) fn connect(
        members: &[String],
        prefix: &str,
        runtime: Arc<Runtime>,
    ) -> Result<Self, StoreError> {
        let place = format!("etcd://{}/{prefix}", members.join(","));
        let options = ConnectOptions::new()
            .with_connect_timeout(PATIENCE)
            .with_timeout(PATIENCE)
            .with_keep_alive(PATIENCE, PATIENCE)
            .with_keep_alive_while_idle(true);
        let client = runtime.block_on(Client::connect(members, Some(options)));
        let client = client.map_err(|error| StoreError::Names {
            doing: "connecting to",
            place: place.clone(),
            cause: error.to_string(),
        })?;
        Ok(Self {
            client,
            runtime,
            prefix: format!("{prefix}/").into_bytes(),
            place,
        })
    }

    /// What messages call it.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// A key below the prefix.
    pub(super) fn key(&self, rest: &[u8]) -> Vec<u8> {
        [self.prefix.as_slice(), rest].concat()
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(etcd_client::Error) -> StoreError {
        let place = self.place.clone();
        move |error| StoreError::Names {
            doing,
            place,
            cause: error.to_string(),
        }
    }

    fn ask(&self, key: &[u8], options: GetOptions) -> Result<(Vec<Found>, i64), StoreError> {
        let mut client = self.client.clone();
        let got = self.runtime.block_on(client.get(key, Some(options)));
        let got = got.map_err(self.failed("reading"))?;
        let revision = got.header().map_or(0, |header| header.revision());
        Ok((got.kvs().iter().map(Found::from).collect(), revision))
    }

    /// What stands behind a key, and the revision at which it was read.
    pub(super) fn get(
        &self,
        key: &[u8],
        revision: Option<i64>,
    ) -> Result<(Option<Found>, i64), StoreError> {
        let options = GetOptions::new().with_revision(revision.unwrap_or(0));
        let (mut found, revision) = self.ask(key, options)?;
        Ok((found.pop(), revision))
    }

    /// At most `limit` entries from a key on that begin with `within`.
    pub(super) fn range(
        &self,
        from: &[u8],
        within: &[u8],
        limit: i64,
        revision: Option<i64>,
    ) -> Result<Vec<Found>, StoreError> {
        let options = GetOptions::new()
            .with_range(end_of(within))
            .with_limit(limit)
            .with_revision(revision.unwrap_or(0));
        Ok(self.ask(from, options)?.0)
    }

    /// As [`range`](Self::range), without what stands behind the keys.
    pub(super) fn keys(
        &self,
        from: &[u8],
        within: &[u8],
        limit: i64,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let options = GetOptions::new()
            .with_range(end_of(within))
            .with_limit(limit)
            .with_keys_only();
        let found = self.ask(from, options)?.0;
        Ok(found.into_iter().map(|found| found.key).collect())
    }

    /// The last key from `from` on that is before `before`.
    pub(super) fn last_before(
        &self,
        from: &[u8],
        before: &[u8],
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let options = GetOptions::new()
            .with_range(before)
            .with_limit(1)
            .with_sort(SortTarget::Key, SortOrder::Descend)
            .with_keys_only();
        let mut found = self.ask(from, options)?.0;
        Ok(found.pop().map(|found| found.key))
    }

    /// As [`range`](Self::range), as a part of a transaction.
    pub(super) fn range_of(&self, from: &[u8], within: &[u8], limit: i64) -> TxnOp {
        let options = GetOptions::new()
            .with_range(end_of(within))
            .with_limit(limit);
        TxnOp::get(from, Some(options))
    }

    /// What a transaction read, if its demands were met; else nothing was done.
    pub(super) fn txn(&self, txn: Txn) -> Result<Option<Vec<Found>>, StoreError> {
        let mut client = self.client.clone();
        let done = self.runtime.block_on(client.txn(txn));
        let done = done.map_err(self.failed("writing"))?;
        let mut found = Vec::new();
        for response in done.op_responses() {
            if let TxnOpResponse::Get(got) = response {
                found.extend(got.kvs().iter().map(Found::from));
            }
        }
        Ok(done.succeeded().then_some(found))
    }

    /// A lease of so many seconds, renewed three times as often.
    pub(super) fn lease(&self, seconds: u32) -> Result<Lease, StoreError> {
        let mut client = self.client.clone();
        let made = self.runtime.block_on(async {
            let id = client.lease_grant(seconds.into(), None).await?.id();
            let renewals = client.lease_keep_alive(id).await?;
            Ok::<_, etcd_client::Error>((id, renewals))
        });
        let (id, (mut keeper, mut answers)) = made.map_err(self.failed("taking a lease at"))?;
        let period = Duration::from_secs(seconds.into()) / 3;
        let renewal = self.runtime.spawn(async move {
            loop {
                sleep(period).await;
                // Who lost it learns that from the next transaction, which demands it.
                if keeper.keep_alive().await.is_err() || answers.message().await.is_err() {
                    return;
                }
            }
        });
        Ok(Lease {
            id,
            client,
            runtime: Arc::clone(&self.runtime),
            renewal,
        })
    }

    /// Makes a key that goes with a lease.
    pub(super) fn put_under(&self, key: Vec<u8>, lease: &Lease) -> Result<(), StoreError> {
        let mut client = self.client.clone();
        let options = PutOptions::new().with_lease(lease.id);
        let put = self
            .runtime
            .block_on(client.put(key, ours(), Some(options)));
        put.map(drop).map_err(self.failed("writing"))
    }

    /// Makes a key that goes with a lease of so many seconds, once nobody else has it; the lease, and the
    /// revision with which the key came.
    pub(super) fn take(
        &self,
        rest: &[u8],
        seconds: u32,
        patience: Duration,
    ) -> Result<(Lease, i64), StoreError> {
        let mut holder = String::new();
        let began = Instant::now();
        loop {
            let lease = self.lease(seconds)?;
            let left = patience.saturating_sub(began.elapsed());
            // Within the runtime: a timeout needs its clock.
            let taken = self.runtime.block_on(async {
                timeout(left, self.try_take(self.key(rest), &lease, &mut holder)).await
            });
            match taken {
                Ok(Ok(revision)) => return Ok((lease, revision)),
                // Who stood still for longer than its lease while it waited has missed nothing.
                Ok(Err(error)) if is_lease_gone(&error) => {}
                Ok(Err(error)) => return Err(self.failed("locking")(error)),
                Err(_) => {
                    return Err(StoreError::Locked {
                        holder,
                        waited: patience.as_secs(),
                    });
                }
            }
        }
    }

    async fn try_take(
        &self,
        key: Vec<u8>,
        lease: &Lease,
        holder: &mut String,
    ) -> Result<i64, etcd_client::Error> {
        let mut client = self.client.clone();
        loop {
            let free = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
            let options = PutOptions::new().with_lease(lease.id);
            let txn = Txn::new()
                .when([free])
                .and_then([TxnOp::put(key.clone(), ours(), Some(options))])
                .or_else([TxnOp::get(key.clone(), None)]);
            let done = client.txn(txn).await?;
            let revision = done.header().map_or(0, |header| header.revision());
            if done.succeeded() {
                return Ok(revision);
            }
            for response in done.op_responses() {
                if let TxnOpResponse::Get(got) = response {
                    let value = got.kvs().first().map(|found| found.value().to_vec());
                    *holder = String::from_utf8_lossy(&value.unwrap_or_default()).into_owned();
                }
            }
            tracing::debug!(target: STEPS, "the lock is another's");
            // Whatever happens to the key from there on.
            let options = WatchOptions::new().with_start_revision(revision + 1);
            let mut watch = client.watch(key.clone(), Some(options)).await?;
            while let Some(seen) = watch.message().await? {
                if !seen.events().is_empty() || seen.canceled() {
                    break;
                }
            }
        }
    }
}

/// Whether the lease that was to hold a key has run out.
fn is_lease_gone(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status) if i32::from(status.code()) == NOT_FOUND)
}

/// Who this is.
fn ours() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("process {} of {}", std::process::id(), host.trim())
}

/// The first key behind all that begin with `prefix`, which ends with a slash.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}
