//! Capabilities (VIRTIO 1.4, "Device and driver capabilities"): the one there is says how many
//! device parts objects there can be.

use super::command::take;
use super::{Admin, Command, Refusal, Reply, list};
use spec::admin::capability::{DEV_PARTS, DevParts, Selector};
use spec::admin::{qualifier, status};
use std::collections::BTreeSet;
use zerocopy::IntoBytes;

/// What the device can have. 8 bits each, and a member may want both.
const LIMITS: DevParts = DevParts {
    get_limit: 255,
    set_limit: 255,
};

impl Admin {
    pub(super) fn cap_id_list(&self) -> Reply {
        Reply::with(list(&BTreeSet::from([DEV_PARTS])))
    }

    pub(super) fn device_cap_get(&self, command: &Command<'_>) -> Result<Reply, Refusal> {
        known(command)?;
        Ok(Reply::with(LIMITS.as_bytes().to_vec()))
    }

    pub(super) fn driver_cap_set(&self, command: &Command<'_>) -> Result<Reply, Refusal> {
        let data = known(command)?;
        let (limits, _) = take::<DevParts>(data);
        // CP-3: nothing is above LIMITS, which are the largest there are. CP-5: not below what
        // exists.
        let mut state = self.state();
        if !state.objects.fit(limits) {
            return Err(Refusal::Status(status::EBUSY, qualifier::INVALID_COMMAND));
        }
        state.limits = limits;
        Ok(Reply::default())
    }
}

/// The data behind the selector of a capability that exists (CP-6).
fn known<'a>(command: &Command<'a>) -> Result<&'a [u8], Refusal> {
    let (selector, data) = take::<Selector>(command.data);
    if selector.id.get() == DEV_PARTS {
        Ok(data)
    } else {
        Err(Refusal::Status(status::ENXIO, qualifier::INVALID_FIELD))
    }
}
