//! The front doors: ways for another process to reach a function. No virtio logic in them.

pub mod socket;
pub mod vfio_user;
pub mod vhost_user;
