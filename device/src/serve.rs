//! The front doors: ways for another process to reach a function. No virtio logic in them.

pub mod vfio_user;
