//! vfio-user messages in bytes. Numbers are typed again from the protocol's text.

use std::os::fd::OwnedFd;

/// Bytes of a header.
pub const HEADER: usize = 16;
/// Bits of a header's flags: the low four are the type, 0 a command and 1 a reply.
pub const TYPE: u32 = 0xf;
pub const REPLY: u32 = 1;
pub const NO_REPLY: u32 = 1 << 4;
pub const ERROR: u32 = 1 << 5;

/// Commands.
pub mod command {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const GET_INFO: u16 = 4;
    pub const GET_REGION_INFO: u16 = 5;
    pub const GET_IRQ_INFO: u16 = 7;
    pub const SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const RESET: u16 = 13;
    pub const FEATURE: u16 = 16;
    pub const MIG_DATA_READ: u16 = 17;
    pub const MIG_DATA_WRITE: u16 = 18;
}

/// DEVICE_FEATURE's numbers and ways.
pub mod feature {
    pub const MIGRATION: u32 = 1;
    pub const STATE: u32 = 2;
    pub const LOG_START: u32 = 6;
    pub const LOG_STOP: u32 = 7;
    pub const LOG_REPORT: u32 = 8;
    pub const GET: u32 = 1 << 16;
    pub const SET: u32 = 1 << 17;
    pub const PROBE: u32 = 1 << 18;
}

/// States of a device that migrates.
pub mod state {
    pub const STOP: u32 = 1;
    pub const RUNNING: u32 = 2;
    pub const STOP_COPY: u32 = 3;
    pub const RESUMING: u32 = 4;
}

/// Regions and interrupts: BAR 0, configuration space, MSI-X.
pub const BAR0: u32 = 0;
pub const CONFIG: u32 = 7;
pub const MSIX: u32 = 2;
/// SET_IRQS: eventfds for vectors, to be triggered.
pub const CONNECT: u32 = 0x24;
/// Room for any answer of DEVICE_FEATURE.
pub const ROOM: u32 = 1 << 21;

/// A message that is to be sent.
#[derive(Debug)]
pub struct Message {
    pub command: u16,
    pub flags: u32,
    pub body: Vec<u8>,
    /// What its header says of its length; nothing else than the truth if there is none.
    pub lie: Option<u32>,
    pub fds: Vec<OwnedFd>,
    /// The one descriptor is guest memory's.
    pub guest: bool,
}

impl Message {
    /// As it should be.
    pub fn new(command: u16, body: Vec<u8>) -> Self {
        Self {
            command,
            flags: 0,
            body,
            lie: None,
            fds: Vec::new(),
            guest: false,
        }
    }

    /// With descriptors.
    pub fn with(self, fds: Vec<OwnedFd>) -> Self {
        Self { fds, ..self }
    }

    /// The whole message.
    pub fn bytes(&self, id: u16) -> Vec<u8> {
        let size = u32::try_from(HEADER + self.body.len()).unwrap_or(u32::MAX);
        let size = self.lie.unwrap_or(size);
        let mut bytes = id.to_ne_bytes().to_vec();
        bytes.extend(self.command.to_ne_bytes());
        bytes.extend([size, self.flags, 0].into_iter().flat_map(u32::to_ne_bytes));
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// Fields one after another, each of as many bytes as is said.
pub fn numbers(fields: &[(u64, usize)]) -> Vec<u8> {
    let bytes = fields.iter().map(|(value, width)| {
        let bytes = value.to_le_bytes();
        bytes[..(*width).min(8)].to_vec()
    });
    bytes.collect::<Vec<_>>().concat()
}

/// 32 bits of a message; 0 beyond its end.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
    word.map_or(0, |word| u32::from_ne_bytes(*word))
}

/// 64 bits of a message; 0 beyond its end.
pub fn quad(bytes: &[u8], at: usize) -> u64 {
    let quad = bytes.get(at..).and_then(<[u8]>::first_chunk);
    quad.map_or(0, |quad| u64::from_ne_bytes(*quad))
}

/// REGION_READ, and the beginning of REGION_WRITE.
pub fn access(region: u32, offset: u64, count: usize) -> Vec<u8> {
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    numbers(&[(offset, 8), (region.into(), 4), (count, 4)])
}

/// DEVICE_FEATURE, with room for any answer.
pub fn asked(flags: u32, data: &[u8]) -> Vec<u8> {
    let mut body = numbers(&[(ROOM.into(), 4), (flags.into(), 4)]);
    body.extend_from_slice(data);
    body
}
