//! A device's state between two devices: a stream as any guest's, which holds no memory.

use super::MediateError;
use crate::guest::{SavedDevice, decode, encode};
use driver::state::DeviceState;
use migration::DeviceRecord;
use migration::stream::{Context, SectionKind, devices};

/// The device's number in the stream: 0 is the guest's CPU, which stays.
const NUMBER: u32 = 1;
const DESCRIPTION: &[u8] = b"one device; its guest and its memory stay";

fn bad(why: impl ToString) -> MediateError {
    MediateError::Stream {
        why: why.to_string(),
    }
}

/// The state of the device `name` as a stream.
pub(super) fn pack(name: &str, state: &DeviceState) -> Result<Vec<u8>, MediateError> {
    let registers = encode("a device", &SavedDevice::from(state)).map_err(bad)?;
    let record = DeviceRecord {
        id: NUMBER,
        options: vec![("name".to_owned(), name.to_owned())],
        context: Context::of(SectionKind::Registers, registers),
    };
    devices::write(DESCRIPTION, &[record]).map_err(bad)
}

/// The state that a stream brings.
pub(super) fn unpack(stream: &[u8]) -> Result<DeviceState, MediateError> {
    let records = devices::read(stream).map_err(bad)?;
    let [record] = records.as_slice() else {
        return Err(bad(format!("expected one device, got {}", records.len())));
    };
    let registers = record.context.section(SectionKind::Registers);
    let registers = registers.ok_or_else(|| bad("expected a device's registers, got none"))?;
    let saved: SavedDevice = decode("a device", registers).map_err(bad)?;
    Ok(DeviceState::from(&saved))
}

#[cfg(test)]
mod tests {
    use super::*;
    use driver::state::QueueSaved;

    #[test]
    fn a_device_comes_back_and_a_damaged_one_is_refused() {
        let queue = QueueSaved {
            index: 1,
            size: 256,
            vector: 2,
            enabled: true,
            desc: 0x1000,
            driver: 0x2000,
            device: 0x3000,
            avail: 65535,
            used: 7,
        };
        let state = DeviceState {
            device_id: 2,
            features: 1 << 43 | 1 << 32,
            config_vector: 0,
            queues: vec![queue],
        };
        let stream = pack("vfio-user:/tmp/a.sock", &state).unwrap();
        assert_eq!(unpack(&stream).unwrap(), state);
        for cut in 0..stream.len() {
            let error = unpack(&stream[..cut]).unwrap_err();
            assert!(matches!(error, MediateError::Stream { .. }), "{cut}");
        }
        let none = devices::write(DESCRIPTION, &[]).unwrap();
        let error = unpack(&none).unwrap_err().to_string();
        assert!(error.contains("got 0"), "{error}");
    }
}
