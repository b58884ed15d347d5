//! Defects in what a disk makes of requests: the last one is changed before the device has it, or
//! its answer after it was given.

use super::frame::{Access, Function, Mind};
use super::split::{after_use, chain, learn};
use driver::bus::BusError;
use spec_tests::constants::{blk, cfg_type, reg, ring, status};

/// The request that was made available last, each of whose parts is in descriptors of its own.
pub struct Request {
    /// Type.
    pub kind: u32,
    /// Sector.
    pub sector: u64,
    /// Where its header is.
    pub header: u64,
    /// What the device reads besides: where it begins, and its bytes.
    pub output: Option<(u64, u32)>,
    /// What the device writes besides the status: where it begins, and its bytes.
    pub input: Option<(u64, u32)>,
    /// Its status byte, as it is now.
    pub status: u8,
    status_at: u64,
}

impl Request {
    fn last(mind: &Mind) -> Option<Self> {
        let chain = chain(mind);
        let [header, between @ .., last] = chain.as_slice() else {
            return None;
        };
        let (readable, status) = (
            header.flags & ring::WRITE == 0,
            last.flags & ring::WRITE != 0,
        );
        if !readable || header.flags & ring::INDIRECT != 0 || header.len != 16 || !status {
            return None;
        }
        let part = |write: u16| {
            let mut parts = between.iter();
            let first = parts.find(|one| one.flags & ring::WRITE == write);
            first.map(|one| (one.address, one.len))
        };
        let status_at = last.address + u64::from(last.len) - 1;
        let [status] = mind.peek(status_at);
        Some(Self {
            kind: u32::from_le_bytes(mind.peek(header.address)),
            sector: u64::from_le_bytes(mind.peek(header.address + 8)),
            header: header.address,
            output: part(0),
            input: part(ring::WRITE),
            status,
            status_at,
        })
    }

    /// Sectors that the device reads from or writes to memory.
    pub fn sectors(&self) -> u64 {
        let either = self.output.or(self.input);
        either.map_or(0, |(_, len)| u64::from(len) / blk::SECTOR)
    }

    /// The first range of a discard, a secure erase or a write zeroes: sector, sectors, flags.
    pub fn range(&self, mind: &Mind) -> (u64, u32, u32) {
        let at = self.output.map_or(0, |(at, _)| at);
        (
            u64::from_le_bytes(mind.peek(at)),
            u32::from_le_bytes(mind.peek(at + 8)),
            u32::from_le_bytes(mind.peek(at + 12)),
        )
    }
}

/// Changes the status of requests of some types, where `change` says to what.
pub fn answers(
    at: &Function,
    access: Access,
    kinds: &[u32],
    change: impl FnOnce(&Mind, &Request) -> Option<u8>,
) -> Result<(), BusError> {
    answered(at, access, kinds, |mind, request| {
        if let Some(status) = change(mind, request) {
            mind.scribble(request.status_at, status);
        }
    })
}

/// Does something once a request of one of these types has been answered.
pub fn answered(
    at: &Function,
    access: Access,
    kinds: &[u32],
    what: impl FnOnce(&Mind, &Request),
) -> Result<(), BusError> {
    let asked = |mind: &Mind| Request::last(mind).filter(|request| kinds.contains(&request.kind));
    if at.kicked(access) && asked(&at.mind).is_some() {
        after_use(at, access, |mind| {
            if let Some(request) = asked(mind) {
                what(mind, &request);
            }
        });
    }
    Ok(())
}

/// Turns requests into flushes, which do nothing that is to be seen, before the device has them.
pub fn idles(
    at: &Function,
    access: Access,
    value: u64,
    which: impl FnOnce(&Mind, &Request) -> bool,
) -> Result<bool, BusError> {
    const FLUSH: u8 = 4;
    learn(at, access, value)?;
    if at.kicked(access)
        && let Some(request) = Request::last(&at.mind)
        && which(&at.mind, &request)
    {
        at.scribble(request.header, FLUSH);
    }
    Ok(true)
}

/// Where in the device configuration a byte is read.
pub fn config_byte(at: &Function, access: Access, data: &[u8]) -> Option<usize> {
    let region = at.caps.first(cfg_type::DEVICE)?.region;
    if data.len() != 1 || !at.within(access, cfg_type::DEVICE) {
        return None;
    }
    usize::try_from(access.offset - region.offset).ok()
}

/// As [`config_byte`], once features are agreed on.
pub fn agreed_byte(at: &Function, access: Access, data: &[u8]) -> Result<Option<usize>, BusError> {
    let byte = config_byte(at, access, data);
    let agreed = u64::from(status::FEATURES_OK);
    Ok(match byte {
        Some(_) if at.get(reg::DEVICE_STATUS)? & agreed != 0 => byte,
        _ => None,
    })
}
