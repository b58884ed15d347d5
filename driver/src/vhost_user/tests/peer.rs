//! A backend that speaks the protocol by hand, numbers typed from its specification.

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

pub(super) const GET_FEATURES: u32 = 1;
pub(super) const SET_FEATURES: u32 = 2;
pub(super) const SET_OWNER: u32 = 3;
pub(super) const SET_MEM_TABLE: u32 = 5;
pub(super) const SET_LOG_BASE: u32 = 6;
pub(super) const SET_VRING_NUM: u32 = 8;
pub(super) const SET_VRING_ADDR: u32 = 9;
pub(super) const SET_VRING_BASE: u32 = 10;
pub(super) const GET_VRING_BASE: u32 = 11;
pub(super) const SET_VRING_KICK: u32 = 12;
pub(super) const SET_VRING_CALL: u32 = 13;
pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
pub(super) const GET_QUEUE_NUM: u32 = 17;
pub(super) const SET_VRING_ENABLE: u32 = 18;
pub(super) const GET_CONFIG: u32 = 24;
pub(super) const GET_INFLIGHT_FD: u32 = 31;
pub(super) const SET_INFLIGHT_FD: u32 = 32;

/// MQ, LOG_SHMFD, REPLY_ACK, CONFIG, INFLIGHT_SHMFD.
pub(super) const PROTOCOL: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 9 | 1 << 12;
/// VERSION_1, PROTOCOL_FEATURES, LOG_ALL, and FLUSH of a block device.
pub(super) const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 26 | 1 << 9;

/// How the backend is, and what it does.
#[derive(Clone, Debug)]
pub(super) struct Manner {
    pub features: u64,
    pub protocol: u64,
    /// Answers neither this nor anything after it.
    pub silent_at: Option<u32>,
    /// Closes the connection when this comes.
    pub close_at: Option<u32>,
    /// Refuses this.
    pub refuse: Option<u32>,
    pub vring_base: u32,
    /// Payload of the reply to SET_LOG_BASE.
    pub log_reply: usize,
    /// Size of the in-flight table it gives.
    pub inflight: u64,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            features: FEATURES,
            protocol: PROTOCOL,
            silent_at: None,
            close_at: None,
            refuse: None,
            vring_base: 7,
            log_reply: 8,
            inflight: 4096,
        }
    }
}

/// One request that came.
#[derive(Debug)]
pub(super) struct Request {
    pub kind: u32,
    pub payload: Vec<u8>,
    pub files: Vec<File>,
}

impl Request {
    pub(super) fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.payload[at..at + 8].try_into().unwrap())
    }
    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// Everything that came, when the connection has ended.
pub(super) struct Peer(JoinHandle<Vec<Request>>);

impl Peer {
    pub(super) fn start(manner: Manner) -> (Self, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Self(thread::spawn(move || serve(&ours, &manner))), theirs)
    }

    pub(super) fn requests(self) -> Vec<Request> {
        self.0.join().unwrap()
    }
}

fn serve(socket: &UnixStream, manner: &Manner) -> Vec<Request> {
    let mut seen = Vec::new();
    while let Some((request, needs_reply)) = receive(socket) {
        let kind = request.kind;
        if manner.close_at == Some(kind) {
            seen.push(request);
            break;
        }
        let silent = manner
            .silent_at
            .is_some_and(|at| at == kind || seen.iter().any(|before: &Request| before.kind == at));
        let table =
            File::from(rustix::fs::memfd_create("table", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        let answer = match kind {
            GET_FEATURES => Some(manner.features.to_ne_bytes().to_vec()),
            GET_PROTOCOL_FEATURES => Some(manner.protocol.to_ne_bytes().to_vec()),
            GET_QUEUE_NUM => Some(2_u64.to_ne_bytes().to_vec()),
            GET_VRING_BASE => {
                let index = request.payload[..4].to_vec();
                Some([index, manner.vring_base.to_ne_bytes().to_vec()].concat())
            }
            GET_CONFIG => {
                let mut answer = request.payload.clone();
                answer[12..].fill(0x5a);
                Some(answer)
            }
            SET_LOG_BASE => Some(vec![0; manner.log_reply]),
            GET_INFLIGHT_FD => {
                table.set_len(4096).unwrap();
                let size = manner.inflight.to_ne_bytes().to_vec();
                Some([size, request.payload[8..].to_vec()].concat())
            }
            _ => needs_reply.then(|| {
                u64::from(manner.refuse == Some(kind))
                    .to_ne_bytes()
                    .to_vec()
            }),
        };
        if let Some(answer) = answer.filter(|_| !silent) {
            let fd = (kind == GET_INFLIGHT_FD).then(|| table.as_fd());
            send(socket, kind, &answer, fd);
        }
        seen.push(request);
    }
    seen
}

fn receive(mut socket: &UnixStream) -> Option<(Request, bool)> {
    let mut header = [0; 12];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut header)];
    let got = recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    if got.bytes == 0 {
        return None;
    }
    assert_eq!(got.bytes, 12);
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            files.extend(fds.map(File::from));
        }
    }
    let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
    let (kind, flags, size) = (word(0), word(4), word(8));
    assert_eq!(flags & 7, 1, "version 1, no reply");
    let mut payload = vec![0; usize::try_from(size).unwrap()];
    socket.read_exact(&mut payload).ok()?;
    let request = Request {
        kind,
        payload,
        files,
    };
    Some((request, flags & 8 != 0))
}

fn send(socket: &UnixStream, kind: u32, payload: &[u8], fd: Option<BorrowedFd<'_>>) {
    let size = u32::try_from(payload.len()).unwrap();
    let mut message = Vec::new();
    for word in [kind, 1 | 4, size] {
        message.extend(word.to_ne_bytes());
    }
    message.extend(payload);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().collect();
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    // The frontend may have gone.
    let _ = sendmsg(
        socket,
        &[IoSlice::new(&message)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
}
