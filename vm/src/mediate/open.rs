//! Devices to stand in front of, as people name them.

use super::OWN_MEMORY;
use crate::target::{Target, TargetError};
use driver::bus::RelayBus;
use driver::bus::vfio::VfioBus;
use driver::bus::vfio_user::VfioUserBus;
use std::sync::Arc;

/// Where a mediator's own memory is behind a real IOMMU: in the upper half of what each of them
/// translates. A guest's map that meets it is refused.
const OWN_MEMORY_VFIO: u64 = 1 << 38;

/// Takes hold of a device for a mediator, whose own memory lies out of every guest's way.
///
/// # Errors
///
/// [`TargetError`].
pub fn open(target: &Target) -> Result<Arc<dyn RelayBus>, TargetError> {
    match target {
        Target::VfioUser(path) => match VfioUserBus::connect_with(path, OWN_MEMORY) {
            Ok(bus) => Ok(bus),
            Err(source) => Err(TargetError::VfioUser {
                path: path.clone(),
                source,
            }),
        },
        Target::Vfio(address) => Ok(VfioBus::open_with(*address, OWN_MEMORY_VFIO)?),
        Target::Emulated => Err(TargetError::Emulated(
            "it has no memory but its own; vfio-user:PATH or vfio:0000:03:00.0 was expected"
                .to_owned(),
        )),
    }
}
