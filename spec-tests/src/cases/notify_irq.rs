//! Interrupts, ISR status, notification suppression; what of a split ring is the device's to write.

use super::{Case, plain};
use crate::clause;
use crate::constants::{ISR_CONFIG, ISR_QUEUE, pci, ring};
use crate::harness::{Bench, Judged, QUIET, Stop, arose, demand};
use driver::bus::Interrupt;
use std::sync::Arc;
use std::time::Duration;

const ISR_CONFIG_BIT: &str = clause!(isr "D2");
const ISR_QUEUE_BIT: &str = clause!(isr "D3");
const INTX: &str = clause!(isr "D4");
const ISR_CLEARS: &str = clause!(isr "D5");
const UNMAPPED_QUEUE: &str = clause!(used_interrupt "D1");
const UNMAPPED_CONFIG: &str = clause!(config_interrupt "D1");
const SUPPRESSED: &str = "virtqueues-used-buffer-notification-suppression/D2";
const WANTED: &str = "virtqueues-used-buffer-notification-suppression/D3";
const SPURIOUS: &str = "virtqueues-available-buffer-notification-suppression/D5";
const FLAGS: &str = "virtqueues-available-buffer-notification-suppression/D1";
const READ_ONLY: &str = "virtqueues-the-virtqueue-descriptor-table/D1";
const TABLE: &str = "virtqueues-the-virtqueue-descriptor-table/D2";
const WRITTEN: &str = "virtqueues-the-virtqueue-used-ring/D2";

pub(super) const CASES: &[Case] = &[
    plain("queue_bit_with_msix_off", &[ISR_QUEUE_BIT], isr_queue),
    plain("interrupt_status_follows_isr", &[INTX], intx_status),
    plain("configuration_bit", &[ISR_CONFIG_BIT], isr_config),
    plain("isr_is_cleared_by_a_read", &[ISR_CLEARS], isr_clears),
    plain(
        "no_interrupt_for_an_unmapped_queue",
        &[UNMAPPED_QUEUE],
        unmapped_queue,
    ),
    plain(
        "no_interrupt_for_unmapped_configuration",
        &[UNMAPPED_CONFIG],
        unmapped_config,
    ),
    plain("no_interrupt_is_wanted", &[SUPPRESSED], suppressed).rings(),
    plain("an_interrupt_is_wanted", &[WANTED], wanted).rings(),
    plain("spurious_notifications", &[SPURIOUS], spurious),
    plain("used_flags_are_0_or_1", &[FLAGS], flags).rings(),
    plain(
        "readable_buffers_and_descriptors_stay",
        &[READ_ONLY, TABLE],
        untouched,
    )
    .rings(),
    plain("used_length_was_written", &[WRITTEN], length_was_written).rings(),
];

fn isr_queue(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    bench.isr()?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut live, data)?;
    let mut isr = 0;
    bench.wait(bench.limit, || {
        isr |= bench.isr()?;
        Ok(isr & ISR_QUEUE != 0)
    })?;
    demand(
        ISR_QUEUE_BIT,
        isr & ISR_QUEUE != 0,
        "the queue's bit in ISR status",
        || format!("{isr:#x}"),
    )?;
    Ok(String::new())
}

fn intx_status(bench: &Bench) -> Judged {
    if let Some(at) = bench.capability(pci::ID_MSIX)? {
        let control = bench.config_word(at + pci::MSIX_CONTROL)?;
        arose(control & pci::MSIX_ENABLED == 0, || {
            "MSI-X is enabled, and the clause is about functions that do without".to_owned()
        })?;
    }
    let mut live = bench.up(0)?;
    bench.isr()?;
    let pending = || Ok(bench.config_word(pci::STATUS)? & pci::STATUS_INTERRUPT != 0);
    let early: Result<bool, Stop> = pending();
    arose(!early?, || {
        "interrupt status is set before anything happened".to_owned()
    })?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut live, data)?;
    let set = bench.wait(bench.limit, pending)?;
    demand(
        INTX,
        set,
        "interrupt status set while ISR status is not 0",
        || "bit 3 of the PCI status stays clear".to_owned(),
    )?;
    let isr = bench.isr()?;
    arose(isr != 0, || "ISR status reads 0".to_owned())?;
    let still: Result<bool, Stop> = pending();
    demand(
        INTX,
        !still?,
        "interrupt status clear once ISR status is 0",
        || "bit 3 of the PCI status stays set".to_owned(),
    )?;
    Ok(String::new())
}

fn isr_config(bench: &Bench) -> Judged {
    bench.up(0)?;
    bench.isr()?;
    bench.change_config()?;
    let mut isr = 0;
    bench.wait(bench.limit, || {
        isr |= bench.isr()?;
        Ok(isr & ISR_CONFIG != 0)
    })?;
    demand(
        ISR_CONFIG_BIT,
        isr & ISR_CONFIG != 0,
        "the configuration's bit",
        || format!("{isr:#x}"),
    )?;
    Ok(String::new())
}

fn isr_clears(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut live, data)?;
    let mut first = 0;
    bench.wait(bench.limit, || {
        first = bench.isr()?;
        Ok(first != 0)
    })?;
    arose(first != 0, || "ISR status stays 0".to_owned())?;
    let second = bench.isr()?;
    demand(ISR_CLEARS, second == 0, "0 on the second read", || {
        format!("{second:#x}")
    })?;
    Ok(String::new())
}

fn every_vector(bench: &Bench) -> Result<Vec<Arc<dyn Interrupt>>, Stop> {
    let count = bench.caps.msix.map_or(0, |msix| msix.vectors);
    let all: Result<Vec<_>, _> = (0..count)
        .map(|vector| bench.bus.interrupt(vector))
        .collect();
    arose(count > 0, || "there is no MSI-X".to_owned())?;
    Ok(all?)
}

/// Whether any vector fires within a while. The first waits, the others have had that time too.
fn any_fires(vectors: &[Arc<dyn Interrupt>]) -> Option<usize> {
    vectors
        .iter()
        .enumerate()
        .position(|(index, vector)| vector.wait(if index == 0 { QUIET } else { Duration::ZERO }))
}

fn unmapped_queue(bench: &Bench) -> Judged {
    bench.to_features_ok(0)?;
    let vectors = every_vector(bench)?;
    let interrupt = bench.queue_vector(0, 1)?;
    let mut live = bench.queue_zero()?;
    bench.enable(0, &live.ring)?;
    bench.driver_ok()?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut live, data)?;
    arose(interrupt.wait(bench.limit), || {
        "a mapped queue does not fire".to_owned()
    })?;
    any_fires(&vectors);
    bench.put(crate::constants::reg::QUEUE_SELECT, 0)?;
    bench.put(crate::constants::reg::QUEUE_MSIX_VECTOR, pci::NO_VECTOR)?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut live, data)?;
    let fired = any_fires(&vectors);
    demand(
        UNMAPPED_QUEUE,
        fired.is_none(),
        "no interrupt for NO_VECTOR",
        || format!("vector {fired:?}"),
    )?;
    Ok(String::new())
}

fn unmapped_config(bench: &Bench) -> Judged {
    bench.to_features_ok(0)?;
    let vectors = every_vector(bench)?;
    let interrupt = bench.config_vector(0)?;
    bench.driver_ok()?;
    bench.change_config()?;
    arose(interrupt.wait(bench.limit), || {
        "mapped configuration changes do not fire".to_owned()
    })?;
    bench.put(crate::constants::reg::CONFIG_MSIX_VECTOR, pci::NO_VECTOR)?;
    bench.change_config()?;
    let fired = any_fires(&vectors);
    demand(
        UNMAPPED_CONFIG,
        fired.is_none(),
        "no interrupt for NO_VECTOR",
        || format!("vector {fired:?}"),
    )?;
    Ok(String::new())
}

fn suppressed(bench: &Bench) -> Judged {
    let (mut live, interrupt) = bench.up_notified(0)?;
    live.ring.set_flags(ring::NO_INTERRUPT)?;
    interrupt.wait(QUIET);
    for _ in 0..3 {
        let data = bench.buffer(512)?;
        bench.exchange(&mut live, data)?;
        let fired = interrupt.wait(QUIET);
        demand(SUPPRESSED, !fired, "no notification with flags 1", || {
            "it fired".to_owned()
        })?;
    }
    live.ring.set_flags(0)?;
    let data = bench.buffer(512)?;
    bench.exchange(&mut live, data)?;
    arose(interrupt.wait(bench.limit), || {
        "it does not fire with flags 0 any more".to_owned()
    })?;
    Ok(String::new())
}

fn wanted(bench: &Bench) -> Judged {
    let (mut live, interrupt) = bench.up_notified(0)?;
    for round in 0..4 {
        interrupt.wait(QUIET);
        let data = bench.buffer(512)?;
        bench.exchange(&mut live, data)?;
        let fired = interrupt.wait(bench.limit);
        demand(WANTED, fired, "a notification with flags 0", || {
            format!("nothing came for request {round}")
        })?;
    }
    Ok(String::new())
}

fn spurious(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    for _ in 0..100 {
        bench.kick(0)?;
    }
    // What was notified is over: the request finds a device that has seen nothing else for a while.
    let idle = !bench.wait(QUIET, || Ok(live.ring.used_index()? != 0))?;
    demand(
        SPURIOUS,
        idle,
        "nothing used while there is nothing",
        || format!("used index {:?}", live.ring.used_index()),
    )?;
    let data = bench.buffer(512)?;
    bench.request(&mut live, data)?;
    for _ in 0..100 {
        bench.kick(0)?;
    }
    let done = bench.used_all(&live)? && bench.filled(data)?;
    let once = !bench.wait(QUIET, || Ok(live.ring.used_index()? != live.ring.next))?;
    demand(SPURIOUS, done && once, "one buffer used once", || {
        format!(
            "used index {:?}, status {:?}",
            live.ring.used_index(),
            bench.status()
        )
    })?;
    Ok(String::new())
}

fn flags(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    for _ in 0..20 {
        let data = bench.buffer(512)?;
        bench.exchange(&mut live, data)?;
        let flags = live.ring.used_flags()?;
        demand(FLAGS, flags <= 1, "flags 0 or 1", || format!("{flags:#x}"))?;
    }
    Ok(String::new())
}

fn untouched(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    let mut buffers = Vec::new();
    for _ in 0..live.capacity() {
        let data = bench.buffer(512)?;
        bench.request(&mut live, data)?;
        buffers.push(data);
    }
    let [table, available, headers] = live.read_only();
    let read = |span: crate::harness::Span| -> Result<Vec<u8>, Stop> {
        let mut bytes = vec![0; usize::try_from(span.len).unwrap_or(0)];
        bench.memory().read(span.offset, &mut bytes)?;
        Ok(bytes)
    };
    let before = (read(table)?, read(available)?, read(headers)?);
    bench.kick(0)?;
    let done = bench.used_all(&live)?;
    arose(done, || "the requests were not carried out".to_owned())?;
    let after = (read(table)?, read(available)?, read(headers)?);
    demand(
        TABLE,
        after.0 == before.0,
        "the descriptor table as it was",
        || "descriptors changed".to_owned(),
    )?;
    let same = after.1 == before.1 && after.2 == before.2;
    demand(READ_ONLY, same, "device-readable memory as it was", || {
        "the available ring or a header changed".to_owned()
    })?;
    Ok(String::new())
}

fn length_was_written(bench: &Bench) -> Judged {
    let mut live = bench.up(0)?;
    for len in [512, 1024, 4096] {
        let data = bench.buffer(len)?;
        let index = live.ring.next;
        bench.exchange(&mut live, data)?;
        let (_, used) = live.ring.used_element(index)?;
        let mut bytes = vec![0; usize::try_from(len.min(u64::from(used))).unwrap_or(0)];
        bench.memory().read(data.offset, &mut bytes)?;
        arose(used > 0, || "the used length is 0".to_owned())?;
        // Media hold no run of the filling: eight of them in a row were not written.
        let left = bytes.windows(8).position(|run| run == [0x5a; 8]);
        demand(
            WRITTEN,
            left.is_none(),
            "as many bytes written as the used length says",
            || format!("used length {used}, and byte {left:?} is as it was before"),
        )?;
    }
    Ok(String::new())
}
