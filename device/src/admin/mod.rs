//! The administration virtqueues of a function: group administration commands about itself and
//! about the functions it owns (VIRTIO 1.4, "Device groups").
//!
//! A command is carried out by [`Admin::execute`], on the worker that runs its queue. One that has
//! to wait for a member does not hold the worker: it stays in its queue, in front of those that come
//! after it, and is looked at again when the member has moved (see `queue.rs`). So a command is
//! either carried out as a whole or has done nothing that doing it again does not do.
//!
//! Locks: `state` is not held while a member is stopped, set or reset. Of the owner's own locks none
//! but its door is held when a member's are taken, and never the other way round.

mod capabilities;
mod carrier;
mod command;
mod parts;
mod queue;
mod records;
mod resources;
#[cfg(test)]
mod tests;

pub(crate) use carrier::carry;
use command::{Command, Refusal, Reply, list, read_list};

use crate::dma::Dma;
use crate::function::PciFunction;
use crate::transport::caps::Vfs;
use records::Recording;
use resources::Objects;
use spec::admin::capability::DevParts;
use spec::admin::{group, opcode, qualifier, status};
use spec::pci::DEVICE_ID_BASE;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// The function itself, without its public face.
type Core = crate::function::Core;

/// Administration queues, and what their commands can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// Number of queues, at most 8. Default: 0, which is a function without administration.
    pub queues: u16,
    /// Records of written pages that are surely held for each recording. Default: 262144.
    pub max_records: u32,
    /// Most ranges of a recording. Default: 255.
    pub max_ranges: u16,
    /// Whether members' parts can be had and set, and members be stopped. Default: yes.
    pub parts: bool,
    /// RESOURCE_OBJ_MODIFY is 0x0c and QUERY 0x0b, as in the standard's table, instead of the other
    /// way round, as in its prose (D-1). Default: the prose.
    pub table_opcodes: bool,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            queues: 0,
            max_records: 1 << 18,
            max_ranges: 255,
            parts: true,
            table_opcodes: false,
        }
    }
}

/// An answer to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AdminAnswer {
    /// The command, one of [`spec::admin::opcode`] or of [`spec::records`]; `None` for all that are
    /// neither, so that no driver makes a list of answers long.
    pub opcode: Option<u16>,
    /// One of [`spec::admin::status`].
    pub status: u16,
    /// One of [`spec::admin::qualifier`].
    pub qualifier: u16,
}

/// Why a function cannot own others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OwnerError {
    /// None, or too many.
    #[error("an owner of {0} members; 1 to 256 expected")]
    Members(usize),
    /// The member of this number has an owner already.
    #[error("member {0} has an owner already")]
    Owned(u16),
}

/// The commands' side of a function.
#[derive(Debug)]
pub(crate) struct Admin {
    config: AdminConfig,
    /// Index of the first administration queue.
    first: u16,
    /// The function that the queues belong to.
    owner: OnceLock<Weak<Core>>,
    own_dma: Arc<Dma>,
    members: Vec<Arc<PciFunction>>,
    /// Members that there were when it was last looked.
    there: AtomicU16,
    /// Queues whose first command waits for a member.
    waits: Vec<AtomicBool>,
    /// What was answered, since the function was made.
    answered: Mutex<BTreeMap<AdminAnswer, u64>>,
    state: Mutex<State>,
}

/// What a reset forgets.
#[derive(Debug, Default)]
struct State {
    /// The commands that the driver uses, by group type; without an entry only the two of lists.
    used: BTreeMap<u16, BTreeSet<u16>>,
    /// What the driver set; without, limits are 0 (CP-7).
    limits: DevParts,
    objects: Objects,
    recordings: BTreeMap<(u16, u64), Recording>,
}

/// Whom a command is about.
pub(super) struct Target<'a> {
    core: Arc<Core>,
    dma: &'a Arc<Dma>,
}

const QUEUES_MAX: u16 = 8;

impl Admin {
    /// Entries of an administration queue.
    pub(crate) const QUEUE_SIZE: u16 = 64;
    /// Most members of an owner.
    pub(crate) const MEMBERS_MAX: usize = 256;

    /// The administration of a function whose device type has `first` queues; none without queues.
    pub(crate) fn new(
        config: AdminConfig,
        first: u16,
        members: Vec<Arc<PciFunction>>,
        own_dma: &Arc<Dma>,
    ) -> Option<Arc<Self>> {
        let queues = config.queues.min(QUEUES_MAX);
        if queues == 0 && members.is_empty() {
            return None;
        }
        let first = first.min(crate::transport::registers::MAX_QUEUES - queues);
        Some(Arc::new(Self {
            config: AdminConfig { queues, ..config },
            first,
            owner: OnceLock::new(),
            own_dma: Arc::clone(own_dma),
            members,
            there: AtomicU16::new(0),
            waits: (0..queues).map(|_| AtomicBool::new(false)).collect(),
            answered: Mutex::default(),
            state: Mutex::default(),
        }))
    }

    /// Tells it whose it is.
    pub(crate) fn belongs_to(&self, core: &Arc<Core>) {
        // It is told once, by whoever made both.
        let _first = self.owner.set(Arc::downgrade(core));
    }

    pub(crate) fn queues(&self) -> u16 {
        self.config.queues
    }

    /// What the SR-IOV capability is to say; none without members.
    pub(crate) fn vfs(&self) -> Option<Vfs> {
        let first = self.members.first()?;
        Some(Vfs {
            total: u16::try_from(self.members.len()).unwrap_or(u16::MAX),
            device_id: DEVICE_ID_BASE.saturating_add(first.device_id()),
        })
    }

    /// How often each answer was given.
    pub(crate) fn answered(&self) -> Vec<(AdminAnswer, u64)> {
        let answered = self.answered.lock();
        let answered = answered.unwrap_or_else(PoisonError::into_inner);
        answered
            .iter()
            .map(|(what, count)| (*what, *count))
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The owner is reset and none of its queues runs: everything its driver did is undone, but the
    /// mode of members, which no status shows to whoever comes next.
    pub(crate) fn reset(&self) {
        let before = std::mem::take(&mut *self.state());
        for ((group_type, member), recording) in before.recordings {
            // A member that is gone records no more, either.
            if let Some(dma) = self.dma(group_type, member) {
                recording.end(dma);
            }
        }
        for waits in &self.waits {
            waits.store(false, Ordering::Release);
        }
    }

    /// As many virtual functions are there now; those that were and are not any more are reset.
    pub(crate) fn follow_vfs(&self, now: u16) {
        let before = self.there.swap(now, Ordering::AcqRel);
        let gone = usize::from(now)..usize::from(before);
        for member in self.members.get(gone).unwrap_or_default() {
            member.reset();
        }
    }

    /// A member stopped, or a reset ended: commands that waited are looked at again.
    pub(crate) fn member_moved(&self) {
        for (queue, waits) in (self.first..).zip(&self.waits) {
            if waits.load(Ordering::Acquire)
                && let Some(owner) = self.owner.get().and_then(Weak::upgrade)
            {
                owner.wake(queue);
            }
        }
    }

    fn dma(&self, group_type: u16, member: u64) -> Option<&Arc<Dma>> {
        if group_type == group::SELF {
            return Some(&self.own_dma);
        }
        let index = usize::try_from(member.checked_sub(1)?).ok()?;
        Some(self.members.get(index)?.dma())
    }

    /// Opcodes that the device supports for a group type; `None` if there is no such group (AC-12).
    fn supported(&self, group_type: u16) -> Option<BTreeSet<u16>> {
        let mut opcodes = BTreeSet::from([opcode::LIST_QUERY, opcode::LIST_USE]);
        opcodes.extend(spec::records::CAP_QUERY..=spec::records::READ);
        match group_type {
            group::SELF => {
                let parts = self.config.parts && !self.members.is_empty();
                let capabilities = opcode::CAP_ID_LIST_QUERY..=opcode::DRIVER_CAP_SET;
                opcodes.extend(capabilities.filter(|_| parts));
            }
            group::SR_IOV if self.existing() != 0 => {
                let parts = opcode::RESOURCE_OBJ_CREATE..=opcode::DEV_MODE_SET;
                opcodes.extend(parts.filter(|_| self.config.parts));
            }
            _ => return None,
        }
        Some(opcodes)
    }

    /// Virtual functions that there are.
    fn existing(&self) -> u16 {
        let owner = self.owner.get().and_then(Weak::upgrade);
        let vfs = owner.map_or(0, |owner| owner.vfs());
        vfs.min(u16::try_from(self.members.len()).unwrap_or(u16::MAX))
    }

    /// Carries a command out.
    fn execute(&self, command: &Command<'_>) -> Result<Reply, Refusal> {
        // AC-1: group, then opcode, then member.
        let supported = self
            .supported(command.group_type)
            .ok_or(Refusal::einval(qualifier::INVALID_GROUP))?;
        let used = match self.state().used.get(&command.group_type) {
            Some(used) => used.contains(&command.opcode),
            // AC-7.
            None => command.opcode <= opcode::LIST_USE,
        };
        if !used || !supported.contains(&command.opcode) {
            return Err(Refusal::einval(qualifier::INVALID_OPCODE));
        }
        match command.opcode {
            // D-9: the lists are about no member, whatever the SR-IOV rule says.
            opcode::LIST_QUERY => Ok(Reply::with(list(&supported))),
            opcode::LIST_USE => self.list_use(command, &supported),
            _ => self.about_member(command),
        }
    }

    fn list_use(&self, command: &Command<'_>, supported: &BTreeSet<u16>) -> Result<Reply, Refusal> {
        let wanted = read_list(command.data);
        let wanted = wanted.filter(|wanted| wanted.is_subset(supported));
        let wanted = wanted.ok_or(Refusal::einval(qualifier::INVALID_FIELD))?;
        self.state().used.insert(command.group_type, wanted);
        Ok(Reply::default())
    }

    fn about_member(&self, command: &Command<'_>) -> Result<Reply, Refusal> {
        use spec::records as rec;
        let target = self.target(command)?;
        let (modify, query) = if self.config.table_opcodes {
            (opcode::RESOURCE_OBJ_QUERY, opcode::RESOURCE_OBJ_MODIFY)
        } else {
            (opcode::RESOURCE_OBJ_MODIFY, opcode::RESOURCE_OBJ_QUERY)
        };
        match command.opcode {
            opcode::CAP_ID_LIST_QUERY => Ok(self.cap_id_list()),
            opcode::DEVICE_CAP_GET => self.device_cap_get(command),
            opcode::DRIVER_CAP_SET => self.driver_cap_set(command),
            opcode::RESOURCE_OBJ_CREATE => self.create(command),
            code if code == modify => self.modify(command),
            code if code == query => self.query(command),
            opcode::RESOURCE_OBJ_DESTROY => self.destroy(command),
            opcode::DEV_PARTS_METADATA_GET => self.parts_metadata(command, &target),
            opcode::DEV_PARTS_GET => self.parts_get(command, &target),
            opcode::DEV_PARTS_SET => self.parts_set(command, &target),
            opcode::DEV_MODE_SET => Self::mode_set(command, &target),
            rec::CAP_QUERY => Ok(self.recording_limits()),
            rec::START => self.recording_start(command, &target),
            rec::STOP => self.recording_stop(command, &target),
            rec::READ => self.recording_read(command, &target),
            _ => Err(Refusal::einval(qualifier::INVALID_OPCODE)),
        }
    }

    fn target(&self, command: &Command<'_>) -> Result<Target<'_>, Refusal> {
        let none = Refusal::einval(qualifier::INVALID_MEMBER);
        if command.group_type == group::SELF {
            // The capability commands are about no member in particular.
            let unused = command.opcode < spec::records::CAP_QUERY;
            let core = self.owner.get().and_then(Weak::upgrade).ok_or(none)?;
            return if unused || command.member == 0 {
                let dma = &self.own_dma;
                Ok(Target { core, dma })
            } else {
                Err(none)
            };
        }
        let index = command.member.checked_sub(1).ok_or(none)?;
        if index >= u64::from(self.existing()) {
            return Err(none);
        }
        let index = usize::try_from(index).map_err(|_| none)?;
        let member = self.members.get(index).ok_or(none)?;
        let core = Arc::clone(&member.core);
        Ok(Target {
            core,
            dma: member.dma(),
        })
    }
}

/// Out of resources, nothing changed (AQ-8).
const NO_RESOURCE: Refusal = Refusal::Status(status::ENOMEM, qualifier::NORESOURCE);
