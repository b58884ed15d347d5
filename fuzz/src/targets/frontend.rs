//! A vhost-user frontend with pencil and paper: messages, descriptors, answers.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Where the frontend has guest memory in its own address space.
pub const USER: u64 = 0x7000_0000_0000;

/// Requests, by their numbers in the protocol.
pub mod ask {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const GET_CONFIG: u32 = 24;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}

const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// Its answer's body.
    Answer(Vec<u8>),
    /// The backend hung up.
    Gone,
    /// Nothing, in all the time there was.
    Nothing,
}

/// The frontend's end of a connection.
#[derive(Debug)]
pub struct Frontend {
    stream: UnixStream,
}

impl Frontend {
    /// Over a connection.
    pub fn new(stream: UnixStream) -> Self {
        let patience = Some(crate::oracle::PATIENCE);
        stream.set_read_timeout(patience).expect("a patience");
        stream.set_write_timeout(patience).expect("a patience");
        Self { stream }
    }

    /// Sends a message with descriptors; `length` is what its header says of its body. False if the
    /// backend does not listen any more.
    pub fn send(
        &self,
        request: u32,
        flags: u32,
        length: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> bool {
        let mut message = Vec::new();
        for word in [request, flags | VERSION, length] {
            message.extend(word.to_ne_bytes());
        }
        message.extend(body);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits = fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds));
        assert!(fits, "at most 8 descriptors");
        let parts = [IoSlice::new(&message)];
        let flags = SendFlags::NOSIGNAL;
        sendmsg(self.stream.as_fd(), &parts, &mut control, flags).is_ok()
    }

    /// Sends a message as it should be, and hears its answer if it has one.
    pub fn ask(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>], want: bool) -> Heard {
        let length = u32::try_from(body.len()).unwrap_or(0);
        let flags = if want { NEED_REPLY } else { 0 };
        if !self.send(request, flags, length, body, fds) {
            return Heard::Gone;
        }
        self.hear(request)
    }

    /// Waits for an answer.
    ///
    /// # Panics
    ///
    /// `oracle answers`: it is an answer to something else, or of no length that there is.
    pub fn hear(&self, request: u32) -> Heard {
        let mut head = [0; 12];
        match (&self.stream).read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Heard::Nothing,
            Err(_) => return Heard::Gone,
        }
        let [to, flags, length] = [0, 4, 8].map(|at| {
            let word: [u8; 4] = [head[at], head[at + 1], head[at + 2], head[at + 3]];
            u32::from_ne_bytes(word)
        });
        assert!(
            to == request && flags & REPLY != 0 && length <= 4096,
            "oracle answers: to {request} comes {to} with flags {flags:#x} and {length} bytes"
        );
        let mut body = vec![0; usize::try_from(length).unwrap_or(0)];
        match (&self.stream).read_exact(&mut body) {
            Ok(()) => Heard::Answer(body),
            Err(_) => Heard::Gone,
        }
    }

    /// Hangs up.
    pub fn close(self) {
        let _ended = self.stream.shutdown(std::net::Shutdown::Both);
    }
}
