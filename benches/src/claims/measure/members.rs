//! One administration queue for many members.

use super::bed::{Commanded, start_data};
use super::{Effort, GIB, PAGE, Result, micros, repeat, timed};
use crate::claims::figures::Figures;
use crate::claims::topics::{PASS, READ_MEDIAN, READ_SLOW};
use device::function::{FunctionConfig, PciFunction};
use device::rng::RngDevice;
use driver::admin::{AdminQueue, Subject};
use spec::records::{READ, Read, START};
use std::sync::Arc;
use std::thread;
use zerocopy::IntoBytes;

fn virtual_functions(count: u64) -> Vec<Arc<PciFunction>> {
    (0..count)
        .map(|seed| PciFunction::new(FunctionConfig::default(), RngDevice::seeded(seed)))
        .collect()
}

/// READs of members in turn, so many times; the time of each command in µs.
fn passes_of<I: Iterator<Item = u64>>(
    queue: &mut AdminQueue,
    passes: usize,
    members: impl Fn() -> I,
) -> Result<Vec<f64>> {
    let ask = Read {
        start: 0.into(),
        length: GIB.into(),
        page_size: PAGE.into(),
    };
    (0..passes)
        .flat_map(|_| members())
        .map(|member| {
            let subject = Subject::virtual_function(member);
            let read = || Ok(queue.command(READ, subject, ask.as_bytes(), 4096)?.output);
            Ok(micros(timed(read)?.0))
        })
        .collect()
}

/// Latency of READ by the number of members and queues.
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
    let passes = effort.pick(100, 2);
    for count in [1_u32, 4, 16, 64, 256]
        .into_iter()
        .filter(|count| *count <= most)
    {
        for queues in [1_u32, 2] {
            let (mut median, mut worst) = (Vec::new(), Vec::new());
            let round = repeat(|_| {
                let all = || 1..=u64::from(count);
                let (time, mut each) = timed(|| {
                    if queues == 1 {
                        return passes_of(first, passes, all);
                    }
                    let second = &mut *second;
                    thread::scope(|scope| {
                        let even = || all().skip(1).step_by(2);
                        let other = scope.spawn(move || passes_of(second, passes, even));
                        let mut each = passes_of(first, passes, || all().step_by(2))?;
                        each.extend(other.join().map_err(|_| "a driver panicked")??);
                        Ok(each)
                    })
                })?;
                each.sort_by(f64::total_cmp);
                median.push(each[each.len() / 2]);
                worst.push(each[each.len() * 99 / 100]);
                Ok(micros(time) / passes as f64)
            })?;
            let name = if queues == 1 { "1 queue" } else { "2 queues" };
            figures.add(&READ_MEDIAN, name, count, median);
            figures.add(&READ_SLOW, name, count, worst);
            figures.add(&PASS, name, count, round);
        }
    }
    Ok(())
}
