//! Modes of members: what one that is stopped must not do, must go on doing, and has done before.

use super::{Case, special};
use crate::clause;
use crate::constants::admin::{opcode, status as code};
use crate::constants::parts::{RUN, STOPPED};
use crate::constants::{Field, pci, reg, status};
use crate::harness::{
    Absent, Bench, Judged, Live, Owned, QUIET, Span, Stop, Ticket, arose, changed_pages, demand,
    setting,
};
use crate::target::Variant;
use driver::bus::Interrupt;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const NO_TRANSACTION: &str = clause!(parts "D8");
const FINISHED: &str = clause!(parts "D9");
const WRITTEN_BACK: &str = clause!(parts "D10");
const DOORBELLS: &str = clause!(parts "D11");
const READS: &str = clause!(parts "D12");
const PCI: &str = clause!(parts "D13");
const NO_PME: &str = clause!(parts "D14");
const NO_ACCESS: &str = clause!(parts "D15");
const SILENT: &str = clause!(parts "D16");
const AFTER_FLR: &str = clause!(parts "D17");
const AFTER_RESET: &str = clause!(parts "D18");
const STOP_TWICE: &str = clause!(parts "D20");
const RUN_TWICE: &str = clause!(parts "D21");

/// How often a case tries to catch a member at work.
const ROUNDS: u64 = 20;
/// Of these, so many in which it was at work when a command came. In one alone, its work could end
/// between an answer that came too early and the look at what was left.
const CAUGHT: u64 = 6;
/// Registers whose values a member has whether it runs or not.
const REGISTERS: [Field; 11] = [
    reg::DEVICE_FEATURE_SELECT,
    reg::DEVICE_FEATURE,
    reg::DRIVER_FEATURE_SELECT,
    reg::DRIVER_FEATURE,
    reg::CONFIG_MSIX_VECTOR,
    reg::NUM_QUEUES,
    reg::DEVICE_STATUS,
    reg::CONFIG_GENERATION,
    reg::QUEUE_SIZE,
    reg::QUEUE_ENABLE,
    reg::QUEUE_NOTIFY_OFF,
];

const fn owner(
    name: &'static str,
    clauses: &'static [&'static str],
    run: fn(&Bench) -> Judged,
) -> Case {
    special(name, clauses, Variant::Owner, run)
}

const fn slow(
    name: &'static str,
    clauses: &'static [&'static str],
    run: fn(&Bench) -> Judged,
) -> Case {
    special(name, clauses, Variant::SlowMembers, run)
}

pub(super) const CASES: &[Case] = &[
    owner(
        "a_stopped_member_starts_no_transaction",
        &[NO_TRANSACTION],
        no_transaction,
    ),
    owner(
        "a_stopped_member_leaves_its_queues_alone",
        &[NO_ACCESS],
        no_access,
    ),
    slow(
        "what_is_outstanding_ends_before_the_stop_does",
        &[FINISHED],
        |bench| caught(bench, finished),
    ),
    slow(
        "what_was_taken_is_written_back_before_the_stop_ends",
        &[WRITTEN_BACK],
        |bench| caught(bench, written_back),
    ),
    owner(
        "a_stopped_member_takes_notifications",
        &[DOORBELLS],
        doorbells,
    ),
    owner("a_stopped_member_answers_reads", &[READS], reads),
    owner("pci_is_the_same_in_either_mode", &[PCI], pci_alike),
    owner("a_stopped_member_signals_no_pme", &[NO_PME], no_pme),
    owner(
        "a_stopped_member_notifies_of_no_buffer",
        &[SILENT],
        silent_queue,
    ),
    owner(
        "a_stopped_member_notifies_of_no_change",
        &[SILENT],
        silent_config,
    ),
    slow(
        "a_function_level_reset_is_waited_for",
        &[AFTER_FLR],
        |bench| waits(bench, AFTER_FLR, function_reset),
    ),
    slow("a_reset_is_waited_for", &[AFTER_RESET], |bench| {
        waits(bench, AFTER_RESET, |bench| bench.set_status(0))
    }),
    owner("stopping_twice_succeeds", &[STOP_TWICE], stop_twice),
    owner("going_on_twice_succeeds", &[RUN_TWICE], run_twice),
];

/// What a vector has told so far is heard.
fn hush(interrupt: &Arc<dyn Interrupt>) {
    while interrupt.wait(Duration::ZERO) {}
}

/// The member goes on, and what it was not to touch while it was stopped is done then: that it did
/// not means something.
fn goes_on(owned: &Owned<'_>, live: &Live) -> Result<(), Stop> {
    owned.go_on()?;
    arose(owned.member.used_all(live)?, || {
        format!(
            "it does not go on: used index {:?}, want {}",
            live.ring.used_index(),
            live.ring.next
        )
    })
}

/// Changes the configuration where the target can.
fn change_config_if_possible(member: &Bench) -> Result<(), Stop> {
    match member.change_config() {
        Err(Stop::NotApplicable(_)) => Ok(()),
        done => done,
    }
}

fn no_transaction(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    let member = &owned.member;
    let (mut live, interrupt) = member.up_notified(0)?;
    let changes = member.config_vector(0)?;
    // Marks in a bitmap are transactions too.
    let tracked = member.caps.tracker().is_some();
    if tracked {
        let bitmap = member.bitmap(0)?;
        member.track(bitmap, 0)?;
    }
    let data = member.buffer(512)?;
    member.exchange(&mut live, data)?;
    owned.stop()?;
    hush(&interrupt);
    hush(&changes);
    let written = member.tempt(&mut live, true)?;
    change_config_if_possible(member)?;
    let told = interrupt.wait(QUIET) || changes.wait(Duration::ZERO);
    demand(
        NO_TRANSACTION,
        written.is_empty() && !told,
        "nothing is written and nothing is signalled",
        || format!("pages {written:x?} changed; an interrupt: {told}"),
    )?;
    goes_on(&owned, &live)?;
    Ok(format!("with a tracker: {tracked}"))
}

/// Reads leave no trace in memory, so that writes are what is looked for.
fn no_access(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    let member = &owned.member;
    let mut live = member.up(0)?;
    for _ in 0..live.capacity() / 2 {
        let data = member.buffer(512)?;
        member.request(&mut live, data)?;
    }
    member.kick(0)?;
    owned.stop()?;
    let before = live.ring.used_index()?;
    for kick in [false, true] {
        let written = member.tempt(&mut live, kick)?;
        demand(
            NO_ACCESS,
            written.is_empty(),
            "rings, buffers and status bytes stay as they are",
            || {
                format!(
                    "pages {written:x?}, used index {:?}",
                    live.ring.used_index()
                )
            },
        )?;
        // The next slot's request would be in the way of one that waits.
        if live.ring.next.wrapping_sub(before) + 1 >= live.capacity() {
            break;
        }
    }
    goes_on(&owned, &live)?;
    Ok(String::new())
}

/// Stops a member that has been told of requests and has not carried them all out, and looks at
/// what it leaves; again until it was caught at work so often that what it leaves shows.
fn caught(bench: &Bench, look: fn(&Bench, &Live, &[Span], u16) -> Judged) -> Judged {
    let owned = Owned::new(bench)?;
    let member = &owned.member;
    let mut live = member.up(0)?;
    let requests = live.capacity().min(8);
    let pages = member.buffer(4096 * u64::from(requests))?;
    let buffers: Vec<_> = (0..u64::from(requests))
        .map(|page| pages.part(4096 * page, 4096))
        .collect();
    let mut caught = 0;
    for round in 0..ROUNDS {
        member.fill(pages)?;
        for data in &buffers {
            member.request(&mut live, *data)?;
        }
        let begun = live.ring.used_index()?;
        member.kick(0)?;
        // It begins in its own time; the command is to come a little later, in each round another.
        let begins = Duration::from_millis(round);
        member.wait(begins, || Ok(live.ring.used_index()? != begun))?;
        let asked = live.ring.used_index()?;
        owned.stop()?;
        let ended = live.ring.used_index()?;
        let done = usize::from(ended.wrapping_sub(begun));
        let (taken, left) = buffers.split_at(done.min(buffers.len()));
        arose(filled(member, taken)? == taken.len(), || {
            "a used buffer was not written".to_owned()
        })?;
        let note = look(member, &live, left, ended)?;
        goes_on(&owned, &live)?;
        // Something was carried out between the command and its answer.
        caught += u64::from(asked != ended);
        if caught == CAUGHT {
            return Ok(note);
        }
    }
    arose(caught > 0, || {
        format!("in {ROUNDS} rounds it was never at work when it was to stop")
    })?;
    Ok(format!("caught at work {caught} times"))
}

fn filled(member: &Bench, buffers: &[Span]) -> Result<usize, Stop> {
    let mut count = 0;
    for data in buffers {
        count += usize::from(member.filled(*data)?);
    }
    Ok(count)
}

/// `ended` is the used index right after the answer.
fn finished(member: &Bench, live: &Live, left: &[Span], ended: u16) -> Judged {
    let before = member.snapshot()?;
    let (mut late, mut used) = (BTreeSet::new(), ended);
    member.wait(4 * QUIET, || {
        used = live.ring.used_index()?;
        late = changed_pages(&before, &member.snapshot()?, member.memory().iova());
        Ok(!late.is_empty() || used != ended)
    })?;
    demand(
        FINISHED,
        late.is_empty() && used == ended,
        "nothing is written any more once the stop was answered",
        || format!("pages {late:x?} changed later; the used index was {ended} and is {used}"),
    )?;
    Ok(format!("{} requests left", left.len()))
}

fn written_back(member: &Bench, live: &Live, left: &[Span], _: u16) -> Judged {
    let touched = filled(member, left)?;
    demand(
        WRITTEN_BACK,
        touched == 0,
        "a used element for every buffer that was taken",
        || {
            format!(
                "{touched} buffers were written and are not used; used index {:?}",
                live.ring.used_index()
            )
        },
    )?;
    Ok(format!("{} requests left", left.len()))
}

fn doorbells(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    let member = &owned.member;
    let mut live = member.up(0)?;
    let data = member.buffer(512)?;
    member.exchange(&mut live, data)?;
    owned.stop()?;
    let data = member.buffer(512)?;
    member.request(&mut live, data)?;
    member.kick(0)?;
    let shown = member.status()?;
    demand(
        DOORBELLS,
        shown == status::RUNNING,
        "a notification is no error",
        || format!("status {shown:#04x}"),
    )?;
    owned.go_on()?;
    // Nobody notifies it again.
    let used = member.used_all(&live)?;
    demand(
        DOORBELLS,
        used && member.filled(data)?,
        "what was notified of meanwhile is done once the member goes on",
        || format!("used index {:?}", live.ring.used_index()),
    )?;
    Ok(String::new())
}

/// What a driver can read that does not change by itself.
fn registers(member: &Bench) -> Result<Vec<u64>, Stop> {
    let mut seen = Vec::new();
    for field in REGISTERS {
        seen.push(member.get(field)?);
    }
    for area in [reg::QUEUE_DESC, reg::QUEUE_DRIVER, reg::QUEUE_DEVICE] {
        seen.push(member.get_wide(area)?);
    }
    match member.device_config() {
        Err(Stop::NotApplicable(_)) => {}
        config => seen.extend(config?.into_iter().map(u64::from)),
    }
    Ok(seen)
}

fn reads(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    let member = &owned.member;
    let mut live = member.up(0)?;
    let data = member.buffer(512)?;
    member.exchange(&mut live, data)?;
    let running = registers(member)?;
    owned.stop()?;
    let stopped = registers(member)?;
    demand(
        READS,
        running == stopped,
        "registers read as they did before",
        || format!("{running:x?} became {stopped:x?}"),
    )?;
    owned.go_on()?;
    let data = member.buffer(512)?;
    member.exchange(&mut live, data)?;
    Ok(String::new())
}

/// Reads all of configuration space, and writes what software writes of it: the size of the first
/// BAR, interrupt disable, the mask of MSI-X. All of it is put back.
fn exercise_pci(member: &Bench) -> Result<Vec<u32>, Stop> {
    let mut seen = Vec::new();
    for at in (0..4096).step_by(4) {
        seen.push(member.config_dword(at)?);
    }
    let mut try_bits = |at: u16, bits: u32| -> Result<(), Stop> {
        let before = member.config_dword(at)?;
        member
            .bus
            .config_write(at, &(before ^ bits).to_le_bytes())?;
        seen.push(member.config_dword(at)?);
        member.bus.config_write(at, &before.to_le_bytes())?;
        seen.push(member.config_dword(at)?);
        Ok(())
    };
    let bar = member.config_dword(pci::BARS)?;
    try_bits(pci::BARS, !bar)?;
    try_bits(pci::COMMAND, pci::COMMAND_NO_INTX)?;
    if let Some(msix) = member.caps.msix {
        try_bits(msix.at, pci::MSIX_MASK)?;
    }
    Ok(seen)
}

fn pci_alike(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    let member = &owned.member;
    member.up(0)?;
    let running = exercise_pci(member)?;
    owned.stop()?;
    let stopped = exercise_pci(member)?;
    demand(
        PCI,
        running == stopped,
        "configuration space reads and takes writes as in the other mode",
        || {
            let at = running.iter().zip(&stopped).position(|(a, b)| a != b);
            format!("access {at:?} differs")
        },
    )?;
    Ok(String::new())
}

fn no_pme(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    let member = &owned.member;
    let mut live = member.up(0)?;
    owned.stop()?;
    member.tempt(&mut live, true)?;
    change_config_if_possible(member)?;
    let Some(at) = member.capability(pci::ID_POWER)? else {
        // It has nothing to signal one with, which is one way not to.
        goes_on(&owned, &live)?;
        return Ok("there is no power management capability".to_owned());
    };
    let state = member.config_word(at + pci::POWER_CONTROL)?;
    demand(
        NO_PME,
        state & pci::PME_STATUS == 0,
        "PME_Status is clear, whatever a stopped member has to tell",
        || format!("power management control and status {state:#06x}"),
    )?;
    goes_on(&owned, &live)?;
    Ok(String::new())
}

fn silent_queue(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    let member = &owned.member;
    let (mut live, interrupt) = member.up_notified(0)?;
    owned.stop()?;
    hush(&interrupt);
    let data = member.buffer(512)?;
    member.request(&mut live, data)?;
    member.kick(0)?;
    demand(SILENT, !interrupt.wait(QUIET), "no notification", || {
        "the queue's vector fired".to_owned()
    })?;
    owned.go_on()?;
    arose(interrupt.wait(member.limit), || {
        "the queue's vector does not fire when the member goes on".to_owned()
    })?;
    Ok(String::new())
}

fn silent_config(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    let member = &owned.member;
    member.prepare(0)?;
    let interrupt = member.config_vector(0)?;
    member.driver_ok()?;
    member.change_config()?;
    arose(interrupt.wait(member.limit), || {
        "a running member does not tell of a change".to_owned()
    })?;
    owned.stop()?;
    hush(&interrupt);
    member.change_config()?;
    demand(SILENT, !interrupt.wait(QUIET), "no notification", || {
        "the vector of changes fired".to_owned()
    })?;
    Ok(String::new())
}

/// Writes Initiate Function Level Reset, without waiting for the end of it.
fn function_reset(member: &Bench) -> Result<(), Stop> {
    let express = member.capability(pci::ID_EXPRESS)?;
    let express = express.ok_or(Stop::NotApplicable(Absent::FunctionReset))?;
    if member.config_dword(express + pci::EXPRESS_CAPABILITIES)? & pci::FLR_CAPABLE == 0 {
        return Err(Stop::NotApplicable(Absent::FunctionReset));
    }
    let at = express + pci::EXPRESS_CONTROL;
    let control = member.config_word(at)? | pci::INITIATE_FLR;
    member.step("initiate a function level reset");
    member.bus.config_write(at, &control.to_le_bytes())?;
    Ok(())
}

/// Commands that come while a reset goes on are answered when it is over. That a member is at work
/// makes its reset take a while.
fn waits(bench: &Bench, clause: &'static str, reset: fn(&Bench) -> Result<(), Stop>) -> Judged {
    let owned = Owned::new(bench)?;
    let member = &owned.member;
    let parts = owned.parts()?;
    let commands = [
        ("DEV_MODE_SET", opcode::MODE_SET, vec![RUN]),
        // Refused, for the member is not stopped; but not before it is reset.
        ("DEV_PARTS_SET", opcode::PARTS_SET, setting(&parts)),
    ];
    for (name, opcode, data) in commands {
        let mut caught = 0;
        for _ in 0..ROUNDS {
            let mut live = member.up(0)?;
            let buffer = member.buffer(512)?;
            member.exchange(&mut live, buffer)?;
            reset(member)?;
            let shown = member.status()?;
            let ticket = owned.post(opcode, data.clone())?;
            let after = answered(&owned, ticket)?;
            if shown == 0 {
                continue;
            }
            demand(
                clause,
                after == 0,
                "an answer only when the reset is over",
                || format!("{name} is answered while status reads {after:#04x}"),
            )?;
            caught += 1;
            if caught == CAUGHT {
                break;
            }
        }
        arose(caught > 0, || {
            format!("in {ROUNDS} rounds no reset was going on when {name} came")
        })?;
    }
    Ok(String::new())
}

/// The member's status right after the answer has come.
fn answered(owned: &Owned<'_>, ticket: Ticket) -> Result<u8, Stop> {
    let limit = owned.member.limit;
    let came = owned
        .member
        .wait(limit, || Ok(owned.admin.peek(ticket)?.is_some()))?;
    let shown = owned.member.status()?;
    arose(came, || "the command is not answered".to_owned())?;
    Ok(shown)
}

fn stop_twice(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    let mut live = owned.member.up(0)?;
    owned.stop()?;
    let codes = owned.mode(STOPPED)?.codes();
    demand(
        STOP_TWICE,
        codes.0 == code::OK,
        "stopping what is stopped succeeds",
        || format!("{codes:?}"),
    )?;
    let written = owned.member.tempt(&mut live, true)?;
    demand(
        STOP_TWICE,
        written.is_empty(),
        "it is stopped still",
        || format!("pages {written:x?} changed"),
    )?;
    goes_on(&owned, &live)?;
    Ok(String::new())
}

fn run_twice(bench: &Bench) -> Judged {
    let owned = Owned::new(bench)?;
    let mut live = owned.member.up(0)?;
    for time in ["never stopped", "not stopped any more"] {
        let codes = owned.mode(RUN)?.codes();
        demand(
            RUN_TWICE,
            codes.0 == code::OK,
            "letting go on what is not stopped succeeds",
            || format!("{time}: {codes:?}"),
        )?;
        let data = owned.member.buffer(512)?;
        owned.member.exchange(&mut live, data)?;
        owned.stop()?;
        owned.go_on()?;
    }
    Ok(String::new())
}
