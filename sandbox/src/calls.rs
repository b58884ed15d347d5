//! System calls by name and by number.

/// The system calls of x86-64, a number and a name a line, as the kernel's `unistd_64.h` has them.
const TABLE: &str = include_str!("calls.txt");

/// The call of a number. Allocates nothing: signal handlers may ask.
pub(crate) fn name(number: i64) -> Option<&'static str> {
    let mut calls = TABLE.lines().filter_map(|line| line.split_once(' '));
    calls
        .find(|(digits, _)| digits.parse() == Ok(number))
        .map(|(_, name)| name)
}

/// The number of a call.
pub(crate) fn number(name: &str) -> Option<i64> {
    let mut calls = TABLE.lines().filter_map(|line| line.split_once(' '));
    let (digits, _) = calls.find(|(_, known)| *known == name)?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some from everywhere in the table against the C library's header.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_table_is_the_c_library_s() {
        for (known, named) in [
            (libc::SYS_read, "read"),
            (libc::SYS_mprotect, "mprotect"),
            (libc::SYS_execve, "execve"),
            (libc::SYS_ptrace, "ptrace"),
            (libc::SYS_openat, "openat"),
            (libc::SYS_bpf, "bpf"),
            (libc::SYS_rseq, "rseq"),
            (libc::SYS_io_uring_setup, "io_uring_setup"),
            (libc::SYS_clone3, "clone3"),
            (libc::SYS_mseal, "mseal"),
        ] {
            assert_eq!(number(named), Some(known), "{named}");
            assert_eq!(name(known), Some(named), "{known}");
        }
        assert_eq!((number("no_such_call"), name(1 << 20)), (None, None));
    }

    #[test]
    fn no_number_and_no_name_stands_twice() {
        let calls: Vec<_> = TABLE.lines().map(|line| line.split_once(' ')).collect();
        let calls: Option<Vec<_>> = calls.into_iter().collect();
        let calls = calls.expect("each line is a number and a name");
        let all = |part: fn(&(&'static str, &'static str)) -> &'static str| {
            let mut all: Vec<_> = calls.iter().map(part).collect();
            all.sort_unstable();
            all.dedup();
            all.len()
        };
        assert_eq!(all(|call| call.0), calls.len());
        assert_eq!(all(|call| call.1), calls.len());
    }
}
