//! A running packed queue and the requests that it carries.

use super::bench::Bench;
use super::live::{DESCRIPTORS, Requests};
use super::memory::Span;
use super::outcome::{Stop, arose};
use super::packed::{PackedRing, Spot, Staged, Used};
use super::ring::Segment;
use crate::constants::{feature, reg};
use driver::bus::Interrupt;
use std::sync::Arc;

/// Packed queue 0 of a device of a known type, with memory for its requests.
#[derive(Debug)]
pub struct PackedLive {
    /// Its ring.
    pub ring: PackedRing,
    /// Used descriptors, in the order in which they were taken.
    pub used: Vec<Used>,
    /// Buffer ids of the requests, in the order in which they were posted.
    pub ids: Vec<u16>,
    requests: Requests,
    /// Requests posted.
    posted: u16,
}

impl PackedLive {
    /// How many requests can be under way at once.
    pub fn capacity(&self) -> u16 {
        (self.ring.size / DESCRIPTORS).max(1)
    }

    /// Where the requests' headers are, which the device only reads.
    pub fn headers(&self) -> Span {
        self.requests.headers()
    }

    /// Takes what has been used. True if that is everything.
    ///
    /// # Errors
    /// The memory's.
    pub fn settled(&mut self) -> Result<bool, Stop> {
        while let Some(used) = self.ring.take()? {
            self.used.push(used);
            // A device that uses what it was not given must not keep the case busy.
            if self.ring.open() == 0 {
                break;
            }
        }
        Ok(self.ring.open() == 0)
    }

    /// Where it stands, for reports.
    pub fn saw(&self) -> String {
        format!(
            "{} lists are not used; the next used descriptor is to come at {} with wrap counter {}, \
             where {:02x?} stands",
            self.ring.open(),
            self.ring.used.index,
            u8::from(self.ring.used.wrap),
            self.ring.raw(self.ring.used.index)
        )
    }
}

impl Bench {
    /// A packed ring of `size` entries and request memory, of which the device knows nothing yet.
    ///
    /// # Errors
    /// Inconclusive if there is no memory left, or no request is known for the device.
    pub fn packed_of(&self, size: u16) -> Result<PackedLive, Stop> {
        let [desc, driver, device] = PackedRing::lengths(size);
        let areas = [self.take(desc)?, self.take(driver)?, self.take(device)?];
        Ok(PackedLive {
            ring: PackedRing::new(self.memory().clone(), size, areas),
            used: Vec::new(),
            ids: Vec::new(),
            requests: self.requests()?,
            posted: 0,
        })
    }

    /// As [`Bench::packed_of`], with as many entries as queue 0 is given.
    ///
    /// # Errors
    /// As there, and those of [`Bench::entries`].
    pub fn packed_zero(&self) -> Result<PackedLive, Stop> {
        self.packed_of(self.entries(0)?)
    }

    /// Initialises the device with VERSION_1, RING_PACKED and `need` up to DRIVER_OK, with packed
    /// queue 0 enabled and no interrupts.
    ///
    /// # Errors
    /// Those of the steps.
    pub fn packed_up(&self, need: u64) -> Result<PackedLive, Stop> {
        self.to_features_ok(need | feature::RING_PACKED)?;
        let live = self.packed_zero()?;
        self.enable(0, &live.ring)?;
        self.driver_ok()?;
        Ok(live)
    }

    /// As [`Bench::packed_up`], with queue 0 mapped to vector 1 and the way to hear it; one request
    /// has gone through and was heard of.
    ///
    /// # Errors
    /// Those of the steps; inconclusive if the request or its notification does not come.
    pub fn packed_notified(&self, need: u64) -> Result<(PackedLive, Arc<dyn Interrupt>), Stop> {
        self.to_features_ok(need | feature::RING_PACKED)?;
        let mut live = self.packed_zero()?;
        let interrupt = self.queue_vector(0, 1)?;
        self.enable(0, &live.ring)?;
        self.driver_ok()?;
        let data = self.buffer(512)?;
        self.packed_exchange(&mut live, data)?;
        arose(interrupt.wait(self.limit), || {
            "the vector does not fire for the first request".to_owned()
        })?;
        Ok((live, interrupt))
    }

    /// Initialises the device with QUEUE_STATE and `need`, gives queue 0 the place `at` for a state,
    /// and its ring the look of one that was used up to there; it is not enabled.
    ///
    /// # Errors
    /// Those of the steps.
    pub fn packed_placed(&self, need: u64, size: u16, at: Spot) -> Result<PackedLive, Stop> {
        self.to_features_ok(need | feature::RING_PACKED | feature::QUEUE_STATE)?;
        let mut live = self.packed_of(size)?;
        live.ring.start_at(at)?;
        self.place_ring(0, &live.ring)?;
        self.put(reg::QUEUE_AVAIL_STATE, u64::from(at.bits()))?;
        self.put(reg::QUEUE_USED_STATE, u64::from(at.bits()))?;
        Ok(live)
    }

    /// The parts of the next request, which makes the device write all of `data`, and the buffer id
    /// that it is to have.
    ///
    /// # Errors
    /// The memory's.
    pub fn packed_parts(
        &self,
        live: &mut PackedLive,
        data: Span,
    ) -> Result<(u16, Vec<Segment>), Stop> {
        let slot = live.posted % live.capacity();
        live.posted = live.posted.wrapping_add(1);
        let parts = self.parts_in(&live.requests, slot, data)?;
        live.ids.push(slot);
        Ok((slot, parts))
    }

    /// Writes a request that makes the device write all of `data`; `live.ring.publish` tells the
    /// device of it.
    ///
    /// # Errors
    /// The memory's.
    pub fn packed_stage(&self, live: &mut PackedLive, data: Span) -> Result<Staged, Stop> {
        self.step(format!(
            "write a list at {} that fills {:#x}+{:#x}",
            live.ring.next.index, data.iova, data.len
        ));
        let (id, parts) = self.packed_parts(live, data)?;
        live.ring.stage(id, &parts)
    }

    /// Makes a list of these segments available, notifies and waits. True if the device used it and
    /// carried it out.
    ///
    /// # Errors
    /// The memory's.
    pub fn packed_carry(
        &self,
        live: &mut PackedLive,
        id: u16,
        list: &[Segment],
        data: Span,
    ) -> Result<bool, Stop> {
        let staged = live.ring.stage(id, list)?;
        self.packed_finish(live, staged, data)
    }

    /// As [`Bench::packed_carry`], with the list in the ring already.
    ///
    /// # Errors
    /// The memory's.
    pub fn packed_finish(
        &self,
        live: &mut PackedLive,
        staged: Staged,
        data: Span,
    ) -> Result<bool, Stop> {
        live.ring.publish(staged)?;
        self.kick(0)?;
        Ok(self.packed_settled(live)? && self.carried_out(data)?)
    }

    /// As [`Bench::packed_stage`], and makes it available.
    ///
    /// # Errors
    /// The memory's.
    pub fn packed_request(&self, live: &mut PackedLive, data: Span) -> Result<(), Stop> {
        let staged = self.packed_stage(live, data)?;
        live.ring.publish(staged)
    }

    /// Waits until the device has used everything that was posted. False if it does not.
    ///
    /// # Errors
    /// The memory's.
    pub fn packed_settled(&self, live: &mut PackedLive) -> Result<bool, Stop> {
        self.wait(self.limit, || live.settled())
    }

    /// One request, from notification to use; the buffer must have changed.
    ///
    /// # Errors
    /// Inconclusive if the device does not carry it out.
    pub fn packed_exchange(&self, live: &mut PackedLive, data: Span) -> Result<(), Stop> {
        self.packed_request(live, data)?;
        self.kick(0)?;
        let used = self.packed_settled(live)?;
        arose(used && self.filled(data)?, || {
            format!("a request was not carried out: {}", live.saw())
        })
    }
}
