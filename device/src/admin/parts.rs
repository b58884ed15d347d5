//! Members' parts and modes (VIRTIO 1.4, "Device parts").

use super::command::take;
use super::{Admin, Command, Refusal, Reply, Target};
use crate::function::{Part, PartsError};
use spec::admin::resource::{Header, PARTS_GET, PARTS_SET};
use spec::admin::{MODE_STOPPED, qualifier, status};
use spec::parts::{
    GET_ALL, GET_SELECTED, METADATA_COUNT, METADATA_LIST, METADATA_SIZE, Metadata, PartHeader,
    Wanted,
};
use zerocopy::{FromBytes, IntoBytes};

/// Room for the result is missing. The text of METADATA_GET has this against the rule that no
/// command fails for the length of its buffers (AQ-4); the text about the one command wins.
const NO_ROOM: Refusal = Refusal::Status(status::ENOMEM, qualifier::NORESOURCE);

fn bytes_of(parts: &[Part]) -> usize {
    let each = |part: &Part| size_of::<PartHeader>() + part.value.len();
    parts.iter().map(each).sum()
}

fn number(count: usize) -> Metadata {
    Metadata {
        value: u32::try_from(count).unwrap_or(u32::MAX).into(),
        reserved: 0.into(),
    }
}

impl Admin {
    /// The object that the command names is there, and for this purpose.
    fn uses(&self, command: &Command<'_>, header: &Header, purpose: u8) -> Result<(), Refusal> {
        if self.object(command, header)? == purpose {
            Ok(())
        } else {
            Err(Refusal::FIELD)
        }
    }

    pub(super) fn parts_metadata(
        &self,
        command: &Command<'_>,
        target: &Target<'_>,
    ) -> Result<Reply, Refusal> {
        let (header, data) = take::<Header>(command.data);
        self.uses(command, &header, PARTS_GET)?;
        let (wanted, _) = take::<Wanted>(data);
        let parts = target.core.parts();
        let mut result = match wanted.what {
            // What is answered in whole words has room for the padding.
            METADATA_SIZE => number(bytes_of(&parts).next_multiple_of(8)),
            METADATA_COUNT | METADATA_LIST => number(parts.len()),
            _ => return Err(Refusal::FIELD),
        }
        .as_bytes()
        .to_vec();
        if wanted.what == METADATA_LIST {
            for part in &parts {
                result.extend_from_slice(part.header.as_bytes());
            }
        }
        if result.len() > command.room {
            return Err(NO_ROOM);
        }
        Ok(Reply::with(result))
    }

    pub(super) fn parts_get(
        &self,
        command: &Command<'_>,
        target: &Target<'_>,
    ) -> Result<Reply, Refusal> {
        let (header, data) = take::<Header>(command.data);
        self.uses(command, &header, PARTS_GET)?;
        let (wanted, mut selected) = take::<Wanted>(data);
        let mut parts = target.core.parts();
        match wanted.what {
            GET_ALL => {}
            GET_SELECTED => {
                let mut chosen = Vec::new();
                while let Ok((header, rest)) = PartHeader::read_from_prefix(selected) {
                    chosen.push((header.part_type, header.selector));
                    selected = rest;
                }
                // D-13: what does not exist is skipped. DP-2: in the table's order, not in that of
                // asking.
                parts
                    .retain(|part| chosen.contains(&(part.header.part_type, part.header.selector)));
            }
            _ => return Err(Refusal::FIELD),
        }
        let mut result = Vec::with_capacity(bytes_of(&parts));
        for part in &parts {
            result.extend_from_slice(part.header.as_bytes());
            result.extend_from_slice(&part.value);
        }
        Ok(Reply::with(result))
    }

    pub(super) fn parts_set(
        &self,
        command: &Command<'_>,
        target: &Target<'_>,
    ) -> Result<Reply, Refusal> {
        let (header, parts) = take::<Header>(command.data);
        self.uses(command, &header, PARTS_SET)?;
        match target.core.set_parts(parts) {
            Ok(true) => Ok(Reply::default()),
            Ok(false) => Err(Refusal::Wait),
            Err(error) => {
                tracing::warn!(member = command.member, %error, "parts are not taken");
                Err(match error {
                    PartsError::NotStopped => {
                        Refusal::Status(status::EBUSY, qualifier::INVALID_COMMAND)
                    }
                    PartsError::Bad { .. } | PartsError::Broken(_) => Refusal::FIELD,
                })
            }
        }
    }

    pub(super) fn mode_set(command: &Command<'_>, target: &Target<'_>) -> Result<Reply, Refusal> {
        let (flags, _) = take::<u8>(command.data);
        if flags & !MODE_STOPPED != 0 {
            return Err(Refusal::FIELD);
        }
        if target.core.set_stopped(flags & MODE_STOPPED != 0) {
            Ok(Reply::default())
        } else {
            Err(Refusal::Wait)
        }
    }
}
