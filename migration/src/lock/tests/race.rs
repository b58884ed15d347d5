//! Managers that want the same remotes.

use super::sim::*;
use crate::lock::*;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Reaches its remotes over a wire of its own: some near, some far, so that each manager comes first
/// somewhere.
struct Far {
    inner: Arc<SimRemote>,
    world: Arc<World>,
    extra: Duration,
}

impl Remote<u32> for Far {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn send(&self, request: Request<u32>, reply: Reply) {
        let inner = Arc::clone(&self.inner);
        self.world.agenda().after(self.extra, move |agenda| {
            let inside = Arc::clone(&inner.inside);
            agenda.after(HALF, move |agenda| {
                Inside::arrive(&inside, agenda, request, reply)
            });
        });
    }

    fn free_command(&self) -> String {
        self.inner.free_command()
    }
}

/// How the managers end, by number. `far`: the extra way of a manager to a remote.
fn race(
    managers: usize,
    count: usize,
    hold: bool,
    far: impl Fn(usize, usize) -> Duration + Sync,
) -> (Vec<Result<Report, Failure>>, Duration) {
    let world = World::new(managers);
    let all = remotes(&world, &vec![&[][..]; count]);
    let results = Mutex::new(vec![None; managers]);
    thread::scope(|scope| {
        for me in 0..managers {
            let (world, all, results, far) = (&world, &all, &results, &far);
            scope.spawn(move || {
                let of = |(place, remote): (usize, &Arc<SimRemote>)| {
                    Arc::new(Far {
                        inner: Arc::clone(remote),
                        world: Arc::clone(world),
                        extra: far(me, place),
                    }) as Arc<dyn Remote<u32>>
                };
                let remotes = Remotes::new(all.iter().enumerate().map(of).collect());
                let terms = terms(world, me);
                // Nobody runs before all are there.
                let (_nobody, inbox) = Inbox::new();
                assert!(terms.clock.wait(&inbox, Duration::ZERO).is_none());
                let clock = Arc::clone(&terms.clock);
                let result = LockedSet::lock(remotes.expect("names of their own"), terms)
                    .and_then(|set| set.for_each(|_| Ok(NEW + u32::try_from(me).expect("few"))))
                    .and_then(LockedSet::apply)
                    .map(|set| {
                        if hold {
                            let until = clock.now() + limits().lock * 2;
                            assert!(clock.wait(&inbox, until).is_none());
                        }
                        set.release()
                    });
                results.lock().expect("whole")[me] = Some(result);
                world.leave();
            });
        }
    });
    let took = world.now();
    world.drain();
    assert!(
        all.iter()
            .all(|remote| remote.inside().layers.holder().is_none())
    );
    let running: Vec<u32> = all
        .iter()
        .map(|remote| *remote.inside().layers.running())
        .collect();
    assert!(
        running.iter().all(|one| *one == running[0]),
        "of two minds: {running:?}"
    );
    let results = results.into_inner().expect("whole");
    (
        results
            .into_iter()
            .map(|result| result.expect("it ended"))
            .collect(),
        took,
    )
}

#[test]
fn of_two_managers_exactly_one_wins_and_the_other_is_told_who() {
    // Manager 0 is nearer to the first remotes, manager 1 to the rest.
    for first in 0..=4 {
        let far = |me: usize, place: usize| {
            if (place < first) == (me == 0) {
                Duration::ZERO
            } else {
                RTT * 3
            }
        };
        let (results, _) = race(2, 4, true, far);
        let ([Ok(_), Err(loser)] | [Err(loser), Ok(_)]) = &results[..] else {
            panic!("{first}: {results:?}");
        };
        let winner = usize::from(results[0].is_err());
        assert_eq!(loser.cause, Cause::Lock);
        let held: Vec<_> = loser
            .report
            .rows
            .iter()
            .filter_map(|row| match &row.outcome {
                Err(RemoteError::Held(holder)) => Some(holder.claimant.who.clone()),
                _ => None,
            })
            .collect();
        assert!(!held.is_empty());
        assert!(
            held.iter().all(|who| *who == format!("manager {winner}")),
            "{held:?}"
        );
        assert!(
            loser
                .to_string()
                .contains(&format!("locked by manager {winner}")),
            "{loser}"
        );
        if (1..4).contains(&first) {
            assert_eq!(winner, 0, "each has some: the older one wins");
        }
    }
}

#[test]
fn managers_that_are_quick_all_come_to_their_turn() {
    for seed in 0_usize..40 {
        let far = |me: usize, place: usize| {
            RTT * u32::try_from((seed * 7 + me * 13 + place * 5 + me * place * seed) % 5)
                .expect("few")
        };
        let (results, took) = race(3, 5, false, far);
        assert!(results.iter().all(Result::is_ok), "{seed}: {results:?}");
        assert!(took < Duration::from_secs(3), "{seed}: {took:?}");
    }
}
