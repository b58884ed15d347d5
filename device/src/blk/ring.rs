//! Reads and writes that the kernel carries out while their caller does something else (io_uring).
//!
//! Memory that the kernel is using belongs to the ring: a buffer is moved in with its request and
//! comes out with the answer, so nobody can look at it, reuse it or free it in between. A ring that
//! is dropped waits for what it has; if it cannot, it leaks those buffers.
#![expect(
    unsafe_code,
    reason = "hands addresses of its own buffers to the kernel"
)]

use super::buffer::Buffer;
use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, types};
use std::fmt::{self, Debug};
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;

/// What a request does with its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Fills it from the file.
    Read,
    /// Stores it in the file.
    Write,
}

/// A request with the kernel.
#[derive(Debug)]
struct Flying {
    /// What the caller knows it by.
    tag: u64,
    buffer: Buffer,
    direction: Direction,
    fd: types::Fd,
    offset: u64,
    /// Bytes that are moved already.
    done: usize,
}

/// An io_uring, with what is in it.
pub(super) struct Ring {
    ring: IoUring,
    /// A request's place is what its entries carry. As many as the ring has entries.
    flying: Vec<Option<Flying>>,
    free: Vec<usize>,
    /// Scratch: places and results of one look at the completions.
    completed: Vec<(usize, i32)>,
}

impl Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("flying", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring for `entries` requests at once.
    ///
    /// # Errors
    /// What the system says: it has no io_uring, or does not permit it.
    pub(super) fn new(entries: u32) -> io::Result<Self> {
        // Its owner always enters the kernel to wait, so it need not be interrupted for results.
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_r_disabled()
            .build(entries)
            .or_else(|_| IoUring::builder().setup_r_disabled().build(entries))?;
        // What a ring carries out is no system call that a filter would see. So it does what it is
        // needed for and can never be asked for more: no flags, no other operation, nothing registered.
        let mut only = [
            Restriction::sqe_op(opcode::Read::CODE),
            Restriction::sqe_op(opcode::Write::CODE),
        ];
        ring.submitter().register_restrictions(&mut only)?;
        ring.submitter().register_enable_rings()?;
        let places = usize::try_from(entries).map_err(io::Error::other)?;
        Ok(Self {
            ring,
            flying: (0..places).map(|_| None).collect(),
            free: (0..places).rev().collect(),
            completed: Vec::with_capacity(places),
        })
    }

    /// Requests that have not come back.
    pub(super) fn in_flight(&self) -> usize {
        self.flying.len() - self.free.len()
    }

    /// Prepares a request for all of `buffer` at `offset` of `file`, which stays open until it is
    /// done. The next [`turn`](Self::turn) submits it. Gives the buffer back if the ring is full.
    pub(super) fn prepare(
        &mut self,
        tag: u64,
        direction: Direction,
        file: &File,
        offset: u64,
        buffer: Buffer,
    ) -> Result<(), Buffer> {
        let Some(place) = self.free.pop() else {
            return Err(buffer);
        };
        self.flying[place] = Some(Flying {
            tag,
            buffer,
            direction,
            fd: types::Fd(file.as_raw_fd()),
            offset,
            done: 0,
        });
        if self.push(place) {
            return Ok(());
        }
        self.free.push(place);
        match self.flying[place].take() {
            Some(flying) => Err(flying.buffer),
            None => Ok(()),
        }
    }

    /// Queues what is left of the request at `place`. False, with nothing queued, if it cannot.
    fn push(&mut self, place: usize) -> bool {
        let Some(flying) = self.flying.get_mut(place).and_then(Option::as_mut) else {
            return false;
        };
        let Some(rest) = flying.buffer.bytes_mut().get_mut(flying.done..) else {
            return false;
        };
        let (Ok(len), Ok(done), Ok(data)) = (
            u32::try_from(rest.len()),
            u64::try_from(flying.done),
            u64::try_from(place),
        ) else {
            return false;
        };
        let at = rest.as_mut_ptr();
        let offset = flying.offset.saturating_add(done);
        let entry = match flying.direction {
            Direction::Read => opcode::Read::new(flying.fd, at, len).offset(offset).build(),
            Direction::Write => opcode::Write::new(flying.fd, at, len)
                .offset(offset)
                .build(),
        };
        // The buffer is in `flying` and leaves it only when its completion has been seen (in `turn`,
        // which knows it by `place`) or before anything was queued (in `prepare`); `drop` waits, or
        // leaks. Its bytes do not move with it: they are on the heap, in a vector that never grows.
        //
        // SAFETY: so the `len` bytes at `at`, which the kernel may use until it completes the
        // entry, live until then, and no reference to them is made in the meantime.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(data)) };
        pushed.is_ok()
    }

    /// Submits what was prepared, waits until `wait` requests are done, or as many as there are,
    /// and hands out all that are: tag, buffer, and how it went.
    ///
    /// # Errors
    /// The kernel takes no more requests; the ring is to be dropped.
    pub(super) fn turn(
        &mut self,
        wait: usize,
        mut each: impl FnMut(u64, Buffer, io::Result<()>),
    ) -> io::Result<()> {
        let mut wait = wait.min(self.in_flight());
        loop {
            self.enter(wait)?;
            let mut completed = mem::take(&mut self.completed);
            completed.extend(self.ring.completion().map(|entry| {
                let place = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
                (place, entry.result())
            }));
            let mut again = false;
            for (place, result) in completed.drain(..) {
                match self.judge(place, result) {
                    Some((flying, result)) => {
                        wait = wait.saturating_sub(1);
                        each(flying.tag, flying.buffer, result);
                    }
                    None => again = true,
                }
            }
            self.completed = completed;
            if wait == 0 && !again {
                return Ok(());
            }
        }
    }

    fn enter(&mut self, wait: usize) -> io::Result<()> {
        loop {
            if wait == 0 && self.ring.submission().is_empty() {
                return Ok(());
            }
            match self.ring.submit_and_wait(wait) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Short of memory for a moment, or completions are to be taken first.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        || error.kind() == io::ErrorKind::ResourceBusy =>
                {
                    return Ok(());
                }
                done => return done.map(drop),
            }
        }
    }

    /// What a result means for the request at `place`: it is over, or it goes on (`None`).
    fn judge(&mut self, place: usize, result: i32) -> Option<(Flying, io::Result<()>)> {
        let flying = self.flying.get_mut(place)?.as_mut()?;
        let direction = flying.direction;
        let result = match usize::try_from(result) {
            Ok(0) if flying.done < flying.buffer.bytes().len() => Err(match direction {
                Direction::Read => io::ErrorKind::UnexpectedEof.into(),
                Direction::Write => io::ErrorKind::WriteZero.into(),
            }),
            Ok(moved) => {
                flying.done = flying.done.saturating_add(moved);
                Ok(flying.done >= flying.buffer.bytes().len())
            }
            Err(_) => match io::Error::from_raw_os_error(result.saturating_neg()) {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
                error => Err(error),
            },
        };
        if let Ok(false) = result
            && self.push(place)
        {
            return None;
        }
        let flying = self.flying.get_mut(place)?.take()?;
        self.free.push(place);
        let result = match result {
            // The rest could not be queued.
            Ok(false) => Err(io::ErrorKind::ResourceBusy.into()),
            result => result.map(drop),
        };
        Some((flying, result))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while self.in_flight() != 0 {
            if let Err(error) = self.turn(1, |_, _, _| {}) {
                tracing::error!(%error, left = self.in_flight(), "disk I/O cannot be waited for");
                // The kernel may still use them.
                mem::forget(mem::take(&mut self.flying));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::Spares;
    use super::*;
    use std::os::unix::fs::FileExt;

    fn file(len: usize) -> File {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..len).map(|n| (n % 251).to_le_bytes()[0]).collect();
        file.write_all_at(&bytes, 0).unwrap();
        file
    }

    /// None where containers forbid it, as the devices there do without.
    fn ring(entries: u32) -> Option<Ring> {
        match Ring::new(entries) {
            Err(error)
                if [io::ErrorKind::PermissionDenied, io::ErrorKind::Unsupported]
                    .contains(&error.kind()) =>
            {
                eprintln!("NOT TESTED: this system permits no io_uring: {error}");
                None
            }
            ring => Some(ring.unwrap()),
        }
    }

    fn all(ring: &mut Ring) -> Vec<(u64, Buffer, io::Result<()>)> {
        let mut done = Vec::new();
        while ring.in_flight() != 0 {
            ring.turn(1, |tag, buffer, result| done.push((tag, buffer, result)))
                .unwrap();
        }
        done
    }

    #[test]
    fn reads_and_writes_come_back_with_their_buffers() {
        let file = file(1 << 16);
        let mut spares = Spares::default();
        let Some(mut ring) = ring(8) else {
            return;
        };
        for n in 0..8 {
            let buffer = spares.take(4096);
            ring.prepare(n, Direction::Read, &file, n * 4096, buffer)
                .unwrap();
        }
        let full = ring.prepare(9, Direction::Read, &file, 0, spares.take(512));
        assert_eq!(full.unwrap_err().bytes().len(), 512);
        let mut seen = Vec::new();
        for (tag, buffer, result) in all(&mut ring) {
            result.unwrap();
            let at = usize::try_from(tag).unwrap() * 4096;
            assert!(
                (at..)
                    .zip(buffer.bytes())
                    .all(|(n, &b)| n % 251 == usize::from(b))
            );
            seen.push(tag);
            ring.prepare(tag, Direction::Write, &file, (15 - tag) * 4096, buffer)
                .unwrap();
            all(&mut ring).pop().unwrap().2.unwrap();
        }
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7]);
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, 15 * 4096).unwrap();
        assert!((0..).zip(page).all(|(n, b)| n % 251 == usize::from(b)));
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let file = file(5000);
        let mut spares = Spares::default();
        let Some(mut ring) = ring(4) else {
            return;
        };
        ring.prepare(7, Direction::Read, &file, 4096, spares.take(4096))
            .unwrap();
        let (tag, _, result) = all(&mut ring).pop().unwrap();
        assert_eq!(tag, 7);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_refused_request_comes_back_too() {
        let file = File::open("/dev/null").unwrap();
        let Some(mut ring) = ring(4) else {
            return;
        };
        let buffer = Spares::default().take(4096);
        ring.prepare(1, Direction::Write, &file, 0, buffer).unwrap();
        assert!(all(&mut ring).pop().unwrap().2.is_err());
    }

    /// Entries of another kind, as from one who writes into the ring by other means, and what would make
    /// it able to do more, are refused by the kernel.
    #[test]
    fn a_ring_can_be_asked_for_nothing_else() {
        let Some(mut ring) = ring(4) else {
            return;
        };
        let entry = opcode::Nop::new().build();
        // SAFETY: the entry has no memory.
        let pushed = unsafe { ring.ring.submission().push(&entry) };
        pushed.unwrap();
        ring.ring.submit_and_wait(1).unwrap();
        let result = ring.ring.completion().next().unwrap().result();
        let refused = rustix::io::Errno::ACCESS.raw_os_error();
        assert_eq!(result, -refused);
        let registered = ring.ring.submitter().register_files(&[0]);
        assert_eq!(registered.unwrap_err().raw_os_error(), Some(refused));
    }

    #[test]
    fn a_dropped_ring_waits() {
        let (read, write) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(read));
        let Some(mut ring) = ring(4) else {
            return;
        };
        let buffer = Spares::default().take(1);
        // A pipe has no offset to read at but this.
        ring.prepare(1, Direction::Read, &file, u64::MAX, buffer)
            .unwrap();
        ring.turn(0, |_, _, _| panic!("nothing is there to read"))
            .unwrap();
        assert_eq!(ring.in_flight(), 1);
        let dropped = std::thread::spawn(move || drop(ring));
        assert!(!dropped.is_finished());
        io::Write::write_all(&mut &write, b"x").unwrap();
        dropped.join().unwrap();
    }
}
