//! Callers that want too much or say nothing.

use super::bed::*;
use crate::agent::wire::BODY_MAX;
use crate::agent::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

fn said(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    // It may hang up before everything was sent.
    let read = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(read.is_ok() || !text.is_empty(), "{read:?}");
    text
}

fn send(stream: &mut UnixStream, text: &str) {
    // Whoever is refused early does not get rid of everything.
    let sent = stream.write_all(text.as_bytes());
    drop(sent);
}

#[test]
fn large_and_silent_callers_are_refused_and_others_are_served() {
    let inside = Arc::default();
    let limits = Limits {
        connections: 2,
        patience: Duration::from_millis(200),
    };
    let agent = Running::new(&inside, LONG, limits);
    let connect = || UnixStream::connect(agent.socket()).unwrap();

    let mut large = connect();
    let head = "PUT /v1/devices/disk0/pending HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let length = BODY_MAX + 1;
    send(
        &mut large,
        &format!("{head}content-length: {length}\r\n\r\n"),
    );
    send(&mut large, &" ".repeat(length));
    let answer = said(&mut large);
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("octets are taken"), "{answer}");

    let mut long = connect();
    let path = "x".repeat(64 << 10);
    send(&mut long, &format!("GET /{path} HTTP/1.1\r\n"));
    send(&mut long, "host: x\r\n\r\n");
    let answer = said(&mut long);
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");

    let mut slow = connect();
    send(&mut slow, &format!("{head}content-length: 9\r\n\r\n"));
    let answer = said(&mut slow);
    assert!(answer.contains("did not come within"), "{answer}");

    // Two that say nothing take all connections, for a while.
    let _silent = [connect(), connect()];
    let agents = Agents::new(None).unwrap();
    assert_eq!(agents.status(&agent.place()).unwrap().name, "disk0");

    let mut nonsense = connect();
    send(&mut nonsense, "\0\u{1}\u{2} nothing of this\r\n\r\n");
    let answer = said(&mut nonsense);
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[test]
fn a_socket_that_was_left_behind_is_replaced_and_one_in_use_is_not() {
    let inside = Arc::default();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let endpoint = Endpoint::Unix(path);
    let first = host(&folder.path().join("one"), LONG, &[("disk0", &inside)]);
    let second = host(&folder.path().join("two"), LONG, &[]);
    let agent = Running::serve(folder, endpoint.clone(), None, first, Limits::default());
    let refused = Server::bind(&endpoint, None, second, Limits::default());
    assert!(
        matches!(refused, Err(ServerError::Bind { .. })),
        "{refused:?}"
    );
    let agents = Agents::new(None).unwrap();
    agents.status(&agent.place()).unwrap();
    assert!(agent.folder.path().exists());
}
