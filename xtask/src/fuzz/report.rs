//! What libFuzzer says at its end.

use std::time::Duration;

use serde_json::{Value, json};

/// One run of one target.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Inputs that were run.
    pub executions: u64,
    /// Edges of the control flow that were reached.
    pub edges: u64,
    /// Inputs that reach something that others do not.
    pub corpus: u64,
    /// The input that something was found with.
    pub artifact: Option<String>,
    /// What the oracle or the panic said.
    pub said: Option<String>,
    /// The process ended well.
    pub success: bool,
    /// How long it took.
    pub elapsed: Duration,
}

impl Report {
    pub const HEADER: &str =
        "target         executions    edges   corpus  crashes   hangs  seconds";

    /// From all that the process wrote.
    pub fn parse(text: &str, success: bool, elapsed: Duration) -> Self {
        let mut report = Self {
            success,
            elapsed,
            ..Self::default()
        };
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
                report.executions = count.trim().parse().unwrap_or(0);
            } else if let Some((_, path)) = line.split_once("Test unit written to ") {
                report.artifact = Some(path.trim().to_owned());
            } else if line.contains("panicked at ") && report.said.is_none() {
                report.said = lines.peek().map(|said| (*said).to_owned());
            } else if line.starts_with('#') {
                report.progress(line);
            }
        }
        report
    }

    /// A line such as `#8192 pulse cov: 812 ft: 2011 corp: 93/4Kb lim: 80 exec/s: 4096`.
    fn progress(&mut self, line: &str) {
        let after = |name: &str| {
            let mut words = line.split_whitespace().skip_while(|word| *word != name);
            words.nth(1)
        };
        let number = |word: Option<&str>| word.and_then(|word| word.parse().ok());
        let count = line
            .strip_prefix('#')
            .and_then(|rest| rest.split_whitespace().next());
        self.executions = number(count).unwrap_or(self.executions);
        self.edges = number(after("cov:")).unwrap_or(self.edges);
        let corpus = after("corp:").and_then(|word| word.split('/').next());
        self.corpus = number(corpus).unwrap_or(self.corpus);
    }

    fn is(&self, kind: &str) -> u64 {
        let name = self
            .artifact
            .as_deref()
            .and_then(|path| path.rsplit('/').next());
        u64::from(name.is_some_and(|name| name.starts_with(kind)))
    }

    /// 1 if an input took too long.
    pub fn hangs(&self) -> u64 {
        self.is("timeout-")
    }

    /// 1 if anything else was found.
    pub fn crashes(&self) -> u64 {
        u64::from(self.artifact.is_some() || !self.success) - self.hangs()
    }

    pub fn row(&self, name: &str) -> String {
        format!(
            "{name:<12} {:>12} {:>8} {:>8} {:>8} {:>7} {:>8.1}",
            self.executions,
            self.edges,
            self.corpus,
            self.crashes(),
            self.hangs(),
            self.elapsed.as_secs_f64()
        )
    }

    pub fn figures(&self, name: &str) -> Value {
        json!({
            "target": name,
            "executions": self.executions,
            "edges": self.edges,
            "corpus": self.corpus,
            "crashes": self.crashes(),
            "hangs": self.hangs(),
            "seconds": self.elapsed.as_secs_f64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_run_that_found_nothing() {
        let text = "\
INFO: Seed: 1
#2\tINITED cov: 18 ft: 19 corp: 1/1b exec/s: 0 rss: 30Mb
#512\tpulse  cov: 812 ft: 2011 corp: 93/4096b lim: 8 exec/s: 256 rss: 40Mb
#700\tDONE   cov: 815 ft: 2020 corp: 95/4100b lim: 8 exec/s: 250 rss: 40Mb
Done 700 runs in 3 second(s)
stat::number_of_executed_units: 700
";
        let report = Report::parse(text, true, Duration::from_secs(3));
        assert_eq!(
            (report.executions, report.edges, report.corpus),
            (700, 815, 95)
        );
        assert_eq!((report.crashes(), report.hangs()), (0, 0));
    }

    #[test]
    fn what_was_found_is_told_with_its_input() {
        let text = "\
#40\tNEW    cov: 20 ft: 19 corp: 3/9b lim: 4 exec/s: 0 rss: 30Mb
thread '<unnamed>' (7) panicked at fuzz/src/rig/mod.rs:1:2:
oracle grant: page 60 was written and not granted for that
==7== ERROR: libFuzzer: deadly signal
artifact_prefix='x/'; Test unit written to x/crash-0a
";
        let report = Report::parse(text, false, Duration::from_secs(1));
        assert_eq!(report.artifact.as_deref(), Some("x/crash-0a"));
        let said = "oracle grant: page 60 was written and not granted for that";
        assert_eq!(report.said.as_deref(), Some(said));
        assert_eq!(
            (report.executions, report.crashes(), report.hangs()),
            (40, 1, 0)
        );

        let hang = text.replace("crash-", "timeout-");
        let report = Report::parse(&hang, false, Duration::from_secs(1));
        assert_eq!((report.crashes(), report.hangs()), (0, 1));
    }

    #[test]
    fn a_process_that_just_dies_counts_as_a_crash() {
        let report = Report::parse("", false, Duration::ZERO);
        assert_eq!((report.crashes(), report.hangs()), (1, 0));
    }
}
