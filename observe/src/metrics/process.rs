//! The process itself, by the names that Prometheus' own libraries use.

use super::{Families, Kind, Source};
use rustix::fs::{Dir, Mode, OFlags, open};
use rustix::io::pread;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// What the kernel knows of this process.
///
/// Everything that has a name is opened beforehand, so that a process that may open nothing any
/// more can still tell.
#[derive(Debug)]
pub struct Process {
    statm: OwnedFd,
    descriptors: Mutex<Dir>,
    page: u64,
    started: f64,
}

impl Process {
    /// Opens what has to be read.
    ///
    /// # Errors
    /// What the system says: there is no /proc, or no descriptor left.
    pub fn open() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let statm = open("/proc/self/statm", flags, Mode::empty())?;
        let folder = open("/proc/self/fd", flags | OFlags::DIRECTORY, Mode::empty())?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Self {
            statm,
            descriptors: Mutex::new(Dir::new(folder)?),
            page: u64::try_from(rustix::param::page_size()).unwrap_or(4096),
            started: now.unwrap_or_default().as_secs_f64(),
        })
    }

    /// Virtual and resident memory in bytes.
    fn memory(&self) -> Option<(u64, u64)> {
        let mut text = [0; 256];
        let length = pread(&self.statm, &mut text, 0).ok()?;
        let text = str::from_utf8(text.get(..length)?).ok()?;
        let mut pages = text.split_whitespace().map(str::parse::<u64>);
        let (all, resident) = (pages.next()?.ok()?, pages.next()?.ok()?);
        Some((
            all.saturating_mul(self.page),
            resident.saturating_mul(self.page),
        ))
    }

    fn descriptors(&self) -> Option<u64> {
        let folder = self.descriptors.lock();
        let mut folder = folder.unwrap_or_else(PoisonError::into_inner);
        folder.rewind();
        let mut count = 0;
        for entry in &mut *folder {
            let name = entry.ok()?;
            count += u64::from(!name.file_name().to_bytes().starts_with(b"."));
        }
        Some(count)
    }
}

impl Source for Process {
    fn collect(&self, families: &mut Families) {
        let mut add = |kind, name, help, value| families.add(kind, name, help, &[], value);
        if let Some((all, resident)) = self.memory() {
            let (name, help) = ("process_virtual_memory_bytes", "Address space in use.");
            add(Kind::Gauge, name, help, all);
            let (name, help) = ("process_resident_memory_bytes", "Memory that is in RAM.");
            add(Kind::Gauge, name, help, resident);
        }
        if let Some(count) = self.descriptors() {
            add(Kind::Gauge, "process_open_fds", "Open descriptors.", count);
        }
        if let Some(most) = getrlimit(Resource::Nofile).current {
            let help = "Most descriptors that may be open.";
            add(Kind::Gauge, "process_max_fds", help, most);
        }
        let spent = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9;
        let help = "Processor time of all threads.";
        families.add_real(
            Kind::Counter,
            "process_cpu_seconds_total",
            help,
            &[],
            seconds,
        );
        let help = "When the process began to serve metrics, since 1970.";
        let name = "process_start_time_seconds";
        families.add_real(Kind::Gauge, name, help, &[], self.started);
    }
}
