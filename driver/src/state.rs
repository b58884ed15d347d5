//! A device's state as its registers show it, to be put into another device.
//!
//! **Project rule** (queue state); the rest is what any driver programs.

use crate::error::DriverError;
use crate::suspend::is_suspended;
use crate::transport::{QueueSetup, Transport};
use spec::features::Features;
use spec::pci::NO_VECTOR;
use spec::queue_state::QueueState;

/// One queue. Plain data, possibly from outside: [`restore`] judges it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueSaved {
    /// Queue number.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// MSI-X vector, [`NO_VECTOR`] for none.
    pub vector: u16,
    /// True if the queue was enabled; the remaining fields count only then.
    pub enabled: bool,
    /// Descriptor area (IOVA).
    pub desc: u64,
    /// Driver area (IOVA).
    pub driver: u64,
    /// Device area (IOVA).
    pub device: u64,
    /// Available state, see [`QueueState`].
    pub avail: u16,
    /// Used state, see [`QueueState`].
    pub used: u16,
}

/// A device. Plain data, possibly from outside: [`restore`] judges it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// Virtio device id.
    pub device_id: u16,
    /// Negotiated features.
    pub features: u64,
    /// MSI-X vector for configuration changes, [`NO_VECTOR`] for none.
    pub config_vector: u16,
    /// The queues in ascending order of number; a queue that is missing was not enabled.
    pub queues: Vec<QueueSaved>,
}

/// Reads the state of a suspended device.
///
/// # Errors
/// [`DriverError::NotNegotiated`] without SUSPEND and QUEUE_STATE, [`DriverError::WrongStatus`] if
/// the device is not suspended, or what the bus says.
pub fn save(transport: &Transport) -> Result<DeviceState, DriverError> {
    transport.require(Features::SUSPEND)?;
    transport.require(Features::QUEUE_STATE)?;
    let status = transport.status()?;
    if !is_suspended(status) {
        return Err(DriverError::WrongStatus {
            operation: "save the state",
            status,
        });
    }
    let mut queues = Vec::new();
    for index in 0..transport.num_queues()? {
        match transport.queue(index) {
            Ok(queue) => queues.push(queue),
            // Legal: a device may leave numbers out.
            Err(DriverError::NoSuchQueue(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(DeviceState {
        device_id: transport.device_id(),
        features: transport.features().bits(),
        config_vector: transport.config_msix_vector()?,
        queues,
    })
}

/// Initialises a device with a saved state, up to but not including DRIVER_OK: whoever wants it to
/// run calls [`Transport::driver_ok`].
///
/// Everything is judged before the first queue is touched.
///
/// # Errors
/// [`DriverError::BadState`] names the field that does not fit this device;
/// [`DriverError::FeaturesRefused`], or what the bus says. The device is to be reset then.
pub fn restore(transport: &Transport, state: &DeviceState) -> Result<(), DriverError> {
    let features = Features::from_bits_retain(state.features);
    if state.device_id != transport.device_id() {
        let why = format!("{}, this one is {}", state.device_id, transport.device_id());
        return Err(bad("device_id", why));
    }
    let needed = Features::VERSION_1 | Features::QUEUE_STATE;
    if !features.contains(needed) {
        return Err(bad("features", format!("{:?} missing", needed - features)));
    }
    let offered = transport.device_features()?;
    if !offered.contains(features) {
        let why = format!("{:?} not offered here", features - offered);
        return Err(bad("features", why));
    }
    transport.negotiate(features, features)?;
    let checked = check_queues(transport, state, features)?;
    if state.config_vector != NO_VECTOR {
        transport.set_config_msix_vector(state.config_vector)?;
    }
    for (index, setup, queue_state) in checked {
        transport.setup_queue(index, &setup, Some(queue_state))?;
    }
    Ok(())
}

fn bad(field: impl Into<String>, why: impl Into<String>) -> DriverError {
    DriverError::BadState {
        field: field.into(),
        why: why.into(),
    }
}

/// The enabled queues of a state, if all of them fit the device.
fn check_queues(
    transport: &Transport,
    state: &DeviceState,
    features: Features,
) -> Result<Vec<(u16, QueueSetup, QueueState)>, DriverError> {
    let packed = features.contains(Features::RING_PACKED);
    let present = transport.num_queues()?;
    if state.queues.len() > usize::from(present) {
        let why = format!("{} of them, this device has {present}", state.queues.len());
        return Err(bad("queues", why));
    }
    let mut checked = Vec::new();
    let mut next = 0;
    for queue in &state.queues {
        let index = queue.index;
        if index >= present {
            return Err(bad(format!("queue {index}"), format!("of {present}")));
        }
        if index < next {
            return Err(bad(format!("queue {index}"), "twice or out of order"));
        }
        // Below num_queues, so the sum fits.
        next = index.saturating_add(1);
        if !queue.enabled {
            continue;
        }
        let setup = QueueSetup {
            size: queue.size,
            vector: queue.vector,
            desc: queue.desc,
            driver: queue.driver,
            device: queue.device,
        };
        let max = transport.queue_max_size(index)?;
        setup
            .check(index, max, packed)
            .map_err(|error| bad(format!("queue {index}"), error.to_string()))?;
        let queue_state = QueueState {
            avail: queue.avail,
            used: queue.used,
        };
        check_position(index, queue.size, queue_state, packed)?;
        checked.push((index, setup, queue_state));
    }
    Ok(checked)
}

/// The positions must be ones that a queue of this size can have.
fn check_position(
    index: u16,
    size: u16,
    state: QueueState,
    packed: bool,
) -> Result<(), DriverError> {
    let fields = [("avail", state.avail), ("used", state.used)];
    if packed {
        for (field, value) in fields {
            if value & 0x7fff >= size {
                let why = format!("ring index {} of {size}", value & 0x7fff);
                return Err(bad(format!("queue {index} {field}"), why));
            }
        }
    } else if state.avail.wrapping_sub(state.used) > size {
        let why = format!(
            "{} buffers in flight of {size}",
            state.avail.wrapping_sub(state.used)
        );
        return Err(bad(format!("queue {index} avail"), why));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
