//! A process that is watched, and ends with its test.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Something that one of two processes did.
#[derive(Debug)]
pub enum Event<W> {
    /// It printed a line on its standard error.
    Said(W, String),
    /// Its output has come to an end.
    Ended(W),
}

/// A running process. Killed at the latest when it is dropped.
pub struct Guarded {
    child: Arc<Mutex<Child>>,
    stdin: Option<ChildStdin>,
    out: Option<JoinHandle<String>>,
    told: Option<JoinHandle<String>>,
}

/// Kills a process, from wherever that is to be done.
#[derive(Clone)]
pub struct Killer(Arc<Mutex<Child>>);

impl Killer {
    /// Kills it and waits until it is gone.
    pub fn kill(&self) {
        let mut child = self.0.lock().unwrap();
        // One that has ended needs no killing.
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Guarded {
    pub fn spawn(program: &str, arguments: &[String]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).env_remove("RUST_LOG");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        Self {
            stdin: child.stdin.take(),
            child: Arc::new(Mutex::new(child)),
            out: None,
            told: None,
        }
    }

    pub fn killer(&self) -> Killer {
        Killer(Arc::clone(&self.child))
    }

    /// Waits for its first line, if it is to `listen`, then watches it.
    pub fn watch<W>(&mut self, who: W, listen: bool, events: &Sender<Event<W>>)
    where
        W: Copy + Send + 'static,
    {
        let (out, errors) = {
            let mut child = self.child.lock().unwrap();
            (child.stdout.take().unwrap(), child.stderr.take().unwrap())
        };
        let mut out = BufReader::with_capacity(1, out);
        if listen {
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            assert!(line.starts_with("listening on "), "{line}");
        }
        self.out = Some(std::thread::spawn(move || {
            let mut text = String::new();
            out.read_to_string(&mut text).unwrap();
            text
        }));
        let events = events.clone();
        self.told = Some(std::thread::spawn(move || {
            let mut all = String::new();
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                all += &line;
                all.push('\n');
                // Nobody listens any more when everything is known.
                if events.send(Event::Said(who, line)).is_err() {
                    continue;
                }
            }
            let told = events.send(Event::Ended(who));
            drop(told);
            all
        }));
    }

    /// Writes a line to its input. One that is gone does not read it.
    pub fn order(&mut self, line: &str) {
        let told = self
            .stdin
            .as_mut()
            .map(|stdin| writeln!(stdin, "{line}").and_then(|()| stdin.flush()));
        drop(told);
    }

    /// Waits for its end: how it ended, what it printed, and what it said on its standard error.
    pub fn end(mut self) -> (ExitStatus, String, String) {
        drop(self.stdin.take());
        let out = self.out.take().unwrap().join().unwrap();
        let told = self.told.take().unwrap().join().unwrap();
        let status = self.child.lock().unwrap().wait().unwrap();
        (status, out, told)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.killer().kill();
    }
}
