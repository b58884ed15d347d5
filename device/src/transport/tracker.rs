//! The registers of the memory dirty pages tracker (draft 2023; layout and rules of the project).

use super::registers::Reg;
use super::{half, set_half};
use crate::tracker::{Marking, TrackerConfig};
use spec::tracker::{BITMAP_ALIGN, GRA_POWER_MAX, PASID_MASK};

/// What the PASID extended capability says at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PasidState {
    /// Absent, or present and disabled: DMA carries no PASID.
    Off,
    /// Enabled: the function's DMA carries this PASID.
    On(u32),
}

/// The registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tracker {
    enable: bool,
    gra_power: u8,
    pasid: u32,
    bitmap_addr: u64,
    bitmap_length: u64,
    min_gra_power: u8,
    marking: Marking,
}

impl Tracker {
    /// After power-on. `min_gra_power` is the least the device works with (DT-4).
    pub(crate) fn new(marking: Marking, min_gra_power: u8) -> Self {
        Self {
            enable: false,
            gra_power: 0,
            pasid: 0,
            bitmap_addr: 0,
            bitmap_length: 0,
            min_gra_power: min_gra_power.min(GRA_POWER_MAX),
            marking,
        }
    }
    /// DT-6.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.marking, self.min_gra_power);
    }
    /// Whether the fields are locked (project rule: DT-7 forbids the driver to change them while
    /// enabled, so this device ignores it).
    pub(crate) fn is_on(&self) -> bool {
        self.enable
    }
    /// What is in force. Tracking covers the DMA of one PASID, or all of it where there are none.
    pub(crate) fn config(&self, pasid: PasidState) -> TrackerConfig {
        let covered = match pasid {
            PasidState::Off => true,
            PasidState::On(dma) => dma == self.pasid,
        };
        TrackerConfig {
            enabled: self.enable && covered,
            gra_power: self.gra_power,
            bitmap_addr: self.bitmap_addr,
            bitmap_length: self.bitmap_length,
            marking: self.marking,
        }
    }
    /// Whether the tracker is on, its power, PASID, address and length.
    pub(crate) fn saved(&self) -> (bool, u8, u32, u64, u64) {
        let Self {
            enable,
            gra_power,
            pasid,
            bitmap_addr,
            bitmap_length,
            ..
        } = *self;
        (enable, gra_power, pasid, bitmap_addr, bitmap_length)
    }
    /// The registers with another function's values; `None` if a driver could not have written them.
    pub(crate) fn restored(
        &self,
        (on, power, pasid, addr, length): (bool, u8, u32, u64, u64),
    ) -> Option<Self> {
        let fits = addr.checked_add(length).is_some() && addr.is_multiple_of(BITMAP_ALIGN);
        let legal = power <= GRA_POWER_MAX
            && pasid & !PASID_MASK == 0
            && (!on || (fits && power >= self.min_gra_power));
        legal.then_some(Self {
            enable: on,
            gra_power: power,
            pasid,
            bitmap_addr: addr,
            bitmap_length: length,
            ..*self
        })
    }
    /// The value of one of these registers, or `None` for another's.
    pub(crate) fn read(&self, reg: Reg) -> Option<u32> {
        Some(match reg {
            Reg::TrackerEnable => u32::from(self.enable),
            Reg::TrackerGraPower => u32::from(self.gra_power),
            Reg::TrackerPasid => self.pasid,
            Reg::TrackerAddrLow => half(self.bitmap_addr, false),
            Reg::TrackerAddrHigh => half(self.bitmap_addr, true),
            Reg::TrackerLengthLow => half(self.bitmap_length, false),
            Reg::TrackerLengthHigh => half(self.bitmap_length, true),
            _ => return None,
        })
    }
    /// A write that the table has accepted.
    pub(crate) fn write(&mut self, reg: Reg, value: u32, pasid: PasidState) {
        match reg {
            Reg::TrackerEnable => match value {
                0 => self.enable = false,
                1 => self.turn_on(),
                // T-F5 gives a meaning to 1 only; 0 and the rest are project rules.
                _ => {}
            },
            // Project rule: a power above the largest is ignored. DT-4: the device may raise it.
            Reg::TrackerGraPower => {
                if let Ok(power) = u8::try_from(value)
                    && power <= GRA_POWER_MAX
                {
                    self.gra_power = power.max(self.min_gra_power);
                }
            }
            // DT-5.
            Reg::TrackerPasid if pasid != PasidState::Off => self.pasid = value & PASID_MASK,
            Reg::TrackerAddrLow => set_half(&mut self.bitmap_addr, false, value),
            Reg::TrackerAddrHigh => set_half(&mut self.bitmap_addr, true, value),
            Reg::TrackerLengthLow => set_half(&mut self.bitmap_length, false, value),
            Reg::TrackerLengthHigh => set_half(&mut self.bitmap_length, true, value),
            _ => {}
        }
    }
    /// Project rule: a bitmap that is not aligned, or that runs past the end of the address space,
    /// is refused, and `enable` reads back 0.
    fn turn_on(&mut self) {
        let fits = self.bitmap_addr.checked_add(self.bitmap_length).is_some();
        if self.enable || !self.bitmap_addr.is_multiple_of(BITMAP_ALIGN) || !fits {
            return;
        }
        self.gra_power = self.gra_power.max(self.min_gra_power);
        self.enable = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracker(min: u8) -> Tracker {
        Tracker::new(Marking::Bit, min)
    }

    #[test]
    fn switch() {
        let mut tracker = tracker(0);
        for value in [2, 0xff, 3] {
            tracker.write(Reg::TrackerEnable, value, PasidState::Off);
            assert!(!tracker.is_on(), "{value}");
        }
        tracker.write(Reg::TrackerEnable, 1, PasidState::Off);
        assert_eq!(tracker.read(Reg::TrackerEnable), Some(1));
        tracker.write(Reg::TrackerEnable, 2, PasidState::Off);
        assert!(tracker.is_on());
        assert!(tracker.config(PasidState::Off).enabled);
        tracker.write(Reg::TrackerEnable, 0, PasidState::Off);
        assert!(!tracker.config(PasidState::Off).enabled);
    }

    #[test]
    fn a_bad_bitmap_is_refused() {
        for (addr, length, on) in [
            (0x1000, 64, true),
            (0x1001, 64, false),
            (0x1004, 64, false),
            (0x1008, 3, true),
            (0xffff_ffff_ffff_fff8, 7, true),
            (0xffff_ffff_ffff_fff8, 8, false),
            (0, 0, true),
        ] {
            let mut tracker = tracker(0);
            tracker.bitmap_addr = addr;
            tracker.bitmap_length = length;
            tracker.write(Reg::TrackerEnable, 1, PasidState::Off);
            assert_eq!(
                tracker.read(Reg::TrackerEnable),
                Some(u32::from(on)),
                "{addr:#x}"
            );
        }
    }

    #[test]
    fn granularity_is_bounded_and_may_be_raised() {
        let mut plain = tracker(0);
        for (value, power) in [(18, 18), (19, 18), (255, 18), (9, 9), (0, 0)] {
            plain.write(Reg::TrackerGraPower, value, PasidState::Off);
            assert_eq!(plain.read(Reg::TrackerGraPower), Some(power), "{value}");
        }
        let mut raising = tracker(4);
        assert_eq!(raising.read(Reg::TrackerGraPower), Some(0), "DT-6");
        raising.write(Reg::TrackerGraPower, 1, PasidState::Off);
        assert_eq!(raising.read(Reg::TrackerGraPower), Some(4));
        raising.reset();
        raising.write(Reg::TrackerEnable, 1, PasidState::Off);
        assert_eq!(
            raising.config(PasidState::Off).gra_power,
            4,
            "raised by the switch"
        );
    }

    #[test]
    fn pasid_is_heard_only_where_there_are_pasids() {
        let mut tracker = tracker(0);
        tracker.write(Reg::TrackerPasid, 5, PasidState::Off);
        assert_eq!(tracker.read(Reg::TrackerPasid), Some(0), "DT-5");
        tracker.write(Reg::TrackerPasid, 0xfff0_0005, PasidState::On(7));
        assert_eq!(tracker.read(Reg::TrackerPasid), Some(5), "20 bits");
        tracker.write(Reg::TrackerEnable, 1, PasidState::On(7));
        assert!(!tracker.config(PasidState::On(7)).enabled, "another's DMA");
        assert!(tracker.config(PasidState::On(5)).enabled);
        assert!(
            tracker.config(PasidState::Off).enabled,
            "the register is ignored"
        );
    }

    #[test]
    fn halves_are_written_one_by_one_and_reset_clears_all() {
        let mut tracker = tracker(0);
        tracker.write(Reg::TrackerAddrHigh, 1, PasidState::Off);
        tracker.write(Reg::TrackerAddrLow, 0x8000_0000, PasidState::Off);
        tracker.write(Reg::TrackerLengthLow, 0x20, PasidState::Off);
        tracker.write(Reg::TrackerLengthHigh, 2, PasidState::Off);
        tracker.write(Reg::TrackerGraPower, 3, PasidState::Off);
        tracker.write(Reg::TrackerEnable, 1, PasidState::Off);
        let expected = TrackerConfig {
            enabled: true,
            gra_power: 3,
            bitmap_addr: 0x1_8000_0000,
            bitmap_length: 0x2_0000_0020,
            marking: Marking::Bit,
        };
        assert_eq!(tracker.config(PasidState::Off), expected);
        tracker.reset();
        assert_eq!(tracker.config(PasidState::Off), TrackerConfig::default());
    }
}
