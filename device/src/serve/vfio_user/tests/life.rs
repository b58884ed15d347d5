//! How a server begins and ends: stopped from another thread, or with the one client it was given.

use super::talk::{message, numbers};
use super::{Bench, Outcome};
use crate::serve::socket::Inherited;
use crate::serve::vfio_user::{Ended, VfioUserServer};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Agrees on the version, so that the server surely has this client.
fn greet(mut stream: &UnixStream) -> Outcome {
    stream.write_all(&message(1, 0, &[0, 0, 1, 0]))?;
    let mut answer = [0; 20];
    stream.read_exact(&mut answer)?;
    // The text.
    let mut rest = vec![0; usize::from(answer[4]) - 20];
    stream.read_exact(&mut rest)?;
    Ok(())
}

#[test]
fn a_stop_ends_whatever_the_server_waits_for() -> Outcome {
    // For its next client.
    let bench = Bench::new()?;
    let serving = bench.serve();
    bench.server.stop();
    assert_eq!(serving.join().map_err(|_| "panicked")??, Ended::Last);
    assert_eq!(bench.server.run()?, Ended::Last, "for good");
    bench.server.stop();

    // For a client that says nothing.
    let bench = Bench::new()?;
    let serving = bench.serve();
    let mut stream = UnixStream::connect(bench.path())?;
    greet(&stream)?;
    bench.server.stop();
    assert_eq!(stream.read(&mut [0])?, 0, "the client is told");
    assert_eq!(serving.join().map_err(|_| "panicked")??, Ended::Last);

    // For one that sends half a message.
    let bench = Bench::new()?;
    let serving = bench.serve();
    let mut stream = UnixStream::connect(bench.path())?;
    greet(&stream)?;
    stream.write_all(&message(9, 0, &[0; 16])[..20])?;
    bench.server.stop();
    assert_eq!(serving.join().map_err(|_| "panicked")??, Ended::Last);

    // For one that reads no answers: more of them than any socket holds.
    let bench = Bench::new()?;
    let serving = bench.serve();
    let stream = UnixStream::connect(bench.path())?;
    greet(&stream)?;
    let mut writer = stream.try_clone()?;
    let asking = std::thread::spawn(move || {
        let read = message(9, 0, &numbers(&[(0, 8), (7, 4), (4096, 4)]));
        // Ends when the server has shut the connection down.
        while writer.write_all(&read).is_ok() {}
    });
    // An answer has come, so the server is at it.
    (&stream).read_exact(&mut [0; 16])?;
    bench.server.stop();
    assert_eq!(serving.join().map_err(|_| "panicked")??, Ended::Last);
    asking.join().map_err(|_| "panicked")?;
    Ok(())
}

#[test]
fn a_connected_socket_is_served_once() -> Outcome {
    let bench = Bench::new()?;
    let (mut client, connected) = UnixStream::pair()?;
    // As a parent that polls may have it.
    connected.set_nonblocking(true)?;
    let served = Arc::clone(&bench.served) as _;
    let server = Arc::new(VfioUserServer::on(Inherited::Connected(connected), served)?);
    assert!(server.path().is_none());
    let serving = std::thread::spawn({
        let server = Arc::clone(&server);
        move || server.run()
    });
    greet(&client)?;
    client.write_all(&message(9, 0, &numbers(&[(0, 8), (7, 4), (2, 4)])))?;
    let mut answer = [0; 34];
    client.read_exact(&mut answer)?;
    assert_eq!(answer[32..], [0xf4, 0x1a]);
    drop(client);
    assert_eq!(serving.join().map_err(|_| "panicked")??, Ended::Last);
    assert_eq!(server.run()?, Ended::Last, "no other can come");
    Ok(())
}

#[test]
fn a_client_that_goes_in_the_middle_leaves_room_for_the_next() -> Outcome {
    let bench = Bench::new()?;
    let version = message(1, 0, &[0, 0, 1, 0]);
    for cut in 0..version.len() {
        let serving = bench.serve();
        UnixStream::connect(bench.path())?.write_all(&version[..cut])?;
        assert_eq!(
            serving.join().map_err(|_| "panicked")??,
            Ended::Client,
            "{cut}"
        );
    }
    bench.with(|client| {
        assert_eq!(super::read(client, 7, 0)?, [0xf4, 0x1a]);
        Ok(())
    })
}
