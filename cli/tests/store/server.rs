//! Servers that others wrote, on loopback, for as long as a test needs them.

use crate::place::Place;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

/// A server. Killed when it is dropped.
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).unwrap();
    }
}

/// A port that nobody uses just now.
fn port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn program(variable: &str, usual: &str) -> Command {
    let found = std::env::var_os(variable);
    Command::new(found.unwrap_or_else(|| usual.into()))
}

fn start(mut command: Command, variable: &str, ready: &str) -> Server {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| {
        panic!(
            "{command:?} cannot be started: {error}; `cargo xtask test --only store` installs it, \
             or name the program in {variable}"
        )
    });
    let (out, errors) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let server = Server(child);
    // Whichever of both it talks on.
    let (send, receive) = std::sync::mpsc::channel();
    let pipes: [Box<dyn Read + Send>; 2] = [Box::new(out), Box::new(errors)];
    for pipe in pipes {
        let send = send.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                // Nobody listens any more once it is ready; it must not block.
                drop(send.send(line));
            }
        });
    }
    drop(send);
    let said = receive.iter().find(|line| line.contains(ready));
    assert!(said.is_some(), "{command:?} ended before it said '{ready}'");
    server
}

#[cfg(feature = "etcd")]
fn start_etcd(place: &mut Place) {
    let (client, peer) = (port(), port());
    let url = |port| format!("http://127.0.0.1:{port}");
    let mut command = program("TIDEMARK_ETCD", "etcd");
    command.arg("--data-dir").arg(place.file("etcd"));
    command.args([
        "--listen-client-urls",
        &url(client),
        "--advertise-client-urls",
        &url(client),
    ]);
    command.args([
        "--listen-peer-urls",
        &url(peer),
        "--initial-advertise-peer-urls",
        &url(peer),
    ]);
    command.args(["--initial-cluster", &format!("default={}", url(peer))]);
    let server = start(
        command,
        "TIDEMARK_ETCD",
        "serving insecure client requests on",
    );
    place.servers.push(server);
    // Who is killed with the lock keeps it for that long.
    place.names = Some(format!("etcd://127.0.0.1:{client}/tidemark?lease=3"));
}

#[cfg(feature = "s3")]
fn start_s3(place: &mut Place) {
    let port = port();
    let mut command = program("TIDEMARK_S3", "moto_server");
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    // The store takes them from there as well; this server asks nobody who he is.
    for variable in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        let set = std::env::var_os(variable).is_some();
        assert!(
            set,
            "{variable} is not set: `cargo xtask test --only store` sets it"
        );
    }
    place
        .servers
        .push(start(command, "TIDEMARK_S3", "Running on"));
    crate::bucket::ask(&format!("127.0.0.1:{port}"), "PUT", "/checkpoints", b"");
    place.names = Some(place.file("names").display().to_string());
    place.bodies = format!("s3://checkpoints/fleet?endpoint=http://127.0.0.1:{port}");
}

/// Names in Debian's etcd, bodies in a folder.
#[cfg(feature = "etcd")]
pub fn etcd() -> Place {
    let mut place = Place::folder();
    start_etcd(&mut place);
    place
}

/// Bodies in a bucket, names in a folder.
#[cfg(feature = "s3")]
pub fn s3() -> Place {
    let mut place = Place::folder();
    start_s3(&mut place);
    place
}

/// Nothing on the host itself.
#[cfg(all(feature = "etcd", feature = "s3"))]
pub fn both() -> Place {
    let mut place = Place::folder();
    start_s3(&mut place);
    start_etcd(&mut place);
    place
}
