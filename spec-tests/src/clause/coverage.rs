//! What is judged, what is not and why, and whether the registry keeps its own rules.

use super::{Level, NoCase, Provenance, Registry, Role};
use crate::cases::Case;
use crate::constants::feature;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Of the device's MUSTs in scope, at most one in this many may go without a case.
const EXCUSED_OF: usize = 20;

/// How far one group is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Statements of the device, or of nobody, and how many of them have a case.
    pub device: (usize, usize),
    /// Of these, without a case and without a reason.
    pub device_pending: usize,
    /// Statements of the driver, and how many of them are judged.
    pub driver: (usize, usize),
    /// Of these, neither judged nor with a reason.
    pub driver_pending: usize,
}

/// What the registry, the cases and the rules for drivers amount to.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// By group, in the order of ids.
    pub groups: BTreeMap<&'static str, Progress>,
    /// How often each reason stands.
    pub reasons: BTreeMap<NoCase, usize>,
    /// MUST, MUST NOT and SHALL of the device in VIRTIO 1.4, and how many have a case.
    pub device_musts: (usize, usize),
    /// MUST, MUST NOT and SHALL of the driver in VIRTIO 1.4, and how many are judged.
    pub driver_musts: (usize, usize),
    /// Those of the device that go without a case for a reason.
    pub excused: usize,
    /// What is wrong, each a sentence.
    pub wrong: Vec<String>,
}

impl Coverage {
    /// Holds the registry against cases for devices and against the clauses that drivers are
    /// judged by.
    pub fn new<'a>(
        registry: &Registry,
        cases: impl Iterator<Item = &'a Case>,
        rules: impl Iterator<Item = &'a str>,
    ) -> Self {
        let mut this = Self::default();
        let judged = this.judged(registry, cases, rules);
        for (group, _) in registry.groups() {
            this.groups.entry(group).or_default();
        }
        for clause in registry.iter() {
            let has = judged.contains(clause.id.as_str());
            this.clause(clause, has);
        }
        this.ratchets(registry);
        let (all, _) = this.device_musts;
        if this.excused * EXCUSED_OF > all {
            let excused = this.excused;
            this.wrong.push(format!(
                "{excused} of {all} MUSTs of the device go without a case for a reason, more than one in {EXCUSED_OF}"
            ));
        }
        this
    }

    /// Ids of the clauses that cases and rules name.
    fn judged<'a>(
        &mut self,
        registry: &Registry,
        cases: impl Iterator<Item = &'a Case>,
        rules: impl Iterator<Item = &'a str>,
    ) -> BTreeSet<String> {
        let (mut judged, mut pairs) = (BTreeSet::new(), BTreeSet::new());
        let mut names = BTreeSet::new();
        let mut wrong = Vec::new();
        for case in cases {
            if case.clauses.is_empty() {
                wrong.push(format!("case {} judges nothing", case.name));
            }
            if !names.insert(case.name) {
                wrong.push(format!("two cases are called {}", case.name));
            }
            for name in case.clauses {
                let Some(clause) = registry.get(name) else {
                    wrong.push(format!(
                        "case {} names {name}, which is no clause",
                        case.name
                    ));
                    continue;
                };
                if clause.role == Role::Driver {
                    wrong.push(format!(
                        "case {} judges {name}, which binds drivers",
                        case.name
                    ));
                }
                if !pairs.insert((clause.id.clone(), case.name)) {
                    wrong.push(format!("{name} {} stands twice", case.name));
                }
                judged.insert(clause.id.clone());
            }
        }
        for name in rules {
            match registry.get(name) {
                Some(clause) if clause.role == Role::Driver => {
                    judged.insert(clause.id.clone());
                }
                Some(_) => wrong.push(format!("a rule for drivers names {name}, which binds none")),
                None => wrong.push(format!(
                    "a rule for drivers names {name}, which is no clause"
                )),
            }
        }
        self.wrong = wrong;
        judged
    }

    fn clause(&mut self, clause: &super::Clause, has: bool) {
        let id = &clause.id;
        let mut wrong = |what: &str| self.wrong.push(format!("{id} {what}"));
        if has && let Some(reason) = clause.no_case {
            wrong(&format!("has a case and the reason {}", reason.name()));
        }
        let argued = matches!(
            clause.no_case,
            Some(NoCase::FacilityAbsent | NoCase::NotObservable | NoCase::TextUnknown)
        );
        if argued != clause.why.is_some() && (argued || clause.no_case.is_none()) {
            wrong("needs an argument exactly if it has a reason that needs one");
        }
        if clause.no_case == Some(NoCase::Permits) && clause.level != Level::May {
            wrong("is said to permit and is no MAY");
        }
        let standard = clause.provenance == Provenance::Virtio14;
        let sentence = standard && clause.level != Level::Fact;
        if sentence != clause.hash.is_some() {
            wrong("has a hash exactly if it is a sentence of VIRTIO 1.4");
        }
        if standard && clause.section.contains("facilities.md") {
            wrong("is presented as text of OASIS and cites the project");
        }
        for need in &clause.needs {
            let known = feature::NAMES.iter().any(|(name, _)| name == need);
            if !known && need != "tracker" && need != "recording" {
                wrong(&format!("needs {need}, which is no feature"));
            }
        }
        if let Some(reason) = clause.no_case {
            *self.reasons.entry(reason).or_default() += 1;
        }
        let group = self.groups.entry(clause.group).or_default();
        let open = usize::from(!has && clause.no_case.is_none());
        let (count, pending) = match clause.role {
            Role::Driver => (&mut group.driver, &mut group.driver_pending),
            Role::Device | Role::Neither => (&mut group.device, &mut group.device_pending),
        };
        count.0 += 1;
        count.1 += usize::from(has);
        *pending += open;
        if standard && matches!(clause.level, Level::Must | Level::MustNot) {
            let musts = match clause.role {
                Role::Driver => &mut self.driver_musts,
                Role::Device | Role::Neither => &mut self.device_musts,
            };
            musts.0 += 1;
            musts.1 += usize::from(has);
            self.excused += usize::from(clause.role == Role::Device && clause.no_case.is_some());
        }
    }

    /// Each file's account of what is pending must be exact.
    fn ratchets(&mut self, registry: &Registry) {
        for (group, stated) in registry.groups() {
            let found = self.groups.get(group).copied().unwrap_or_default();
            for (who, stated, found) in [
                ("device", stated.device, found.device_pending),
                ("driver", stated.driver, found.driver_pending),
            ] {
                if found > stated {
                    self.wrong.push(format!(
                        "clauses/{group}.json: {found} {who} statements have neither a case nor a reason, {stated} are stated as pending"
                    ));
                } else if found < stated {
                    self.wrong.push(format!(
                        "clauses/{group}.json: only {found} {who} statements are pending: lower the number from {stated}"
                    ));
                }
            }
        }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<12}{:>8}{:>8}{:>9}{:>9}{:>8}{:>9}",
            "group", "device", "cases", "pending", "driver", "judged", "pending"
        )?;
        let mut sum = [0; 2];
        for (group, at) in &self.groups {
            writeln!(
                f,
                "{group:<12}{:>8}{:>8}{:>9}{:>9}{:>8}{:>9}",
                at.device.0,
                at.device.1,
                at.device_pending,
                at.driver.0,
                at.driver.1,
                at.driver_pending
            )?;
            sum[0] += at.device_pending;
            sum[1] += at.driver_pending;
        }
        writeln!(f, "{:<12}{:>25}{:>26}", "together", sum[0], sum[1])?;
        let (all, with) = self.device_musts;
        writeln!(
            f,
            "VIRTIO 1.4: {with} of {all} MUSTs of the device have cases, {} have a reason instead",
            self.excused
        )?;
        let (all, with) = self.driver_musts;
        writeln!(
            f,
            "VIRTIO 1.4: {with} of {all} MUSTs of the driver are judged"
        )?;
        for reason in NoCase::ALL {
            let count = self.reasons.get(&reason).copied().unwrap_or(0);
            writeln!(f, "without a case because {:<16}{count:>4}", reason.name())?;
        }
        Ok(())
    }
}
