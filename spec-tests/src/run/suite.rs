//! A whole run: every chosen case on a fresh function, whatever happens to the target.

use super::attempt::{Attempt, Finding, Verdict};
use super::profile::{Profile, ProfileError, Waiver, today};
use super::select::{Chosen, Depth, choose};
use crate::clause::{Clause, Registry};
use crate::constants::feature;
use crate::harness::{Absent, Bench, Stop, Trace};
use crate::report::{Entry, Identity, Outcome, Report};
use crate::target::{Target, Variant};
use std::sync::Arc;

/// What is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Names of clauses, groups and cases; none for all.
    pub globs: Vec<String>,
    /// Down to which level.
    pub depth: Depth,
    /// Seed of everything random.
    pub seed: u64,
    /// What the target is said to be.
    pub profile: Option<Profile>,
}

/// A target that answers.
#[derive(Debug)]
pub struct Setup {
    target: Arc<dyn Target>,
    identity: Identity,
    offered: u64,
}

/// Why a run did not begin.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The target cannot be reached, or died before the first case.
    #[error("the target cannot be reached: {0}")]
    Unreachable(String),
    /// The profile is wrong, or not of this target.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// No case fits.
    #[error("no case fits {0:?}: see --list for clauses, groups and cases")]
    Nothing(Vec<String>),
}

impl Setup {
    /// Reaches the target and reads who it is.
    ///
    /// # Errors
    /// [`SetupError::Unreachable`].
    pub fn new(target: Arc<dyn Target>) -> Result<Self, SetupError> {
        let ask = || -> Result<_, Stop> {
            let bench = Bench::new(target.fresh(Variant::Plain)?, Trace::default(), 0)?;
            Ok((Identity::read(&bench)?, bench.offered()?))
        };
        let (mut identity, offered) = ask().map_err(|stop| {
            SetupError::Unreachable(match stop {
                Stop::Lost(why) | Stop::Inconclusive(why) => why,
                Stop::Fail(failure) => failure.saw,
                Stop::NotApplicable(what) => format!("no {what}"),
            })
        })?;
        identity.target = target.name();
        Ok(Self {
            target,
            identity,
            offered,
        })
    }

    /// What the target is said to have: by its profile, else by the target's own account.
    fn claims(&self, options: &Options, what: Absent) -> bool {
        let profile = options.profile.as_ref();
        profile.map_or_else(|| self.target.claims(what), |profile| profile.claims(what))
    }
}

/// Runs what was chosen. `told` hears of every entry as it comes.
///
/// # Errors
/// [`SetupError`] if there is nothing to run, or if the target offers what its profile does not
/// claim.
pub fn run(
    setup: &Setup,
    registry: &Registry,
    options: &Options,
    told: &mut dyn FnMut(&Entry),
) -> Result<Report, SetupError> {
    let chosen = choose(registry, &options.globs, options.depth);
    if chosen.is_empty() {
        return Err(SetupError::Nothing(options.globs.clone()));
    }
    let mut report = Report::new(registry, setup.identity.clone(), options);
    if let Some(profile) = &options.profile {
        let claimed = profile.bits()?;
        let more = setup.offered & !claimed;
        if more != 0 {
            return Err(ProfileError::Unclaimed(feature::names(more).join(", ")).into());
        }
        let less = claimed & !setup.offered;
        report.not_offered = feature::names(less);
    }
    let mut gone = None;
    for Chosen { case, clauses } in chosen {
        let attempt = gone
            .is_none()
            .then(|| Attempt::new(&setup.target, case, options.seed));
        for clause in clauses {
            let claims = |what| setup.claims(options, what);
            let finding = match (&attempt, &gone) {
                (Some(attempt), _) => attempt.finding(clause, &claims),
                (None, why) => Finding {
                    verdict: Verdict::Inconclusive,
                    note: "the target is gone".to_owned(),
                    saw: why.iter().cloned().collect(),
                    wants: Vec::new(),
                },
            };
            let mut entry = Entry::new(clause, case, attempt.as_ref(), finding);
            waive(&mut entry, clause, options);
            told(&entry);
            report.push(entry);
        }
        if attempt.is_some_and(|attempt| attempt.lost()) {
            gone = setup.target.revive().err();
        }
    }
    Ok(report)
}

/// Lets a known failure pass until its day, and objects to what is known and no longer so.
pub(crate) fn waive(entry: &mut Entry, clause: &Clause, options: &Options) {
    let all = options.profile.iter().flat_map(|profile| &profile.waivers);
    let fits = |waiver: &&Waiver| {
        let case = waiver.case.as_ref();
        clause.is(&waiver.clause) && case.is_none_or(|case| *case == entry.case)
    };
    let Some(waiver) = all.into_iter().find(fits) else {
        return;
    };
    entry.outcome = match entry.outcome {
        Outcome::Fail | Outcome::Inconclusive if waiver.until < today() => {
            entry.note = format!("the waiver ended on {}: {}", waiver.until, waiver.reason);
            entry.outcome
        }
        Outcome::Fail | Outcome::Inconclusive => Outcome::Waived,
        // A waiver of the whole clause stands for cases that fail; others may pass.
        Outcome::Pass if waiver.case.is_some() => Outcome::UnexpectedPass,
        other => other,
    };
    entry.waiver = Some(waiver.clone());
}
