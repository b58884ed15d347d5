//! The state of a guest's CPU and devices as it travels: plain data, judged by whoever takes it.

use super::layout::Shape;
use super::workload::Walk;
use crate::error::VmError;
use driver::parts::Parts;
use driver::queue::{ChainState, RingState};
use driver::state::{DeviceState, QueueSaved};
use serde::{Deserialize, Serialize};

/// A request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedRequest {
    /// Slot of the virtual CPU's headers, statuses and buffers.
    pub slot: u16,
    /// Its number.
    pub id: u64,
    /// A write rather than a read.
    pub write: bool,
    /// The virtual CPU's block.
    pub block: u64,
    /// The frame it is read into.
    pub frame: u64,
    /// The sequence number written or expected.
    pub sequence: u32,
}

/// One chain of a ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedChain {
    descriptors: Vec<u16>,
    token: u64,
    writable: u32,
}

/// One virtual CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedVcpu {
    /// Where its walk stands.
    pub walk: Walk,
    /// Number of its next request.
    pub next_id: u64,
    /// Requests in flight.
    pub requests: Vec<SavedRequest>,
    size: u16,
    next_avail: u16,
    published: u16,
    last_used: u16,
    chains: Vec<SavedChain>,
}

impl SavedVcpu {
    /// Puts a virtual CPU's parts together.
    pub fn new(walk: Walk, next_id: u64, requests: Vec<SavedRequest>, ring: RingState) -> Self {
        let chain = |chain: ChainState| SavedChain {
            descriptors: chain.descriptors,
            token: chain.token,
            writable: chain.writable,
        };
        Self {
            walk,
            next_id,
            requests,
            size: ring.size,
            next_avail: ring.next_avail,
            published: ring.published,
            last_used: ring.last_used,
            chains: ring.chains.into_iter().map(chain).collect(),
        }
    }

    /// The driver's end of its ring.
    pub fn ring(&self) -> RingState {
        let chain = |chain: &SavedChain| ChainState {
            descriptors: chain.descriptors.clone(),
            token: chain.token,
            writable: chain.writable,
        };
        RingState {
            size: self.size,
            next_avail: self.next_avail,
            published: self.published,
            last_used: self.last_used,
            chains: self.chains.iter().map(chain).collect(),
        }
    }
}

/// What a destination is told before anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// The guest's shape.
    pub shape: Shape,
    /// The parts of each device as hexadecimal digits, if they move in parts: whoever cannot take
    /// such says so now.
    pub parts: Option<Vec<String>>,
}

impl Description {
    /// Of a guest of this shape with such devices.
    pub fn new(shape: Shape, parts: Option<&[Parts]>) -> Self {
        let digits = |parts: &Parts| {
            let bytes = parts.to_bytes();
            bytes.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        Self {
            shape,
            parts: parts.map(|all| all.iter().map(digits).collect()),
        }
    }

    /// The parts of each device, if it has any.
    ///
    /// # Errors
    /// [`VmError::BadState`] if they are none.
    pub fn parts(&self) -> Result<Option<Vec<Parts>>, VmError> {
        let Some(all) = &self.parts else {
            return Ok(None);
        };
        let parts = (0..).zip(all).map(|(number, digits)| {
            from_digits(digits).map_err(|why| VmError::BadState {
                what: format!("device {number}"),
                why,
            })
        });
        parts.collect::<Result<_, _>>().map(Some)
    }
}

fn from_digits(digits: &str) -> Result<Parts, String> {
    let (pairs, odd) = digits.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| {
        let text = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(text, 16).ok()
    };
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    let bytes = bytes.filter(|_| odd.is_empty());
    let bytes = bytes.ok_or("its parts are no hexadecimal digits")?;
    Parts::parse(&bytes).map_err(|error| error.to_string())
}

/// One queue of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedQueue {
    index: u16,
    size: u16,
    vector: u16,
    enabled: bool,
    desc: u64,
    driver: u64,
    device: u64,
    avail: u16,
    used: u16,
}

/// One device, as its registers show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedDevice {
    device_id: u16,
    features: u64,
    config_vector: u16,
    queues: Vec<SavedQueue>,
}

impl From<&DeviceState> for SavedDevice {
    fn from(state: &DeviceState) -> Self {
        let queue = |queue: &QueueSaved| SavedQueue {
            index: queue.index,
            size: queue.size,
            vector: queue.vector,
            enabled: queue.enabled,
            desc: queue.desc,
            driver: queue.driver,
            device: queue.device,
            avail: queue.avail,
            used: queue.used,
        };
        Self {
            device_id: state.device_id,
            features: state.features,
            config_vector: state.config_vector,
            queues: state.queues.iter().map(queue).collect(),
        }
    }
}

impl From<&SavedDevice> for DeviceState {
    fn from(saved: &SavedDevice) -> Self {
        let queue = |queue: &SavedQueue| QueueSaved {
            index: queue.index,
            size: queue.size,
            vector: queue.vector,
            enabled: queue.enabled,
            desc: queue.desc,
            driver: queue.driver,
            device: queue.device,
            avail: queue.avail,
            used: queue.used,
        };
        Self {
            device_id: saved.device_id,
            features: saved.features,
            config_vector: saved.config_vector,
            queues: saved.queues.iter().map(queue).collect(),
        }
    }
}

/// State as bytes.
///
/// # Errors
/// [`VmError::BadState`]; nothing of ours causes it.
pub fn encode<T: Serialize>(what: &str, state: &T) -> Result<Vec<u8>, VmError> {
    serde_json::to_vec(state).map_err(bad(what))
}

/// State from bytes of any origin.
///
/// # Errors
/// [`VmError::BadState`] says where they stop making sense.
pub fn decode<T: for<'de> Deserialize<'de>>(what: &str, bytes: &[u8]) -> Result<T, VmError> {
    serde_json::from_slice(bytes).map_err(bad(what))
}

fn bad(what: &str) -> impl FnOnce(serde_json::Error) -> VmError {
    let what = what.to_owned();
    move |error| VmError::BadState {
        what,
        why: error.to_string(),
    }
}
