//! What several of this crate's tests need.

use std::fs::File;

/// An anonymous file of `len` zero bytes.
pub(crate) fn memfd(len: u64) -> File {
    let fd = rustix::fs::memfd_create("driver-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(len).unwrap();
    file
}

/// Zeroed memory that the device would know at `iova`.
pub(crate) fn memory(len: u64, iova: u64) -> crate::memory::DmaMemory {
    crate::memory::DmaMemory::from_file(&memfd(len), 0, len, iova).unwrap()
}

use crate::bus::{Bus, BusError, Interrupt};
use crate::memory::DmaMemory;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the fake device does when told to suspend or resume.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Manner {
    /// At the n-th read of the status after the request.
    After(u32),
    Never,
    NeedsReset,
}

/// The registers of a fake device. Offsets are typed from the standard, not taken from `spec`.
#[derive(Debug)]
pub(crate) struct Registers {
    pub(crate) config: Vec<u8>,
    pub(crate) offered: u64,
    pub(crate) accepted: u64,
    pub(crate) keep_features_ok: bool,
    pub(crate) common: Vec<u8>,
    /// Bytes 24 to 67 of the common configuration, for each queue.
    pub(crate) queues: Vec<Vec<u8>>,
    pub(crate) tracker: Vec<u8>,
    pub(crate) gra_min: u8,
    pub(crate) gra_when_on: u8,
    pub(crate) device: Vec<u8>,
    pub(crate) manner: Manner,
    pub(crate) pending: Option<u32>,
    pub(crate) generation_moves: bool,
    /// After so many more writes to the tracker somebody else resets the device, once.
    pub(crate) reset_after: Option<u32>,
    /// Everything that was written to BAR 0: offset and bytes.
    pub(crate) written: Vec<(u64, Vec<u8>)>,
}

/// A function that is nothing but registers.
#[derive(Debug)]
pub(crate) struct FakeBus(pub(crate) Mutex<Registers>);

const NOTIFY: Range<u64> = 0x1000..0x1100;
const ISR: Range<u64> = 0x2000..0x2001;
const DEVICE: Range<u64> = 0x3000..0x303c;
const TRACKER: Range<u64> = 0x4000..0x4020;

/// A capability as it stands in configuration space.
pub(crate) fn cap(next: u8, cfg_type: u8, bar: u8, at: Range<u64>) -> Vec<u8> {
    let mut bytes = vec![9, next, 20, cfg_type, bar, 0, 0, 0];
    bytes.extend(u32::try_from(at.start).unwrap().to_le_bytes());
    bytes.extend(u32::try_from(at.end - at.start).unwrap().to_le_bytes());
    // Only the notification capability has this, the others are longer than they need be.
    bytes.extend(4_u32.to_le_bytes());
    bytes
}

impl FakeBus {
    /// A well-behaved device with two queues of up to 256 entries that offers `offered`.
    pub(crate) fn new(offered: u64) -> Arc<Self> {
        let mut config = vec![0; 256];
        config[..8].copy_from_slice(&[0xf4, 0x1a, 0x42, 0x10, 0, 0, 0x10, 0]);
        config[0x34] = 0x40;
        let caps = [
            (1, 0..68),
            (2, NOTIFY),
            (3, ISR),
            (4, DEVICE),
            (10, TRACKER),
        ];
        for (index, (cfg_type, at)) in caps.into_iter().enumerate() {
            let start = 0x40 + index * 0x20;
            let next = if index == 4 { 0 } else { start + 0x20 };
            let bytes = cap(u8::try_from(next).unwrap(), cfg_type, 0, at);
            config[start..start + 20].copy_from_slice(&bytes);
        }
        let mut common = vec![0; 24];
        common[16..20].copy_from_slice(&[0xff, 0xff, 2, 0]);
        let bus = Self(Mutex::new(Registers {
            config,
            offered,
            accepted: 0,
            keep_features_ok: true,
            common,
            queues: Vec::new(),
            tracker: vec![0; 32],
            gra_min: 0,
            gra_when_on: 0,
            device: (0..60).collect(),
            manner: Manner::After(3),
            pending: None,
            generation_moves: false,
            reset_after: None,
            written: Vec::new(),
        }));
        bus.registers().reset();
        Arc::new(bus)
    }

    pub(crate) fn registers(&self) -> std::sync::MutexGuard<'_, Registers> {
        self.0.lock().unwrap()
    }
}

impl Registers {
    fn reset(&mut self) {
        self.common[20] = 0;
        self.accepted = 0;
        self.tracker.fill(0);
        let mut queue = vec![0; 44];
        queue[..4].copy_from_slice(&[0, 1, 0xff, 0xff]);
        self.queues = vec![queue.clone(), queue];
        self.queues[1][6] = 5;
    }

    fn queue(&mut self) -> Option<&mut Vec<u8>> {
        let select = u16::from_le_bytes([self.common[22], self.common[23]]);
        self.queues.get_mut(usize::from(select))
    }

    fn status_read(&mut self) {
        let Some(left) = self.pending else { return };
        self.pending = match (self.manner, left) {
            (Manner::NeedsReset, _) => {
                self.common[20] |= 0x40;
                None
            }
            (Manner::Never, _) => Some(left),
            (Manner::After(_), 0) => {
                self.common[20] ^= 0x14;
                None
            }
            (Manner::After(_), left) => Some(left - 1),
        };
    }

    fn status_write(&mut self, value: u8) {
        let old = self.common[20];
        match value {
            0 => self.reset(),
            0x1f if old == 0x0f || old == 0x1b => {
                self.pending = match self.manner {
                    Manner::After(reads) => Some(reads),
                    _ => Some(0),
                };
            }
            _ => {
                let kept = if self.keep_features_ok { 0xff } else { !8 };
                self.common[20] = value & kept;
            }
        }
    }

    fn half(word: u64, select: &[u8]) -> [u8; 4] {
        match select[0] {
            0 => u32::try_from(word & 0xffff_ffff).unwrap().to_le_bytes(),
            1 => u32::try_from(word >> 32).unwrap().to_le_bytes(),
            _ => [0; 4],
        }
    }
}

impl Bus for FakeBus {
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<(), BusError> {
        let at = usize::from(offset);
        data.copy_from_slice(&self.registers().config[at..at + data.len()]);
        Ok(())
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), BusError> {
        let at = usize::from(offset);
        self.registers().config[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
        let len = data.len();
        let outside = || BusError::OutOfRange { bar, offset, len };
        if bar != 0 || !offset.is_multiple_of(len as u64) || !matches!(len, 1 | 2 | 4) {
            return Err(outside());
        }
        let mut registers = self.registers();
        let at = usize::try_from(offset).map_err(|_| outside())?;
        let bytes = match offset {
            4 => Registers::half(registers.offered, &registers.common).to_vec(),
            12 => Registers::half(registers.accepted, &registers.common[8..]).to_vec(),
            20 => {
                registers.status_read();
                vec![registers.common[20]]
            }
            21 if registers.generation_moves => {
                registers.common[21] = registers.common[21].wrapping_add(1);
                vec![registers.common[21]]
            }
            0..24 => registers.common[at..].to_vec(),
            24..68 => match registers.queue() {
                Some(queue) => queue[at - 24..].to_vec(),
                None => vec![0; len],
            },
            0x3000.. if DEVICE.contains(&offset) => registers.device[at - 0x3000..].to_vec(),
            0x4000.. if TRACKER.contains(&offset) => registers.tracker[at - 0x4000..].to_vec(),
            _ => return Err(outside()),
        };
        data.copy_from_slice(bytes.get(..len).ok_or_else(outside)?);
        Ok(())
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), BusError> {
        let len = data.len();
        let outside = || BusError::OutOfRange { bar, offset, len };
        if bar != 0 || !offset.is_multiple_of(len as u64) || !matches!(len, 1 | 2 | 4) {
            return Err(outside());
        }
        let mut registers = self.registers();
        registers.written.push((offset, data.to_vec()));
        let at = usize::try_from(offset).map_err(|_| outside())?;
        match offset {
            12 => {
                let word = u64::from(u32::from_le_bytes(data.try_into().unwrap()));
                registers.accepted |= word << (32 * u32::from(registers.common[8]));
            }
            20 => registers.status_write(data[0]),
            0..24 => registers.common[at..at + len].copy_from_slice(data),
            24..68 => {
                if let Some(queue) = registers.queue() {
                    queue[at - 24..at - 24 + len].copy_from_slice(data);
                    if offset == 58 {
                        queue[34..36].fill(0);
                        queue[4..6].fill(0);
                    }
                }
            }
            _ if NOTIFY.contains(&offset) => {}
            _ if TRACKER.contains(&offset) => {
                registers.tracker[at - 0x4000..at - 0x4000 + len].copy_from_slice(data);
                let least = match registers.tracker[0] {
                    1 => registers.gra_min.max(registers.gra_when_on),
                    _ => registers.gra_min,
                };
                registers.tracker[1] = registers.tracker[1].max(least);
                registers.reset_after = match registers.reset_after {
                    Some(1) => {
                        registers.reset();
                        None
                    }
                    left => left.map(|left| left - 1),
                };
            }
            _ => return Err(outside()),
        }
        Ok(())
    }

    fn dma_alloc(&self, len: u64) -> Result<DmaMemory, BusError> {
        Ok(memory(len, 0x10_0000))
    }

    fn interrupt(&self, _: u16) -> Result<Arc<dyn Interrupt>, BusError> {
        Ok(Arc::new(Silent))
    }

    fn reset(&self) -> Result<(), BusError> {
        self.registers().reset();
        Ok(())
    }
}

#[derive(Debug)]
struct Silent;
impl Interrupt for Silent {
    fn wait(&self, _: Duration) -> bool {
        false
    }
}
