//! QEMU's monitor: commands with their answers, and the events in between.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::hub::{Hub, State};

/// QEMU answers at once, save when it writes much memory to a file.
const ANSWER: Duration = Duration::from_secs(120);

/// The side of a monitor that sends.
pub struct Sender {
    stream: UnixStream,
    sent: u64,
}

impl Sender {
    /// Over a connected monitor.
    pub fn new(stream: UnixStream) -> Mutex<Self> {
        Mutex::new(Self { stream, sent: 0 })
    }
}

/// Sorts what the monitor says.
pub fn take(state: &mut State, line: &[u8]) {
    // The greeting, and a line cut off by the end, are neither.
    let Ok(message) = serde_json::from_slice::<Value>(line) else {
        return;
    };
    if message.get("event").is_some() {
        state.events.push_back(message);
    } else if message.get("id").is_some() {
        state.answers.push_back(message);
    }
}

/// A running guest's monitor.
pub struct Qmp<'a> {
    hub: &'a Hub,
    sender: &'a Mutex<Sender>,
}

/// What QEMU says of a migration. Bytes and pages are those of the guest's memory.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Migration {
    /// `active`, `completed`, `failed`, `cancelled` and others.
    pub status: String,
    /// Milliseconds from the start.
    pub total_time: u64,
    /// Milliseconds for which no side ran.
    pub downtime: u64,
    /// What became of the memory.
    pub ram: MigrationRam,
    /// Why it failed.
    pub error_desc: Option<String>,
}

/// The part of [`Migration`] that is about memory.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrationRam {
    /// Bytes sent.
    pub transferred: u64,
    /// Bytes still to be sent.
    pub remaining: u64,
    /// Pages sent with their content.
    pub normal: u64,
    /// Pages sent as zeros; QEMU 11 has no such field any more, and this is 0 then.
    pub duplicate: u64,
    /// How often the logs of dirty pages were read.
    pub dirty_sync_count: u64,
}

impl<'a> Qmp<'a> {
    pub(super) fn new(hub: &'a Hub, sender: &'a Mutex<Sender>) -> Self {
        Self { hub, sender }
    }

    /// What a monitor is told first. QEMU answers when it has made all devices.
    pub(super) fn negotiate(&self) -> Result<()> {
        self.execute("qmp_capabilities", json!({}))?;
        // Otherwise a migration's end can only be polled for.
        let events = json!([{"capability": "events", "state": true}]);
        let arguments = json!({"capabilities": events});
        self.execute("migrate-set-capabilities", arguments)
            .map(drop)
    }

    /// Any command; gives what it returns.
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender.sent += 1;
        let id = sender.sent;
        let message = json!({"execute": command, "arguments": arguments, "id": id});
        // In one piece: QEMU acts on the closing brace, and may be gone before a line end of its own.
        sender
            .stream
            .write_all(format!("{message}\n").as_bytes())
            .with_context(|| format!("QEMU's monitor does not take `{command}`"))?;
        drop(sender);
        let answer = self
            .hub
            .wait(&format!("the answer to `{command}`"), ANSWER, |state| {
                let index = state.answers.iter().position(|answer| answer["id"] == id)?;
                state.answers.remove(index)
            })?;
        match (answer.get("return"), answer.get("error")) {
            (Some(value), _) => Ok(value.clone()),
            (None, error) => bail!(
                "QEMU refuses `{message}`: {}",
                error.map_or("without a reason".into(), |error| error["desc"].to_string())
            ),
        }
    }

    /// The next event of a name, with its data; events of other names stay for who waits for them.
    pub fn event(&self, name: &str, at_most: Duration) -> Result<Value> {
        self.hub
            .wait(&format!("QEMU's event {name}"), at_most, |state| {
                take_event(state, |event| event["event"] == name)
            })
    }

    /// Stops the processors; when it returns, they do not run.
    pub fn stop(&self) -> Result<()> {
        self.execute("stop", json!({})).map(drop)
    }

    /// Lets the processors run.
    pub fn cont(&self) -> Result<()> {
        self.execute("cont", json!({})).map(drop)
    }

    /// Ends QEMU; see [`Running::quit`](super::Running::quit), which also waits for it.
    pub fn quit(&self) -> Result<()> {
        self.execute("quit", json!({})).map(drop)
    }

    /// Writes guest-physical memory to a file.
    pub fn pmemsave(&self, address: u64, bytes: u64, file: &Path) -> Result<()> {
        let arguments = json!({"val": address, "size": bytes, "filename": file});
        self.execute("pmemsave", arguments).map(drop)
    }

    /// Starts a migration, such as to `unix:PATH`, with parameters such as `max-bandwidth`.
    pub fn migrate(&self, to: &str, parameters: Value) -> Result<()> {
        self.execute("migrate-set-parameters", parameters)?;
        // What is left of an earlier migration would be taken for this one's end.
        let mut state = self.hub.lock();
        let stale = |event: &Value| {
            event["event"]
                .as_str()
                .is_some_and(|name| name.starts_with("MIGRATION"))
        };
        state.events.retain(|event| !stale(event));
        drop(state);
        self.execute("migrate", json!({"uri": to})).map(drop)
    }

    /// Gives up a migration. QEMU says `cancelled` some time later: [`Qmp::migrated`] awaits it.
    pub fn migrate_cancel(&self) -> Result<()> {
        self.execute("migrate_cancel", json!({})).map(drop)
    }

    /// The state of the last migration.
    pub fn query_migrate(&self) -> Result<Migration> {
        let answer = self.execute("query-migrate", json!({}))?;
        serde_json::from_value(answer.clone())
            .with_context(|| format!("`query-migrate` answered {answer}"))
    }

    /// Waits for a change of the migration's status to one of the given, or to its end.
    pub fn migration(&self, wanted: &[&str], at_most: Duration) -> Result<String> {
        let what = format!("a migration's state of {wanted:?}");
        self.hub.wait(&what, at_most, |state| {
            let status = |event: &Value| event["data"]["status"].as_str().map(str::to_owned);
            loop {
                let event = take_event(state, is_migration)?;
                let status = status(&event).unwrap_or_default();
                let end = ["completed", "failed", "cancelled"].contains(&status.as_str());
                if end || wanted.contains(&status.as_str()) {
                    return Some(status);
                }
            }
        })
    }

    /// Waits for the migration's end, which must be the expected one, and gives its figures.
    pub fn migrated(&self, expected: &str, at_most: Duration) -> Result<Migration> {
        let status = self.migration(&[expected], at_most)?;
        let migration = self.query_migrate()?;
        if status != expected {
            bail!(
                "the migration is {status}, expected {expected}: {}",
                migration.error_desc.as_deref().unwrap_or("no reason given")
            );
        }
        Ok(migration)
    }
}

fn is_migration(event: &Value) -> bool {
    event["event"] == "MIGRATION"
}

fn take_event(state: &mut State, mut wanted: impl FnMut(&Value) -> bool) -> Option<Value> {
    let index = state.events.iter().position(&mut wanted)?;
    state.events.remove(index)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::sync::Arc;
    use std::thread;

    use super::*;

    /// A monitor that answers each line with the given ones.
    fn with_monitor(answers: &'static [&'static str], test: impl FnOnce(&Qmp<'_>)) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let hub = Arc::new(Hub::default());
        let reader = hub.read(ours.try_clone().expect("a second handle"), take);
        let monitor = thread::spawn(move || {
            let mut lines = BufReader::new(theirs.try_clone().expect("a second handle")).lines();
            let mut theirs = theirs;
            for answer in answers {
                lines.next().expect("a command").expect("a whole line");
                theirs.write_all(answer.as_bytes()).expect("it is read");
            }
        });
        let sender = Sender::new(ours);
        test(&Qmp::new(&hub, &sender));
        monitor.join().expect("the monitor ends");
        reader.join().expect("the reader ends");
    }

    #[test]
    fn answers_are_told_from_events() {
        let answers = &[
            "{\"QMP\":{}}\n{\"event\":\"STOP\",\"data\":{}}\n{\"return\":{\"x\":1},\"id\":1}\n",
            "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no such thing\"},\"id\":2}\n",
        ];
        with_monitor(answers, |qmp| {
            let value = qmp.execute("one", json!({})).expect("it returns");
            assert_eq!(value["x"], 1);
            let error = qmp.execute("two", json!({})).expect_err("it is refused");
            assert!(error.to_string().contains("no such thing"), "{error}");
            qmp.event("STOP", ANSWER).expect("it was kept");
        });
    }

    #[test]
    fn a_migration_that_ends_otherwise_is_an_error() {
        let answers = &[
            "{\"event\":\"MIGRATION\",\"data\":{\"status\":\"completed\"}}\n{\"return\":{},\"id\":1}\n",
            "{\"event\":\"MIGRATION\",\"data\":{\"status\":\"active\"}}\n{\"return\":{},\"id\":2}\n\
             {\"event\":\"MIGRATION\",\"data\":{\"status\":\"failed\"}}\n",
            "{\"return\":{\"status\":\"failed\",\"error-desc\":\"no room\"},\"id\":3}\n",
        ];
        with_monitor(answers, |qmp| {
            qmp.migrate("unix:x", json!({"downtime-limit": 1}))
                .expect("it starts");
            let error = qmp.migrated("completed", ANSWER).expect_err("it failed");
            assert!(error.to_string().contains("no room"), "{error}");
        });
    }
}
