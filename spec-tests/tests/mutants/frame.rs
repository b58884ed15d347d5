//! How a device is broken from outside, and how the suite is held against it.

use driver::bus::{Bus, BusError, Interrupt};
use driver::memory::DmaMemory;
use spec_tests::cases::{self, Case};
use spec_tests::clause::Registry;
use spec_tests::constants::{Field, Place, cfg_type, reg, status};
use spec_tests::harness::{Absent, Caps, Region, Stop};
use spec_tests::run::{Attempt, Verdict};
use spec_tests::target::{Emulated, Seams, Subject, Target, Variant};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a mutant may take for what it must do. The sound device takes far less.
const LIMIT: Duration = Duration::from_millis(250);
/// A mutant breaks a sentence, not the device: it passes at least this share of the cases that are
/// not about the clauses it breaks.
const SHARE: f64 = 0.9;

/// A device that breaks one sentence.
#[derive(Debug)]
pub struct Mutant {
    /// What it does, in a few words.
    pub name: &'static str,
    /// The clauses that it breaks, each of which must be found broken by one of its cases.
    pub clauses: &'static [&'static str],
    /// How.
    pub defect: Defect,
}

/// What a case gets in the place of an interrupt vector.
pub type Vector = fn(&Function, u16, Arc<dyn Interrupt>) -> Arc<dyn Interrupt>;

/// The places where a mutant differs from the sound device. Each is called by the bus between case
/// and device; what needs memory has it in [`Function::remember`].
#[derive(Clone, Copy, Debug)]
pub struct Defect {
    /// Inside the function: how it is made, and its device type.
    pub seams: fn(&mut Seams),
    /// After a read of a BAR: changes what the case is told.
    pub read: fn(&Function, Access, &mut [u8]) -> Result<(), BusError>,
    /// Before a write to a BAR: false if it does not reach the device.
    pub write: fn(&Function, Access, u64) -> Result<bool, BusError>,
    /// After a write to a BAR.
    pub wrote: fn(&Function, Access, u64) -> Result<(), BusError>,
    /// After a read of configuration space.
    pub config_read: fn(&Function, u16, &mut [u8]),
    /// Stands between a vector and the case.
    pub interrupt: Vector,
    /// Before a reset, of the device or of the function.
    pub resetting: fn(&Function) -> Result<(), BusError>,
    /// After it.
    pub was_reset: fn(&Function) -> Result<(), BusError>,
    /// The same for the functions that it owns, which share what is remembered. Of them nobody waits
    /// for the end of a reset: `was_reset` is not called.
    pub member: Option<&'static Defect>,
}

/// No defect: what a mutant does not name.
pub const SOUND: Defect = Defect {
    seams: |_| (),
    read: |_, _, _| Ok(()),
    write: |_, _, _| Ok(true),
    wrote: |_, _, _| Ok(()),
    config_read: |_, _, _| (),
    interrupt: |_, _, real| real,
    resetting: |_| Ok(()),
    was_reset: |_| Ok(()),
    member: None,
};

/// Where a BAR was accessed.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// BAR number.
    pub bar: u8,
    /// Offset in bytes.
    pub offset: u64,
}

/// The function behind the defect: it stays sound, and the defect may use it.
#[derive(Debug)]
pub struct Function {
    bus: Arc<dyn Bus>,
    defect: Defect,
    /// What the sound function announces.
    pub caps: Caps,
    common: Region,
    /// What outlives a call: a vector that a case holds has it too.
    pub mind: Mind,
    /// The functions that it owns.
    pub members: Vec<Arc<Function>>,
    owned: bool,
}

/// What a mutant remembers, and the case's memory.
#[derive(Clone, Debug, Default)]
pub struct Mind {
    notes: Arc<Mutex<HashMap<&'static str, u64>>>,
    memory: Arc<Mutex<Option<DmaMemory>>>,
}

impl Mind {
    /// What was remembered under a name.
    pub fn recall(&self, name: &'static str) -> Option<u64> {
        self.notes.lock().unwrap().get(name).copied()
    }

    /// Remembers a number under a name.
    pub fn remember(&self, name: &'static str, value: u64) {
        self.notes.lock().unwrap().insert(name, value);
    }

    /// Sets a byte of the case's memory behind the device's back.
    pub fn scribble(&self, iova: u64, value: u8) {
        if let Some(memory) = &*self.memory.lock().unwrap()
            && let Some(offset) = iova.checked_sub(memory.iova())
        {
            let _ = memory.store_u8(offset, value, Ordering::SeqCst);
        }
    }

    /// Bytes of the case's memory, 0 where there is none.
    pub fn peek<const N: usize>(&self, iova: u64) -> [u8; N] {
        let mut bytes = [0; N];
        if let Some(memory) = &*self.memory.lock().unwrap()
            && let Some(offset) = iova.checked_sub(memory.iova())
        {
            let _ = memory.read(offset, &mut bytes);
        }
        bytes
    }
}

impl Function {
    /// Stands between a case and the function behind `bus`.
    fn new(
        bus: Arc<dyn Bus>,
        defect: Defect,
        mind: Mind,
        members: Vec<Arc<Function>>,
        owned: bool,
    ) -> Result<Arc<Self>, Stop> {
        let caps = Caps::walk(bus.as_ref())?;
        Ok(Arc::new(Self {
            defect,
            common: caps.region(cfg_type::COMMON, "")?,
            caps,
            mind,
            bus,
            members,
            owned,
        }))
    }

    fn region(&self, place: Place) -> Option<Region> {
        match place {
            Place::Common => Some(self.common),
            Place::Tracker => self.caps.tracker(),
        }
    }

    /// Whether an access begins at a register.
    pub fn is(&self, access: Access, field: Field) -> bool {
        self.region(field.place).is_some_and(|region| {
            region.bar == access.bar && region.offset + field.offset == access.offset
        })
    }

    /// Whether an access lies in the first structure of a type.
    pub fn within(&self, access: Access, cfg_type: u8) -> bool {
        self.caps.first(cfg_type).is_some_and(|cap| {
            let Region {
                bar,
                offset,
                length,
            } = cap.region;
            bar == access.bar && (offset..offset + length).contains(&access.offset)
        })
    }

    /// Whether an access is a doorbell.
    pub fn kicked(&self, access: Access) -> bool {
        self.within(access, cfg_type::NOTIFY)
    }

    /// How far from the first doorbell an access is, and where queue `queue`'s is. None without
    /// doorbells, or before them.
    pub fn doorbell(&self, access: Access, queue: u64) -> Option<(u64, Access)> {
        let cap = self.caps.first(cfg_type::NOTIFY)?;
        let Region { bar, offset, .. } = cap.region;
        let distance = access.offset.checked_sub(offset);
        let own = Access {
            bar,
            offset: offset + queue * u64::from(cap.extra),
        };
        Some((distance.filter(|_| access.bar == bar)?, own))
    }

    /// Writes to a BAR of the sound function.
    pub fn pass(&self, to: Access, data: &[u8]) -> Result<(), BusError> {
        self.bus.bar_write(to.bar, to.offset, data)
    }

    /// Reads a register of the sound function; 0 if there is none.
    pub fn get(&self, field: Field) -> Result<u64, BusError> {
        let Some(region) = self.region(field.place) else {
            return Ok(0);
        };
        let mut data = [0; 8];
        let at = region.offset + field.offset;
        self.bus
            .bar_read(region.bar, at, &mut data[..field.width])?;
        Ok(u64::from_le_bytes(data))
    }

    /// Writes a register of the sound function.
    pub fn put(&self, field: Field, value: u64) -> Result<(), BusError> {
        let Some(region) = self.region(field.place) else {
            return Ok(());
        };
        let at = region.offset + field.offset;
        self.bus
            .bar_write(region.bar, at, &value.to_le_bytes()[..field.width])
    }

    /// Reads both halves of a 64-bit register.
    pub fn wide(&self, [low, high]: [Field; 2]) -> Result<u64, BusError> {
        Ok(self.get(low)? | self.get(high)? << 32)
    }

    /// [`Mind::recall`].
    pub fn recall(&self, name: &'static str) -> Option<u64> {
        self.mind.recall(name)
    }

    /// [`Mind::remember`].
    pub fn remember(&self, name: &'static str, value: u64) {
        self.mind.remember(name, value);
    }

    /// Whether the sound function is suspended.
    pub fn suspended(&self) -> Result<bool, BusError> {
        Ok(self.get(reg::DEVICE_STATUS)? == u64::from(status::SUSPENDED))
    }

    /// [`Mind::scribble`].
    pub fn scribble(&self, iova: u64, value: u8) {
        self.mind.scribble(iova, value);
    }

    fn resets(&self, access: Access, value: u64) -> bool {
        self.is(access, reg::DEVICE_STATUS) && value == 0
    }
}

impl Bus for Function {
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<(), BusError> {
        self.bus.config_read(offset, data)?;
        (self.defect.config_read)(self, offset, data);
        Ok(())
    }
    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), BusError> {
        self.bus.config_write(offset, data)
    }
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
        self.bus.bar_read(bar, offset, data)?;
        (self.defect.read)(self, Access { bar, offset }, data)
    }
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), BusError> {
        let access = Access { bar, offset };
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        let resets = self.resets(access, value);
        if resets {
            (self.defect.resetting)(self)?;
        }
        if (self.defect.write)(self, access, value)? {
            self.bus.bar_write(bar, offset, data)?;
        }
        if resets && !self.owned {
            // The reset may go on for a while.
            while self.get(reg::DEVICE_STATUS)? != 0 && (self.defect.write)(self, access, value)? {
                std::thread::yield_now();
            }
            (self.defect.was_reset)(self)?;
        }
        (self.defect.wrote)(self, access, value)
    }
    fn dma_alloc(&self, len: u64) -> Result<DmaMemory, BusError> {
        let memory = self.bus.dma_alloc(len)?;
        *self.mind.memory.lock().unwrap() = Some(memory.clone());
        Ok(memory)
    }
    fn interrupt(&self, vector: u16) -> Result<Arc<dyn Interrupt>, BusError> {
        let real = self.bus.interrupt(vector)?;
        Ok((self.defect.interrupt)(self, vector, real))
    }
    fn reset(&self) -> Result<(), BusError> {
        (self.defect.resetting)(self)?;
        self.bus.reset()?;
        if self.owned {
            return Ok(());
        }
        (self.defect.was_reset)(self)
    }
}

/// The emulated device with a defect.
#[derive(Debug)]
struct Broken(&'static Mutant);

impl Target for Broken {
    fn name(&self) -> String {
        self.0.name.to_owned()
    }
    fn fresh(&self, want: Variant) -> Result<Subject, Stop> {
        let mut sound = Emulated::default();
        (self.0.defect.seams)(&mut sound.seams);
        let Subject {
            bus,
            change_config,
            mut members,
            ..
        } = sound.fresh(want)?;
        let (defect, mind) = (self.0.defect, Mind::default());
        let mut functions = Vec::new();
        for member in &mut members {
            let bus = Arc::clone(&member.bus);
            let mind = Mind {
                notes: Arc::clone(&mind.notes),
                ..Mind::default()
            };
            let sound = defect.member.copied().unwrap_or(SOUND);
            let function = Function::new(bus, sound, mind, Vec::new(), true)?;
            functions.push(Arc::clone(&function));
            member.bus = function;
            member.limit = LIMIT;
        }
        let function = Function::new(bus, defect, mind, functions, false)?;
        Ok(Subject {
            bus: function,
            change_config,
            members,
            limit: LIMIT,
        })
    }
    fn claims(&self, what: Absent) -> bool {
        Emulated::default().claims(what)
    }
    fn limit(&self) -> Duration {
        LIMIT
    }
}

/// The cases that the sound device passes: what does not apply to it cannot be held against a
/// mutant.
pub fn sound(registry: &Registry) -> BTreeSet<&'static str> {
    let target: Arc<dyn Target> = Arc::new(Emulated::default());
    let passes = |case: &&'static Case| {
        let attempt = Attempt::new(&target, case, 1);
        let found = verdicts(&attempt, case, registry);
        found.values().all(|verdict| *verdict == Verdict::Pass)
    };
    cases::all().filter(passes).map(|case| case.name).collect()
}

fn verdicts(
    attempt: &Attempt,
    case: &'static Case,
    registry: &Registry,
) -> BTreeMap<String, Verdict> {
    let sound = Emulated::default();
    let claims = |what| sound.claims(what);
    let clauses = case.clauses.iter().filter_map(|name| registry.get(name));
    clauses
        .map(|clause| (clause.id.clone(), attempt.finding(clause, &claims).verdict))
        .collect()
}

/// How a mutant fared.
pub struct Trial {
    /// It was found to break what it breaks.
    pub dead: bool,
    /// Which share of the cases of other clauses it passes.
    pub share: f64,
    /// What is to be said against it or against the suite.
    pub verdict: Result<(), String>,
}

/// Holds every case against a mutant.
pub fn try_out(
    mutant: &'static Mutant,
    registry: &Registry,
    sound: &BTreeSet<&'static str>,
) -> Trial {
    let target: Arc<dyn Target> = Arc::new(Broken(mutant));
    let broken: BTreeSet<_> = mutant
        .clauses
        .iter()
        .filter_map(|name| registry.get(name))
        .map(|clause| clause.id.clone())
        .collect();
    let mut found: BTreeSet<String> = BTreeSet::new();
    let (mut others, mut passed, mut failed) = (0_u32, 0_u32, Vec::new());
    for case in cases::all().filter(|case| sound.contains(case.name)) {
        let attempt = Attempt::new(&target, case, 1);
        let verdicts = verdicts(&attempt, case, registry);
        found.extend(
            verdicts
                .iter()
                .filter(|(_, verdict)| **verdict == Verdict::Fail)
                .map(|(id, _)| id.clone()),
        );
        if verdicts.keys().any(|id| broken.contains(id)) {
            continue;
        }
        others += 1;
        if verdicts.values().all(|verdict| *verdict == Verdict::Pass) {
            passed += 1;
        } else {
            failed.push(format!("{} {verdicts:?}", case.name));
        }
    }
    let survived: Vec<_> = broken.difference(&found).cloned().collect();
    let share = f64::from(passed) / f64::from(others.max(1));
    let verdict = if !survived.is_empty() {
        Err(format!(
            "it survives: {} not found broken; found {found:?}",
            survived.join(", ")
        ))
    } else if share < SHARE {
        Err(format!(
            "it is no mutant but a ruin: it passes {passed} of {others} cases of other clauses, and not\n{}",
            failed.join("\n")
        ))
    } else {
        Ok(())
    };
    Trial {
        dead: survived.is_empty(),
        share,
        verdict,
    }
}
