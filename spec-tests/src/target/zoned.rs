//! A disk with zones, in memory: what the cases of zoned block devices and their mutants run on.
//!
//! It is no part of `device`, since a disk with zones is worth having only if its write pointers
//! outlive it, and move with it. This one forgets everything.

mod zones;

use device::dma::{Dma, DmaGuard};
use device::queue::{Chain, Cursor, Virtqueue};
use device::virtio::{Progress, QueueError, VirtioDevice};
use spec::blk::{
    BlkConfig, BlkFeatures, DEVICE_ID, DiscardWriteZeroes, ID_BYTES, RequestHeader, request, status,
};
use spec::zoned::{self, Characteristics, Lifetime, ZonedConfig, kind, model};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use zerocopy::{FromBytes, FromZeros, IntoBytes};
use zones::{ACTIVE_MAX, APPEND_MAX, CAPACITY, GRANULE, OPEN_MAX, ZONE, Zones};

/// PCI class code: mass storage, SCSI.
const PCI_CLASS: u32 = 0x01_00_00;
const QUEUE_SIZE: u16 = 128;
/// Chains served in one step.
const CHAINS_MAX: u16 = 32;
/// Bytes of a request's data on either side.
const DATA_MAX: u64 = 1 << 20;
/// Largest segment in bytes.
const SIZE_MAX: u32 = 1 << 16;
/// Most segments of a secure erase.
const ERASES_MAX: u32 = 4;
/// Resets after which a tenth of the life is over.
const WEAR: u64 = 1000;

/// Which zones a disk has, and what it can do with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Make {
    /// Zones that must be written in sequence.
    HostManaged,
    /// The same, and no appends.
    NoAppend,
    /// Zones that should be written in sequence.
    HostAware,
}

/// The disk.
#[derive(Debug)]
pub(super) struct ZonedDisk {
    make: Make,
    zones: Mutex<Zones>,
    /// Features were agreed on, and ZONED was not among them.
    unzoned: AtomicBool,
}

impl ZonedDisk {
    pub(super) fn new(make: Make) -> Arc<Self> {
        let sequential = match make {
            Make::HostAware => kind::SEQUENTIAL_PREFERRED,
            Make::HostManaged | Make::NoAppend => kind::SEQUENTIAL_REQUIRED,
        };
        Arc::new(Self {
            make,
            zones: Mutex::new(Zones::new(sequential, make.append_max())),
            unzoned: AtomicBool::new(false),
        })
    }
}

impl Make {
    fn append_max(self) -> u64 {
        match self {
            Self::HostManaged => APPEND_MAX,
            Self::NoAppend | Self::HostAware => 0,
        }
    }

    fn model(self) -> u8 {
        match self {
            Self::HostManaged | Self::NoAppend => model::HOST_MANAGED,
            Self::HostAware => model::HOST_AWARE,
        }
    }
}

fn number(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn count(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

impl VirtioDevice for ZonedDisk {
    fn device_id(&self) -> u16 {
        DEVICE_ID
    }
    fn pci_class(&self) -> u32 {
        PCI_CLASS
    }
    fn features(&self) -> u64 {
        let features = BlkFeatures::SIZE_MAX
            | BlkFeatures::SEG_MAX
            | BlkFeatures::FLUSH
            | BlkFeatures::LIFETIME
            | BlkFeatures::SECURE_ERASE
            | BlkFeatures::ZONED;
        features.bits()
    }
    fn num_queues(&self) -> u16 {
        1
    }
    fn queue_max_size(&self, _index: u16) -> u16 {
        QUEUE_SIZE
    }
    fn config_len(&self) -> usize {
        size_of::<ZonedConfig>()
    }
    fn config(&self) -> Vec<u8> {
        let mut config = ZonedConfig {
            disk: BlkConfig {
                capacity: CAPACITY.into(),
                size_max: SIZE_MAX.into(),
                seg_max: u32::from(QUEUE_SIZE - 2).into(),
                num_queues: 1.into(),
                ..BlkConfig::default()
            },
            max_secure_erase_sectors: number(ZONE).saturating_mul(ERASES_MAX).into(),
            max_secure_erase_seg: ERASES_MAX.into(),
            secure_erase_sector_alignment: number(ZONE).into(),
            zoned: Characteristics {
                zone_sectors: number(ZONE).into(),
                max_open_zones: count(OPEN_MAX).into(),
                max_active_zones: count(ACTIVE_MAX).into(),
                max_append_sectors: number(self.make.append_max()).into(),
                write_granularity: number(GRANULE * 512).into(),
                model: self.make.model(),
                unused2: [0; 3],
            },
        };
        if self.unzoned.load(Ordering::SeqCst) {
            config.zoned = Characteristics::default();
        }
        config.as_bytes().to_vec()
    }
    fn config_write(&self, _offset: usize, _data: &[u8]) -> bool {
        false
    }
    fn accepts(&self, features: u64) -> bool {
        self.make == Make::HostAware || zoned_among(features)
    }
    fn negotiated(&self, features: u64) {
        self.unzoned.store(!zoned_among(features), Ordering::SeqCst);
    }
    fn reset(&self) {
        self.unzoned.store(false, Ordering::SeqCst);
    }
    fn process(
        &self,
        _index: u16,
        queue: &mut Virtqueue,
        dma: &Dma,
        notify: &mut dyn FnMut(),
    ) -> Result<Progress, QueueError> {
        let mem = dma.enter();
        queue.disable_notification(&mem)?;
        let mut popped = 0;
        let mut idle = false;
        let mut result = Ok(());
        while popped < CHAINS_MAX && !idle && result.is_ok() {
            result = match queue.pop(&mem) {
                Ok(Some(chain)) => self.serve(chain, queue, &mem),
                Ok(None) => {
                    idle = true;
                    Ok(())
                }
                Err(error) => Err(error),
            };
            popped += 1;
        }
        let told = queue.needs_notification(&mem);
        drop(mem);
        if told? {
            notify();
        }
        result?;
        let more = !idle || queue.enable_notification(&dma.enter())?;
        Ok(if more { Progress::More } else { Progress::Idle })
    }
}

fn zoned_among(features: u64) -> bool {
    BlkFeatures::from_bits_retain(features).contains(BlkFeatures::ZONED)
}

impl ZonedDisk {
    /// Carries out one request and uses its chain.
    fn serve(
        &self,
        chain: Chain,
        queue: &mut Virtqueue,
        mem: &DmaGuard<'_>,
    ) -> Result<(), QueueError> {
        let broken = |what: &str| QueueError::Broken {
            what: format!("chain {}: {what}", chain.head),
        };
        let head = chain.head;
        let room = chain.writable_len().checked_sub(1);
        let room = room.ok_or_else(|| broken("no room for a status byte"))?;
        let data = chain.readable_len().checked_sub(16);
        let data = data.ok_or_else(|| broken("no room for a request header"))?;
        let status_at = match chain.writable.last() {
            Some((iova, len)) => iova + u64::from(*len) - 1,
            None => return Err(broken("no room for a status byte")),
        };
        let mut readable = Cursor::new(chain.readable);
        let mut header = RequestHeader::new_zeroed();
        let mut output = vec![0; usize::try_from(data.min(DATA_MAX)).unwrap_or(0)];
        let whole = readable.read(mem, header.as_mut_bytes()) && readable.read(mem, &mut output);
        let answer = if whole && data <= DATA_MAX && room <= DATA_MAX {
            self.carry_out(&header, &output, room)
        } else {
            Err(status::IOERR)
        };
        let (status, returned) = match answer {
            Ok(returned) => (status::OK, returned),
            Err(status) => (status, Vec::new()),
        };
        let mut burst = mem.burst();
        let stored = Cursor::new(chain.writable).write(&mut burst, &returned);
        // A status byte that is not mapped is the driver's loss.
        let answered = burst.write(status_at, &[status]).is_ok();
        burst.commit();
        let stored = u64::try_from(stored).unwrap_or(0);
        let written = stored + u64::from(answered && stored == room);
        queue.push(mem, head, number(written))
    }

    /// What a request returns, or the status that it ends in.
    fn carry_out(&self, header: &RequestHeader, data: &[u8], room: u64) -> Result<Vec<u8>, u8> {
        let mut zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        let sector = header.sector.get();
        let kind = header.request_type.get();
        let none = |()| Vec::new();
        let managed = kind >= zoned::request::ZONE_APPEND;
        if managed && self.unzoned.load(Ordering::SeqCst) {
            return Err(status::UNSUPP);
        }
        match kind {
            request::IN => zones.read(sector, room).map(<[u8]>::to_vec),
            request::OUT => zones.write(sector, data).map(none),
            request::FLUSH => Ok(Vec::new()),
            request::GET_ID => {
                let mut id = b"tidemark zones".to_vec();
                id.resize(ID_BYTES, 0);
                Ok(id)
            }
            zoned::request::GET_LIFETIME => {
                let wear = 1 + u16::try_from(zones.resets() / WEAR)
                    .unwrap_or(u16::MAX)
                    .min(10);
                let lifetime = Lifetime {
                    pre_eol_info: 1.into(),
                    device_lifetime_est_typ_b: wear.into(),
                    ..Lifetime::default()
                };
                Ok(lifetime.as_bytes().to_vec())
            }
            zoned::request::SECURE_ERASE => erase(&mut zones, data).map(none),
            zoned::request::ZONE_APPEND => {
                let place = zones.append(sector, data)?;
                Ok(place.to_le_bytes().to_vec())
            }
            zoned::request::ZONE_REPORT => zones.report(sector, room),
            zoned::request::ZONE_OPEN
            | zoned::request::ZONE_CLOSE
            | zoned::request::ZONE_FINISH
            | zoned::request::ZONE_RESET => zones.command(kind, sector).map(none),
            zoned::request::ZONE_RESET_ALL => {
                zones.reset_all();
                Ok(Vec::new())
            }
            _ => Err(status::UNSUPP),
        }
    }
}

/// Erases the zones of every segment, if no segment has a flag.
fn erase(zones: &mut Zones, data: &[u8]) -> Result<(), u8> {
    let most = usize::try_from(ERASES_MAX).unwrap_or(0);
    let (segments, rest) = data.as_chunks::<16>();
    if !rest.is_empty() || segments.is_empty() || segments.len() > most {
        return Err(status::IOERR);
    }
    let segments = segments
        .iter()
        .map(|segment| DiscardWriteZeroes::read_from_bytes(segment).map_err(|_| status::IOERR));
    let segments: Vec<_> = segments.collect::<Result<_, _>>()?;
    if segments.iter().any(|segment| segment.flags.get() != 0) {
        return Err(status::UNSUPP);
    }
    segments
        .iter()
        .try_for_each(|segment| zones.erase(segment.sector.get(), segment.num_sectors.get().into()))
}
