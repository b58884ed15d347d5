//! The inner layer: an image of memory, and what a hypervisor knows of its processors.

use super::framing::{Bad, Fields, NEWER};

const MARKER: u64 = u64::MAX;
/// "XENF".
const IDENT: u32 = 0x5845_4e46;
/// Bytes of both headers together.
pub(super) const HEADER_BYTES: usize = 40;
const IMAGE_BYTES: usize = 24;

/// The pages of this format are of 4096 bytes.
const PAGE_SHIFT: u16 = 12;

const END: u32 = 0x00;
/// Taken apart by the reader and put together by the writer, because of its size.
pub(super) const PAGE_DATA: u32 = 0x01;
const X86_PV_INFO: u32 = 0x02;
const X86_PV_P2M_FRAMES: u32 = 0x03;
const X86_PV_VCPU_BASIC: u32 = 0x04;
const X86_PV_VCPU_EXTENDED: u32 = 0x05;
const X86_PV_VCPU_XSAVE: u32 = 0x06;
const SHARED_INFO: u32 = 0x07;
const X86_TSC_INFO: u32 = 0x08;
const HVM_CONTEXT: u32 = 0x09;
const HVM_PARAMS: u32 = 0x0a;
const TOOLSTACK: u32 = 0x0b;
const X86_PV_VCPU_MSRS: u32 = 0x0c;
const VERIFY: u32 = 0x0d;
const CHECKPOINT: u32 = 0x0e;
const CHECKPOINT_DIRTY_PFN_LIST: u32 = 0x0f;
const STATIC_DATA_END: u32 = 0x10;
const X86_CPUID_POLICY: u32 = 0x11;
const X86_MSR_POLICY: u32 = 0x12;

/// The name of a record type.
pub(super) fn name(kind: u32) -> Option<&'static str> {
    Some(match kind {
        END => "END",
        PAGE_DATA => "PAGE_DATA",
        X86_PV_INFO => "X86_PV_INFO",
        X86_PV_P2M_FRAMES => "X86_PV_P2M_FRAMES",
        X86_PV_VCPU_BASIC => "X86_PV_VCPU_BASIC",
        X86_PV_VCPU_EXTENDED => "X86_PV_VCPU_EXTENDED",
        X86_PV_VCPU_XSAVE => "X86_PV_VCPU_XSAVE",
        SHARED_INFO => "SHARED_INFO",
        X86_TSC_INFO => "X86_TSC_INFO",
        HVM_CONTEXT => "HVM_CONTEXT",
        HVM_PARAMS => "HVM_PARAMS",
        TOOLSTACK => "TOOLSTACK",
        X86_PV_VCPU_MSRS => "X86_PV_VCPU_MSRS",
        VERIFY => "VERIFY",
        CHECKPOINT => "CHECKPOINT",
        CHECKPOINT_DIRTY_PFN_LIST => "CHECKPOINT_DIRTY_PFN_LIST",
        STATIC_DATA_END => "STATIC_DATA_END",
        X86_CPUID_POLICY => "X86_CPUID_POLICY",
        X86_MSR_POLICY => "X86_MSR_POLICY",
        _ => return None,
    })
}

/// Versions of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Without static data.
    V2,
    /// With STATIC_DATA_END before the first page.
    V3,
}

/// Kinds of domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainType {
    /// Paravirtualised.
    Pv,
    /// With hardware virtualisation: ours.
    Hvm,
}

/// Both headers of an image: the image header, big-endian, and the domain header, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version of the image.
    pub version: Version,
    /// Kind of the domain.
    pub domain: DomainType,
    /// Version of the Xen that wrote it, major; 0 for a stream that was converted.
    pub xen_major: u32,
    /// The same, minor.
    pub xen_minor: u32,
}

impl Header {
    /// What our writer writes. No Xen wrote it: 0.0 stands for "not written by Xen".
    pub const OURS: Self = Self {
        version: Version::V3,
        domain: DomainType::Hvm,
        xen_major: 0,
        xen_minor: 0,
    };

    /// As bytes.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let version: u32 = match self.version {
            Version::V2 => 2,
            Version::V3 => 3,
        };
        let domain: u32 = match self.domain {
            DomainType::Pv => 1,
            DomainType::Hvm => 2,
        };
        let parts: [&[u8]; 8] = [
            &MARKER.to_be_bytes(),
            &IDENT.to_be_bytes(),
            &version.to_be_bytes(),
            &[0; 8],
            &domain.to_le_bytes(),
            &u32::from(PAGE_SHIFT).to_le_bytes(),
            &self.xen_major.to_le_bytes(),
            &self.xen_minor.to_le_bytes(),
        ];
        let mut bytes = [0; HEADER_BYTES];
        for (to, from) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Bad> {
        let mut fields = Fields::new(bytes);
        let marker = fields.bytes().map(u64::from_be_bytes)?;
        if marker != MARKER {
            return Err(Bad::new(
                0,
                format!("the marker {MARKER:#x}"),
                format!("{marker:#x}"),
            ));
        }
        let ident = fields.bytes().map(u32::from_be_bytes)?;
        if ident != IDENT {
            return Err(Bad::new(
                8,
                format!("the ident {IDENT:#x}"),
                format!("{ident:#x}"),
            ));
        }
        let version = match fields.bytes().map(u32::from_be_bytes)? {
            2 => Version::V2,
            3 => Version::V3,
            other => {
                return Err(
                    Bad::new(12, "version 2 or 3", format!("version {other}")).advising(NEWER)
                );
            }
        };
        match fields.bytes().map(u16::from_be_bytes)? {
            0 => {}
            1 => {
                return Err(Bad::new(16, "a little-endian image", "a big-endian one")
                    .advising("convert it on a machine of its own kind"));
            }
            other => {
                let got = format!("options {other:#x}");
                return Err(Bad::new(16, "no reserved option", got));
            }
        }
        let reserved = fields.bytes::<6>()?;
        if reserved != [0; 6] {
            return Err(Bad::new(
                18,
                "0 in reserved fields",
                format!("{reserved:02x?}"),
            ));
        }
        let domain = match fields.u32()? {
            1 => DomainType::Pv,
            2 => DomainType::Hvm,
            other => {
                return Err(
                    Bad::new(IMAGE_BYTES, "domain type 1 or 2", other.to_string()).advising(NEWER),
                );
            }
        };
        let shift = fields.bytes().map(u16::from_le_bytes)?;
        if shift != PAGE_SHIFT {
            let expected = format!("a page shift of {PAGE_SHIFT}");
            return Err(Bad::new(IMAGE_BYTES + 4, expected, shift.to_string()));
        }
        let reserved = fields.bytes().map(u16::from_le_bytes)?;
        if reserved != 0 {
            let got = format!("{reserved:#x}");
            return Err(Bad::new(IMAGE_BYTES + 6, "0 in a reserved field", got));
        }
        Ok(Self {
            version,
            domain,
            xen_major: fields.u32()?,
            xen_minor: fields.u32()?,
        })
    }
}

/// The four records that a paravirtual processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuPart {
    /// Registers.
    Basic,
    /// Event channel callbacks.
    Extended,
    /// XSAVE area.
    Xsave,
    /// Model-specific registers.
    Msrs,
}

/// How guest time relates to the time stamp counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscInfo {
    /// Mode of emulation.
    pub mode: u32,
    /// Frequency, in kHz.
    pub khz: u32,
    /// Guest time, in nanoseconds.
    pub nsec: u64,
    /// How often it was moved.
    pub incarnation: u32,
}

/// A record of the inner layer, pages excepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The image ends.
    End,
    /// Paravirtual: width of a guest word in bytes, levels of page tables.
    X86PvInfo(u8, u8),
    /// Paravirtual: first and last page frame, and the frames of the table between them.
    X86PvP2mFrames(u32, u32, Vec<u64>),
    /// Paravirtual: a part of a processor, its number and bytes.
    X86PvVcpu(VcpuPart, u32, Vec<u8>),
    /// Paravirtual: a page that the hypervisor shares with the guest.
    SharedInfo(Box<[u8; 4096]>),
    /// Time.
    X86TscInfo(TscInfo),
    /// The hypervisor's state of processors and interrupt controllers.
    HvmContext(Vec<u8>),
    /// Parameters of the machine: index and value.
    HvmParams(Vec<(u64, u64)>),
    /// Pages from here on are compared with what is there.
    Verify,
    /// An epoch ends; the outer layer's records of it follow, if there is one.
    Checkpoint,
    /// Secondary to primary only: what the secondary has dirtied itself.
    CheckpointDirtyPfnList(Vec<u64>),
    /// No more static data; only in version 3.
    StaticDataEnd,
    /// What the guest sees of its processor's features; only in version 3.
    X86CpuidPolicy(Vec<[u8; 24]>),
    /// What it sees of its model-specific registers; only in version 3.
    X86MsrPolicy(Vec<[u8; 16]>),
}

impl Record {
    /// Its type.
    pub fn kind(&self) -> u32 {
        match self {
            Self::End => END,
            Self::X86PvInfo(..) => X86_PV_INFO,
            Self::X86PvP2mFrames(..) => X86_PV_P2M_FRAMES,
            Self::X86PvVcpu(VcpuPart::Basic, ..) => X86_PV_VCPU_BASIC,
            Self::X86PvVcpu(VcpuPart::Extended, ..) => X86_PV_VCPU_EXTENDED,
            Self::X86PvVcpu(VcpuPart::Xsave, ..) => X86_PV_VCPU_XSAVE,
            Self::X86PvVcpu(VcpuPart::Msrs, ..) => X86_PV_VCPU_MSRS,
            Self::SharedInfo(_) => SHARED_INFO,
            Self::X86TscInfo(_) => X86_TSC_INFO,
            Self::HvmContext(_) => HVM_CONTEXT,
            Self::HvmParams(_) => HVM_PARAMS,
            Self::Verify => VERIFY,
            Self::Checkpoint => CHECKPOINT,
            Self::CheckpointDirtyPfnList(_) => CHECKPOINT_DIRTY_PFN_LIST,
            Self::StaticDataEnd => STATIC_DATA_END,
            Self::X86CpuidPolicy(_) => X86_CPUID_POLICY,
            Self::X86MsrPolicy(_) => X86_MSR_POLICY,
        }
    }

    /// Its body, without padding.
    pub fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Self::End | Self::Verify | Self::Checkpoint | Self::StaticDataEnd => {}
            Self::X86PvInfo(width, levels) => body.extend([*width, *levels, 0, 0, 0, 0, 0, 0]),
            Self::X86PvP2mFrames(first, last, frames) => {
                body.extend(first.to_le_bytes());
                body.extend(last.to_le_bytes());
                body.extend(frames.iter().flat_map(|frame| frame.to_le_bytes()));
            }
            Self::X86PvVcpu(_, vcpu, bytes) => {
                body.extend(vcpu.to_le_bytes());
                body.extend([0; 4]);
                body.extend(bytes);
            }
            Self::SharedInfo(page) => body.extend(page.iter()),
            Self::X86TscInfo(info) => {
                body.extend(info.mode.to_le_bytes());
                body.extend(info.khz.to_le_bytes());
                body.extend(info.nsec.to_le_bytes());
                body.extend(info.incarnation.to_le_bytes());
                body.extend([0; 4]);
            }
            Self::HvmContext(bytes) => body.extend(bytes),
            Self::HvmParams(params) => {
                let count = u32::try_from(params.len()).unwrap_or(u32::MAX);
                body.extend(count.to_le_bytes());
                body.extend([0; 4]);
                let numbers = params.iter().flat_map(|(index, value)| [index, value]);
                body.extend(numbers.flat_map(|number| number.to_le_bytes()));
            }
            Self::CheckpointDirtyPfnList(pfns) => {
                body.extend(pfns.iter().flat_map(|pfn| pfn.to_le_bytes()));
            }
            Self::X86CpuidPolicy(leaves) => body.extend(leaves.as_flattened()),
            Self::X86MsrPolicy(entries) => body.extend(entries.as_flattened()),
        }
        body
    }

    /// From a type and a body. `None` for a type that this layer does not have.
    pub(super) fn parse(kind: u32, body: &[u8]) -> Result<Option<Self>, Bad> {
        let mut fields = Fields::new(body);
        let record = match kind {
            END => Self::End,
            X86_PV_INFO => pv_info(&mut fields)?,
            X86_PV_P2M_FRAMES => Self::X86PvP2mFrames(
                fields.u32()?,
                fields.u32()?,
                numbers(fields.elements::<8>()?),
            ),
            X86_PV_VCPU_BASIC => vcpu(VcpuPart::Basic, &mut fields)?,
            X86_PV_VCPU_EXTENDED => vcpu(VcpuPart::Extended, &mut fields)?,
            X86_PV_VCPU_XSAVE => vcpu(VcpuPart::Xsave, &mut fields)?,
            X86_PV_VCPU_MSRS => vcpu(VcpuPart::Msrs, &mut fields)?,
            SHARED_INFO => Self::SharedInfo(Box::new(fields.bytes()?)),
            X86_TSC_INFO => {
                let info = TscInfo {
                    mode: fields.u32()?,
                    khz: fields.u32()?,
                    nsec: fields.u64()?,
                    incarnation: fields.u32()?,
                };
                fields.zero()?;
                Self::X86TscInfo(info)
            }
            HVM_CONTEXT if body.is_empty() => {
                return Err(Bad::new(0, "at least one byte of context", "an empty body"));
            }
            HVM_CONTEXT => Self::HvmContext(fields.rest().to_vec()),
            HVM_PARAMS => hvm_params(&mut fields)?,
            TOOLSTACK => {
                return Err(
                    Bad::new(0, "a record in use", "TOOLSTACK, which is deprecated")
                        .advising("save the domain again with a Xen of this decade"),
                );
            }
            VERIFY => Self::Verify,
            CHECKPOINT => Self::Checkpoint,
            CHECKPOINT_DIRTY_PFN_LIST => {
                Self::CheckpointDirtyPfnList(numbers(fields.elements::<8>()?))
            }
            STATIC_DATA_END => Self::StaticDataEnd,
            X86_CPUID_POLICY => Self::X86CpuidPolicy(some(&mut fields)?),
            X86_MSR_POLICY => Self::X86MsrPolicy(some(&mut fields)?),
            _ => return Ok(None),
        };
        fields.done()?;
        Ok(Some(record))
    }
}

fn pv_info(fields: &mut Fields<'_>) -> Result<Record, Bad> {
    let [width, levels, reserved @ ..] = fields.bytes::<8>()?;
    if ![4, 8].contains(&width) {
        return Err(Bad::new(0, "a width of 4 or 8 bytes", width.to_string()));
    }
    if ![3, 4].contains(&levels) {
        return Err(Bad::new(
            1,
            "3 or 4 levels of page tables",
            levels.to_string(),
        ));
    }
    if reserved != [0; 6] {
        return Err(Bad::new(
            2,
            "0 in reserved fields",
            format!("{reserved:02x?}"),
        ));
    }
    Ok(Record::X86PvInfo(width, levels))
}

fn vcpu(part: VcpuPart, fields: &mut Fields<'_>) -> Result<Record, Bad> {
    let vcpu = fields.u32()?;
    fields.zero()?;
    // May be empty: Xen 4.6 to 4.8 wrote such, and readers are to take them.
    Ok(Record::X86PvVcpu(part, vcpu, fields.rest().to_vec()))
}

fn hvm_params(fields: &mut Fields<'_>) -> Result<Record, Bad> {
    let count = fields.u32()?;
    fields.zero()?;
    let pairs = fields.elements::<16>()?;
    if usize::try_from(count).ok() != Some(pairs.len()) {
        return Err(Bad::new(
            0,
            format!("a count of {}, which the length says", pairs.len()),
            count.to_string(),
        ));
    }
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0, |sum, b| sum << 8 | u64::from(*b))
    };
    let pair = |pair: &[u8; 16]| (number(&pair[..8]), number(&pair[8..]));
    Ok(Record::HvmParams(pairs.iter().map(pair).collect()))
}

fn some<const N: usize>(fields: &mut Fields<'_>) -> Result<Vec<[u8; N]>, Bad> {
    match fields.elements::<N>()? {
        [] => Err(Bad::new(0, "at least one element", "an empty body")),
        elements => Ok(elements.to_vec()),
    }
}

fn numbers(elements: &[[u8; 8]]) -> Vec<u64> {
    elements
        .iter()
        .map(|bytes| u64::from_le_bytes(*bytes))
        .collect()
}
