//! The table of requests in flight, which outlives a backend that dies.

use super::{Frontend, VhostUserError};
use crate::memory::DmaMemory;
use std::fs::File;
use std::os::fd::AsRawFd;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserInflight, VhostUserProtocolFeatures};

/// Largest table that is accepted from a backend, in bytes.
const TABLE_MAX: u64 = 64 << 20;

/// Memory in which backends keep what they have taken from the rings and not given back. What it
/// holds is theirs; the frontend keeps it and hands it on.
#[derive(Debug)]
pub struct InflightTable {
    file: File,
    /// Where in the file it begins.
    offset: u64,
    queues: u16,
    size: u16,
    window: DmaMemory,
}

impl InflightTable {
    /// The table's bytes, for a look at it.
    pub fn window(&self) -> &DmaMemory {
        &self.window
    }
}

impl Frontend {
    /// Asks for a table for `queues` queues of `size` entries and makes it the backend's. To be
    /// called before the first queue starts.
    ///
    /// # Errors
    /// [`VhostUserError::ProtocolMissing`]; [`VhostUserError::Nonsense`] for a table that has no
    /// size or is not in the file that came; or what the backend says.
    pub fn create_inflight(
        &mut self,
        queues: u16,
        size: u16,
    ) -> Result<InflightTable, VhostUserError> {
        self.speaks(VhostUserProtocolFeatures::INFLIGHT_SHMFD, "INFLIGHT_SHMFD")?;
        let wanted = VhostUserInflight::new(0, 0, queues, size);
        let (shape, file) = self.ask("GET_INFLIGHT_FD", |link| link.get_inflight_fd(&wanted))?;
        let nonsense = |what: String| VhostUserError::Nonsense {
            request: "GET_INFLIGHT_FD",
            what,
        };
        let (len, offset) = (shape.mmap_size, shape.mmap_offset);
        if len == 0 || len > TABLE_MAX {
            let what = format!("a table of {len} bytes, where at most {TABLE_MAX} are expected");
            return Err(nonsense(what));
        }
        let window = DmaMemory::from_file(&file, offset, len, 0)
            .map_err(|error| nonsense(format!("a table that cannot be mapped: {error}")))?;
        let table = InflightTable {
            file,
            offset,
            queues: shape.num_queues,
            size: shape.queue_size,
            window,
        };
        self.give_inflight(&table)?;
        Ok(table)
    }

    /// Gives a table to a backend, which then finishes what its predecessor had taken when the
    /// queues start. To be called before the first queue starts.
    ///
    /// # Errors
    /// As [`create_inflight`](Self::create_inflight).
    pub fn give_inflight(&mut self, table: &InflightTable) -> Result<(), VhostUserError> {
        self.speaks(VhostUserProtocolFeatures::INFLIGHT_SHMFD, "INFLIGHT_SHMFD")?;
        let shape =
            VhostUserInflight::new(table.window.len(), table.offset, table.queues, table.size);
        let fd = table.file.as_raw_fd();
        self.ask("SET_INFLIGHT_FD", |link| link.set_inflight_fd(&shape, fd))?;
        self.barrier()
    }
}
