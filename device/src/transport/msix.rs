//! MSI-X (PCI, "MSI-X Capability and Table Structure") and who is told through which vector.

use super::isr::Isr;
use super::overlay;
use super::registers::PBA_OFFSET;
use spec::pci::NO_VECTOR;
use std::fmt::Debug;
use std::sync::Arc;

/// Where interrupts go.
///
/// Called with the function's locks held: an implementation writes an eventfd or wakes a thread, and
/// never calls back into the function.
pub trait InterruptSink: Send + Sync + Debug {
    /// Raises MSI-X vector `vector`.
    fn signal(&self, vector: u16);
}

/// Who keeps the MSI-X table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MsixOwner {
    /// The function: masked vectors stay pending here, and nothing is sent while MSI-X is off.
    #[default]
    Function,
    /// The VMM (vfio-user): the sink gets every vector, and the VMM masks.
    Vmm,
}

/// Bytes of a table entry: address, upper address, data, vector control.
const ENTRY: usize = 16;
/// Bit 0 of vector control: the vector is masked.
const MASKED: u8 = 1;

/// The table and the pending bits.
#[derive(Debug)]
pub(crate) struct Msix {
    table: Vec<[u8; ENTRY]>,
    pending: Vec<bool>,
    enabled: bool,
    masked: bool,
    owner: MsixOwner,
    sink: Option<Arc<dyn InterruptSink>>,
    sent: u64,
}

impl Msix {
    fn new(vectors: u16) -> Self {
        let vectors = usize::from(vectors);
        let mut msix = Self {
            table: vec![[0; ENTRY]; vectors],
            pending: vec![false; vectors],
            enabled: false,
            masked: false,
            owner: MsixOwner::default(),
            sink: None,
            sent: 0,
        };
        msix.power_on();
        msix
    }

    /// Every vector masked, nothing pending, MSI-X off. The sink stays.
    fn power_on(&mut self) {
        for entry in &mut self.table {
            *entry = [0; ENTRY];
            entry[12] = MASKED;
        }
        self.pending.fill(false);
        self.enabled = false;
        self.masked = false;
    }

    fn is_masked(&self, vector: usize) -> bool {
        self.masked || self.table[vector][12] & MASKED != 0
    }

    /// Sends, or leaves the vector pending. NO_VECTOR sends nothing (PC-15).
    fn signal(&mut self, vector: u16) {
        let index = usize::from(vector);
        if index >= self.table.len() {
            return;
        }
        if self.owner == MsixOwner::Function {
            if !self.enabled {
                return;
            }
            if self.is_masked(index) {
                self.pending[index] = true;
                return;
            }
        }
        if let Some(sink) = &self.sink {
            sink.signal(vector);
            self.sent += 1;
        }
    }

    /// Sends what became unmasked.
    fn deliver(&mut self) {
        for vector in 0..u16::try_from(self.table.len()).unwrap_or(0) {
            let index = usize::from(vector);
            if self.pending[index] && self.enabled && !self.is_masked(index) {
                self.pending[index] = false;
                self.signal(vector);
            }
        }
    }

    /// Any part of BAR 1. Bytes that belong to nothing read 0.
    fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        for (i, entry) in self.table.iter().enumerate() {
            overlay(data, offset, entry, i * ENTRY);
        }
        // Whole 64-bit words, as PCI has it.
        let mut words = vec![0_u8; self.pending.len().div_ceil(64) * 8];
        for (i, _) in self
            .pending
            .iter()
            .enumerate()
            .filter(|(_, pending)| **pending)
        {
            words[i / 8] |= 1 << (i % 8);
        }
        overlay(data, offset, &words, PBA_OFFSET);
    }

    /// PCI allows aligned accesses of 4 and 8 bytes to the table; others are ignored, and so are
    /// writes to the pending bits.
    fn write(&mut self, offset: usize, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len()) {
            return;
        }
        let Some(entry) = self.table.get_mut(offset / ENTRY) else {
            return;
        };
        let at = offset % ENTRY;
        entry[at..at + data.len()].copy_from_slice(data);
        // Bits 0 and 1 of the address and all but bit 0 of the control are reserved.
        entry[0] &= !3;
        let masked = entry[12] & MASKED;
        entry[12..].copy_from_slice(&[masked, 0, 0, 0]);
        self.deliver();
    }
}

/// Everything by which the device calls for attention. Has its own lock in the function, so that
/// telling the driver of used buffers does not wait for register accesses.
#[derive(Debug)]
pub(crate) struct Interrupts {
    msix: Msix,
    isr: Isr,
    config: u16,
    queues: Vec<u16>,
}

impl Interrupts {
    /// One vector per queue and one for the configuration; nothing is mapped.
    pub(crate) fn new(queues: u16) -> Self {
        Self {
            msix: Msix::new(queues.saturating_add(1)),
            isr: Isr::default(),
            config: NO_VECTOR,
            queues: vec![NO_VECTOR; usize::from(queues)],
        }
    }
    /// Where interrupts go from now on. What is pending stays pending.
    pub(crate) fn connect(&mut self, sink: Arc<dyn InterruptSink>, owner: MsixOwner) {
        self.msix.sink = Some(sink);
        self.msix.owner = owner;
    }
    /// Interrupts handed to the sink so far.
    pub(crate) fn sent(&self) -> u64 {
        self.msix.sent
    }
    /// Device reset: events are unmapped (PC-14) and nothing is left to be told (RS-2).
    pub(crate) fn reset(&mut self) {
        self.isr = Isr::default();
        self.config = NO_VECTOR;
        self.queues.fill(NO_VECTOR);
        self.msix.pending.fill(false);
    }
    /// Function level reset: the table as well.
    pub(crate) fn power_on(&mut self) {
        self.reset();
        self.msix.power_on();
    }
    /// MSI-X message control was written.
    pub(crate) fn control(&mut self, enabled: bool, masked: bool) {
        self.msix.enabled = enabled;
        self.msix.masked = masked;
        self.msix.deliver();
    }
    /// Whether the INTx status bit is to be set: only while MSI-X is off (PC-13).
    pub(crate) fn intx(&self) -> bool {
        !self.msix.enabled && self.isr.is_set()
    }
    /// The driver reads ISR status.
    pub(crate) fn take_isr(&mut self) -> u8 {
        self.isr.take()
    }
    /// The configuration changed.
    pub(crate) fn notify_config(&mut self) {
        self.isr.config();
        self.msix.signal(self.config);
    }
    /// A queue has used buffers.
    pub(crate) fn notify_queue(&mut self, queue: u16) {
        if let Some(&vector) = self.queues.get(usize::from(queue)) {
            self.isr.queue();
            self.msix.signal(vector);
        }
    }
    /// The configuration's vector.
    pub(crate) fn config_vector(&self) -> u16 {
        self.config
    }
    /// Maps configuration changes; NO_VECTOR if there is no such vector (PC-14).
    pub(crate) fn map_config(&mut self, vector: u16) {
        self.config = self.existing(vector);
    }
    /// A queue's vector; NO_VECTOR if there is no such queue.
    pub(crate) fn queue_vector(&self, queue: u16) -> u16 {
        self.queues
            .get(usize::from(queue))
            .copied()
            .unwrap_or(NO_VECTOR)
    }
    /// Maps a queue; NO_VECTOR if there is no such vector (PC-14).
    pub(crate) fn map_queue(&mut self, queue: u16, vector: u16) {
        let vector = self.existing(vector);
        if let Some(slot) = self.queues.get_mut(usize::from(queue)) {
            *slot = vector;
        }
    }
    fn existing(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.msix.table.len() {
            vector
        } else {
            NO_VECTOR
        }
    }
    /// The table.
    pub(crate) fn table(&self) -> &[[u8; ENTRY]] {
        &self.msix.table
    }
    /// Takes another function's table, of as many vectors. Nothing is sent.
    pub(crate) fn restore(&mut self, table: &[u8], (enabled, masked): (bool, bool)) {
        for (entry, bytes) in self.msix.table.iter_mut().zip(table.as_chunks().0) {
            *entry = *bytes;
        }
        self.msix.enabled = enabled;
        self.msix.masked = masked;
    }
    /// A read of BAR 1.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        self.msix.read(offset, data);
    }
    /// A write to BAR 1.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        self.msix.write(offset, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Seen(Mutex<Vec<u16>>);

    impl InterruptSink for Seen {
        fn signal(&self, vector: u16) {
            self.0.lock().unwrap().push(vector);
        }
    }

    fn connected(queues: u16, owner: MsixOwner) -> (Interrupts, Arc<Seen>) {
        let seen = Arc::new(Seen::default());
        let mut interrupts = Interrupts::new(queues);
        interrupts.connect(Arc::clone(&seen) as Arc<dyn InterruptSink>, owner);
        (interrupts, seen)
    }

    fn taken(seen: &Seen) -> Vec<u16> {
        std::mem::take(&mut seen.0.lock().unwrap())
    }

    /// Vector control of a table entry.
    fn vector_control(interrupts: &Interrupts, vector: usize) -> u32 {
        let mut data = [0; 4];
        interrupts.read(vector * 16 + 12, &mut data);
        u32::from_le_bytes(data)
    }

    fn pending(interrupts: &Interrupts) -> u64 {
        let mut data = [0; 8];
        interrupts.read(0x1000, &mut data);
        u64::from_le_bytes(data)
    }

    #[test]
    fn a_masked_vector_waits_for_its_unmasking() {
        let (mut interrupts, seen) = connected(1, MsixOwner::Function);
        interrupts.map_queue(0, 1);
        interrupts.notify_queue(0);
        assert_eq!(
            (taken(&seen), pending(&interrupts)),
            (vec![], 0),
            "MSI-X is off"
        );
        interrupts.control(true, false);
        assert_eq!(vector_control(&interrupts, 1), 1, "masked after power-on");
        interrupts.notify_queue(0);
        assert_eq!((taken(&seen), pending(&interrupts)), (vec![], 1 << 1));
        interrupts.write(16 + 12, &[0; 4]);
        assert_eq!((taken(&seen), pending(&interrupts)), (vec![1], 0));
        interrupts.control(true, true);
        interrupts.notify_queue(0);
        interrupts.notify_queue(0);
        assert_eq!(
            (taken(&seen), pending(&interrupts)),
            (vec![], 1 << 1),
            "all masked"
        );
        interrupts.control(true, false);
        assert_eq!(taken(&seen), [1], "once");
        assert_eq!(interrupts.sent(), 2);
    }

    #[test]
    fn the_vmm_gets_everything_when_it_owns_the_table() {
        let (mut interrupts, seen) = connected(2, MsixOwner::Vmm);
        interrupts.map_config(0);
        interrupts.map_queue(1, 2);
        interrupts.notify_queue(1);
        interrupts.notify_config();
        interrupts.notify_queue(0);
        assert_eq!(taken(&seen), [2, 0], "queue 0 is not mapped");
        assert_eq!(interrupts.take_isr(), 3);
    }

    #[test]
    fn vectors_that_do_not_exist_map_to_none() {
        let (mut interrupts, seen) = connected(2, MsixOwner::Vmm);
        interrupts.map_config(3);
        interrupts.map_queue(0, 2);
        interrupts.map_queue(1, 0xfffe);
        interrupts.map_queue(9, 0);
        assert_eq!(interrupts.config_vector(), 0xffff);
        assert_eq!(
            (0..3)
                .map(|q| interrupts.queue_vector(q))
                .collect::<Vec<_>>(),
            [2, 0xffff, 0xffff]
        );
        interrupts.notify_config();
        interrupts.notify_queue(9);
        assert!(taken(&seen).is_empty());
        assert_eq!(
            interrupts.take_isr(),
            2,
            "the bit is set even without a vector"
        );
        interrupts.reset();
        assert_eq!(interrupts.queue_vector(0), 0xffff);
    }

    #[test]
    fn intx_status_only_without_msix() {
        let (mut interrupts, _) = connected(1, MsixOwner::Function);
        assert!(!interrupts.intx());
        interrupts.notify_queue(0);
        assert!(interrupts.intx());
        interrupts.control(true, false);
        assert!(!interrupts.intx());
        interrupts.power_on();
        assert_eq!(interrupts.take_isr(), 0);
    }

    #[test]
    fn the_table_takes_aligned_words_and_survives_anything() {
        let (mut interrupts, _) = connected(64, MsixOwner::Function);
        interrupts.write(0, &[0xff; 8]);
        interrupts.write(8, &[0xff; 8]);
        let mut data = [0; 16];
        interrupts.read(0, &mut data);
        let mut expected = [0xff; 16];
        expected[0] = 0xfc;
        expected[12..].copy_from_slice(&[1, 0, 0, 0]);
        assert_eq!(data, expected);
        for len in 0..20 {
            for offset in [0, 2, 12, 65 * 16 - 4, 65 * 16, 0x1000, 0x1fff, usize::MAX] {
                interrupts.write(offset, &vec![0; len]);
                interrupts.read(offset, &mut vec![0; len]);
            }
        }
        interrupts.read(64 * 16, &mut data);
        assert_eq!(
            data[12], 0,
            "the last vector was unmasked by the aligned write"
        );
    }
}
