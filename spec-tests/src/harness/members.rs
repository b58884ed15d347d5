//! Functions that a physical function owns, by its SR-IOV capability.

use super::bench::Bench;
use super::outcome::{Absent, Stop, arose};
use crate::constants::admin::sr_iov;

impl Bench {
    /// How many functions it can own, by its SR-IOV capability.
    ///
    /// # Errors
    /// Not applicable without such a capability, or with one that allows none.
    pub fn total_members(&self) -> Result<u16, Stop> {
        let at = self.sr_iov()?;
        let total = self.config_word(at + sr_iov::TOTAL)?;
        if total == 0 {
            return Err(Stop::NotApplicable(Absent::Members(1)));
        }
        Ok(total)
    }

    fn sr_iov(&self) -> Result<u16, Stop> {
        let at = self.caps.sr_iov;
        at.ok_or(Stop::NotApplicable(Absent::Members(1)))
    }

    /// Makes as many virtual functions be there; 0 for none.
    ///
    /// # Errors
    /// Not applicable if it owns fewer; inconclusive if VF Enable or NumVFs does not stay.
    pub fn enable_members(&self, count: u16) -> Result<(), Stop> {
        let at = self.sr_iov()?;
        if self.total_members()? < count {
            return Err(Stop::NotApplicable(Absent::Members(count)));
        }
        let on = if count == 0 {
            0
        } else {
            sr_iov::ENABLE | sr_iov::MEMORY
        };
        self.step(format!("NumVFs {count}, SR-IOV Control {on:#x}"));
        let write =
            |offset: u16, value: u16| self.bus.config_write(at + offset, &value.to_le_bytes());
        write(sr_iov::CONTROL, 0)?;
        write(sr_iov::NUM, count)?;
        write(sr_iov::CONTROL, on)?;
        let shown = self.config_word(at + sr_iov::CONTROL)? & on;
        let number = self.config_word(at + sr_iov::NUM)?;
        arose(shown == on && number == count, || {
            format!("NumVFs {number}, SR-IOV Control {shown:#x}")
        })
    }
}
