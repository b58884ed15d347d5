//! Suspending and resuming a device (VIRTIO 1.4, "Device Suspend").

use crate::error::DriverError;
use crate::transport::Transport;
use spec::features::Features;
use spec::status::DeviceStatus;
use std::time::Duration;

/// Both requests write the same byte: bits are never cleared by the driver, and the device decides
/// by the state it is in.
fn request(transport: &Transport, status: DeviceStatus) -> Result<(), DriverError> {
    transport.write_status(status | DeviceStatus::SUSPEND | DeviceStatus::DRIVER_OK)
}

fn failed(status: DeviceStatus, doing: &'static str) -> Result<(), DriverError> {
    if status.contains(DeviceStatus::DEVICE_NEEDS_RESET) {
        return Err(DriverError::NeedsReset { doing, status });
    }
    Ok(())
}

/// True if the device presents SUSPEND and not DRIVER_OK.
pub fn is_suspended(status: DeviceStatus) -> bool {
    let both = DeviceStatus::SUSPEND | DeviceStatus::DRIVER_OK;
    status & both == DeviceStatus::SUSPEND
}

fn is_running(status: DeviceStatus) -> bool {
    let both = DeviceStatus::SUSPEND | DeviceStatus::DRIVER_OK;
    status & both == DeviceStatus::DRIVER_OK
}

/// Suspends the device and waits until it presents SUSPEND without DRIVER_OK. A device that is
/// suspended already stays so.
///
/// The caller makes no buffers available and sends no notifications from here until
/// [`resume`] has returned.
///
/// # Errors
/// [`DriverError::NotNegotiated`] without SUSPEND; [`DriverError::WrongStatus`] before DRIVER_OK;
/// [`DriverError::NeedsReset`]; [`DriverError::Timeout`]: the device may yet suspend, so reset it or
/// call again; or what the bus says.
pub fn suspend(transport: &Transport, timeout: Duration) -> Result<(), DriverError> {
    transport.require(Features::SUSPEND)?;
    let status = transport.status()?;
    failed(status, "suspends")?;
    if is_suspended(status) {
        return Ok(());
    }
    if !status.contains(DeviceStatus::DRIVER_OK) {
        return Err(DriverError::WrongStatus {
            operation: "suspend",
            status,
        });
    }
    request(transport, status)?;
    transport.wait(timeout, "suspended", |status| {
        failed(status, "suspends")?;
        Ok(is_suspended(status))
    })
}

/// Resumes a suspended device and waits until it presents DRIVER_OK without SUSPEND. A device that
/// is running already stays so.
///
/// # Errors
/// As [`suspend`]; [`DriverError::WrongStatus`] if the device is neither suspended nor running.
pub fn resume(transport: &Transport, timeout: Duration) -> Result<(), DriverError> {
    transport.require(Features::SUSPEND)?;
    let status = transport.status()?;
    failed(status, "resumes")?;
    if is_running(status) {
        return Ok(());
    }
    if !is_suspended(status) {
        return Err(DriverError::WrongStatus {
            operation: "resume",
            status,
        });
    }
    request(transport, status)?;
    transport.wait(timeout, "resumed", |status| {
        failed(status, "resumes")?;
        Ok(is_running(status))
    })
}
