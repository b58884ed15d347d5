//! Drivers that keep to the rules, on every plan.

use crate::WANTED;
use crate::raw::Raw;
use driver::blk::{self, BlkQueue};
use driver::bus::Bus;
use driver::error::DriverError;
use driver::queue::Virtqueue;
use driver::suspend::{resume, suspend};
use driver::transport::Transport;
use libtest_mimic::Failed;
use spec::features::Features;
use spec_tests::constants::{feature, status};
use spec_tests::judge::{Judge, JudgedBus, Kind, Ledger, Plan, rules};
use std::sync::Arc;
use std::time::Duration;

const SECTOR: usize = 512;
const LIMIT: Duration = Duration::from_secs(5);
/// What the project's driver can do of what is offered.
const OUR_FEATURES: u64 = feature::INDIRECT_DESC
    | feature::EVENT_IDX
    | feature::RING_PACKED
    | feature::ORDER_PLATFORM
    | feature::NOTIFICATION_DATA
    | feature::NOTIF_CONFIG_DATA
    | feature::RING_RESET
    | feature::SUSPEND
    | feature::QUEUE_STATE
    | feature::BLK_FLUSH
    | feature::BLK_DISCARD
    | feature::BLK_WRITE_ZEROES;

/// Each rule is exercised on some plan, and broken on none.
pub fn keeps_every_rule() -> Result<(), Failed> {
    let mut book = Ledger::default();
    for plan in Plan::all() {
        let name = plan.name;
        let driver = sound(plan);
        driver.gone();
        let judge = driver.bus.judge();
        broken(judge, name)?;
        judge.book(|seen| book.absorb(seen));
    }
    let missing: Vec<_> = rules()
        .filter(|rule| {
            book.account(rule.name)
                .is_none_or(|account| account.kept.is_none())
        })
        .map(|rule| rule.name)
        .collect();
    println!(
        "sound drivers exercise {} of {} rules",
        rules().count() - missing.len(),
        rules().count()
    );
    if missing.is_empty() {
        Ok(())
    } else {
        Err(format!("not exercised: {missing:#?}").into())
    }
}

fn broken(judge: &Judge, plan: &str) -> Result<(), Failed> {
    let mut told = Vec::new();
    judge.book(|book| {
        for rule in rules() {
            if let Some((saw, steps)) = book.account(rule.name).and_then(|account| account.broken())
            {
                told.push(format!("{}: {saw} after {steps:#?}", rule.name));
            }
        }
    });
    if told.is_empty() {
        Ok(())
    } else {
        Err(format!("on {plan}: {}", told.join("\n")).into())
    }
}

fn sound(plan: Plan) -> Raw {
    let mut d = Raw::new(plan.clone());
    configuration_space(&d);
    if plan.refuse_features {
        d.begin();
        let offered = d.offered();
        d.accept(offered & WANTED);
        d.set_status(status::AGREED);
        assert_eq!(d.status() & status::FEATURES_OK, 0);
        d.set_status(status::NEGOTIATING | status::FAILED);
        d.reset();
        return d;
    }
    let mut wanted = WANTED;
    if plan.kind == Kind::Zoned {
        wanted |= feature::BLK_ZONED;
        wanted &= !feature::BLK_DISCARD;
    }
    if plan.sr_iov {
        wanted |= feature::SR_IOV;
    }
    // It gives up once, to see whether it may come back.
    d.begin();
    d.set_status(status::NEGOTIATING | status::FAILED);
    d.begin();
    d.agree(wanted);
    if plan.sr_iov {
        d.set_config(0x110, 2, 2);
        d.set_config(0x108, 2, 1);
    }
    d.vectors();
    if plan.kind != Kind::Entropy {
        d.capacity();
        d.bar(d.at.device + 20, 4);
        d.bar(d.at.device + 32, 1);
    }
    d.queues();
    d.ready();
    if d.features & feature::ADMIN_VQ != 0 {
        admin(&mut d, plan.reserved_status);
    }
    match plan.kind {
        Kind::Entropy => entropy(&mut d),
        Kind::Zoned => zones(&mut d),
        Kind::Block => disk(&mut d, plan.needs_reset_after.is_some()),
    }
    d.reset();
    d
}

fn configuration_space(d: &Raw) {
    let vendor = d.config(d.at.vendor + 4, 2);
    assert_ne!(vendor, 0x1af4);
    d.config(d.at.vendor + 8, 4);
    let window = d.at.window;
    d.set_config(window + 4, 1, 0);
    d.set_config(window + 8, 4, d.at.common + 20);
    d.set_config(window + 12, 4, 1);
    assert_eq!(d.config(window + 16, 1), 0);
}

fn entropy(d: &mut Raw) {
    for _ in 0..12 {
        let at = d.bytes(&[0; 64]);
        assert!(d.send(0, &[(at, 64, true)]) > 0);
    }
}

fn zones(d: &mut Raw) {
    let block = [7; 4096];
    assert_eq!(d.disk(16, 0, &[], 64 * 9), 0);
    assert_eq!(d.disk(1, 0, &block, 0), 0);
    assert_eq!(d.disk(1, 8, &block, 0), 0);
    assert_eq!(d.disk(15, 2048, &block, 8), 0);
    for kind in [18, 20, 22, 24] {
        assert_eq!(d.disk(kind, 4096, &[], 0), 0);
    }
    assert_eq!(d.disk(26, 0, &[], 0), 0);
    d.capacity();
}

fn disk(d: &mut Raw, fails: bool) {
    if d.features & feature::BLK_RO != 0 {
        assert_eq!(d.disk(0, 0, &[], SECTOR), 0);
        return;
    }
    for sector in 0..4_u64 {
        let wrote = vec![sector.to_le_bytes()[0] + 1; SECTOR];
        assert_eq!(d.disk(1, sector, &wrote, 0), 0);
    }
    if fails {
        assert_ne!(d.status() & status::NEEDS_RESET, 0);
        d.up(WANTED);
    }
    segments(d);
    if d.features & feature::IN_ORDER != 0 {
        d.rings[0].tables = false;
        assert_eq!(d.disk(0, 0, &[], SECTOR), 0);
        d.rings[0].tables = true;
    }
    // Several at once: they may be used in any order.
    let all: Vec<_> = (0..4)
        .map(|sector| d.request(0, sector, &[], SECTOR))
        .collect();
    for pieces in &all {
        d.expose(0, pieces);
    }
    d.notify(0);
    d.wait(0);
    for (sector, pieces) in (1..).zip(&all) {
        assert_eq!(d.look(pieces[1].0, SECTOR), vec![sector; SECTOR]);
    }
    d.capacity();
    assert_eq!(d.disk(4, 0, &[], 0), 0);
    assert_eq!(d.disk(8, 0, &[], 20), 0);
    suspends(d);
    d.again(0);
    assert_eq!(d.disk(0, 0, &[], SECTOR), 0);
    let tracker = d.at.tracker;
    d.set_bar(tracker + 8, 4, 0x1000);
    d.set_bar(tracker + 16, 4, 8);
    d.set_bar(tracker, 1, 1);
    d.set_bar(tracker, 1, 0);
}

/// Discards, erases and zeroes sectors that nobody reads afterwards.
fn segments(d: &mut Raw) {
    let segment = |flags: u32| {
        let mut bytes = 64_u64.to_le_bytes().to_vec();
        bytes.extend(8_u32.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    };
    for kind in [11, 13, 14] {
        assert_eq!(d.disk(kind, 0, &segment(0), 0), 0);
    }
}

fn suspends(d: &mut Raw) {
    if d.features & feature::SUSPEND == 0 {
        return;
    }
    d.suspend();
    if d.features & feature::QUEUE_STATE != 0 {
        d.select(0);
        d.get(64, 2);
    }
    d.resume();
    assert_eq!(d.disk(0, 0, &[], SECTOR), 0);
}

fn admin(d: &mut Raw, reserved: bool) {
    if reserved {
        assert_ne!(d.list(0), 0);
    }
    assert_eq!(d.list(0), 0);
    let (_, caps) = d.command(7, 0, 0, &[]);
    assert_eq!(caps[0] & 1, 1);
    let (_, limits) = d.command(8, 0, 0, &[0; 8]);
    let mut set = vec![0; 8];
    set.extend(&limits[..2]);
    assert_eq!(d.command(9, 0, 0, &set).0, 0);
    assert_eq!(d.command(0xa, 0, 0, &object(1, 0)).0, 0);
    assert_eq!(d.command(0xc, 0, 0, &object(1, 0)).0, 0);
    assert_eq!(d.command(0xd, 0, 0, &object(1, 0)[..8]).0, 0);
    assert_eq!(d.command(9, 0, 0, &[0; 16]).0, 0);
    assert_eq!(d.command(0x40, 0, 0, &[]).0, 0);
    if d.features & feature::SR_IOV != 0 {
        assert_eq!(d.list(1), 0);
        assert_eq!(d.command(0x11, 1, 1, &[1]).0, 0);
        let mut parts = object(1, 1)[..8].to_vec();
        for kind in [0x101_u16, 0x103] {
            parts.extend(part(kind));
        }
        assert_eq!(d.command(0x10, 1, 1, &parts).0, 0);
        assert_eq!(d.command(0x11, 1, 1, &[0]).0, 0);
    }
}

/// Header, flags and data of an object for parts: 0 to get, 1 to set.
pub fn object(id: u32, kind: u8) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(id.to_le_bytes());
    bytes.extend([0; 8]);
    bytes.push(kind);
    bytes.extend([0; 7]);
    bytes
}

/// A part of eight zeroes.
pub fn part(kind: u16) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 10]);
    bytes.extend(8_u32.to_le_bytes());
    bytes.extend([0; 8]);
    bytes
}

/// The project's own driver, on the plans for disks that let it through.
pub fn ours() -> Result<(), Failed> {
    let mut book = Ledger::default();
    for plan in Plan::all() {
        let through = plan.kind == Kind::Block
            && !plan.refuse_features
            && !plan.read_only
            && plan.needs_reset_after.is_none();
        if !through {
            continue;
        }
        let name = plan.name;
        let judge = Judge::new(plan).map_err(|error| error.to_string())?;
        drive(&judge).map_err(|error| format!("on {name}: {error}"))?;
        judge.finish();
        broken(&judge, name)?;
        judge.book(|seen| book.absorb(seen));
    }
    unfit(&mut book)?;
    let kept = rules().filter(|rule| book.account(rule.name).is_some_and(|a| a.kept.is_some()));
    println!(
        "our driver exercises {} of {} rules",
        kept.count(),
        rules().count()
    );
    Ok(())
}

/// A disk that our driver cannot drive: it says so and leaves it alone.
fn unfit(book: &mut Ledger) -> Result<(), Failed> {
    let plan = Plan::named("zoned").ok_or("no plan 'zoned'")?;
    let judge = Judge::new(plan).map_err(|error| error.to_string())?;
    let error = drive(&judge).err().ok_or("a zoned disk was driven")?;
    if !matches!(
        error.downcast_ref(),
        Some(DriverError::HostManaged { model: 1 })
    ) {
        return Err(format!("a zoned disk ended with: {error}").into());
    }
    judge.finish();
    broken(&judge, "zoned")?;
    judge.book(|seen| book.absorb(seen));
    Ok(())
}

/// Initialises, reads and writes, suspends and resumes, and resets a queue.
fn drive(judge: &Arc<Judge>) -> Result<(), Box<dyn std::error::Error>> {
    let bus = JudgedBus::new(Arc::clone(judge));
    let irq = bus.interrupt(0)?;
    let transport = Transport::new(bus.clone())?;
    let wanted = OUR_FEATURES;
    let features = transport.initialise(Features::from_bits_retain(wanted))?;
    transport.set_config_msix_vector(0)?;
    blk::read_config(&transport)?;
    let size = 16.min(transport.queue_max_size(0)?);
    let ring = bus.dma_alloc(Virtqueue::bytes_needed(size))?;
    let queue = Virtqueue::new(ring, size, features)?;
    transport.setup_queue(0, &queue.setup(0), None)?;
    let mut queue = BlkQueue::new(queue, bus.dma_alloc(BlkQueue::area_needed(size))?);
    let notifier = transport.notifier(0)?;
    transport.driver_ok()?;
    let data = bus.dma_alloc(4096)?;
    let run = |queue: &mut BlkQueue| -> Result<(), Box<dyn std::error::Error>> {
        let published = queue.publish()?;
        if published {
            notifier.notify(queue.ring().published())?;
        }
        while queue.in_flight() > 0 {
            while queue.complete()?.is_some() {}
            if queue.in_flight() > 0 && !queue.ring_mut().enable_interrupts()? {
                irq.wait(LIMIT);
            }
        }
        Ok(())
    };
    for sector in 0..12 {
        queue.write(sector, &[(data.iova(), 512)], 1)?;
        queue.read(sector, &[(data.iova() + 512, 512)], 2)?;
        run(&mut queue)?;
    }
    // It was told that the configuration has changed.
    blk::read_config(&transport)?;
    queue.flush(3)?;
    queue.get_id(4)?;
    queue.discard(0, 8, 5)?;
    queue.write_zeroes(8, 8, false, 6)?;
    run(&mut queue)?;
    suspend(&transport, LIMIT)?;
    transport.queue(0)?;
    resume(&transport, LIMIT)?;
    queue.read(0, &[(data.iova(), 512)], 7)?;
    run(&mut queue)?;
    transport.reset_queue(0, LIMIT)?;
    transport.reset(LIMIT)?;
    Ok(())
}
