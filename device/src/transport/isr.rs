//! The ISR status byte (VIRTIO 1.4, "ISR status capability").

use spec::pci::isr;

/// Why the device wants attention, until the driver reads it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Isr(u8);

impl Isr {
    /// A queue has used buffers. To be called before the notification is sent (PC-13).
    pub(crate) fn queue(&mut self) {
        self.0 |= isr::QUEUE;
    }
    /// The configuration changed. To be called before the notification is sent (PC-13).
    pub(crate) fn config(&mut self) {
        self.0 |= isr::CONFIG;
    }
    /// The driver reads the byte, which clears it.
    pub(crate) fn take(&mut self) -> u8 {
        std::mem::take(&mut self.0)
    }
    /// Whether an interrupt is asserted, as far as this byte says.
    pub(crate) fn is_set(self) -> bool {
        self.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_clears() {
        let mut isr = Isr::default();
        isr.queue();
        isr.config();
        isr.queue();
        assert!(isr.is_set());
        assert_eq!((isr.take(), isr.take()), (3, 0));
        assert!(!isr.is_set());
        isr.config();
        assert_eq!(isr.take(), 2);
    }
}
