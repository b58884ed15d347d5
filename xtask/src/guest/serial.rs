//! What a guest said over its serial line: text, with facts in lines of the form `@name=value`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::process;

/// The whole text and the facts in it.
pub struct Serial {
    text: String,
    facts: BTreeMap<String, String>,
}

impl Serial {
    /// Reads a serial log.
    pub fn new(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes).replace('\r', "");
        let facts = facts(&text);
        Self { text, facts }
    }

    /// A fact that the guest must have reported.
    pub fn fact(&self, name: &str) -> Result<&str> {
        let value = self.facts.get(name).map(String::as_str);
        value.with_context(|| format!("the guest reported no {name}; it said:\n{}", self.tail()))
    }

    /// A fact with the value that it must have.
    pub fn expect(&self, name: &str, expected: &str) -> Result<()> {
        let value = self.fact(name)?;
        ensure!(
            value == expected,
            "the guest reported {name} {value}, expected {expected}"
        );
        Ok(())
    }

    /// Whether the kernel that was asked for came up and took its modules.
    pub fn booted(&self, kernel: &str) -> Result<()> {
        let inserted = self
            .facts
            .get("modules")
            .map_or("never started", String::as_str);
        ensure!(
            inserted == "yes",
            "the guest did not insert its modules: {inserted}"
        );
        self.expect("kernel", kernel)
    }

    /// Whether the script came to its end.
    pub fn finished(&self) -> Result<()> {
        ensure!(
            self.facts
                .get("last")
                .is_some_and(|value| value == "reached"),
            "the guest's script stopped before its end"
        );
        Ok(())
    }

    /// The end of the text, for an error.
    pub fn tail(&self) -> String {
        process::tail(&self.text)
    }
}

/// The facts in a text; of several with one name the last. A line that is not whole is none.
pub fn facts(text: &str) -> BTreeMap<String, String> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let pairs = whole
        .lines()
        .filter_map(|line| line.strip_prefix('@')?.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.trim_end().to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_lines_of_their_own() {
        let serial = Serial::new(b"[ 1.0] noise\r\n+ fact a 1\r\n@a=1=2\r\n@modules=yes\r\n");
        assert_eq!(serial.fact("a").ok(), Some("1=2"));
        assert!(serial.fact("b").is_err());
        assert!(serial.finished().is_err(), "no last marker");
        assert!(serial.booted("6.1").is_err(), "no kernel");
        let serial = Serial::new(b"@kernel=6.1\r\n@modules=yes\r\n@last=reached\r\n@cut=");
        assert!(serial.booted("6.1").is_ok() && serial.finished().is_ok());
        assert!(serial.booted("6.12").is_err(), "another kernel");
        assert!(serial.fact("cut").is_err(), "the line is not whole");
    }
}
