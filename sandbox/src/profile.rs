//! The lists of system calls, as they stand in `profiles/`, and the filters that are made of them.
//!
//! A line is a call: `read`; or a call under conditions on its arguments, of which the low 32 bits are
//! looked at: `mmap arg2 & 0x4 == 0`, several joined by `and`, several lines for alternatives, `self` for
//! this process's number; or a call that is answered with an error number instead of being carried out:
//! `clone3 errno 38`. `include NAME` takes in another list. What follows a `#` is for readers.

use crate::{Mode, calls};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A kind of process, which has a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `tidemark device vfio-user`.
    VfioUser,
    /// `tidemark-vhost-user-blk`.
    VhostUserBlk,
    /// `tidemark mediate`.
    Mediate,
    /// `tidemark agent`.
    Agent,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::VfioUser,
        Self::VhostUserBlk,
        Self::Mediate,
        Self::Agent,
    ];

    /// The name of its list.
    pub fn name(self) -> &'static str {
        match self {
            Self::VfioUser => "vfio-user",
            Self::VhostUserBlk => "vhost-user-blk",
            Self::Mediate => "mediate",
            Self::Agent => "agent",
        }
    }

    /// Its list.
    ///
    /// # Errors
    ///
    /// [`ProfileError`], if the list is wrong: a mistake in this program.
    pub fn profile(self) -> Result<Profile, ProfileError> {
        let mut profile = Profile::default();
        profile.read(self.name())?;
        Ok(profile)
    }
}

fn list(name: &str) -> Option<&'static str> {
    Some(match name {
        "threads" => include_str!("../profiles/threads.txt"),
        "device" => include_str!("../profiles/device.txt"),
        "metrics" => include_str!("../profiles/metrics.txt"),
        "files" => include_str!("../profiles/files.txt"),
        "client" => include_str!("../profiles/client.txt"),
        "vfio-user" => include_str!("../profiles/vfio-user.txt"),
        "vhost-user-blk" => include_str!("../profiles/vhost-user-blk.txt"),
        "mediate" => include_str!("../profiles/mediate.txt"),
        "agent" => include_str!("../profiles/agent.txt"),
        _ => return None,
    })
}

/// What is wrong with a list.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// A line that is none.
    #[error("list {list}, line {line}: {why}")]
    Line {
        /// The list.
        list: String,
        /// The line, from 1.
        line: usize,
        /// What was expected and what came.
        why: String,
    },
    /// A list that there is not.
    #[error("there is no list {0}")]
    NoList(String),
    /// A list of which no filter can be made.
    #[error("no filter can be made of a list: {0}")]
    Filter(#[from] seccompiler::BackendError),
}

/// What a condition compares with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
    Number(u32),
    /// This process.
    Own,
}

/// The low 32 bits of an argument, under a mask, are a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Condition {
    argument: u8,
    mask: u32,
    value: Value,
}

/// What becomes of a call that is on the list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    Always,
    If(Vec<Condition>),
    Errno(u32),
}

/// What a kind of process may call. Shown, it is one line for each rule, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile(BTreeMap<&'static str, BTreeSet<Rule>>);

impl Profile {
    fn read(&mut self, name: &str) -> Result<(), ProfileError> {
        let text = list(name).ok_or_else(|| ProfileError::NoList(name.to_owned()))?;
        for (at, line) in text.lines().enumerate() {
            let words: Vec<_> = line
                .split('#')
                .next()
                .unwrap_or("")
                .split_whitespace()
                .collect();
            let wrong = |why: String| ProfileError::Line {
                list: name.to_owned(),
                line: at + 1,
                why,
            };
            match words[..] {
                [] => {}
                ["include", other] => self.read(other)?,
                [call, ref rest @ ..] => {
                    let number = calls::number(call);
                    let call = number.and_then(calls::name);
                    let call = call.ok_or_else(|| wrong(format!("{}: no such call", words[0])))?;
                    let rule = rule(rest).map_err(wrong)?;
                    self.0.entry(call).or_default().insert(rule);
                }
            }
        }
        Ok(())
    }

    /// Whether a call is on the list, under whatever conditions.
    pub fn has(&self, call: &str) -> bool {
        self.0.contains_key(call)
    }

    /// The filters, to be applied in this order.
    pub(crate) fn compile(&self, mode: Mode) -> Result<Vec<BpfProgram>, ProfileError> {
        let mut allowed = BTreeMap::new();
        let mut errors: BTreeMap<u32, BTreeMap<i64, Vec<SeccompRule>>> = BTreeMap::new();
        for (call, rules) in &self.0 {
            let Some(number) = calls::number(call) else {
                continue;
            };
            // No condition at all is a match always, whatever else is said.
            let mut conditions = Vec::new();
            let mut always = false;
            for rule in rules {
                match rule {
                    Rule::Always => always = true,
                    Rule::Errno(code) => {
                        always = true;
                        errors.entry(*code).or_default().insert(number, Vec::new());
                    }
                    Rule::If(all) => {
                        let all = all.iter().map(|condition| condition.compile());
                        conditions.push(SeccompRule::new(all.collect::<Result<_, _>>()?)?);
                    }
                }
            }
            if always {
                conditions.clear();
            }
            allowed.insert(number, conditions);
        }
        let stopped = match mode {
            Mode::Log => SeccompAction::Log,
            Mode::Strict | Mode::Off => SeccompAction::Trap,
        };
        let arch = TargetArch::x86_64;
        // The last one forbids what putting on another would take.
        let mut filters = Vec::new();
        for (code, calls) in errors {
            let refuse = SeccompAction::Errno(code);
            let filter = SeccompFilter::new(calls, SeccompAction::Allow, refuse, arch)?;
            filters.push(filter.try_into()?);
        }
        let filter = SeccompFilter::new(allowed, stopped, SeccompAction::Allow, arch)?;
        filters.push(filter.try_into()?);
        Ok(filters)
    }
}

impl Condition {
    fn compile(self) -> Result<SeccompCondition, seccompiler::BackendError> {
        let value = match self.value {
            Value::Number(value) => value,
            Value::Own => std::process::id(),
        };
        let compare = SeccompCmpOp::MaskedEq(self.mask.into());
        SeccompCondition::new(
            self.argument,
            SeccompCmpArgLen::Dword,
            compare,
            value.into(),
        )
    }
}

/// What stands behind a call.
fn rule(words: &[&str]) -> Result<Rule, String> {
    match *words {
        [] => return Ok(Rule::Always),
        ["errno", code] => return number(code).map(Rule::Errno),
        _ => {}
    }
    let conditions = words.split(|word| *word == "and").map(|words| {
        let (argument, mask, value) = match *words {
            [argument, "&", mask, "==", value] => (argument, number(mask)?, value),
            [argument, "==", value] => (argument, u32::MAX, value),
            _ => {
                return Err(format!(
                    "expected `arg0 == 1` or `arg0 & 1 == 1`, got {words:?}"
                ));
            }
        };
        let place = argument.strip_prefix("arg").and_then(|at| at.parse().ok());
        let place = place.filter(|place| *place < 6);
        Ok(Condition {
            argument: place
                .ok_or_else(|| format!("expected an argument from arg0 to arg5, got {argument}"))?,
            mask,
            value: match value {
                "self" => Value::Own,
                value => Value::Number(number(value)?),
            },
        })
    });
    conditions.collect::<Result<_, _>>().map(Rule::If)
}

fn number(text: &str) -> Result<u32, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|error| format!("{text}: {error}; a number of 32 bits was expected"))
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arg{}", self.argument)?;
        if self.mask != u32::MAX {
            write!(f, " & {:#x}", self.mask)?;
        }
        match self.value {
            Value::Number(value) => write!(f, " == {value:#x}"),
            Value::Own => f.write_str(" == self"),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (call, rules) in &self.0 {
            for rule in rules {
                f.write_str(call)?;
                match rule {
                    Rule::Always => {}
                    Rule::Errno(code) => write!(f, " errno {code}")?,
                    Rule::If(conditions) => {
                        for (at, condition) in conditions.iter().enumerate() {
                            let word = if at == 0 { "" } else { " and" };
                            write!(f, "{word} {condition}")?;
                        }
                    }
                }
                f.write_str("\n")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_they_are_shown() {
        let read = |text: &str| rule(&text.split_whitespace().collect::<Vec<_>>());
        assert_eq!(read(""), Ok(Rule::Always));
        assert_eq!(read("errno 38"), Ok(Rule::Errno(38)));
        let condition = |argument, mask, value| Condition {
            argument,
            mask,
            value,
        };
        assert_eq!(
            read("arg0 == self and arg2 & 0x4 == 0"),
            Ok(Rule::If(vec![
                condition(0, u32::MAX, Value::Own),
                condition(2, 4, Value::Number(0))
            ]))
        );
        for bad in [
            "arg6 == 0",
            "arg0",
            "arg0 = 1",
            "arg0 == x",
            "errno",
            "arg0 == 1 and",
            "arg0 == 0x100000000",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_list_makes_filters() {
        for kind in Kind::ALL {
            let profile = kind.profile().unwrap();
            assert!(profile.has("exit_group") && !profile.has("execve"));
            for mode in [Mode::Strict, Mode::Log] {
                // One that answers, one that decides.
                assert_eq!(profile.compile(mode).unwrap().len(), 2, "{kind:?}");
            }
        }
    }
}
