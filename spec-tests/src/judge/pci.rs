//! Configuration space: what drivers find a function by, laid out as the standard allows and few
//! devices do it.

use super::function::Inner;
use super::ledger::{Ledger, rules};
use super::plan::{Kind, Plan};
use crate::clause;
use crate::constants::{blk, cfg_type, pci, rng};

/// Bytes of configuration space.
pub const SIZE: usize = 4096;
/// Bytes of BAR 0, which has the structures.
pub const BAR0: u64 = 0x8000;
/// Bytes of BAR 1, which has the MSI-X table.
pub const BAR1: u64 = 0x2000;
/// Where the structures are in BAR 0.
pub const COMMON: u64 = 0;
pub const ISR: u64 = 0x1000;
pub const DEVICE: u64 = 0x2000;
pub const NOTIFY: u64 = 0x3000;
pub const TRACKER: u64 = 0x4000;
const TRAP_TYPE: u64 = 0x5000;
const TRAP_SECOND: u64 = 0x6000;
const PART: u64 = 0x1000;
/// Bytes of the common configuration that have a meaning.
pub const COMMON_LEN: u64 = 68;
/// Bytes between doorbells, in units of `queue_notify_off`.
pub const MULTIPLIER: u64 = 8;
const VENDOR_ID: u16 = 0x5a5a;
const SR_IOV_AT: usize = 0x100;
/// Virtual functions that there can be.
pub const VFS: u16 = 2;

rules! {
    MODERN = clause!(discovery "R1"), "matches_the_device_id": "the device id is 0x1040 and the device type's; the driver must take the function";
    TRANSITIONAL = clause!(discovery "R2"), "matches_the_transitional_id": "the device id is the transitional one; the driver must take the function";
    REVISION = clause!(discovery "R3"), "matches_any_revision": "the revision id is 0x5a; the driver must take the function";
    RESERVED_TYPE = clause!(caps "R1"), "ignores_reserved_types": "a capability with a reserved cfg_type comes first; the driver must pass over it and never touch what it points to";
    FIRST = clause!(caps "R2"), "uses_the_first_structure": "a second common configuration comes after the first; the driver should not touch it";
    LONG = clause!(caps "R3"), "accepts_long_capabilities": "cap_len of the common configuration is 8 more than specified; the driver must find it";
    RESERVED_BAR = clause!(caps "R4"), "ignores_reserved_bars": "a common configuration in BAR 6 comes before the real one; the driver must find the real one";
    LARGE = clause!(caps "R6"), "bears_large_structures": "all structures are a page long; the driver must use them";
    READ_ONLY = clause!(caps "R7"), "writes_no_capability": "writes to capabilities of virtio, but for the window's, in a driver that walked them";
    VENDOR_FIRST = clause!(vendor_data "R2"), "checks_the_vendor": "reads and writes of vendor data, against the read of vendor_id that must come first";
    WINDOW_ALIGNED = clause!(window "R1"), "aligns_the_window": "offset and length of the configuration access window when its data are accessed";
    WINDOW_WITHIN = clause!(window "R2"), "keeps_the_window_in_structures": "place of the configuration access window when its data are accessed";
    VFS_AFTER = clause!(reserved "R10"), "negotiates_sr_iov_first": "VF Enable is set: SR_IOV must have been negotiated and FEATURES_OK read back";
}

/// Configuration space.
#[derive(Debug)]
pub struct Pci {
    image: Vec<u8>,
    caps: Vec<Cap>,
    window: usize,
    vendor: usize,
    /// Bytes of vendor_id that were read.
    vendor_read: [bool; 2],
    sr_iov: bool,
    /// The driver read the ids, or a capability: it is looking.
    pub looked: bool,
}

#[derive(Debug)]
struct Cap {
    at: usize,
    len: usize,
}

impl Pci {
    /// As after power-on.
    pub fn new(plan: &Plan, vectors: u16) -> Self {
        let mut this = Self {
            image: vec![0; SIZE],
            caps: Vec::new(),
            window: 0,
            vendor: 0,
            vendor_read: [false; 2],
            sr_iov: plan.sr_iov,
            looked: false,
        };
        let id = match plan.kind {
            Kind::Block | Kind::Zoned => blk::ID,
            Kind::Entropy => rng::ID,
        };
        let transitional = match plan.kind {
            Kind::Block | Kind::Zoned => 0x1001,
            Kind::Entropy => 0x1005,
        };
        let device = if plan.transitional {
            transitional
        } else {
            pci::DEVICE_BASE + id
        };
        this.put(0, &pci::VENDOR.to_le_bytes());
        this.put(2, &device.to_le_bytes());
        this.put(6, &pci::STATUS_CAPABILITIES.to_le_bytes());
        this.put(8, &[plan.revision, 0, 0x80, 0x01]);
        this.put(0x2c, &pci::VENDOR.to_le_bytes());
        let subsystem = if plan.transitional { id } else { 0x40 };
        this.put(0x2e, &subsystem.to_le_bytes());
        this.capabilities(plan, vectors);
        if plan.sr_iov {
            this.put(SR_IOV_AT, &[0x10, 0, 1, 0]);
            this.put(SR_IOV_AT + 0x0c, &VFS.to_le_bytes());
            this.put(SR_IOV_AT + 0x0e, &VFS.to_le_bytes());
        }
        this
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        if let Some(place) = self.image.get_mut(at..at + data.len()) {
            place.copy_from_slice(data);
        }
    }

    fn capabilities(&mut self, plan: &Plan, vectors: u16) {
        let odd = plan.odd;
        let length = |len: u64| if odd.large_structures { PART } else { len };
        let mut at = usize::from(pci::CAPABILITIES_BEGIN);
        let mut link = usize::from(pci::CAPABILITIES);
        let mut add = |this: &mut Self, body: &[u8]| {
            this.put(link, &[u8::try_from(at).unwrap_or(0)]);
            this.put(at, body);
            link = at + 1;
            let mine = at;
            at += body.len().next_multiple_of(4);
            mine
        };
        let virtio = |kind: u8, bar: u8, offset: u64, len: u64, more: &[u8]| {
            let mut body = vec![pci::ID_VENDOR, 0, 0, kind, bar, 0, 0, 0];
            body.extend(&offset.to_le_bytes()[..4]);
            body.extend(&len.to_le_bytes()[..4]);
            body.extend(more);
            body[2] = body.len().to_le_bytes()[0];
            body
        };
        let mut all = Vec::new();
        if odd.reserved_type {
            all.push(virtio(0x77, 0, TRAP_TYPE, 16, &[]));
        }
        if odd.reserved_bar {
            all.push(virtio(cfg_type::COMMON, 6, 0, PART, &[]));
        }
        let more: &[u8] = if odd.long_capability { &[0; 8] } else { &[] };
        all.push(virtio(
            cfg_type::COMMON,
            0,
            COMMON,
            length(COMMON_LEN),
            more,
        ));
        let multiplier = &MULTIPLIER.to_le_bytes()[..4];
        all.push(virtio(cfg_type::NOTIFY, 0, NOTIFY, PART, multiplier));
        all.push(virtio(cfg_type::ISR, 0, ISR, length(1), &[]));
        all.push(virtio(cfg_type::DEVICE, 0, DEVICE, length(96), &[]));
        if odd.second_common {
            all.push(virtio(cfg_type::COMMON, 0, TRAP_SECOND, PART, &[]));
        }
        all.push(virtio(cfg_type::TRACKER, 0, TRACKER, 32, &[]));
        for body in &all {
            let at = add(self, body);
            let len = body.len();
            self.caps.push(Cap { at, len });
        }
        self.window = add(self, &virtio(cfg_type::PCI, 0, 0, 0, &[0; 4]));
        let mut vendor = vec![pci::ID_VENDOR, 0, 16, cfg_type::VENDOR];
        vendor.extend(VENDOR_ID.to_le_bytes());
        vendor.extend(16_u16.to_le_bytes());
        vendor.extend([0xd5; 8]);
        self.vendor = add(self, &vendor);
        let mut msix = vec![pci::ID_MSIX, 0];
        msix.extend(vectors.saturating_sub(1).to_le_bytes());
        msix.extend(1_u32.to_le_bytes());
        msix.extend(0x1001_u32.to_le_bytes());
        add(self, &msix);
    }

    /// Whether VF Enable is set, and how many virtual functions there are then.
    pub fn vfs(&self) -> Option<u16> {
        let word = |at: usize| u16::from_le_bytes([self.image[at], self.image[at + 1]]);
        let enabled = self.sr_iov && word(SR_IOV_AT + 8) & 1 != 0;
        enabled.then(|| word(SR_IOV_AT + 16))
    }

    /// The bits of a byte that a driver may change.
    fn writable(&self, at: usize) -> u8 {
        match at {
            4 | 5 | 0x3c => 0xff,
            // The sizes of the BARs show in the bits that stay 0.
            0x11 => !BAR0.to_le_bytes()[1].wrapping_sub(1),
            0x15 => !BAR1.to_le_bytes()[1].wrapping_sub(1),
            0x12 | 0x13 | 0x16 | 0x17 => 0xff,
            _ if self.sr_iov && (SR_IOV_AT + 8..SR_IOV_AT + 10).contains(&at) => 0x1f,
            _ if self.sr_iov && (SR_IOV_AT + 16..SR_IOV_AT + 18).contains(&at) => 0xff,
            _ if (self.window + 4..self.window + 20).contains(&at) => 0xff,
            _ => 0,
        }
    }

    fn number(&self, at: usize) -> u64 {
        let bytes = self.image.get(at..at + 4).unwrap_or(&[]);
        bytes
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    /// BAR, offset and length of the window, when its data are accessed.
    fn window(&self, offset: usize, len: usize) -> Option<(u8, u64, usize)> {
        let data = self.window + 16;
        if offset >= data + 4 || offset + len <= data || len > 4 {
            return None;
        }
        let length = usize::try_from(self.number(self.window + 12)).unwrap_or(0);
        Some((
            self.image[self.window + 4],
            self.number(self.window + 8),
            length,
        ))
    }

    fn judge_window(&self, book: &mut Ledger, (bar, offset, len): (u8, u64, usize)) -> bool {
        let aligned = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len as u64);
        book.check(&WINDOW_ALIGNED, aligned, || {
            format!("{len} bytes at offset {offset:#x}")
        });
        let structures = [
            (COMMON, PART),
            (ISR, PART),
            (DEVICE, PART),
            (NOTIFY, PART),
            (TRACKER, 32),
        ];
        let end = offset.saturating_add(len as u64);
        let within = bar == 0
            && structures
                .iter()
                .any(|(at, size)| *at <= offset && end <= at + size);
        book.check(&WINDOW_WITHIN, within, || {
            format!("BAR {bar}, {len} bytes at {offset:#x}")
        });
        aligned && within
    }
}

/// Reads configuration space.
pub fn read(inner: &mut Inner, offset: u16, data: &mut [u8]) {
    let offset = usize::from(offset);
    if let Some(window) = inner.pci.window(offset, data.len())
        && inner.pci.judge_window(&mut inner.book, window)
    {
        let mut value = [0; 4];
        let (bar, at, len) = window;
        inner.bar_read(bar, at, &mut value[..len]);
        let place = inner.pci.window + 16;
        inner.pci.put(place, &value);
    }
    let pci = &mut inner.pci;
    // A virtual machine monitor copies all of it; a driver reads fields.
    if data.len() <= 8 {
        pci.looked |= offset < 4 || offset >= usize::from(pci::CAPABILITIES);
        let (vendor, end) = (pci.vendor + 4, offset + data.len());
        let mut read = pci.vendor_read;
        for (at, byte) in (vendor..).zip(&mut read) {
            *byte |= (offset..end).contains(&at);
        }
        let whole = [true; 2];
        if read == whole && pci.vendor_read != whole {
            pci.vendor_read = whole;
            inner.book.kept(&VENDOR_FIRST, "vendor_id was read");
        }
        pci.vendor_read = read;
        if offset < vendor + 12 && vendor + 4 < end && read != whole {
            inner
                .book
                .broke(&VENDOR_FIRST, "vendor data were read before vendor_id was");
        }
    }
    for (at, byte) in (offset..).zip(data) {
        *byte = inner.pci.image.get(at).copied().unwrap_or(0xff);
    }
}

/// Writes configuration space.
pub fn write(inner: &mut Inner, offset: u16, data: &[u8]) {
    let offset = usize::from(offset);
    let end = offset + data.len();
    inner.book.step(format!(
        "writes {data:02x?} to configuration space at {offset:#x}"
    ));
    let hit = inner
        .pci
        .caps
        .iter()
        .any(|cap| offset < cap.at + cap.len && cap.at < end);
    if hit {
        inner.book.broke(
            &READ_ONLY,
            format!("a write to a capability at {offset:#x}"),
        );
    }
    let vendor = inner.pci.vendor;
    if offset < vendor + 16 && vendor + 8 < end && inner.pci.vendor_read != [true; 2] {
        inner.book.broke(
            &VENDOR_FIRST,
            "vendor data were written before vendor_id was read",
        );
    }
    let enabled = inner.pci.vfs().is_some();
    for (at, byte) in (offset..).zip(data) {
        let mask = inner.pci.writable(at);
        if let Some(place) = inner.pci.image.get_mut(at) {
            *place = *place & !mask | byte & mask;
        }
    }
    if !enabled && inner.pci.vfs().is_some() {
        let ready = inner.life.sr_iov_ready();
        inner.book.check(&VFS_AFTER, ready, || {
            format!(
                "VF Enable with {}",
                if ready {
                    "SR_IOV agreed"
                } else {
                    "SR_IOV not agreed yet"
                }
            )
        });
    }
    if let Some(window) = inner.pci.window(offset, data.len())
        && inner.pci.judge_window(&mut inner.book, window)
    {
        let value = inner.pci.number(inner.pci.window + 16).to_le_bytes();
        let (bar, at, len) = window;
        inner.bar_write(bar, at, &value[..len]);
    }
}

/// An access to BAR 0 outside the structures.
pub fn strayed(inner: &mut Inner, offset: u64) {
    if (TRAP_TYPE..TRAP_TYPE + PART).contains(&offset) {
        inner.book.broke(
            &RESERVED_TYPE,
            format!("an access at {offset:#x}, to which the capability of reserved type points"),
        );
    } else if (TRAP_SECOND..TRAP_SECOND + PART).contains(&offset) {
        inner.book.broke(
            &FIRST,
            format!("an access at {offset:#x}, to the second common configuration"),
        );
    }
}

/// What a driver passed, or stumbled over, in finding the function.
pub fn found(inner: &mut Inner, kept: bool) {
    let saw = if kept {
        "the driver came as far as DRIVER_OK"
    } else {
        "the driver looked at the function and never came as far as DRIVER_OK"
    };
    let plan = &inner.plan;
    let odd = plan.odd;
    for (rule, provoked) in [
        (&MODERN, !plan.transitional),
        (&TRANSITIONAL, plan.transitional),
        (&REVISION, plan.revision != 0),
        (&RESERVED_TYPE, odd.reserved_type),
        (&LONG, odd.long_capability),
        (&RESERVED_BAR, odd.reserved_bar),
        (&LARGE, odd.large_structures),
    ] {
        if provoked {
            inner.book.bore(rule, kept, || saw.to_owned());
        }
    }
    if kept && inner.pci.looked {
        inner
            .book
            .kept(&READ_ONLY, "it walked the capabilities and wrote to none");
        if odd.second_common {
            inner.book.kept(&FIRST, saw);
        }
    }
}
