//! Commands that have to wait for a member, and what may happen to them meanwhile.

use super::bench::{Bench, PATIENCE, memory, u16_at};
use super::members::run;
use crate::function::{AdminConfig, FunctionConfig, PciFunction};
use crate::queue::Virtqueue;
use crate::status::State;
use crate::virtio::{Progress, QueueError, VirtioDevice};
use std::sync::{Arc, Condvar, Mutex};

const MODE_SET: u16 = 0x11;

/// A device type whose queue takes as long as a test wants it to.
#[derive(Debug, Default)]
struct Slow {
    busy: Mutex<bool>,
    hold: Mutex<bool>,
    moved: Condvar,
}

impl Slow {
    fn hold(&self, on: bool) {
        *self.hold.lock().unwrap() = on;
        self.moved.notify_all();
    }
}

impl VirtioDevice for Slow {
    fn device_id(&self) -> u16 {
        4
    }
    fn pci_class(&self) -> u32 {
        0xff_00_00
    }
    fn features(&self) -> u64 {
        0
    }
    fn num_queues(&self) -> u16 {
        1
    }
    fn queue_max_size(&self, _: u16) -> u16 {
        256
    }
    fn config_len(&self) -> usize {
        0
    }
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    fn config_write(&self, _: usize, _: &[u8]) -> bool {
        false
    }
    fn negotiated(&self, _: u64) {}
    fn reset(&self) {}
    fn process(
        &self,
        _: u16,
        _: &mut Virtqueue,
        _: &crate::dma::Dma,
        _: &mut dyn FnMut(),
    ) -> Result<Progress, QueueError> {
        let hold = self.hold.lock().unwrap();
        *self.busy.lock().unwrap() = true;
        self.moved.notify_all();
        let _held = self.moved.wait_while(hold, |hold| *hold).unwrap();
        *self.busy.lock().unwrap() = false;
        Ok(Progress::Idle)
    }
}

impl Slow {
    /// The next step of the queue's work lasts until it is let go.
    fn occupy(&self, member: &PciFunction) {
        self.hold(true);
        member.bar_write(0, 0x3000, &[0, 0]);
        let hold = self.hold.lock().unwrap();
        drop(
            self.moved
                .wait_while(hold, |_| !*self.busy.lock().unwrap())
                .unwrap(),
        );
    }

    /// A member of this kind that runs, and its owner, whose commands are in use.
    fn owned(self: &Arc<Self>, memory: &std::fs::File) -> (Bench, Arc<PciFunction>) {
        let device: Arc<dyn VirtioDevice> = Arc::clone(self) as Arc<dyn VirtioDevice>;
        let member = PciFunction::new(FunctionConfig::default(), device);
        run(&member, memory);
        let admin = AdminConfig {
            queues: 2,
            ..AdminConfig::default()
        };
        (Bench::owning(admin, Arc::clone(&member)), member)
    }
}

/// Commands that wait hold up nobody but those behind them in their own queue.
#[test]
fn a_stop_and_a_reset_are_waited_for_in_order() {
    let (slow, memory) = (Arc::new(Slow::default()), memory());
    let (bench, member) = slow.owned(&memory);
    slow.occupy(&member);
    let query = Bench::encode(0, 0, 0, &[]);
    let first = bench.submit(0, &mode(1), 8);
    // Answered at once, by the other queue.
    assert_eq!(bench.raw(1, &query, 8).0, 8);
    assert_eq!(bench.used(0), first, "the member is still at work");
    slow.hold(false);
    assert_eq!(bench.finish(0, first), 8);
    assert_eq!(u16_at(&bench.result(0, 2), 0), 0);

    // A reset that goes on: the command waits for its end (DP-12).
    let resumed = bench.submit(0, &mode(0), 8);
    bench.finish(0, resumed);
    slow.occupy(&member);
    member.reset();
    let waiting = bench.submit(0, &mode(1), 8);
    assert_eq!(bench.raw(1, &query, 8).0, 8);
    assert_eq!(bench.used(0), waiting);
    assert_ne!(member.state(), State::Reset);
    slow.hold(false);
    bench.finish(0, waiting);
    assert_eq!(member.state(), State::Reset);
}

fn mode(stopped: u8) -> Vec<u8> {
    Bench::encode(MODE_SET, 1, 1, &[stopped])
}

/// A command in flight when the owner is reset is forgotten, and nobody hangs.
#[test]
fn a_reset_of_the_owner_forgets_what_waits() {
    let (slow, memory) = (Arc::new(Slow::default()), memory());
    let (bench, member) = slow.owned(&memory);
    slow.occupy(&member);
    bench.submit(0, &mode(1), 8);
    bench.reset();
    slow.hold(false);
    bench.bring_up();
    bench.enable_vfs(1);
    bench.use_lists();
    assert_eq!(bench.status(MODE_SET, 1, 1, &[0], 8), (0, 0));
}

/// A member that goes away while a command waits for it: the command is answered, by what is true
/// now, and those behind it follow.
#[test]
fn a_member_that_goes_away_ends_the_waiting() {
    let (slow, memory) = (Arc::new(Slow::default()), memory());
    let (bench, member) = slow.owned(&memory);
    slow.occupy(&member);
    let waiting = bench.submit(0, &mode(1), 8);
    bench.owner.config_write(0x148, &[0]);
    slow.hold(false);
    bench.finish(0, waiting);
    let answer = bench.result(0, 4);
    assert_eq!((u16_at(&answer, 0), u16_at(&answer, 2)), (22, 4));
    assert_eq!(bench.status(0, 0, 0, &[], 64), (0, 0));
    assert!(member.reset_and_wait(PATIENCE));
}
