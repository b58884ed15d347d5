//! One side's end of the conversation.

use super::error::CheckpointError;
use super::message::{Kind, Message, Side};
use super::order::{Early, Expected, Got, ProtocolError, Step, early};
use std::io::{self, Read, Write};

/// Messages of the return path that are passed over before READY; more is a peer that never will
/// be ready.
const EARLY_MAX: u32 = 1024;

/// Says and hears messages in their order. Holds no descriptor: what carries the messages carries
/// memory as well.
#[derive(Debug)]
pub struct Control {
    side: Side,
    step: Step,
    /// The longest device state that is taken.
    count_max: u64,
}

impl Control {
    /// The end of `side`, before anything was said. At most `count_max` bytes of device state are
    /// taken.
    pub fn new(side: Side, count_max: u64) -> Self {
        Self {
            side,
            step: Step::default(),
            count_max,
        }
    }

    /// What was said last.
    pub fn step(&self) -> Step {
        self.step
    }

    /// Says `message`.
    ///
    /// # Errors
    /// [`CheckpointError::Peer`] with what the system says; [`CheckpointError::Protocol`] if it is
    /// not this message's turn, and then nothing has been said.
    pub fn say(&mut self, to: &mut impl Write, message: Message) -> Result<(), CheckpointError> {
        let next = self.step.take(self.side, message)?;
        let said = to.write_all(&message.to_bytes()).and_then(|()| to.flush());
        said.map_err(self.lost(format!("sending {}", message.kind())))?;
        self.step = next;
        Ok(())
    }

    /// Waits for the one message that may come next, and gives its count, 0 if it has none.
    ///
    /// # Errors
    /// [`CheckpointError::Protocol`] names what was expected and what came, an end of the
    /// connection included; [`CheckpointError::Peer`] has what the system says.
    pub fn hear(&mut self, from: &mut impl Read) -> Result<u64, CheckpointError> {
        let speaker = self.side.other();
        if self.step.next().sender() != speaker {
            return Err(self
                .step
                .refuse(speaker, Got::Message(self.step.next()))
                .into());
        }
        let word = self.word(from)?;
        let kind =
            Kind::from_number(word).ok_or_else(|| self.step.refuse(speaker, Got::Number(word)))?;
        let message = match kind {
            // The count is read only where it belongs: elsewhere the kind alone is the fault.
            Kind::Size if self.step.next() == Kind::Size => Message::Size(self.count(from)?),
            Kind::Size => Message::Size(0),
            other => Message::Plain(other),
        };
        self.step = self.step.take(speaker, message)?;
        match message {
            Message::Size(count) => Ok(count),
            Message::Plain(_) => Ok(0),
        }
    }

    fn word(&self, from: &mut impl Read) -> Result<u32, CheckpointError> {
        for _ in 0..EARLY_MAX {
            let mut bytes = [0; 4];
            self.fill(from, &mut bytes)?;
            let word = u32::from_be_bytes(bytes);
            if self.step != Step::Initial {
                return Ok(word);
            }
            match early(word)? {
                Early::Word(word) => return Ok(word),
                Early::ReturnPath(length) => {
                    let mut body = vec![0; length.into()];
                    self.fill(from, &mut body)?;
                }
            }
        }
        Err(self
            .step
            .refuse(Side::Secondary, Got::ReturnPath(0, 0))
            .into())
    }

    fn count(&self, from: &mut impl Read) -> Result<u64, CheckpointError> {
        let mut bytes = [0; 8];
        self.fill(from, &mut bytes)?;
        let count = u64::from_be_bytes(bytes);
        if (1..=self.count_max).contains(&count) {
            return Ok(count);
        }
        Err(CheckpointError::Protocol(ProtocolError {
            from: self.side.other(),
            expected: Expected::CountBelow(self.count_max),
            got: Got::Count(count),
        }))
    }

    fn fill(&self, from: &mut impl Read, into: &mut [u8]) -> Result<(), CheckpointError> {
        match from.read_exact(into) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.step.refuse(self.side.other(), Got::End).into())
            }
            Err(error) => Err(self.lost(format!("waiting for {}", self.step.next()))(
                error,
            )),
        }
    }

    /// The error for a connection that broke.
    pub(super) fn lost(&self, doing: String) -> impl FnOnce(io::Error) -> CheckpointError {
        let peer = self.side.other();
        move |source| CheckpointError::Peer {
            peer,
            doing,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn primary_at(step: Step) -> Control {
        Control {
            side: Side::Primary,
            step,
            count_max: 1000,
        }
    }

    fn secondary_at(step: Step) -> Control {
        Control {
            side: Side::Secondary,
            step,
            count_max: 1000,
        }
    }

    fn heard(mut control: Control, bytes: &[u8]) -> Result<u64, String> {
        control
            .hear(&mut &*bytes)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_from_7_on_are_named_and_refused() {
        for number in [7_u32, 0x46, u32::MAX] {
            let error = heard(primary_at(Step::Requested), &number.to_be_bytes()).unwrap_err();
            let number = format!("{number:#x}");
            assert!(error.contains("checkpoint-reply"), "{error}");
            assert!(error.contains(&number), "{error}");
        }
    }

    #[test]
    fn counts_are_bounded_before_anything_is_made_for_them() {
        let size = |count: u64| Message::Size(count).to_bytes();
        let at = || secondary_at(Step::Sending);
        assert_eq!(heard(at(), &size(1000)), Ok(1000));
        for count in [0, 1001, u64::MAX] {
            let error = heard(at(), &size(count)).unwrap_err();
            assert!(error.contains(&count.to_string()), "{error}");
            assert!(error.contains("1 to 1000"), "{error}");
        }
    }

    #[test]
    fn an_end_at_each_place_is_told_with_what_was_expected() {
        for step in [Step::Initial, Step::Requested, Step::Sized, Step::Received] {
            for cut in 0..4 {
                let error = heard(primary_at(step), &[0; 4][..cut]).unwrap_err();
                assert!(error.contains(step.next().name()), "{error}");
                assert!(error.contains("end of the connection"), "{error}");
            }
        }
        for cut in 4..12 {
            let bytes = Message::Size(5).to_bytes();
            assert!(heard(secondary_at(Step::Sending), &bytes[..cut]).is_err());
        }
    }

    #[test]
    fn the_return_path_is_passed_over_before_ready_only() {
        // As captured from QEMU 7.2: a PONG, then READY.
        let pong = [0, 2, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(heard(primary_at(Step::Initial), &pong), Ok(0));
        let error = heard(primary_at(Step::Requested), &pong).unwrap_err();
        assert!(error.contains("0x20004"), "{error}");
        // A peer that only ever speaks of other things is not listened to for ever.
        struct Pongs;
        impl Read for Pongs {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                let pong = [0, 2, 0, 0];
                let len = into.len().min(4);
                into[..len].copy_from_slice(&pong[..len]);
                Ok(len)
            }
        }
        assert!(primary_at(Step::Initial).hear(&mut Pongs).is_err());
    }

    #[test]
    fn what_the_system_says_is_kept() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(rustix::io::Errno::TIMEDOUT.into())
            }
        }
        let error = primary_at(Step::Sized).hear(&mut Broken).unwrap_err();
        let CheckpointError::Peer { source, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(
            source.raw_os_error(),
            Some(rustix::io::Errno::TIMEDOUT.raw_os_error())
        );
    }

    #[test]
    fn nothing_is_said_out_of_turn() {
        let mut out = Vec::new();
        for step in [Step::Initial, Step::Requested, Step::Sized, Step::Received] {
            let said = primary_at(step).say(&mut out, Message::Plain(Kind::Send));
            assert!(said.is_err());
        }
        assert!(out.is_empty());
    }
}
