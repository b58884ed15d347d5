//! Runs started queues as tasks on a bounded pool of workers.

use crate::dma::Dma;
use crate::queue::QueueConfig;
use crate::virtio::{QueueError, VirtioDevice};
use spec::queue_state::QueueState;
use std::fmt::Debug;
use std::sync::Arc;

/// What workers report. Called on a worker, or on the caller of [`Engine::stop`] for an idle queue;
/// no engine lock is held during a call.
pub trait EngineEvents: Send + Sync + Debug {
    /// Queue `index` has stopped: nothing of it is in flight, all marks are set, and its last
    /// interrupt has been asked for. This is where it stood.
    fn queue_stopped(&self, index: u16, state: QueueState);
    /// Queue `index` has used buffers the driver is to be told about.
    fn queue_used(&self, index: u16);
    /// Queue `index` is broken and will do no more work (it still answers `stop`).
    fn queue_broken(&self, index: u16, error: QueueError);
}

/// The queues of one function.
#[derive(Debug)]
pub struct Engine {}

impl Engine {
    /// An engine for `device` on the process-wide pool, with no queue started.
    pub fn new(_device: Arc<dyn VirtioDevice>, _dma: Arc<Dma>, _events: Arc<dyn EngineEvents>) -> Self {
        unimplemented!()
    }
    /// Validates the configuration and starts the queue; it is scheduled once at once, in case
    /// buffers are already available.
    pub fn start(&self, _index: u16, _config: QueueConfig) -> Result<(), QueueError> {
        unimplemented!()
    }
    /// The driver notified the queue. Unknown or stopped queues are ignored.
    pub fn kick(&self, _index: u16) {
        unimplemented!()
    }
    /// Asks a queue to stop: it pops no more, finishes what it popped, then `queue_stopped` is
    /// called exactly once. Never waits. False (and no call) if the queue is not started.
    pub fn stop(&self, _index: u16) -> bool {
        unimplemented!()
    }
    /// Where a queue stands now; a snapshot, exact once it is stopped. `None` if not started.
    pub fn state(&self, _index: u16) -> Option<QueueState> {
        unimplemented!()
    }
}
