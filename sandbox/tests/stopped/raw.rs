//! System calls by their numbers, with arguments that do no harm where they are let through.
#![expect(unsafe_code, reason = "makes the calls that are to be stopped")]

use libc::c_long;

/// Makes a call. The result, or the error's number negated.
pub fn call(number: c_long, arguments: [c_long; 6]) -> c_long {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: every call in this test is given null pointers, descriptors that are not open, operations
    // that do not exist, or changes nothing; none of them reads or writes memory of this process, maps
    // over it, or starts a second one that would go on here.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result == -1 {
        let error = std::io::Error::last_os_error();
        return -error.raw_os_error().map_or(1, c_long::from);
    }
    result
}
