//! One client's session: messages in, answers out, whatever carries them.

use super::dma::Maps;
use super::feature::{Around, Features};
use super::frame::{FDS_MAX, ProtocolError};
use super::message::{
    DmaMap, DmaUnmap, Header, Info, IrqInfo, MigrationData, RegionAccess, RegionInfo, SetIrqs,
    command,
};
use super::served::{Migrates, Refusal, Served};
use super::{irqs, regions, version};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A client's session with a function, without the socket: whole messages are given to it, one after
/// the other, and it has an answer to each. Dropped, it ends the client's hold on the function.
///
/// ```no_run
/// # fn session(served: std::sync::Arc<dyn device::serve::vfio_user::Served>) {
/// use device::serve::vfio_user::Session;
///
/// let mut session = Session::new(served);
/// // VERSION 0.1 without any text: a header of 16 bytes, and 4.
/// let version = [0, 0, 1, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// assert!(session.message(&version, Vec::new()).is_ok());
/// assert!(!session.answer().is_empty());
/// # }
/// ```
#[derive(Debug)]
pub struct Session {
    served: Arc<dyn Served>,
    /// VERSION has been agreed on.
    agreed: bool,
    maps: Maps,
    features: Features,
    out: Vec<u8>,
}

/// Why a message has no answer but an error.
enum Stop {
    Refused(Refusal),
    /// And there is no going on.
    Broken(ProtocolError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Descriptors that are to be given to somebody: what is left is closed.
type Fds = Vec<OwnedFd>;

impl Session {
    /// A session at its beginning: VERSION is expected.
    pub fn new(served: Arc<dyn Served>) -> Self {
        Self {
            served,
            agreed: false,
            maps: Maps::default(),
            features: Features::default(),
            out: Vec::new(),
        }
    }

    /// Carries out one message: all of its bytes, the header's 16 included, and the descriptors that
    /// came along. Afterwards [`answer`](Self::answer) is what is to be sent.
    ///
    /// # Errors
    ///
    /// [`ProtocolError`], after which nothing more is to be given to the session; there may be an
    /// answer to be sent all the same. What the client may not do, or cannot have, is no error here
    /// but an answer.
    pub fn message(&mut self, bytes: &[u8], fds: Fds) -> Result<(), ProtocolError> {
        self.out.clear();
        let (header, size) = Header::judge(bytes);
        if size? != bytes.len() {
            let (size, got) = (header.size.get(), bytes.len());
            return Err(ProtocolError::Length { size, got });
        }
        let payload = bytes.get(size_of::<Header>()..).unwrap_or_default();
        self.out.resize(size_of::<Header>(), 0);
        let done = self.carry_out(&header, payload, fds);
        let (refusal, result) = match done {
            Ok(()) => (None, Ok(())),
            Err(Stop::Refused(refusal)) => (Some(refusal), Ok(())),
            Err(Stop::Broken(error)) => {
                let refusal = Refusal::invalid(error.to_string());
                (Some(refusal), Err(error))
            }
        };
        match refusal {
            None => header.answer(&mut self.out),
            Some(refusal) => self.refuse(&header, &refusal),
        }
        if header.is_posted() {
            self.out.clear();
        }
        result
    }

    /// The answer to the last message; empty if the client wants none.
    pub fn answer(&self) -> &[u8] {
        &self.out
    }

    /// Makes a refusal the answer.
    pub(super) fn refuse(&mut self, header: &Header, refusal: &Refusal) {
        let command = header.command.get();
        tracing::warn!(command, %refusal, "the client is refused");
        header.refuse(refusal.errno(), &mut self.out);
        if header.is_posted() {
            self.out.clear();
        }
    }

    fn carry_out(&mut self, header: &Header, payload: &[u8], fds: Fds) -> Result<(), Stop> {
        let number = header.command.get();
        if fds.len() > FDS_MAX {
            let why = format!("{} descriptors, at most {FDS_MAX} expected", fds.len());
            return Err(Refusal::invalid(why).into());
        }
        if !fds.is_empty() && ![command::DMA_MAP, command::SET_IRQS].contains(&number) {
            let why = format!(
                "{} descriptors with command {number}, none expected",
                fds.len()
            );
            return Err(Refusal::invalid(why).into());
        }
        match (number, self.agreed) {
            (command::VERSION, false) => return self.version(payload),
            (command::VERSION, true) => {
                let why = "VERSION a second time";
                return Err(Refusal::invalid(why).into());
            }
            (_, false) => {
                let why = format!("command {number} before VERSION");
                return Err(Refusal::new(Errno::PROTO, why).into());
            }
            (_, true) => {}
        }
        let served = &*self.served;
        match number {
            command::DMA_MAP => {
                let ask: DmaMap = exactly(payload, number)?;
                fits::<DmaMap>(ask.argsz.get())?;
                let end = ask.address.get().saturating_add(ask.size.get());
                self.features.judge_map(end)?;
                self.maps.map(served, &ask, fds)?;
            }
            command::DMA_UNMAP => {
                let (ask, _) = begins::<DmaUnmap>(payload, number)?;
                fits::<DmaUnmap>(ask.argsz.get())?;
                self.maps.unmap(served, &ask)?;
                self.put(&ask);
            }
            command::GET_INFO => {
                let ask: Info = exactly(payload, number)?;
                let argsz = fits::<Info>(ask.argsz.get())?;
                let flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
                self.put(&Info {
                    argsz: argsz.into(),
                    flags: flags.into(),
                    regions: VFIO_PCI_NUM_REGIONS.into(),
                    irqs: VFIO_PCI_NUM_IRQS.into(),
                });
            }
            command::GET_REGION_INFO => {
                let ask: RegionInfo = exactly(payload, number)?;
                let argsz = fits::<RegionInfo>(ask.argsz.get())?.into();
                let info = regions::info(served, ask.index.get())?;
                self.put(&RegionInfo { argsz, ..info });
            }
            command::GET_IRQ_INFO => {
                let ask: IrqInfo = exactly(payload, number)?;
                let argsz = fits::<IrqInfo>(ask.argsz.get())?.into();
                let info = irqs::info(served, ask.index.get())?;
                self.put(&IrqInfo { argsz, ..info });
            }
            command::SET_IRQS => {
                let (ask, data) = begins::<SetIrqs>(payload, number)?;
                fits::<SetIrqs>(ask.argsz.get())?;
                irqs::set(served, &ask, data, fds)?;
            }
            command::REGION_READ => {
                let ask: RegionAccess = exactly(payload, number)?;
                self.out.extend_from_slice(ask.as_bytes());
                regions::read(served, &ask, &mut self.out)?;
            }
            command::REGION_WRITE => {
                let (ask, data) = begins::<RegionAccess>(payload, number)?;
                regions::write(served, &ask, data)?;
                self.put(&ask);
            }
            command::RESET => {
                nothing(payload, number)?;
                served.reset()?;
            }
            command::FEATURE => {
                let around = Around {
                    served,
                    maps: &self.maps,
                    posted: header.is_posted(),
                };
                self.features.carry_out(&around, payload, &mut self.out)?;
            }
            command::MIG_DATA_READ => {
                let ask: MigrationData = exactly(payload, number)?;
                let migration = &mut self.features.migration;
                migration.read(migrates(served)?, &ask, &mut self.out)?;
            }
            command::MIG_DATA_WRITE => {
                let (ask, data) = begins::<MigrationData>(payload, number)?;
                let migration = &mut self.features.migration;
                migration.write(migrates(served)?, &ask, data)?;
            }
            command::GET_REGION_IO_FDS
            | command::DMA_READ
            | command::DMA_WRITE
            | command::REGION_WRITE_MULTI => {
                let why = format!("command {number}, which is not served");
                return Err(Refusal::new(Errno::OPNOTSUPP, why).into());
            }
            _ => {
                let why = format!("command {number}, which there is not");
                return Err(Refusal::new(Errno::NOSYS, why).into());
            }
        }
        Ok(())
    }

    fn version(&mut self, payload: &[u8]) -> Result<(), Stop> {
        let broken = |why| Stop::Broken(ProtocolError::Version(why));
        let answer = version::agree(payload, self.served.migrates().is_some()).map_err(broken)?;
        self.out.extend_from_slice(&answer);
        self.agreed = true;
        Ok(())
    }

    fn put(&mut self, answer: &(impl IntoBytes + Immutable)) {
        self.out.extend_from_slice(answer.as_bytes());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.served.end();
    }
}

fn migrates(served: &dyn Served) -> Result<&dyn Migrates, Refusal> {
    let device = served.migrates();
    device.ok_or_else(|| Refusal::new(Errno::NOTTY, "what is served does not migrate"))
}

/// A payload that is one structure.
fn exactly<T: FromBytes>(payload: &[u8], command: u16) -> Result<T, Refusal> {
    T::read_from_bytes(payload).map_err(|_| short(payload, command, size_of::<T>()))
}

/// The structure that a payload begins with, and the rest.
fn begins<T: FromBytes + KnownLayout>(payload: &[u8], command: u16) -> Result<(T, &[u8]), Refusal> {
    T::read_from_prefix(payload).map_err(|_| short(payload, command, size_of::<T>()))
}

fn nothing(payload: &[u8], command: u16) -> Result<(), Refusal> {
    if payload.is_empty() {
        return Ok(());
    }
    Err(short(payload, command, 0))
}

fn short(payload: &[u8], command: u16, expected: usize) -> Refusal {
    let got = payload.len();
    Refusal::invalid(format!(
        "command {command} with a payload of {got} bytes, {expected} expected"
    ))
}

/// The size of `T`, if the client's `argsz` says that there is room for it.
fn fits<T>(argsz: u32) -> Result<u32, Refusal> {
    let size = u32::try_from(size_of::<T>()).unwrap_or(u32::MAX);
    if argsz >= size {
        return Ok(size);
    }
    let why = format!("argsz is {argsz}, at least {size} expected");
    Err(Refusal::invalid(why))
}
