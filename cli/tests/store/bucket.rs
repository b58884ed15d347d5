//! What a bucket has, asked for without the store's own client.

use crate::guest::{Guest, Random};
use crate::place::Place;
use crate::scenarios::put;
use std::io::{Read, Write};
use std::net::TcpStream;

/// Asks a server that believes whoever says who he is; what it answered.
pub fn ask(server: &str, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server).unwrap();
    let asked = format!(
        "{method} {path} HTTP/1.1\r\nHost: {server}\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: {}\r\nConnection: close\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential=tidemark/20260101/us-east-1/s3/aws4_request, \
         SignedHeaders=host, Signature=0\r\n\r\n",
        body.len()
    );
    stream.write_all(asked.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let body = answer.split_off(head.expect("a head") + 4);
    let head = String::from_utf8_lossy(&answer);
    let ok = head.split(' ').nth(1) == Some("200");
    assert!(ok, "{method} {path}: {head}");
    body
}

#[test]
fn a_flipped_bit_of_any_object_is_told() {
    let place: Place = crate::server::s3();
    let store = place.open();
    let mut random = Random::new(14);
    let mut guest = Guest::new(&mut random, 100);
    put(&store, "vm/1/epoch/1", &guest);
    guest.run(&mut random, 10);
    put(&store, "vm/2/epoch/1", &guest);
    let (_, server) = place.bodies.split_once("endpoint=http://").unwrap();
    let listed = ask(server, "GET", "/checkpoints?list-type=2", b"");
    let listed = String::from_utf8(listed).unwrap();
    let keys = listed.split("<Key>").skip(1);
    let keys: Vec<&str> = keys.filter_map(|rest| rest.split('<').next()).collect();
    assert_eq!(keys.len(), 6, "{listed}");
    for key in keys {
        let path = format!("/checkpoints/{key}");
        let bytes = ask(server, "GET", &path, b"");
        for _ in 0..8 {
            let mut other = bytes.clone();
            let bit = usize::try_from(random.below(8 * bytes.len() as u64)).unwrap();
            other[bit / 8] ^= 1 << (bit % 8);
            ask(server, "PUT", &path, &other);
            let faults = store.verify().unwrap().faults;
            let (_, id) = key.split_once("bodies/").unwrap();
            let about = faults.iter().any(|fault| fault.fault.contains(id));
            assert!(about, "bit {bit} of {key}: {faults:?}");
        }
        ask(server, "PUT", &path, &bytes);
    }
    assert_eq!(store.verify().unwrap().faults, []);
}
