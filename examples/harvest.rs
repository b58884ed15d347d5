//! Tracks a device's writes: asks it for entropy, suspends it, and says which pages it wrote.
//!
//! The device is in this process. With `driver::bus::VfioBus::open(address)?` for a bus the same lines
//! drive a function behind VFIO, with `VfioUserBus::connect(path)?` one behind a socket.

use anyhow::{Result, ensure};
use device::function::{FunctionConfig, PciFunction};
use device::rng::RngDevice;
use driver::Transport;
use driver::bus::Bus;
use driver::dirty::harvest::HarvestWidth;
use driver::dirty::{DirtySet, DirtySource, PAGE_SIZE, TrackerSource};
use driver::queue::Virtqueue;
use spec::features::Features;
use spec::pci::NO_VECTOR;
use std::sync::Arc;
use std::time::Duration;
use vm::EmulatedBus;

fn main() -> Result<()> {
    let function = PciFunction::new(FunctionConfig::default(), RngDevice::system()?);
    let bus = EmulatedBus::with_memory_at(function, 1 << 20);
    let transport = Arc::new(Transport::new(Arc::clone(&bus) as Arc<dyn Bus>)?);
    let features = transport.initialise(Features::SUSPEND)?;
    let mut queue = Virtqueue::new(bus.dma_alloc(Virtqueue::bytes_needed(8))?, 8, features)?;
    transport.setup_queue(0, &queue.setup(NO_VECTOR), None)?;
    transport.driver_ok()?;

    let (data, bitmap) = (bus.dma_alloc(64 * PAGE_SIZE)?, bus.dma_alloc(PAGE_SIZE)?);
    let range = data.iova()..data.iova() + data.len();
    let mut tracker = TrackerSource::new(Arc::clone(&transport), bitmap, HarvestWidth::Word)?;
    tracker.start(std::slice::from_ref(&range), PAGE_SIZE)?;

    for page in [3, 14, 15] {
        queue.add(&[], &[(data.iova() + page * PAGE_SIZE, 4096)], page)?;
    }
    queue.publish()?;
    transport.notify(0, queue.published())?;
    while queue.in_flight() > 0 {
        queue.reap()?;
        std::thread::yield_now();
    }

    driver::suspend::suspend(&transport, Duration::from_secs(5))?;
    let mut dirty = DirtySet::new(range.end / PAGE_SIZE);
    tracker.report(range, &mut dirty)?;
    for page in dirty.iter() {
        println!("page {} was written", page - data.iova() / PAGE_SIZE);
    }
    ensure!(dirty.count() == 3, "expected 3 pages");
    Ok(tracker.stop()?)
}
