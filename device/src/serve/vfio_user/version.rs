//! What client and server agree on at the beginning.
//!
//! Capabilities are announced only where the client proposed them, as the protocol has it, and
//! `twin_socket` and `write_multiple` not at all: this server sends no commands, and a write is one
//! message.

use super::dma::MAPS_MAX;
use super::frame::{DATA_MAX, FDS_MAX};
use super::message::Version;
use serde_json::{Map, Value, json};
use zerocopy::{FromBytes, IntoBytes};

/// The version served: 0.1. The minor number of the answer is never above the client's.
const MAJOR: u16 = 0;
const MINOR: u16 = 1;
/// Most bytes of the client's text. QEMU's has about two hundred.
const TEXT_MAX: usize = 16 << 10;
/// Sizes of pages that maps are made of, or'ed together; and of those that are tracked, the least.
const PAGE_SIZES: u64 = 4096;

/// The answer to a VERSION message's payload, or what is wrong with it.
pub(super) fn agree(payload: &[u8], migrates: bool) -> Result<Vec<u8>, String> {
    let (theirs, text) = Version::read_from_prefix(payload)
        .map_err(|_| format!("has a payload of {} bytes", payload.len()))?;
    let (major, minor) = (theirs.major.get(), theirs.minor.get());
    if major != MAJOR {
        return Err(format!("asks for version {major}.{minor}"));
    }
    let proposed = capabilities(text)?;
    let mut ours = Map::new();
    for (name, value) in &proposed {
        let known = match name.as_str() {
            // What this side can receive, whatever the other can.
            "max_msg_fds" => number(name, value).map(|_| json!(FDS_MAX))?,
            "max_data_xfer_size" => at_most(name, value, widen(DATA_MAX))?,
            "max_dma_maps" => at_most(name, value, widen(MAPS_MAX))?,
            "pgsizes" => number(name, value).map(|_| json!(PAGE_SIZES))?,
            "migration" if migrates => json!({"pgsize": PAGE_SIZES}),
            _ => continue,
        };
        ours.insert(name.clone(), known);
    }
    let answer = Version {
        major: MAJOR.into(),
        minor: minor.min(MINOR).into(),
    };
    let mut bytes = answer.as_bytes().to_vec();
    bytes.extend_from_slice(json!({"capabilities": ours}).to_string().as_bytes());
    bytes.push(0);
    Ok(bytes)
}

/// The capabilities in a text; none without one.
fn capabilities(text: &[u8]) -> Result<Map<String, Value>, String> {
    if text.is_empty() {
        return Ok(Map::new());
    }
    if text.len() > TEXT_MAX {
        return Err(format!(
            "has a text of {} bytes, at most {TEXT_MAX} expected",
            text.len()
        ));
    }
    let text = text
        .strip_suffix(&[0])
        .ok_or("has a text that does not end with NUL")?;
    let value: Value = serde_json::from_slice(text)
        .map_err(|error| format!("has a text that is no JSON: {error}"))?;
    let Value::Object(mut object) = value else {
        return Err("has a text that is no JSON object".to_owned());
    };
    match object.remove("capabilities") {
        None => Ok(Map::new()),
        Some(Value::Object(capabilities)) => Ok(capabilities),
        Some(_) => Err("has capabilities that are no JSON object".to_owned()),
    }
}

fn number(name: &str, value: &Value) -> Result<u64, String> {
    let number = value.as_u64();
    number.ok_or_else(|| format!("has a {name} that is no number from 0 to 2^64 - 1"))
}

fn at_most(name: &str, value: &Value, most: u64) -> Result<Value, String> {
    Ok(json!(number(name, value)?.min(most)))
}

fn widen(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}
