//! The agents' control API: HTTP and JSON on a Unix socket, well-formed and not.

use crate::Plant;
use crate::input::Input;
use crate::oracle::MemoryWatch;
use migration::agent::{Abilities, DeviceConfig, Endpoint, Host, Limits, Managed, Server};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_millis(40);
/// No answer is longer.
const ANSWER_MAX: usize = 1 << 20;

/// A device that is configured at once.
struct Willing;

impl Managed for Willing {
    fn abilities(&self) -> Abilities {
        Abilities {
            tracking: true,
            pasid: true,
            suspend: true,
        }
    }
    fn apply(&mut self, _config: &DeviceConfig) -> Result<(), String> {
        Ok(())
    }
    fn was_reset(&mut self) -> bool {
        false
    }
}

/// One agent for all runs of the process: what it keeps of them is a part of what is tested.
fn agent() -> &'static PathBuf {
    static AGENT: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = AGENT.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("agent.sock");
        let device: Box<dyn Managed> = Box::new(Willing);
        let devices = vec![("disk0".to_owned(), device)];
        let lease = Duration::from_secs(60);
        let host = Host::open(devices, &folder.path().join("state"), lease).expect("a host");
        let limits = Limits {
            patience: PATIENCE,
            ..Limits::default()
        };
        let endpoint = Endpoint::Unix(path.clone());
        let server = Server::bind(&endpoint, None, host, limits).expect("a server");
        thread::spawn(move || server.run());
        (folder, path)
    });
    path
}

/// Runs the target.
pub fn run(data: &[u8], plant: Option<Plant>) {
    let mut input = Input::new(data);
    agent();
    let watch = MemoryWatch::begin();
    let mut tokens = Vec::new();
    // Whoever had it before this run does not any more.
    exchange(
        &request("POST", "/v1/devices/disk0/free", "{\"who\":\"fuzz\"}"),
        true,
    );
    for _ in 0..8 {
        if input.is_empty() {
            break;
        }
        if input.once_in(8) {
            // Anything at all, and not more of it.
            let bytes = input.bytes(64).to_vec();
            exchange(&bytes, false);
            continue;
        }
        ask(&mut input, &mut tokens, plant);
    }
    let (status, body) = exchange(&request("GET", "/v1/devices", ""), true);
    assert!(
        status == 200 && body.contains("disk0"),
        "oracle reset: a plain question is answered with {status}: {body}"
    );
    if plant == Some(Plant::Memory) && tokens.len() > 1 {
        std::hint::black_box(vec![1_u8; 160 << 20]);
    }
    watch.end();
}

fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Sends bytes and gives what is answered: a status, 0 without, and a body. Whoever says all that he
/// announced is `complete`, and is answered.
fn exchange(bytes: &[u8], complete: bool) -> (u16, String) {
    let mut stream = UnixStream::connect(agent()).expect("the agent listens");
    let patience = Some(crate::oracle::PATIENCE);
    stream.set_read_timeout(patience).expect("a patience");
    // Whoever is refused early does not get rid of everything.
    let _sent = stream.write_all(bytes);
    let mut answer = Vec::new();
    let read = stream.take(ANSWER_MAX as u64).read_to_end(&mut answer);
    let hung = read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    assert!(
        !hung,
        "oracle answers: the agent neither answers nor hangs up"
    );
    assert!(
        answer.len() < ANSWER_MAX,
        "oracle memory: an answer of more than {ANSWER_MAX} bytes"
    );
    let text = String::from_utf8_lossy(&answer);
    let status = text
        .strip_prefix("HTTP/1.1 ")
        .and_then(|text| text.get(..3));
    let status = status.and_then(|status| status.parse().ok()).unwrap_or(0);
    assert!(
        !complete || (100..500).contains(&status),
        "oracle answers: a whole request is answered with {status}: {text}"
    );
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    (status, body.unwrap_or_default())
}

/// A request as a manager makes it, mostly.
fn ask(input: &mut Input<'_>, tokens: &mut Vec<String>, plant: Option<Plant>) {
    const ROUTES: &[(&str, &str)] = &[
        ("GET", "/openapi.json"),
        ("GET", "/v1/devices"),
        ("GET", "/v1/devices/disk0"),
        ("GET", "/v1/devices/disk0/tasks/0"),
        ("POST", "/v1/devices/disk0/lock"),
        ("POST", "/v1/devices/disk0/lock"),
        ("POST", "/v1/devices/disk0/renew"),
        ("PUT", "/v1/devices/disk0/pending"),
        ("PUT", "/v1/devices/disk0/pending"),
        ("POST", "/v1/devices/disk0/rollback"),
        ("POST", "/v1/devices/disk0/apply"),
        ("POST", "/v1/devices/disk0/poll"),
        ("POST", "/v1/devices/disk0/release"),
        ("POST", "/v1/devices/disk0/takeover"),
        ("POST", "/v1/devices/disk0/free"),
        ("DELETE", "/v1/devices/disk0"),
        ("GET", "/v1/devices/disk9"),
    ];
    let (method, path) = input.pick(ROUTES);
    let claim = |number: u8, attempt: u8| {
        let id = format!("01890000-0000-7000-8000-00000000000{}", number % 4);
        format!("{{\"id\":\"{id}\",\"attempt\":{}}}", attempt % 3)
    };
    let void = "{\"id\":\"01890000-0000-7000-8000-00000000000f\",\"generation\":0}".to_owned();
    let fresh = input.flag();
    let last = tokens.last().filter(|_| fresh);
    let stale = last.is_none();
    let token = last.cloned().unwrap_or(void);
    let op = path.rsplit('/').next().unwrap_or_default();
    let body = match op {
        "lock" => format!(
            "{{\"claim\":{},\"who\":\"a\"}}",
            claim(input.u8(), input.u8())
        ),
        "renew" | "rollback" | "apply" | "poll" => format!("{{\"token\":{token}}}"),
        "pending" => format!("{{\"token\":{token},\"config\":{}}}", config(input)),
        "release" => format!("{{\"claim\":{}}}", claim(input.u8(), input.u8())),
        "takeover" => format!(
            "{{\"task\":\"01890000-0000-7000-8000-000000000001\",\"claim\":{},\"who\":\"b\",\"force\":{}}}",
            claim(input.u8(), 0),
            input.flag()
        ),
        "free" => "{\"who\":\"c\"}".to_owned(),
        _ => String::new(),
    };
    let mut bytes = request(method, path, &body);
    let spoilt = input.once_in(4);
    if spoilt {
        let (at, value) = (usize::from(input.u16()) % bytes.len(), input.u8());
        bytes[at] = value;
    }
    let (status, answer) = exchange(&bytes, !spoilt);
    let accepted = status == 200 || plant == Some(Plant::Accepts) && op == "renew";
    let held = ["renew", "rollback", "apply", "poll", "pending"].contains(&op);
    assert!(
        !(held && stale && accepted && !spoilt),
        "oracle soundness: {op} was done with a token that nobody was given"
    );
    let answered = plant != Some(Plant::NoAnswer) || status != 404;
    assert!(answered, "oracle answers: nothing came for {path}");
    if op == "lock"
        && status == 200
        && let Some((_, rest)) = answer.split_once("\"token\":")
        && let Some((token, _)) = rest.split_once('}')
    {
        tokens.push(format!("{token}}}"));
    }
}

fn config(input: &mut Input<'_>) -> String {
    let ranges: Vec<String> = (0..input.below(3))
        .map(|_| {
            let start = u64::from(input.u8()) << 12;
            let end = start.wrapping_add(u64::from(input.u16()) << input.below(48));
            format!("{{\"start\":{start},\"end\":{end}}}")
        })
        .collect();
    let granularity = 1_u64 << input.below(40);
    let suspended = input.flag();
    format!(
        "{{\"tracking\":{{\"ranges\":[{}],\"granularity\":{granularity}}},\"suspended\":{suspended}}}",
        ranges.join(",")
    )
}
