//! The messages that the protocol's crate cannot exchange, or not with every backend.
//!
//! SET_VRING_BASE has 32 bits, both places of a packed ring; the crate sends the lower half.
//!
//! The specification gives the reply to SET_LOG_BASE no payload of its own. Backends of the crate's
//! family repeat the request's 16 bytes, those of libvhost-user send 8; the crate's frontend waits
//! for 16 and would wait for ever. What the reply's header says is what is read here.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

const SET_LOG_BASE: u32 = 6;
const SET_VRING_BASE: u32 = 10;
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;
/// Largest payload of a reply that is read: none that is known comes near.
const REPLY_MAX: usize = 256;

/// Tells the backend where queue `index` begins, and waits for its consent if `acknowledged` says
/// that it gives one.
///
/// # Errors
/// What the system says; `InvalidData` if the answer is not the reply to this request, or a refusal.
pub(super) fn set_vring_base(
    mut socket: &UnixStream,
    index: u32,
    base: u32,
    acknowledged: bool,
) -> io::Result<()> {
    let flags = VERSION | if acknowledged { NEED_REPLY } else { 0 };
    let words = [SET_VRING_BASE, flags, 8, index, base];
    let message: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    socket.write_all(&message)?;
    if !acknowledged {
        return Ok(());
    }
    let payload = reply(socket, SET_VRING_BASE)?;
    if payload.len() != 8 || payload.iter().any(|byte| *byte != 0) {
        let why = format!("the base {base:#x} of queue {index} was refused with {payload:02x?}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(())
}

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

    reply(socket, SET_LOG_BASE).map(|_| ())
}

/// The payload of the reply to `request`.
fn reply(mut socket: &UnixStream, request: u32) -> io::Result<Vec<u8>> {
    let mut header = [0; 12];
    socket.read_exact(&mut header)?;
    let [came, flags, size] = [0, 4, 8].map(|at| word(&header, at));
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if came != request || flags & REPLY == 0 || size > REPLY_MAX {
        let why = format!("request {came}, flags {flags:#x}, {size} bytes came as its reply");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let mut payload = vec![0; size];
    socket.read_exact(&mut payload)?;
    Ok(payload)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_ne_bytes)
}
