//! The conversation of a checkpointed pair, heard by either side.

use crate::Plant;
use crate::input::Input;
use crate::oracle::MemoryWatch;
use driver::dirty::{DirtyError, DirtySet, DirtySource, PAGE_SIZE};
use driver::memory::DmaMemory;
use migration::checkpoint::{Kind, Line, Message, Primary, Protected, Secondary, Standby};
use migration::stream::epoch::{self, EpochWriter};
use migration::stream::{Context, SectionKind};
use migration::{DeviceRecord, Guest, GuestError, NamedSource, Paused};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const PAGES: u64 = 4;
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the target.
pub fn run(data: &[u8], plant: Option<Plant>) {
    let mut input = Input::new(data);
    let watch = MemoryWatch::begin();
    if input.flag() {
        primary(&mut input, plant);
    } else {
        secondary(&mut input, plant);
    }
    watch.end();
}

fn memory_file() -> File {
    let fd = rustix::fs::memfd_create("fuzz-pair", rustix::fs::MemfdFlags::CLOEXEC);
    File::from(fd.expect("memory"))
}

/// Says something between the records of a stream.
fn say(stream: &mut EpochWriter<File>, message: &[u8]) {
    stream.get_mut().write_all(message).expect("written");
}

fn memory() -> DmaMemory {
    let file = memory_file();
    file.set_len(PAGES * PAGE_SIZE).expect("its size");
    DmaMemory::from_file(&file, 0, PAGES * PAGE_SIZE, 0).expect("mapped")
}

fn contents(memory: &DmaMemory) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(memory.len()).unwrap_or(0)];
    memory.read(0, &mut bytes).expect("read");
    bytes
}

/// A socket that says `script` and then nothing any more; its other end has to be kept.
fn saying(script: &[u8]) -> (UnixStream, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    theirs.write_all(script).expect("room in the socket");
    theirs.shutdown(Shutdown::Write).expect("shut down");
    (ours, theirs)
}

/// Changes a few bytes; whether any.
fn spoil(bytes: &mut Vec<u8>, input: &mut Input<'_>) -> bool {
    let before = bytes.clone();
    for _ in 0..input.below(4) {
        let (at, value) = (usize::from(input.u16()), input.u8());
        let len = bytes.len().max(1);
        match input.below(8) {
            0 => bytes.truncate(at % len),
            1 => {
                let again = bytes.get(at % len..).unwrap_or_default();
                let again = again[..again.len().min(16)].to_vec();
                bytes.extend(again);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at % len) {
                    *byte ^= value;
                }
            }
        }
    }
    *bytes != before
}

fn device(value: u8) -> DeviceRecord {
    DeviceRecord {
        id: 0,
        options: Vec::new(),
        context: Context::of(SectionKind::Cpu, vec![value; 16]),
    }
}

/// What a primary says from the first copy through `epochs` checkpoints, and memory after each.
fn conversation(input: &mut Input<'_>, epochs: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let page = usize::try_from(PAGE_SIZE).unwrap_or(0);
    let mut image = vec![0x11; page * usize::try_from(PAGES).unwrap_or(0)];
    let mut images = vec![image.clone()];
    let mut stream = EpochWriter::new(memory_file());
    let all: Vec<u64> = (0..PAGES).collect();
    let first = epoch::devices(&[device(0)]).expect("devices");
    let opened = stream.open(b"a pair").and_then(|()| {
        stream.page_data(&all, &image)?;
        stream.memory_end()?;
        stream.put(&first)
    });
    opened.expect("written");
    for number in 0..epochs {
        let value = input.u8();
        let dirty: Vec<u64> = (0..PAGES).filter(|page| value >> page & 1 != 0).collect();
        let mut data = Vec::new();
        for at in dirty.iter().filter_map(|&at| usize::try_from(at).ok()) {
            let bytes = &mut image[at * page..(at + 1) * page];
            bytes.fill(value);
            data.extend_from_slice(bytes);
        }
        images.push(image.clone());
        let devices = epoch::devices(&[device(u8::try_from(number).unwrap_or(0))]);
        let devices = devices.expect("devices");
        let size = Message::Size(devices.len() as u64);
        say(&mut stream, &Message::Plain(Kind::Request).to_bytes());
        say(&mut stream, &Message::Plain(Kind::Send).to_bytes());
        let written = if dirty.is_empty() {
            Ok(())
        } else {
            stream.page_data(&dirty, &data)
        };
        written.and_then(|()| stream.memory_end()).expect("written");
        say(&mut stream, &size.to_bytes());
        stream.put(&devices).expect("written");
    }
    let mut file = stream.into_inner();
    let mut script = Vec::new();
    file.rewind().expect("rewound");
    file.read_to_end(&mut script).expect("read");
    (script, images)
}

/// The side that keeps the last whole checkpoint.
fn secondary(input: &mut Input<'_>, plant: Option<Plant>) {
    let mut copy = Copy {
        runs: input.flag(),
        silent: plant == Some(Plant::Unmarked),
        ..Copy::default()
    };
    let epochs = input.below(4);
    let (mut script, images) = conversation(input, epochs);
    let spoilt = spoil(&mut script, input);
    let (ours, theirs) = saying(&script);
    let (line, switch) = Line::new(ours);
    let paired = Secondary::pair(&mut copy, line, switch.clone(), PATIENCE);
    let Ok(mut pair) = paired else {
        assert!(spoilt, "oracle soundness: a sound first copy is refused");
        return;
    };
    let mut came = 0;
    while pair.checkpoint().is_ok() {
        came += 1;
    }
    let came = if plant == Some(Plant::Accepts) && came == 2 {
        3
    } else {
        came
    };
    assert!(
        spoilt || came == epochs,
        "oracle soundness: {came} of {epochs} sound checkpoints were taken"
    );
    // Decided already if the conversation was given up for that.
    let _begun = switch.fail_over();
    let taken = pair.take_over();
    drop(theirs);
    if taken.is_err() {
        assert!(spoilt, "oracle soundness: nothing to take over");
        return;
    }
    let now = copy.taken_over.as_ref();
    assert!(
        now.is_some() && now == copy.loaded.last(),
        "oracle tracking: what runs after a failover is not the last whole checkpoint"
    );
    assert!(
        spoilt || now == images.last(),
        "oracle tracking: what runs after a failover is not what was sent"
    );
}

/// The place of the copy.
#[derive(Default)]
struct Copy {
    memory: Option<DmaMemory>,
    /// It runs between checkpoints, and writes.
    runs: bool,
    /// It does not tell what it wrote.
    silent: bool,
    own: BTreeSet<u64>,
    loaded: Vec<Vec<u8>>,
    taken_over: Option<Vec<u8>>,
}

impl Standby for Copy {
    fn prepare(&mut self, _description: &[u8]) -> Result<(), GuestError> {
        self.memory = Some(memory());
        Ok(())
    }
    fn memory(&self) -> Vec<DmaMemory> {
        self.memory.clone().into_iter().collect()
    }
    fn cache(&self) -> Result<Option<DmaMemory>, GuestError> {
        Ok(self.runs.then(memory))
    }
    fn stop(&mut self, own: &mut DirtySet) -> Result<(), GuestError> {
        for page in std::mem::take(&mut self.own) {
            if !self.silent {
                own.insert(page);
            }
        }
        Ok(())
    }
    fn load(&mut self, _records: &[DeviceRecord]) -> Result<(), GuestError> {
        self.loaded.extend(self.memory.as_ref().map(contents));
        Ok(())
    }
    fn settle(&mut self) -> Result<(), GuestError> {
        if let Some(memory) = self.memory.as_ref().filter(|_| self.runs) {
            memory.write(PAGE_SIZE + 24, &[0xee; 8]).expect("written");
            self.own.insert(1);
        }
        Ok(())
    }
    fn take_over(&mut self) -> Result<(), GuestError> {
        self.taken_over = self.memory.as_ref().map(contents);
        Ok(())
    }
}

/// The side whose guest runs.
fn primary(input: &mut Input<'_>, plant: Option<Plant>) {
    let epochs = input.below(4);
    let mut script = Message::Plain(Kind::Ready).to_bytes();
    for _ in 0..epochs {
        for kind in [Kind::Reply, Kind::Received, Kind::Loaded] {
            script.extend(Message::Plain(kind).to_bytes());
        }
    }
    let spoilt = spoil(&mut script, input);
    let (ours, theirs) = saying(&script);
    let (line, switch) = Line::new(ours);
    let dirty = Arc::new(Mutex::new(Vec::new()));
    let mut machine = Machine::new(&dirty, plant == Some(Plant::Unmarked));
    // Pages that no whole checkpoint has.
    let mut owed = BTreeSet::new();
    match Primary::pair(&mut machine, line, switch.clone(), PATIENCE) {
        Err(_) => assert!(spoilt, "oracle soundness: a sound secondary is refused"),
        Ok((mut pair, _)) => {
            let mut whole = 0;
            loop {
                let page = u64::from(input.u8()) % PAGES;
                dirty
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(page);
                owed.insert(page);
                if pair.checkpoint().is_err() {
                    break;
                }
                owed.clear();
                whole += 1;
            }
            assert!(
                spoilt || whole == epochs,
                "oracle soundness: {whole} of {epochs} sound checkpoints were made"
            );
            // Decided already if the conversation was given up for that.
            let _begun = switch.fail_over();
            let survived = pair.survive();
            assert!(
                survived.is_ok_and(|survived| survived.aftermath.is_empty()),
                "oracle soundness: a guest does not survive its pair"
            );
        }
    }
    drop(theirs);
    let back = dirty.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(
        owed.iter().all(|page| back.contains(page)),
        "oracle tracking: pages {owed:?} are owed to the next round, {back:?} were given back: lost"
    );
    drop(back);
    assert!(
        machine.runs && !machine.holds,
        "oracle progress: a guest whose pair is gone does not run, or holds its output"
    );
}

type Dirty = Arc<Mutex<Vec<u64>>>;

struct Source(Dirty, bool);

impl DirtySource for Source {
    fn start(&mut self, _: &[Range<u64>], granularity: u64) -> Result<u64, DirtyError> {
        Ok(granularity)
    }
    fn report(&mut self, _: Range<u64>, into: &mut DirtySet) -> Result<(), DirtyError> {
        for page in self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            into.insert(page);
        }
        Ok(())
    }
    fn put_back(&mut self, pages: &DirtySet) -> Result<(), DirtyError> {
        if !self.1 {
            let mut dirty = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            dirty.extend(pages.iter());
        }
        Ok(())
    }
    fn stop(&mut self) -> Result<(), DirtyError> {
        Ok(())
    }
}

/// The guest of the primary.
struct Machine {
    memory: DmaMemory,
    sources: Vec<NamedSource>,
    runs: bool,
    holds: bool,
}

impl Machine {
    fn new(dirty: &Dirty, forgets: bool) -> Self {
        Self {
            memory: memory(),
            sources: vec![NamedSource {
                name: "all".to_owned(),
                source: Box::new(Source(Arc::clone(dirty), forgets)),
            }],
            runs: true,
            holds: false,
        }
    }
}

impl Guest for Machine {
    fn describe(&self) -> Vec<u8> {
        b"a pair".to_vec()
    }
    fn memory(&self) -> Vec<DmaMemory> {
        vec![self.memory.clone()]
    }
    fn sources(&mut self) -> &mut [NamedSource] {
        &mut self.sources
    }
    fn pause(&mut self) -> Result<Paused, GuestError> {
        self.runs = false;
        Ok(Paused::default())
    }
    fn resume(&mut self) -> Result<(), GuestError> {
        self.runs = true;
        Ok(())
    }
    fn save(&mut self) -> Result<Vec<DeviceRecord>, GuestError> {
        Ok(vec![device(1)])
    }
}

impl Protected for Machine {
    fn hold(&mut self) -> Result<(), GuestError> {
        self.holds = true;
        Ok(())
    }
    fn owes(&self) -> bool {
        false
    }
    fn make_true(&mut self) -> Result<(), GuestError> {
        Ok(())
    }
    fn release(&mut self) -> Result<(), GuestError> {
        Ok(())
    }
    fn let_out(&mut self) -> Result<(), GuestError> {
        self.holds = false;
        Ok(())
    }
}
