//! Who can track whom, where a guest has guests of its own.

use super::bed::{Commanded, memory};
use super::{Effort, PAGE, Result, ensure, repeat};
use crate::claims::figures::Figures;
use crate::claims::topics::NESTING;
use device::function::{AdminConfig, FunctionConfig, PciFunction};
use device::rng::RngDevice;
use driver::Transport;
use driver::admin::{AdminQueue, Subject};
use driver::bus::Bus;
use driver::dirty::harvest::HarvestWidth;
use driver::dirty::{DirtySet, DirtySource, RecordsSource, TrackerSource, records};
use spec::features::Features;
use std::sync::{Arc, Mutex};
use vm::EmulatedBus;
use vm_memory::Permissions;

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
pub fn nesting(_: Effort, figures: &mut Figures) -> Result<()> {
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
