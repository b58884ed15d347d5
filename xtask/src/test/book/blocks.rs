//! The blocks of commands on a page, and what becomes of each.

use anyhow::{Context, Result, bail, ensure};

/// Commands between fences.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// The line of the opening fence, from 1 on.
    pub line: usize,
    /// What becomes of it.
    pub fate: Fate,
    /// The commands.
    pub text: String,
}

/// What becomes of a block.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is run and succeeds.
    Run,
    /// It is run and ends with this code.
    Fails(u8),
    /// A part of the tests runs the same.
    Part(String),
    /// Nobody runs it, for a reason that the page gives.
    ByHand,
}

impl Fate {
    /// Whether it is run here.
    pub fn is_run(&self) -> bool {
        matches!(self, Self::Run | Self::Fails(_))
    }

    fn read(marker: &str) -> Result<Self> {
        let (word, rest) = marker.split_once(": ").unwrap_or((marker, ""));
        Ok(match (word, rest) {
            ("run", "") => Self::Run,
            ("fails", code) => Self::Fails(code.parse().context("expected an exit code")?),
            ("part", part) if !part.is_empty() => Self::Part(part.to_owned()),
            ("by hand", why) if !why.is_empty() => Self::ByHand,
            _ => bail!(
                "expected `run`, `fails: CODE`, `part: NAME` or `by hand: WHY`, got `{marker}`"
            ),
        })
    }
}

/// Reads a page.
///
/// # Errors
/// If a block of language `sh` is not marked, or a marker stands before none.
pub fn read(text: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut fate: Option<Fate> = None;
    let mut lines = (1_usize..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        let marker = line
            .strip_prefix("<!-- ")
            .and_then(|rest| rest.strip_suffix(" -->"));
        if let Some(marker) = marker {
            fate = Some(Fate::read(marker).with_context(|| format!("line {number}"))?);
            continue;
        }
        let Some(language) = line.strip_prefix("```") else {
            ensure!(
                fate.is_none(),
                "line {number}: a marker stands before no block of commands"
            );
            continue;
        };
        let mut inside = String::new();
        loop {
            let (_, line) = lines
                .next()
                .with_context(|| format!("line {number}: this block has no end"))?;
            if line == "```" {
                break;
            }
            inside.push_str(line);
            inside.push('\n');
        }
        match (language, fate.take()) {
            ("sh", Some(fate)) => blocks.push(Block {
                line: number,
                fate,
                text: inside,
            }),
            ("sh", None) => bail!("line {number}: this block of commands is not marked"),
            (_, Some(_)) => bail!("line {number}: a marked block is of language `sh`"),
            (_, None) => {}
        }
    }
    ensure!(fate.is_none(), "the last marker stands before no block");
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_blocks_are_read_with_their_place() {
        let text = "words\n\n<!-- run -->\n```sh\na\nb\n```\n```text\nno command\n```\n\
            <!-- fails: 1 -->\n```sh\nc\n```\n";
        let blocks = read(text).expect("a page");
        assert_eq!(
            blocks,
            [
                Block {
                    line: 4,
                    fate: Fate::Run,
                    text: "a\nb\n".into()
                },
                Block {
                    line: 12,
                    fate: Fate::Fails(1),
                    text: "c\n".into()
                }
            ]
        );
    }

    #[test]
    fn what_is_not_marked_or_marked_in_vain_is_refused() {
        for text in [
            "```sh\na\n```\n",
            "<!-- run -->\nwords\n",
            "<!-- run -->",
            "<!-- run -->\n```text\na\n```\n",
            "<!-- skip -->\n```sh\na\n```\n",
            "<!-- by hand: -->\n```sh\na\n```\n",
            "<!-- fails: often -->\n```sh\na\n```\n",
            "<!-- run -->\n```sh\na\n",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
