//! The one message that the protocol's crate cannot exchange with every backend.
//!
//! The specification gives the reply to SET_LOG_BASE no payload of its own. Backends of the crate's
//! family repeat the request's 16 bytes, those of libvhost-user send 8; the crate's frontend waits
//! for 16 and would wait for ever. What the reply's header says is what is read here.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

const SET_LOG_BASE: u32 = 6;
const VERSION: u32 = 1;
const REPLY: u32 = 4;
/// Largest payload of a reply that is read: none that is known comes near.
const REPLY_MAX: usize = 256;

/// Gives the backend a log of `len` bytes in `file`, and waits until it has taken it.
///
/// # Errors
/// What the system says; `InvalidData` if the answer is not the reply to this request.
pub(super) fn set_log_base(
    mut socket: &UnixStream,
    file: BorrowedFd<'_>,
    len: u64,
) -> io::Result<()> {
    let mut message = Vec::with_capacity(28);
    message.extend(SET_LOG_BASE.to_ne_bytes());
    message.extend(VERSION.to_ne_bytes());
    message.extend(16_u32.to_ne_bytes());
    message.extend(len.to_ne_bytes());
    message.extend(0_u64.to_ne_bytes());

    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file];
    if !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(
        socket,
        &[IoSlice::new(&message)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    // The descriptor went with the first byte.
    socket.write_all(message.get(sent..).unwrap_or_default())?;

    let mut header = [0; 12];
    socket.read_exact(&mut header)?;
    let [request, flags, size] = [0, 4, 8].map(|at| word(&header, at));
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if request != SET_LOG_BASE || flags & REPLY == 0 || size > REPLY_MAX {
        let why = format!("request {request}, flags {flags:#x}, {size} bytes came as its reply");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    socket.read_exact(&mut vec![0; size])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_ne_bytes)
}
