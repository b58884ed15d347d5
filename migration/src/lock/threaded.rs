//! A remote whose requests block: each remote's run in a thread of its own, in order.

use crate::lock::{Answer, Remote, RemoteError, Reply, Request};
use std::fmt;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread;

/// Makes a remote of a function that answers one request after another.
///
/// The thread ends when this is dropped and the request at hand is answered; nobody waits for it.
pub struct Threaded<C> {
    name: String,
    free_command: String,
    requests: Sender<(Request<C>, Reply)>,
}

impl<C: Send + 'static> Threaded<C> {
    /// Starts the thread. `free_command` is what a person types to free this remote.
    pub fn new(
        name: &str,
        free_command: &str,
        mut answer: impl FnMut(Request<C>) -> Result<Answer, RemoteError> + Send + 'static,
    ) -> io::Result<Self> {
        let (requests, incoming) = channel::<(Request<C>, Reply)>();
        let serve = move || {
            for (request, reply) in incoming {
                reply.send(answer(request));
            }
        };
        thread::Builder::new()
            .name(format!("remote {name}"))
            .spawn(serve)?;
        Ok(Self {
            name: name.to_owned(),
            free_command: free_command.to_owned(),
            requests,
        })
    }
}

impl<C: Send> Remote<C> for Threaded<C> {
    fn name(&self) -> &str {
        &self.name
    }

    fn send(&self, request: Request<C>, reply: Reply) {
        // The thread is gone only if it panicked; what is dropped then answers for itself.
        let _ = self.requests.send((request, reply));
    }

    fn free_command(&self) -> String {
        self.free_command.clone()
    }
}

impl<C> fmt::Debug for Threaded<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threaded")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
