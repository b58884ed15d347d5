//! What was seen of each rule, and the last of what the driver did.

use std::collections::{BTreeMap, VecDeque};

/// Steps that a breach is told with.
const STEPS: usize = 24;

/// By what a clause that binds drivers is judged.
#[derive(Debug)]
pub struct Rule {
    /// The clause, in either form of its id.
    pub clause: &'static str,
    /// Name, unique in the suite.
    pub name: &'static str,
    /// What is done and looked at.
    pub how: &'static str,
}

/// What was seen of one rule.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// How often the situation arose.
    pub times: u64,
    /// How it was kept for the first time.
    pub kept: Option<String>,
    /// How it was broken for the first time, and what the driver had done before.
    broken: Option<(String, Vec<String>)>,
    /// The driver gave up where it met this beside other things.
    doubted: Option<(String, Vec<String>)>,
}

impl Account {
    /// How it was broken for the first time, and what the driver had done before. A driver that gave
    /// up where it met this has broken it, unless it did not give up elsewhere: then it was
    /// something else that it gave up for.
    pub fn broken(&self) -> Option<&(String, Vec<String>)> {
        let doubted = self.doubted.as_ref().filter(|_| self.kept.is_none());
        self.broken.as_ref().or(doubted)
    }
}

/// The book that the judge keeps.
#[derive(Debug, Default)]
pub struct Ledger {
    accounts: BTreeMap<&'static str, Account>,
    steps: VecDeque<String>,
}

impl Ledger {
    /// The situation of a rule arose; `saw` tells what was seen.
    pub fn check(&mut self, rule: &'static Rule, kept: bool, saw: impl FnOnce() -> String) {
        let account = self.accounts.entry(rule.name).or_default();
        account.times += 1;
        if kept {
            account.kept.get_or_insert_with(saw);
        } else if account.broken.is_none() {
            account.broken = Some((saw(), self.steps.iter().cloned().collect()));
        }
    }

    /// The driver met what a rule is about, and went on or gave up.
    pub fn bore(&mut self, rule: &'static Rule, went_on: bool, saw: impl FnOnce() -> String) {
        if went_on {
            return self.check(rule, true, saw);
        }
        let account = self.accounts.entry(rule.name).or_default();
        account.times += 1;
        if account.doubted.is_none() {
            account.doubted = Some((saw(), self.steps.iter().cloned().collect()));
        }
    }

    /// The situation of a rule arose and it was kept.
    pub fn kept(&mut self, rule: &'static Rule, saw: &str) {
        self.check(rule, true, || saw.to_owned());
    }

    /// A rule was broken.
    pub fn broke(&mut self, rule: &'static Rule, saw: impl Into<String>) {
        self.check(rule, false, || saw.into());
    }

    /// The driver did this.
    pub fn step(&mut self, step: String) {
        if self.steps.len() == STEPS {
            self.steps.pop_front();
        }
        self.steps.push_back(step);
    }

    /// Whether no situation arose: nobody drove.
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// What was seen of a rule, by its name.
    pub fn account(&self, name: &str) -> Option<&Account> {
        self.accounts.get(name)
    }

    /// Takes in what another session saw.
    pub fn absorb(&mut self, other: &Self) {
        for (name, theirs) in &other.accounts {
            let ours = self.accounts.entry(name).or_default();
            ours.times += theirs.times;
            if ours.kept.is_none() {
                ours.kept.clone_from(&theirs.kept);
            }
            if ours.broken.is_none() {
                ours.broken.clone_from(&theirs.broken);
            }
            if ours.doubted.is_none() {
                ours.doubted.clone_from(&theirs.doubted);
            }
        }
    }
}

/// Rules of a group: `NAME = clause "rule name": "how it is judged";`
macro_rules! rules {
    ($($name:ident = $clause:expr, $rule:literal: $how:literal;)*) => {
        $(
            #[doc = concat!("`", $rule, "`: ", $how, ".")]
            pub(crate) static $name: $crate::judge::Rule = $crate::judge::Rule {
                clause: $clause,
                name: $rule,
                how: $how,
            };
        )*
        /// The rules of this group.
        pub(crate) static RULES: &[&$crate::judge::Rule] = &[$(&$name),*];
    };
}
pub(crate) use rules;
