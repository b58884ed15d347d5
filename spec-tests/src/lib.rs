//! Judges virtio-pci functions, and what serves rings over vhost-user, clause by clause.
//!
//! [`mod@clause`] is the registry: what is demanded, of whom, and with what authority. [`cases`] holds
//! what is done to find out, [`run`] does it, [`report`] tells it. A case acts through
//! `driver::bus::Bus` alone; its constants ([`constants`]), its capability walk and its rings
//! ([`harness`]) are typed again from the text, so that an error in `spec` or `driver` cannot hide
//! an error of the device.
//!
//! # The registry
//!
//! `clauses/GROUP.json` has one line for each statement: every sentence of VIRTIO 1.4 that can bear
//! on a virtio-pci device of the types that the suite knows, and the rules of drafts and of this
//! project. A line has the id, the hash of the standard's sentence, and a paraphrase in our words;
//! the standard's text itself is not copied here. `cargo run -p spec-tests --bin clauses --
//! --against LIST.tsv` says what another version of the standard adds, changes and removes.
//!
//! Each file begins with what is still `pending` in it: statements of the device without a case or
//! a reason, statements of the driver without a rule, and MUSTs with a case but without a mutant.
//! The tests fail unless they are exact, so they can only go down. Who adds a case or a
//! mutant lowers them in the same commit.
//!
//! A statement without a case has one of five reasons ([`clause::NoCase`]) and, but for the first
//! two, an argument in `why`. Of the device's MUSTs one in twenty may have one.
//!
//! # Cases
//!
//! A group of clauses has a module in `cases/` with a list `CASES`, and is known to
//! [`cases::all`]. To add a case:
//!
//! 1. Find the clause (`tidemark conform --list`, `--explain ID`) and write what the standard wants
//!    to be *seen*, not that the device survives.
//! 2. Write `fn name(bench: &Bench) -> Judged` and its line in `CASES`: `plain` for the function as
//!    it comes, `special` for a [`target::Variant`]; `.rings()` if it needs rings and requests but
//!    no registers of a PCI function, for then it judges vhost-user backends too; `Case { writes: true,
//!    ..plain(..) }` if it writes to the medium. Ids of VIRTIO 1.4 are written `clause!(indirect "D1")` ([`clause!`]).
//!    Requests of any type to a disk are made by [`harness::Disk`], to one with zones by
//!    [`harness::Zoned`].
//! 3. Bring about the situation that the clause speaks of, and show that it arose: `arose(...)`
//!    makes the case inconclusive, which counts as a failure, where it did not. A negative needs a
//!    positive control in the same case: that nothing fires before DRIVER_OK means something only
//!    if it fires afterwards.
//! 4. `demand(CLAUSE, kept, wants, saw)` is the verdict: `wants` is what the clause wants to be
//!    seen and is shown with a pass, `saw` what was seen instead. The id must be the one of the
//!    list, and a case that judges several clauses demands each by its own name.
//! 5. What the target may lack is `Err(Stop::NotApplicable(...))`: [`harness::Bench::up`] does that
//!    for features, [`harness::Absent::Own`] is for a device type's own things. Never pass over it
//!    in silence.
//! 6. Wait with [`harness::Bench::wait`] and its relatives up to `bench.limit`, and for what must
//!    not come for [`harness::QUIET`]. No case sleeps. What is random comes from
//!    [`harness::Bench::random`].
//!
//! A case does what no sane driver does, if that is what it takes, but never relies on anything
//! that its own breach made undefined.
//!
//! # Mutants
//!
//! A case proves itself on a device that breaks its clause. `tests/mutants/` has a module for each
//! group with a list `MUTANTS`. A mutant has a name, the clauses that it breaks, and a `Defect`:
//! what it does to reads and writes of registers, to configuration space, to interrupts, around
//! resets, or from inside by [`target::Seams`] (how the function is made; a wrapper around its
//! device type). It is one of the disk, unless it names another `medium`. What it does not name is
//! sound (`..SOUND`). The wrapped `Function` reads and writes the sound device's registers, remembers
//! numbers, and reaches the case's memory.
//!
//! `cargo test -p spec-tests --test mutants` holds every case against every mutant. Each clause of
//! a mutant must be found broken by one of its own cases; and of the cases of all other clauses
//! nine in ten must pass, for a mutant breaks a sentence, not a device. If that fails, make the
//! defect narrower: let it strike only in the situation that the clause speaks of.
//!
//! # Drivers
//!
//! [`judge`] has the rules by which drivers are judged; their clauses are in the same registry.

#![forbid(unsafe_code)]

pub mod cases;
pub mod clause;
pub mod constants;
pub mod harness;
pub mod ids;
pub mod judge;
pub mod report;
pub mod run;
pub mod target;
