//! The messages of vfio-user 0.1 that a client sends, and their answers.
//!
//! The client of the crate `vfio_user`, with which the server's tests speak, is not used: it drops the
//! error flag of answers, so that a refused map looks like one that was made; it waits for ever, so
//! that a server which hangs takes its client along; it cannot map memory read-only; it waits for
//! an answer to every doorbell; and it panics on lengths that a server makes up.

use super::super::BusError;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use zerocopy::byteorder::native_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Numbers of the messages.
pub(super) mod command {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const GET_REGION_INFO: u16 = 5;
    pub const GET_IRQ_INFO: u16 = 7;
    pub const SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const RESET: u16 = 13;
}

/// Bits of `flags`: the low four are the type, 0 a command and 1 a reply.
const TYPE: u32 = 0xf;
const REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// The most data of an answer: what this client announces, and the longest structure.
const PAYLOAD_MAX: usize = (1 << 20) + 4096;

macro_rules! message {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[derive(Unaligned)]
        #[repr(C)]
        pub(super) struct $name { $(pub $field: $type),* }
    };
}

message! {
    /// In front of every message.
    Header { id: U16, command: U16, size: U32, flags: U32, error: U32 }
}
message! {
    /// VERSION; text follows.
    Version { major: U16, minor: U16 }
}
message! {
    /// DMA_MAP.
    DmaMap { argsz: U32, flags: U32, offset: U64, address: U64, size: U64 }
}
message! {
    /// DMA_UNMAP.
    DmaUnmap { argsz: U32, flags: U32, address: U64, size: U64 }
}
message! {
    /// DEVICE_GET_REGION_INFO, and its answer; capabilities may follow.
    RegionInfo { argsz: U32, flags: U32, index: U32, cap_offset: U32, size: U64, offset: U64 }
}
message! {
    /// DEVICE_GET_IRQ_INFO, and its answer.
    IrqInfo { argsz: U32, flags: U32, index: U32, count: U32 }
}
message! {
    /// DEVICE_SET_IRQS.
    SetIrqs { argsz: U32, flags: U32, index: U32, start: U32, count: U32 }
}
message! {
    /// REGION_READ and REGION_WRITE, and their answers; data follows.
    RegionAccess { offset: U64, region: U32, count: U32 }
}

/// What goes into `argsz`.
pub(super) fn argsz<T>() -> U32 {
    U32::new(u32::try_from(size_of::<T>()).unwrap_or(u32::MAX))
}

/// A connection to a server. Once anything went wrong with the stream itself it stays broken, for
/// nobody knows where its next message begins.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    next: u16,
    broken: bool,
}

impl Connection {
    /// Connects, and agrees on the version.
    pub(super) fn open(path: &Path, timeout: Duration) -> Result<Self, BusError> {
        let doing = "connecting to its vfio-user socket";
        let unreachable = |source| BusError::Unreachable { doing, source };
        let stream = UnixStream::connect(path).map_err(unreachable)?;
        stream
            .set_read_timeout(Some(timeout))
            .and_then(|()| stream.set_write_timeout(Some(timeout)))
            .map_err(unreachable)?;
        let mut this = Self {
            stream,
            next: 0,
            broken: false,
        };
        let version = Version {
            major: 0.into(),
            minor: 1.into(),
        };
        let text = b"{\"capabilities\":{\"max_msg_fds\":1,\"max_data_xfer_size\":1048576}}\0";
        let body: [&[u8]; 2] = [version.as_bytes(), text];
        let doing = "agreeing on the vfio-user version";
        let reply =
            this.call(doing, command::VERSION, &body, None)
                .map_err(|error| match error {
                    BusError::Unreachable { doing, source } if is_timeout(&source) => {
                        let why =
                            "no answer in time; a server that serves another client gives none";
                        let source = io::Error::new(io::ErrorKind::TimedOut, why);
                        BusError::Unreachable { doing, source }
                    }
                    other => other,
                })?;
        match Version::read_from_prefix(&reply) {
            Ok((version, _)) if version.major.get() == 0 => Ok(this),
            Ok((version, _)) => {
                let why = format!("version {}.x, 0.x expected", version.major);
                Err(unreachable(io::Error::new(io::ErrorKind::Unsupported, why)))
            }
            Err(_) => Err(this.breaks(doing, invalid("an answer without a version"))),
        }
    }

    /// A descriptor of the socket for polling.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.stream.as_fd().try_clone_to_owned()
    }

    /// How long an answer is waited for, from now on.
    pub(super) fn set_patience(&self, timeout: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(timeout))
    }

    /// Sends a command and waits for its answer; returns what follows the answer's header.
    pub(super) fn call(
        &mut self,
        doing: &'static str,
        command: u16,
        body: &[&[u8]],
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Vec<u8>, BusError> {
        let id = self.send(doing, command, 0, body, fd)?;
        let mut head = Header::default();
        self.read(doing, head.as_mut_bytes())?;
        let size = usize::try_from(head.size.get()).unwrap_or(usize::MAX);
        let payload = size.checked_sub(size_of::<Header>());
        let payload = payload.filter(|payload| *payload <= PAYLOAD_MAX);
        let flags = head.flags.get();
        let expected = (head.id.get(), head.command.get(), flags & TYPE) == (id, command, REPLY);
        let Some(payload) = payload.filter(|_| expected) else {
            let why = format!("an answer was expected, {head:?} came");
            return Err(self.breaks(doing, invalid(&why)));
        };
        let mut data = vec![0; payload];
        self.read(doing, &mut data)?;
        if flags & ERROR != 0 {
            let errno = i32::try_from(head.error.get()).unwrap_or(0);
            let source = if errno == 0 {
                io::Error::other("no reason given")
            } else {
                io::Error::from_raw_os_error(errno)
            };
            return Err(BusError::Refused { doing, source });
        }
        Ok(data)
    }

    /// Sends a command that is not answered.
    pub(super) fn post(
        &mut self,
        doing: &'static str,
        command: u16,
        body: &[&[u8]],
    ) -> Result<(), BusError> {
        self.send(doing, command, NO_REPLY, body, None).map(drop)
    }

    /// A peer that answered with too little, or not at all.
    pub(super) fn breaks(&mut self, doing: &'static str, source: io::Error) -> BusError {
        self.broken = true;
        // Whoever waits for a hang-up learns of it, and the server of ours.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        BusError::Unreachable { doing, source }
    }

    fn send(
        &mut self,
        doing: &'static str,
        command: u16,
        flags: u32,
        body: &[&[u8]],
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<u16, BusError> {
        if self.broken {
            let source = io::ErrorKind::BrokenPipe.into();
            return Err(BusError::Unreachable { doing, source });
        }
        let size = size_of::<Header>() + body.iter().map(|part| part.len()).sum::<usize>();
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let header = Header {
            id: id.into(),
            command: command.into(),
            // Bodies are structures and at most a few KiB of data.
            size: u32::try_from(size).unwrap_or(u32::MAX).into(),
            flags: flags.into(),
            error: 0.into(),
        };
        let mut bytes = Vec::with_capacity(size);
        bytes.extend_from_slice(header.as_bytes());
        body.iter().for_each(|part| bytes.extend_from_slice(part));
        let sent = match fd {
            None => self.stream.write_all(&bytes),
            Some(fd) => self.send_with(&bytes, fd),
        };
        sent.map_err(|source| self.breaks(doing, source))?;
        Ok(id)
    }

    /// The descriptor goes with the first byte.
    fn send_with(&mut self, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let flags = SendFlags::NOSIGNAL;
        let sent = rustix::io::retry_on_intr(|| {
            sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, flags)
        })?;
        match bytes.get(sent..) {
            Some(rest) => self.stream.write_all(rest),
            None => Ok(()),
        }
    }

    fn read(&mut self, doing: &'static str, data: &mut [u8]) -> Result<(), BusError> {
        self.stream
            .read_exact(data)
            .map_err(|source| self.breaks(doing, source))
    }
}

impl Drop for Connection {
    /// A duplicate for polling must not keep the connection alive.
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut)
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}
