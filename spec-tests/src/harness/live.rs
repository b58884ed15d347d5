//! A running queue and the requests that it carries.

use super::bench::Bench;
use super::memory::{Span, changed_pages, pages_of};
use super::outcome::{Stop, arose};
use super::ring::{Ring, Segment};
use crate::constants::{PAGE, blk, feature, rng};
use driver::bus::Interrupt;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Requests at once: each has three descriptors.
pub(super) const DESCRIPTORS: u16 = 3;

/// What buffers hold before the device writes them. Targets keep other bytes on their media.
const FILL: u8 = 0x5a;

/// Queue 0 of a device of a known type, with memory for its requests.
#[derive(Debug)]
pub struct Live {
    /// Its ring.
    pub ring: Ring,
    requests: Requests,
}

/// Memory for the requests of a device of a known type, other than their data.
#[derive(Debug)]
pub struct Requests {
    device: u16,
    headers: Span,
    statuses: Span,
}

impl Bench {
    /// Initialises the device with VERSION_1 and `need` up to an enabled queue 0 without
    /// DRIVER_OK.
    ///
    /// # Errors
    /// Those of the steps.
    pub fn prepare(&self, need: u64) -> Result<Live, Stop> {
        self.to_features_ok(need)?;
        let live = self.queue_zero()?;
        self.enable(0, &live.ring)?;
        Ok(live)
    }

    /// Initialises the device up to DRIVER_OK, with queue 0 enabled and no interrupts.
    ///
    /// # Errors
    /// Those of the steps.
    pub fn up(&self, need: u64) -> Result<Live, Stop> {
        let live = self.prepare(need)?;
        self.driver_ok()?;
        Ok(live)
    }

    /// As [`Bench::up`], with queue 0 mapped to vector 1 and the way to hear it; one request has
    /// gone through and was heard of, so that silence means something from now on.
    ///
    /// # Errors
    /// Those of the steps; inconclusive if the request or its notification does not come.
    pub fn up_notified(&self, need: u64) -> Result<(Live, Arc<dyn Interrupt>), Stop> {
        self.to_features_ok(need)?;
        let mut live = self.queue_zero()?;
        let interrupt = self.queue_vector(0, 1)?;
        self.enable(0, &live.ring)?;
        self.driver_ok()?;
        let data = self.buffer(512)?;
        self.exchange(&mut live, data)?;
        arose(interrupt.wait(self.limit), || {
            "the vector does not fire for the first request".to_owned()
        })?;
        Ok((live, interrupt))
    }

    /// As [`Bench::up`], with SUSPEND.
    ///
    /// # Errors
    /// Those of the steps.
    pub fn up_suspendable(&self) -> Result<Live, Stop> {
        self.up(feature::SUSPEND)
    }

    /// A ring and request memory for queue 0, of which the device knows nothing yet.
    ///
    /// # Errors
    /// Inconclusive if the suite cannot write requests for this type of device.
    pub fn queue_zero(&self) -> Result<Live, Stop> {
        let ring = self.ring(0)?;
        let requests = self.requests()?;
        Ok(Live { ring, requests })
    }

    /// Memory for requests.
    ///
    /// # Errors
    /// Inconclusive if the suite cannot write requests for this type of device.
    pub fn requests(&self) -> Result<Requests, Stop> {
        let device = self.caps.virtio_id().unwrap_or(0);
        arose(matches!(device, blk::ID | rng::ID), || {
            format!("no requests are known for virtio device {device}")
        })?;
        let headers = self.take(PAGE)?;
        let statuses = self.take(PAGE)?;
        Ok(Requests {
            device,
            headers,
            statuses,
        })
    }

    /// Takes a buffer and fills it with what no medium holds.
    ///
    /// # Errors
    /// Inconclusive if there is no memory left.
    pub fn buffer(&self, len: u64) -> Result<Span, Stop> {
        let span = self.take(len)?;
        self.fill(span)?;
        Ok(span)
    }

    /// Fills a buffer again.
    ///
    /// # Errors
    /// The memory's.
    pub fn fill(&self, span: Span) -> Result<(), Stop> {
        let filling = vec![FILL; usize::try_from(span.len).unwrap_or(0)];
        self.memory().write(span.offset, &filling)?;
        Ok(())
    }

    /// Posts a request that makes the device write all of `data`, a multiple of 512 bytes.
    ///
    /// A running device may carry it out from now on: it needs no notification.
    ///
    /// # Errors
    /// The memory's.
    pub fn request(&self, live: &mut Live, data: Span) -> Result<(), Stop> {
        self.stage(live, data)?;
        live.ring.publish(live.ring.next)
    }

    /// As [`Bench::request`], but the device is told by `live.ring.publish` only. After that the
    /// driver's part writes nothing but the available ring's first page.
    ///
    /// # Errors
    /// The memory's.
    pub fn stage(&self, live: &mut Live, data: Span) -> Result<(), Stop> {
        self.step(format!(
            "post a request that fills {:#x}+{:#x}",
            data.iova, data.len
        ));
        let head = live.ring.next % live.capacity() * DESCRIPTORS;
        let parts = self.parts(live, data)?;
        live.ring.stage(head, &parts)
    }

    /// The parts of the next request, which makes the device write all of `data`: for a disk the
    /// header, the data and the status, each in one piece.
    ///
    /// # Errors
    /// The memory's.
    pub fn parts(&self, live: &Live, data: Span) -> Result<Vec<Segment>, Stop> {
        let slot = live.ring.next % live.capacity();
        self.parts_in(&live.requests, slot, data)
    }

    /// As [`Bench::parts`], with the header and the status in place `slot` of the memory for them.
    ///
    /// # Errors
    /// The memory's.
    pub fn parts_in(
        &self,
        requests: &Requests,
        slot: u16,
        data: Span,
    ) -> Result<Vec<Segment>, Stop> {
        let segment = Segment {
            iova: data.iova,
            len: u32::try_from(data.len).unwrap_or(0),
            writable: true,
        };
        if requests.device == rng::ID {
            return Ok(vec![segment]);
        }
        let header = requests
            .headers
            .part(blk::HEADER * u64::from(slot), blk::HEADER);
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&blk::IN.to_le_bytes());
        self.memory().write(header.offset, &bytes)?;
        let status = requests.statuses.part(u64::from(slot), 1);
        self.memory().write(status.offset, &[FILL])?;
        let header = Segment {
            iova: header.iova,
            len: 16,
            writable: false,
        };
        let status = Segment {
            iova: status.iova,
            len: 1,
            writable: true,
        };
        Ok(vec![header, segment, status])
    }

    /// Posts a request, notifies if told to, and watches a device that must not touch it. Returns
    /// the pages that changed, without the one that the driver's part wrote.
    ///
    /// # Errors
    /// The memory's.
    pub fn tempt(&self, live: &mut Live, kick: bool) -> Result<BTreeSet<u64>, Stop> {
        let data = self.buffer(512)?;
        self.stage(live, data)?;
        let before = self.snapshot()?;
        live.ring.publish(live.ring.next)?;
        if kick {
            self.kick(0)?;
        }
        let driver = pages_of(live.ring.avail);
        let mut changed = BTreeSet::new();
        self.wait(self.quiet(), || {
            changed = changed_pages(&before, &self.snapshot()?, self.memory().iova());
            changed.retain(|page| !driver.contains(page));
            Ok(!changed.is_empty())
        })?;
        Ok(changed)
    }

    /// Waits until the device has used something beyond index `from`. False if it does not.
    ///
    /// # Errors
    /// The memory's.
    pub fn used_beyond(&self, live: &Live, from: u16) -> Result<bool, Stop> {
        self.wait(self.limit, || Ok(live.ring.used_index()? != from))
    }

    /// Waits until the device has used everything that was posted. False if it does not.
    ///
    /// # Errors
    /// The memory's.
    pub fn used_all(&self, live: &Live) -> Result<bool, Stop> {
        self.wait(self.limit, || Ok(live.ring.used_index()? == live.ring.next))
    }

    /// One request, from notification to use; the buffer must have changed.
    ///
    /// # Errors
    /// Inconclusive if the device does not carry it out.
    pub fn exchange(&self, live: &mut Live, data: Span) -> Result<(), Stop> {
        self.request(live, data)?;
        self.kick(0)?;
        let used = self.used_all(live)?;
        arose(used && self.filled(data)?, || {
            let index = live.ring.used_index();
            format!(
                "a request was not carried out: used index {index:?}, want {}",
                live.ring.next
            )
        })
    }

    /// True if the device has written a buffer as far as its type demands: a disk to its end, a
    /// source of entropy somewhere, and what it wrote is any byte.
    ///
    /// # Errors
    /// The memory's.
    pub fn carried_out(&self, data: Span) -> Result<bool, Stop> {
        match self.caps.virtio_id().unwrap_or(0) {
            rng::ID => self.filled(data),
            _ => self.filled(data.part(data.len - 1, 1)),
        }
    }

    /// True if the device has written a buffer.
    ///
    /// # Errors
    /// The memory's.
    pub fn filled(&self, data: Span) -> Result<bool, Stop> {
        let mut bytes = vec![0; usize::try_from(data.len).unwrap_or(0)];
        self.memory().read(data.offset, &mut bytes)?;
        Ok(bytes.iter().any(|byte| *byte != FILL))
    }
}

impl Requests {
    /// Where the headers are, which the device only reads.
    pub fn headers(&self) -> Span {
        self.headers
    }
}

impl Live {
    /// How many requests can be under way at once.
    pub fn capacity(&self) -> u16 {
        (self.ring.size / DESCRIPTORS).max(1)
    }

    /// Pages that the device only reads: descriptors, available ring, headers.
    pub fn read_only(&self) -> [Span; 3] {
        [self.ring.desc, self.ring.avail, self.requests.headers]
    }
}
