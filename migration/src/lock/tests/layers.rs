//! A remote's own side by itself: what comes late or from others does no harm.

use crate::lock::*;
use std::time::SystemTime;
use uuid::Uuid;

fn claim(id: u128, attempt: u32) -> (Claim, Claimant) {
    let id = Uuid::from_u128(id);
    let who = Claimant {
        id,
        who: format!("manager {id}"),
    };
    (Claim { id, attempt }, who)
}

fn ask(layers: &mut Layers<u32>, request: Request<u32>) -> Result<Answer, RemoteError> {
    layers.answer(request, SystemTime::UNIX_EPOCH)
}

fn lock(layers: &mut Layers<u32>, id: u128, attempt: u32) -> Result<Token, RemoteError> {
    let (claim, who) = claim(id, attempt);
    match ask(layers, Request::Lock { claim, who })? {
        Answer::Locked(token) => Ok(token),
        answer => panic!("{answer:?}"),
    }
}

fn release(layers: &mut Layers<u32>, id: u128, attempt: u32) {
    let (claim, _) = claim(id, attempt);
    assert_eq!(ask(layers, Request::Release { claim }), Ok(Answer::Done));
}

#[test]
fn a_lock_after_its_release_is_refused() {
    let mut layers = Layers::new(1);
    release(&mut layers, 7, 2);
    assert!(matches!(
        lock(&mut layers, 7, 1),
        Err(RemoteError::Fenced(_))
    ));
    assert!(matches!(
        lock(&mut layers, 7, 2),
        Err(RemoteError::Fenced(_))
    ));
    let token = lock(&mut layers, 7, 3).expect("a later attempt");
    assert_eq!(lock(&mut layers, 7, 3), Ok(token), "asked twice");
    release(&mut layers, 7, 2);
    assert!(layers.holder().is_some(), "a release of before");
    release(&mut layers, 8, 9);
    assert!(layers.holder().is_some(), "a stranger's release");
    release(&mut layers, 7, 3);
    assert_eq!(layers.holder(), None);
}

#[test]
fn every_change_needs_the_token() {
    let mut layers = Layers::new(1);
    let old = lock(&mut layers, 7, 1).expect("free");
    release(&mut layers, 7, 1);
    let stage = |token| Request::Stage { token, change: 2 };
    assert!(matches!(
        ask(&mut layers, stage(old)),
        Err(RemoteError::Fenced(_))
    ));
    let token = lock(&mut layers, 8, 1).expect("free");
    for request in [
        stage(old),
        Request::Rollback { token: old },
        Request::Apply { token: old },
        Request::Poll { token: old },
    ] {
        let error = ask(&mut layers, request).expect_err("another's");
        assert!(
            matches!(&error, RemoteError::Held(holder) if holder.claimant.id == Uuid::from_u128(8)),
            "{error}"
        );
    }
    assert!(
        matches!(
            ask(&mut layers, Request::Apply { token }),
            Err(RemoteError::Refused(_))
        ),
        "nothing is staged"
    );
    assert_eq!(ask(&mut layers, stage(token)), Ok(Answer::Done));
    assert_eq!(layers.pending(), Some(&2));
    assert_eq!(
        ask(&mut layers, Request::Rollback { token }),
        Ok(Answer::Done)
    );
    assert_eq!((layers.pending(), *layers.running()), (None, 1));
    layers.reset(3);
    assert_eq!(*layers.running(), 3);
    let error = ask(&mut layers, stage(token)).expect_err("reset");
    assert_eq!(
        error.to_string(),
        "not ours any more: the device was reset since"
    );
}

#[test]
fn an_apply_runs_to_its_end_under_its_lock() {
    let mut layers = Layers::new(1);
    let token = lock(&mut layers, 7, 1).expect("free");
    layers.finish(Ok(()));
    assert_eq!(*layers.running(), 1, "there is nothing to end");
    assert_eq!(
        ask(&mut layers, Request::Stage { token, change: 2 }),
        Ok(Answer::Done)
    );
    let applying = |progress| Ok(Answer::Applying(progress));
    assert_eq!(
        ask(&mut layers, Request::Poll { token }),
        applying(Progress::NotStarted)
    );
    assert_eq!(
        ask(&mut layers, Request::Apply { token }),
        applying(Progress::Running)
    );
    assert!(matches!(
        ask(&mut layers, Request::Stage { token, change: 3 }),
        Err(RemoteError::Refused(_))
    ));
    // Its manager gives up; nobody else comes in between.
    release(&mut layers, 7, 1);
    assert!(matches!(lock(&mut layers, 8, 1), Err(RemoteError::Held(_))));
    assert_eq!(
        ask(&mut layers, Request::Poll { token }),
        applying(Progress::Running)
    );
    layers.finish(Ok(()));
    assert_eq!((*layers.running(), layers.holder()), (2, None));
    let token = lock(&mut layers, 8, 1).expect("free");
    assert_eq!(
        ask(&mut layers, Request::Stage { token, change: 3 }),
        Ok(Answer::Done)
    );
    assert_eq!(
        ask(&mut layers, Request::Apply { token }),
        applying(Progress::Running)
    );
    layers.finish(Err("no room".into()));
    assert_eq!(
        ask(&mut layers, Request::Apply { token }),
        applying(Progress::Failed("no room".into())),
        "asked twice"
    );
    assert_eq!((*layers.running(), layers.pending()), (2, None));
    let holder = layers.force().expect("it was locked");
    assert_eq!(holder.claimant.id, Uuid::from_u128(8));
    assert_eq!(layers.holder(), None);
}
