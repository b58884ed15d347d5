//! Running a model to its end, and saying in how many executions: what `cargo xtask proofs` reads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs a model to its end or to its first failure; counts executions in `count`.
fn explore(
    count: &Arc<AtomicUsize>,
    changes: Option<usize>,
    model: impl Fn() + Sync + Send + 'static,
) {
    let counter = Arc::clone(count);
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 10_000;
    builder.preemption_bound = changes;
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        model();
    });
}

/// A model that holds in all its executions, or, if there is a number of `changes`, in those that take a
/// thread off the processor so many times before it waits.
pub fn holds(name: &str, changes: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let count = Arc::new(AtomicUsize::new(0));
    explore(&count, changes, model);
    let executions = count.load(Ordering::Relaxed);
    assert!(executions > 1, "{name} explored nothing");
    let bound = changes.map_or_else(String::new, |most| format!(" (at most {most} preemptions)"));
    println!("proof holds {executions} {name}{bound}");
}

/// A wrong variant, of which one execution must fail, saying `says`.
pub fn fails(says: &str, name: &str, model: impl Fn() + Sync + Send + 'static) {
    let count = Arc::new(AtomicUsize::new(0));
    let explored = catch_unwind(AssertUnwindSafe(|| explore(&count, None, model)));
    let panic = explored.expect_err(&format!("{name} must fail: {says}"));
    let said = panic.downcast_ref::<String>().cloned();
    let said = said.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    let said = said.unwrap_or_default();
    assert!(
        said.contains(says),
        "{name} failed for another reason: {said}"
    );
    let executions = count.load(Ordering::Relaxed);
    println!("proof fails {executions} {name}");
}
