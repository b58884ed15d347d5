//! Doorbells (VIRTIO 1.4, "Notification capability" and "Available Buffer Notifications").

use super::registers::NOTIFY_MULTIPLIER;
use super::{low16, number};

/// The queue that a write of `data` at `position` of the notify region notifies.
///
/// Without NOTIFICATION_DATA the driver writes the queue's index, 16 bits; with it 32 bits, the
/// index below and the next available position above, which is a hint that this device does not
/// need. Project rules: any other width is ignored, and so is an index that is not the one of the
/// doorbell it was written to. Whether there is such a queue is for the caller to find out.
pub(crate) fn notified(position: usize, data: &[u8], notification_data: bool) -> Option<u16> {
    let width = if notification_data { 4 } else { 2 };
    if data.len() != width {
        return None;
    }
    let queue = low16(number(data)?);
    let doorbell = u64::from(queue) * u64::from(NOTIFY_MULTIPLIER);
    (u64::try_from(position) == Ok(doorbell)).then_some(queue)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_notifications_are_sixteen_bits() {
        assert_eq!(notified(0, &[0, 0], false), Some(0));
        assert_eq!(notified(12, &[3, 0], false), Some(3));
        assert_eq!(notified(12, &[3, 0, 0, 0], false), None, "too wide");
        assert_eq!(notified(12, &[3], false), None, "too narrow");
        assert_eq!(
            notified(12, &[2, 0], false),
            None,
            "another queue's doorbell"
        );
        assert_eq!(notified(13, &[3, 0], false), None, "beside the doorbell");
    }

    #[test]
    fn notifications_with_data_are_thirty_two_bits() {
        assert_eq!(notified(4, &[1, 0, 0xff, 0x7f], true), Some(1));
        assert_eq!(notified(4, &[1, 0], true), None);
        assert_eq!(notified(4, &[1, 0, 0, 0, 0, 0, 0, 0], true), None);
        assert_eq!(notified(0, &[0xff, 0xff, 0, 0], true), None);
    }
}
