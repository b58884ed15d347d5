//! The served disk from a frontend's side. Numbers are typed again from the vhost-user protocol and
//! from virtio. The time limits only turn a hang into a failure.

mod bed;
mod hostile;
mod life;
mod log;
mod memory;
mod packed;
