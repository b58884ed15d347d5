//! One administration queue for many members, and who can track whom.

use super::bed::{Commanded, memory, start_data};
use super::{Effort, GIB, PAGE, Result, ensure, micros, repeat, timed};
use crate::claims::figures::Figures;
use crate::claims::topics::{NESTING, PASS, READ_MEDIAN, READ_SLOW};
use device::function::{AdminConfig, FunctionConfig, PciFunction};
use device::rng::RngDevice;
use driver::Transport;
use driver::admin::{AdminQueue, Subject};
use driver::bus::Bus;
use driver::dirty::harvest::HarvestWidth;
use driver::dirty::{DirtySet, DirtySource, RecordsSource, TrackerSource, records};
use spec::features::Features;
use spec::records::{READ, Read, START};
use std::sync::{Arc, Mutex};
use std::thread;
use vm::EmulatedBus;
use vm_memory::Permissions;
use zerocopy::IntoBytes;

fn virtual_functions(count: u64) -> Vec<Arc<PciFunction>> {
    (0..count)
        .map(|seed| PciFunction::new(FunctionConfig::default(), RngDevice::seeded(seed)))
        .collect()
}

/// READs of so many members in turn; the time of each in µs.
fn pass(queue: &mut AdminQueue, members: impl Iterator<Item = u64>) -> Result<Vec<f64>> {
    let ask = Read {
        start: 0.into(),
        length: GIB.into(),
        page_size: PAGE.into(),
    };
    members
        .map(|member| {
            let subject = Subject::virtual_function(member);
            let read = || Ok(queue.command(READ, subject, ask.as_bytes(), 4096)?.output);
            Ok(micros(timed(read)?.0))
        })
        .collect()
}

/// Latency of READ by the number of members and queues; and what works from within a member.
pub fn members(effort: Effort, figures: &mut Figures) -> Result<()> {
    let most: u32 = effort.pick(256, 4);
    let mut owner = Commanded::new(2, 1 << 10, virtual_functions(most.into()))?;
    let data = start_data(std::slice::from_ref(&(0..GIB)))?;
    for member in 1..=u64::from(most) {
        let queue = owner.queues.first_mut().ok_or("no queue")?;
        queue.command(START, Subject::virtual_function(member), &data, 0)?;
    }
    let [first, second] = owner.queues.as_mut_slice() else {
        return Err("two queues were asked for".into());
    };
    let passes = effort.pick(20, 2);
    for count in [1_u32, 4, 16, 64, 256]
        .into_iter()
        .filter(|count| *count <= most)
    {
        for queues in [1_u32, 2] {
            let (mut median, mut worst) = (Vec::new(), Vec::new());
            let round = repeat(|_| {
                let (mut each, mut times) = (Vec::new(), Vec::new());
                for _ in 0..passes {
                    let all = 1..=u64::from(count);
                    let (time, latencies) = timed(|| {
                        if queues == 1 {
                            return pass(first, all);
                        }
                        let (odd, even) = (all.clone().step_by(2), all.skip(1).step_by(2));
                        thread::scope(|scope| {
                            let other = scope.spawn(|| pass(second, even));
                            let mut all = pass(first, odd)?;
                            all.extend(other.join().map_err(|_| "a driver panicked")??);
                            Ok(all)
                        })
                    })?;
                    times.push(micros(time));
                    each.extend(latencies);
                }
                each.sort_by(f64::total_cmp);
                times.sort_by(f64::total_cmp);
                median.push(each[each.len() / 2]);
                worst.push(each[each.len() * 99 / 100]);
                Ok(times[times.len() / 2])
            })?;
            let name = if queues == 1 { "1 queue" } else { "2 queues" };
            figures.add(&READ_MEDIAN, name, count, median);
            figures.add(&READ_SLOW, name, count, worst);
            figures.add(&PASS, name, count, round);
        }
    }
    nesting(figures)
}

/// A page that a function writes.
fn write(function: &PciFunction, page: u64) -> Result<()> {
    let guard = function.dma().enter();
    let mut burst = guard.burst();
    burst.write(page * PAGE, &[1; 8])?;
    burst.commit();
    Ok(())
}

fn found(source: &mut dyn DirtySource) -> Result<bool> {
    let mut into = DirtySet::new(16);
    source.report(0..16 * PAGE, &mut into)?;
    Ok(into.contains(3))
}

/// What a driver can do that has a virtual function and nothing else, as a guest that has guests;
/// and whether its own host still hears of writes.
fn nesting(figures: &mut Figures) -> Result<()> {
    let all = 0..16 * PAGE;
    let ranges = std::slice::from_ref(&all);
    let mut outcomes: [(&str, Vec<f64>); 5] = [
        ("a member's tracker, from within", Vec::new()),
        ("owner's commands, from within a member", Vec::new()),
        ("self group, a member with a queue of its own", Vec::new()),
        ("host's tracker while the member uses it too", Vec::new()),
        ("host's records while the member tracks itself", Vec::new()),
    ];
    repeat(|seed| {
        let ram = memory(16 * PAGE)?;
        let config = |queues| FunctionConfig {
            admin: AdminConfig {
                queues,
                ..AdminConfig::default()
            },
            ..FunctionConfig::default()
        };
        let functions =
            [0, 1].map(|queues| PciFunction::new(config(queues), RngDevice::seeded(seed)));
        for function in &functions {
            let access = Permissions::ReadWrite;
            function.dma().map(0, 16 * PAGE, &ram, 0, access)?;
        }
        let [plain, queued] = &functions;
        let mut owner = Commanded::new(1, 1 << 10, functions.to_vec())?;
        let queue = owner.queues.pop().ok_or("no queue")?;
        let queue = Arc::new(Mutex::new(queue));
        let mut host = RecordsSource::new(queue, Subject::virtual_function(1));
        host.start(ranges, PAGE)?;

        let bus = EmulatedBus::new(Arc::clone(plain)) as Arc<dyn Bus>;
        let transport = Arc::new(Transport::new(Arc::clone(&bus))?);
        let mut trackers = Vec::new();
        for _ in 0..2 {
            let bitmap = bus.dma_alloc(PAGE)?;
            let transport = Arc::clone(&transport);
            trackers.push(TrackerSource::new(transport, bitmap, HarvestWidth::Word)?);
        }
        let (outer, inner) = trackers.split_at_mut(1);
        let (outer, inner) = (&mut outer[0], &mut inner[0]);
        // The host has it on, and so has its guest: there is one set of registers.
        outer.start(ranges, PAGE)?;
        inner.start(ranges, PAGE)?;
        write(plain, 3)?;
        let inside = found(inner)?;
        let outside = found(outer)?;
        let by_records = found(&mut host)?;
        let commands = transport
            .negotiate(Features::ADMIN_VQ, Features::ADMIN_VQ)
            .is_ok();

        let bus = EmulatedBus::new(Arc::clone(queued)) as Arc<dyn Bus>;
        let transport = Arc::new(Transport::new(bus)?);
        transport.negotiate(Features::ADMIN_VQ, Features::ADMIN_VQ)?;
        let mut own = AdminQueue::new(Arc::clone(&transport), 0)?;
        transport.driver_ok()?;
        own.use_commands(spec::admin::group::SELF, &records::COMMANDS)?;
        let mut own = RecordsSource::new(Arc::new(Mutex::new(own)), Subject::ITSELF);
        own.start(ranges, PAGE)?;
        write(queued, 3)?;
        let itself = found(&mut own)?;
        ensure(itself, || "a function does not record itself".to_owned())?;
        for ((_, samples), works) in outcomes
            .iter_mut()
            .zip([inside, commands, itself, outside, by_records])
        {
            samples.push(f64::from(u8::from(works)));
        }
        Ok(0.0)
    })?;
    for (name, samples) in outcomes {
        figures.add(&NESTING, name, 1, samples);
    }
    Ok(())
}
