//! Panics that are caught and become errors.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread, now, would be caught and become an error. A program's panic hook
/// need not report it: the error says what the panic said.
pub fn catches_panics() -> bool {
    CAUGHT.get()
}

/// Does it; the words of a panic if it panics.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let before = CAUGHT.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    CAUGHT.set(before);
    done.map_err(|cause| {
        let text = cause.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| cause.downcast_ref::<&str>().copied());
        text.unwrap_or("no reason given").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_its_words_and_only_within() {
        let inner = || caught(|| assert!(catches_panics() && 2 < 1, "in two"));
        let outer = caught(|| (inner(), catches_panics()));
        assert_eq!(outer, Ok((Err("in two".to_owned()), true)));
        assert!(!catches_panics());
        assert_eq!(caught(|| 3), Ok(3));
    }
}
