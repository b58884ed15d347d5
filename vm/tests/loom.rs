//! The marking protocol of `device::tracker::protocol` against the harvest of
//! `driver::dirty::harvest`, under every interleaving and reordering that loom knows.
//!
//! The functions under test are the real ones; only the atomics are loom's. Each right model is
//! explored to its end within the bounds that stand in it, and each wrong variant must be shown to
//! lose a page: a model too small to catch a mistake proves nothing.
//!
//! Limits (loom's own): SeqCst accesses count as AcqRel, fences are exact, load buffering is not
//! explored. A pass is strong evidence, not a proof for hardware that does more.

mod proof;

use device::tracker::protocol::{Fenced, MarkWord, mark, mark_fenced};
use driver::dirty::harvest::{TakeWord, take_word};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;
use proof::{fails, holds};

/// What a variant does differently from the rule. All false is the rule.
#[derive(Clone, Copy, Default)]
struct Wrong<
    const RELAXED_MARK: bool,
    const LOAD_STORE_TAKE: bool,
    const NO_DEVICE_FENCE: bool,
    const NO_HARVEST_FENCE: bool,
    const PLAIN_MARK: bool,
>;

/// A word of the bitmap on loom's atomics.
struct Word<V>(AtomicU64, std::marker::PhantomData<V>);

impl<V> Word<V> {
    fn new() -> Self {
        Self(AtomicU64::new(0), std::marker::PhantomData)
    }
}

impl<const A: bool, const B: bool, const C: bool, const D: bool, const E: bool> MarkWord
    for Word<Wrong<A, B, C, D, E>>
{
    fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn or(&self, mask: u64) {
        if E {
            // Two writers without atomics.
            let old = self.0.load(Ordering::Relaxed);
            self.0.store(old | mask, Ordering::Release);
        } else {
            self.0.fetch_or(
                mask,
                if A {
                    Ordering::Relaxed
                } else {
                    Ordering::Release
                },
            );
        }
    }
    fn fence() {
        if !C {
            fence(Ordering::SeqCst);
        }
    }
}

impl<const A: bool, const B: bool, const C: bool, const D: bool, const E: bool> TakeWord
    for Word<Wrong<A, B, C, D, E>>
{
    fn load_relaxed(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn swap_acq_rel(&self, new: u64) -> u64 {
        if B {
            let old = self.0.load(Ordering::Acquire);
            self.0.store(new, Ordering::Release);
            old
        } else {
            self.0.swap(new, Ordering::AcqRel)
        }
    }
    fn fence() {
        if !D {
            fence(Ordering::SeqCst);
        }
    }
}

type Rule = Wrong<false, false, false, false, false>;
type RelaxedMark = Wrong<true, false, false, false, false>;
type LoadThenStore = Wrong<false, true, false, false, false>;
type NoDeviceFence = Wrong<false, false, true, false, false>;
type NoHarvestFence = Wrong<false, false, false, true, false>;
type NoFences = Wrong<false, false, true, true, false>;
type PlainMark = Wrong<false, false, false, false, true>;

/// How a device marks what it wrote.
#[derive(Clone, Copy)]
enum Device {
    /// Bursts: data, one fence, tests.
    Burst,
    /// Single writes, each marked by the locked operation.
    Single,
    /// The mistake of marking first.
    MarkFirst,
}

const PAGES: usize = 2;

/// Guest memory of two pages, its bitmap, and the copy that a migration makes.
struct Guest<V> {
    pages: [AtomicU64; PAGES],
    bitmap: Word<V>,
}

impl<V> Guest<V>
where
    Word<V>: MarkWord + TakeWord,
{
    fn new() -> Arc<Self> {
        Arc::new(Self {
            pages: [AtomicU64::new(0), AtomicU64::new(0)],
            bitmap: Word::new(),
        })
    }

    /// Writes `value` to the pages in `which`, and marks them.
    fn write(&self, device: Device, which: &[usize], value: u64) {
        match device {
            Device::Burst => {
                for &page in which {
                    self.pages[page].store(value, Ordering::Relaxed);
                }
                let fenced = Fenced::after_data::<Word<V>>();
                for &page in which {
                    mark_fenced(fenced, &self.bitmap, 1 << page);
                }
            }
            Device::Single => {
                for &page in which {
                    self.pages[page].store(value, Ordering::Relaxed);
                    mark(&self.bitmap, 1 << page);
                }
            }
            Device::MarkFirst => {
                for &page in which {
                    mark(&self.bitmap, 1 << page);
                    self.pages[page].store(value, Ordering::Relaxed);
                }
            }
        }
    }

    /// One round: takes the marks, fences, copies the marked pages.
    fn round(&self, copy: &mut [u64; PAGES]) {
        let taken = take_word(&self.bitmap);
        <Word<V> as TakeWord>::fence();
        for (page, copy) in copy.iter_mut().enumerate() {
            if taken & (1 << page) != 0 {
                *copy = self.pages[page].load(Ordering::Relaxed);
            }
        }
    }

    fn assert_equal(&self, copy: &[u64; PAGES]) {
        for (page, copy) in copy.iter().enumerate() {
            assert_eq!(
                self.pages[page].load(Ordering::Relaxed),
                *copy,
                "lost page {page}"
            );
        }
    }
}

fn passes(name: &str, model: impl Fn() + Sync + Send + 'static) {
    holds(name, None, model);
}

fn loses(name: &str, model: impl Fn() + Sync + Send + 'static) {
    fails("lost page", name, model);
}

/// One device that writes `bursts`, one harvester of two rounds, and the last round after the end.
fn one_device<V>(device: Device, bursts: &'static [&'static [usize]]) -> impl Fn() + Sync + Send
where
    V: 'static,
    Word<V>: MarkWord + TakeWord + Send + Sync,
{
    move || {
        let guest = Guest::<V>::new();
        // The device runs on the first thread. Loom takes a SeqCst fence that comes later for
        // ordered after one that came earlier, and would not go back behind a harvest that it ran
        // to its end first.
        let harvester = {
            let guest = Arc::clone(&guest);
            thread::spawn(move || {
                let mut copy = [0; PAGES];
                guest.round(&mut copy);
                guest.round(&mut copy);
                copy
            })
        };
        for (value, burst) in (1..).zip(bursts) {
            guest.write(device, burst, value);
        }
        let mut copy = harvester.join().unwrap();
        guest.round(&mut copy);
        guest.assert_equal(&copy);
    }
}

/// Two devices (two queues of one) that mark the same word.
fn two_devices<V>(device: Device) -> impl Fn() + Sync + Send
where
    V: 'static,
    Word<V>: MarkWord + TakeWord + Send + Sync,
{
    move || {
        let guest = Guest::<V>::new();
        let writers: Vec<_> = (0..PAGES)
            .map(|page| {
                let guest = Arc::clone(&guest);
                thread::spawn(move || guest.write(device, &[page], 1))
            })
            .collect();
        let mut copy = [0; PAGES];
        guest.round(&mut copy);
        writers
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
        guest.round(&mut copy);
        guest.assert_equal(&copy);
    }
}

/// A device that suspends: the driver's last round begins when it has read SUSPEND, not earlier.
fn suspend<V>(presents_early: bool) -> impl Fn() + Sync + Send
where
    V: 'static,
    Word<V>: MarkWord + TakeWord + Send + Sync,
{
    move || {
        let guest = Guest::<V>::new();
        let suspended = Arc::new(AtomicU64::new(0));
        let driver = {
            let (guest, suspended) = (Arc::clone(&guest), Arc::clone(&suspended));
            thread::spawn(move || {
                let mut copy = [0; PAGES];
                guest.round(&mut copy);
                if suspended.load(Ordering::Acquire) == 1 {
                    guest.round(&mut copy);
                    guest.assert_equal(&copy);
                }
            })
        };
        guest.write(Device::Burst, &[0], 1);
        if presents_early {
            suspended.store(1, Ordering::Release);
        }
        guest.write(Device::Burst, &[0, 1], 2);
        suspended.store(1, Ordering::Release);
        driver.join().unwrap();
    }
}

/// The same page twice, then both: what a ring of hot buffers looks like.
const HOT: &[&[usize]] = &[&[0], &[0]];
const BOTH: &[&[usize]] = &[&[0, 1], &[0, 1]];

#[test]
fn bursts_lose_nothing() {
    passes(
        "two bursts of one page",
        one_device::<Rule>(Device::Burst, HOT),
    );
    passes(
        "two bursts of two pages",
        one_device::<Rule>(Device::Burst, BOTH),
    );
    passes(
        "two queues, one word, by bursts",
        two_devices::<Rule>(Device::Burst),
    );
}

#[test]
fn single_writes_lose_nothing() {
    passes("two single writes", one_device::<Rule>(Device::Single, HOT));
    passes(
        "two queues, one word, singly",
        two_devices::<Rule>(Device::Single),
    );
}

/// A locked mark needs no fence on either side: what vm-memory's slices do is right as it is.
#[test]
fn single_writes_need_no_fence() {
    passes(
        "two single writes without fences",
        one_device::<NoFences>(Device::Single, HOT),
    );
}

#[test]
fn suspend_leaves_nothing_behind() {
    passes("suspend", suspend::<Rule>(false));
}

#[test]
fn a_relaxed_mark_loses() {
    loses(
        "relaxed mark",
        one_device::<RelaxedMark>(Device::Single, HOT),
    );
}

#[test]
fn a_harvest_that_loads_and_then_stores_loses() {
    loses(
        "load then store",
        one_device::<LoadThenStore>(Device::Single, HOT),
    );
    loses(
        "load then store, by bursts",
        one_device::<LoadThenStore>(Device::Burst, BOTH),
    );
}

#[test]
fn a_mark_before_its_data_loses() {
    loses("mark first", one_device::<Rule>(Device::MarkFirst, HOT));
}

#[test]
fn a_test_without_both_fences_loses() {
    loses(
        "no device fence",
        one_device::<NoDeviceFence>(Device::Burst, HOT),
    );
    loses(
        "no harvest fence",
        one_device::<NoHarvestFence>(Device::Burst, HOT),
    );
    loses("no fences", one_device::<NoFences>(Device::Burst, HOT));
}

#[test]
fn two_writers_without_atomics_lose() {
    loses("plain marks", two_devices::<PlainMark>(Device::Single));
}

#[test]
fn suspend_presented_before_the_drain_loses() {
    loses("early suspend", suspend::<Rule>(true));
}
