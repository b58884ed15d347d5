//! Where a message begins and ends in the stream, and which descriptors came with it.

use super::message::{COMMAND, ERROR, Header, NO_REPLY, REPLY, TYPE};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send,
};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use zerocopy::{FromBytes, IntoBytes};

/// Most bytes that one access to a region, or one message of migration data, may carry: what is
/// announced as `max_data_xfer_size`.
pub const DATA_MAX: usize = 1 << 20;
/// Most bytes of a message: the most data, and room for the structures before it.
pub const MESSAGE_MAX: usize = DATA_MAX + 4096;
/// Most descriptors that one message may bring: what is announced as `max_msg_fds`. QEMU sends no
/// more, whatever it is told.
pub const FDS_MAX: usize = 16;
/// Descriptors that Linux lets one message carry.
const SCM_MAX: usize = 253;

/// What ends a session before its client does: from here on nobody knows where a message begins, or
/// what it means.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// A message has no length that one can have.
    #[error("a message of {size} bytes; 16 to {MESSAGE_MAX}, header included, were expected")]
    Size {
        /// What its header says.
        size: u32,
    },
    /// Bytes and header do not agree: only for who hands messages over in another way than a
    /// socket.
    #[error("{got} bytes came of a message whose header says {size}; as many were expected")]
    Length {
        /// What the header says.
        size: u32,
        /// What came.
        got: usize,
    },
    /// What came is no command. This server sends none, so there is nothing to reply to.
    #[error("a message with flags {flags:#x}; a command, type 0, was expected")]
    NotACommand {
        /// The header's flags.
        flags: u32,
    },
    /// The two do not agree on how to speak.
    #[error(
        "its VERSION message {0}; version 0.x with a JSON text that ends with NUL was expected"
    )]
    Version(String),
    /// The client went in the middle of a message.
    #[error("the client went after {got} of {expected} bytes of a message's {part}")]
    Cut {
        /// Header or payload.
        part: &'static str,
        /// What came.
        got: usize,
        /// What was to come.
        expected: usize,
    },
    /// The connection broke.
    #[error("the connection broke while {doing}: {error}; the client may connect again")]
    Broken {
        /// Reading or writing.
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

impl ProtocolError {
    /// Whether the client is gone, which it may be at any time; anything else is its mistake.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::Cut { .. } | Self::Broken { .. })
    }
}

impl Header {
    /// The header that `bytes` begin with, if it can be one of a command.
    pub(super) fn judge(bytes: &[u8]) -> (Self, Result<usize, ProtocolError>) {
        let header = Self::read_from_prefix(bytes).map_or_else(|_| Self::default(), |(h, _)| h);
        let size = header.size.get();
        let flags = header.flags.get();
        let whole = usize::try_from(size).unwrap_or(usize::MAX);
        let judged = if flags & TYPE != COMMAND {
            Err(ProtocolError::NotACommand { flags })
        } else if !(size_of::<Self>()..=MESSAGE_MAX).contains(&whole) {
            Err(ProtocolError::Size { size })
        } else {
            Ok(whole)
        };
        (header, judged)
    }

    /// Whether the client waits for no answer.
    pub(super) fn is_posted(&self) -> bool {
        self.flags.get() & NO_REPLY != 0
    }

    /// The header of the answer, of so many bytes in all.
    fn reply(&self, size: usize, errno: Option<Errno>) -> Self {
        let error = errno.map_or(0, |errno| errno.raw_os_error().unsigned_abs());
        let flags = REPLY | errno.map_or(0, |_| ERROR);
        Self {
            // At most MESSAGE_MAX.
            size: u32::try_from(size).unwrap_or(u32::MAX).into(),
            flags: flags.into(),
            error: error.into(),
            ..*self
        }
    }

    /// Makes `out`, which has room for a header in front, the answer.
    pub(super) fn answer(&self, out: &mut [u8]) {
        let header = self.reply(out.len(), None);
        if let Some(room) = out.first_chunk_mut::<16>() {
            room.copy_from_slice(header.as_bytes());
        }
    }

    /// Makes `out` the answer that says why there is no other: a header and nothing more.
    pub(super) fn refuse(&self, errno: Errno, out: &mut Vec<u8>) {
        out.clear();
        let header = self.reply(size_of::<Self>(), Some(errno));
        out.extend_from_slice(header.as_bytes());
    }
}

/// One message as it is read: its bytes, and what came with them. Used again for the next.
#[derive(Debug, Default)]
pub(super) struct Frame {
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
    /// Descriptors that were closed at once: there were too many of them, or no room for them here.
    pub(super) lost: bool,
}

impl Frame {
    /// Reads a header into the frame. False at the end of the stream, if that is between messages.
    pub(super) fn read_header(&mut self, stream: &UnixStream) -> Result<bool, ProtocolError> {
        self.bytes.clear();
        self.fds.clear();
        self.lost = false;
        let got = self.read(stream, size_of::<Header>(), "header")?;
        Ok(got != 0)
    }

    /// Reads what follows the header, up to `size` bytes in all, which has been judged.
    pub(super) fn read_payload(
        &mut self,
        stream: &UnixStream,
        size: usize,
    ) -> Result<(), ProtocolError> {
        let rest = size.saturating_sub(self.bytes.len());
        if self.read(stream, rest, "payload")? == rest {
            return Ok(());
        }
        Err(cut("payload", 0, rest))
    }

    /// Reads so many more bytes, or none if the stream ends before the first.
    fn read(
        &mut self,
        stream: &UnixStream,
        len: usize,
        part: &'static str,
    ) -> Result<usize, ProtocolError> {
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        let mut got = 0;
        while got < len {
            match self.receive(stream, start + got) {
                Ok(0) if got == 0 => break,
                Ok(0) => return Err(cut(part, got, len)),
                Ok(more) => got += more,
                Err(Errno::INTR) => {}
                Err(error) => {
                    return Err(ProtocolError::Broken {
                        doing: "reading a message",
                        error: error.into(),
                    });
                }
            }
        }
        self.bytes.truncate(start + got);
        Ok(got)
    }

    fn receive(&mut self, stream: &UnixStream, from: usize) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let into = self.bytes.get_mut(from..).unwrap_or_default();
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(stream, &mut [IoSliceMut::new(into)], &mut control, flags)?;
        self.lost |= received.flags.contains(ReturnFlags::CTRUNC);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                for fd in fds {
                    if self.fds.len() < FDS_MAX {
                        self.fds.push(fd);
                    } else {
                        self.lost = true;
                    }
                }
            }
        }
        Ok(received.bytes)
    }
}

fn cut(part: &'static str, got: usize, expected: usize) -> ProtocolError {
    ProtocolError::Cut {
        part,
        got,
        expected,
    }
}

/// Sends all of an answer. A client that does not read it holds up its own session only.
pub(super) fn write(stream: &UnixStream, answer: &[u8]) -> Result<(), ProtocolError> {
    let mut rest = answer;
    while !rest.is_empty() {
        match send(stream, rest, SendFlags::NOSIGNAL) {
            Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => {
                return Err(ProtocolError::Broken {
                    doing: "writing an answer",
                    error: error.into(),
                });
            }
        }
    }
    Ok(())
}
