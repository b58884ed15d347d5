//! One JSON object in, one out, over a socket: how a program that runs is asked for something.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The longest request or answer.
const LINE_MAX: u64 = 256 << 10;
/// A client that says nothing for so long is left alone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers one client.
pub(crate) fn answer<R: DeserializeOwned>(
    client: &UnixStream,
    carry_out: impl FnOnce(R) -> Result<Value, String>,
) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(client.take(LINE_MAX)).read_line(&mut line)?;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => carry_out(request),
        Err(error) => Err(format!("a request was expected: {error}")),
    };
    let answer = match answer {
        Ok(value) => serde_json::json!({"ok": value}),
        Err(error) => serde_json::json!({"error": error}),
    };
    let mut client = client;
    client.write_all(format!("{answer}\n").as_bytes())
}

/// Asks whoever listens at `path`, and waits for the answer, at most so long if a `limit` is given: what
/// was asked for, or a refusal in words.
pub(crate) fn ask(
    path: &Path,
    request: &impl Serialize,
    limit: Option<Duration>,
) -> io::Result<Result<Value, String>> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let text = serde_json::to_string(request)?;
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(limit)?;
    stream.write_all(format!("{text}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_MAX)).read_line(&mut line)?;
    let mut answer: Value = serde_json::from_str(&line)?;
    if let Some(error) = answer.get("error") {
        let text = error.as_str();
        return Ok(Err(text.map_or_else(|| error.to_string(), str::to_owned)));
    }
    match answer.get_mut("ok").map(Value::take) {
        Some(value) => Ok(Ok(value)),
        None => Err(invalid(format!("an answer was expected, {line:?} came"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_request_without_an_end_is_read_so_far_and_refused() {
        let (mut asking, answering) = UnixStream::pair().unwrap();
        let asks = thread::spawn(move || {
            let line = vec![b' '; usize::try_from(LINE_MAX).unwrap()];
            asking.write_all(&line).unwrap();
            let mut said = String::new();
            asking.read_to_string(&mut said).unwrap();
            said
        });
        answer(&answering, |_: Value| panic!("nothing was asked")).unwrap();
        drop(answering);
        let said = asks.join().unwrap();
        assert!(said.contains("a request was expected"), "{said}");
    }
}
