//! Sizes as people write them.

/// Reads a number of bytes with an optional K, M, G or T (powers of 1024).
///
/// # Errors
/// What was expected and what came.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return Err(format!("expected a number with K, M, G or T, got '{text}'")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("expected a number with K, M, G or T, got '{text}'"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("'{text}' is more than 64 bits can count"))
}

/// A number of bytes with a unit.
#[expect(
    clippy::cast_precision_loss,
    reason = "for people; three digits are shown"
)]
pub fn show(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sizes() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("64k"), Ok(64 << 10));
        assert_eq!(parse("1G"), Ok(1 << 30));
        assert_eq!(parse("2MiB"), Ok(2 << 20));
        for bad in ["", "G", "1X", "-1", "1.5G", "99999999999T"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
