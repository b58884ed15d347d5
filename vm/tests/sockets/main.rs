//! Functions behind vfio-user sockets, driven by the driver crate without any VM.

mod harness;
mod life;
mod mediate;
mod storms;
