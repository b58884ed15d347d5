//! What happens at a call that is not allowed: its name goes to stderr, and the process ends.
//!
//! The kernel does not carry the call out and delivers SIGSYS instead. Opening a file is the one call
//! after which the process goes on, with an error: libraries open files to look up what they can do
//! without. Only so many are named; then that ends it too.
#![expect(
    unsafe_code,
    reason = "a signal handler, and what the kernel hands to it"
)]

use crate::calls;
use libc::{c_int, c_void, siginfo_t, ucontext_t};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

/// The exit code of a process that was stopped: what a shell shows for SIGSYS, 128 and its number.
pub const EXIT: u8 = 159;

/// Opens that are refused before the process ends.
const OPENS_MAX: u32 = 16;
/// `si_code` of a SIGSYS that a filter raised. A `kill` has another.
const SYS_SECCOMP: c_int = 1;

static OPENS: AtomicU32 = AtomicU32::new(0);

/// Has calls named that are stopped from now on.
pub(crate) fn name_what_is_stopped() -> io::Result<()> {
    // SAFETY: all bytes zero is a `sigaction`: no flags, an empty mask, the default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = stopped;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: `action` is a whole `sigaction`, whose handler has the signature that SA_SIGINFO asks
    // for and makes async-signal-safe calls only (write, _exit): it allocates nothing, takes no lock,
    // and reads only its arguments, a constant table and an atomic. The old action is not asked for.
    let done = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Six arguments of a system call, and its number.
struct Call {
    number: i64,
    arguments: [i64; 6],
}

extern "C" fn stopped(_signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a `siginfo_t` that lives until it returns,
    // and nobody else has it.
    let raised_by = unsafe { (*info).si_code };
    // SAFETY: the same of the `ucontext_t`, which is this thread's.
    let context = unsafe { &mut *context.cast::<ucontext_t>() };
    let call = registers::call(context);
    let mut line = Line::new();
    if raised_by != SYS_SECCOMP {
        line.text("tidemark: sandbox: SIGSYS came from another process\n");
        line.write();
        exit();
    }
    let name = calls::name(call.number).unwrap_or("(unknown)");
    let opens = name == "openat" && OPENS.fetch_add(1, Ordering::Relaxed) < OPENS_MAX;
    line.text(if opens {
        "tidemark: sandbox: refused the system call "
    } else {
        "tidemark: sandbox: stopped the system call "
    });
    line.text(name);
    line.text(" (");
    line.decimal(call.number);
    line.text(") with");
    for argument in call.arguments {
        line.text(" 0x");
        line.hex(argument);
    }
    line.text(if opens {
        ": the list of this process does not have it; it goes on without\n"
    } else {
        ": the list of this process does not have it; the process ends. If it was rightly called, \
         report this line; --sandbox log lets it pass\n"
    });
    line.write();
    if !opens {
        exit();
    }
    registers::answer(context, -i64::from(libc::EACCES));
}

fn exit() -> ! {
    // SAFETY: takes any number, does not return, and may be called in a signal handler. Destructors and
    // what is buffered are skipped: whatever asked for the call is not to be trusted with more.
    unsafe { libc::_exit(EXIT.into()) }
}

/// Where the processor's registers hold a call.
#[cfg(target_arch = "x86_64")]
mod registers {
    use super::{Call, ucontext_t};
    use libc::{REG_R8, REG_R9, REG_R10, REG_RAX, REG_RDI, REG_RDX, REG_RSI, greg_t};

    fn register(context: &mut ucontext_t, which: libc::c_int) -> Option<&mut greg_t> {
        let which = usize::try_from(which).ok()?;
        context.uc_mcontext.gregs.get_mut(which)
    }

    /// The call that was stopped.
    pub(super) fn call(context: &mut ucontext_t) -> Call {
        let mut get = |which| register(context, which).map_or(0, |value| *value);
        Call {
            number: get(REG_RAX),
            arguments: [REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8, REG_R9].map(get),
        }
    }

    /// What the caller will see as its result.
    pub(super) fn answer(context: &mut ucontext_t, result: i64) {
        if let Some(register) = register(context, REG_RAX) {
            *register = result;
        }
    }
}

/// Nothing is filtered on other processors.
#[cfg(not(target_arch = "x86_64"))]
mod registers {
    use super::{Call, ucontext_t};

    pub(super) fn call(_context: &mut ucontext_t) -> Call {
        Call {
            number: -1,
            arguments: [0; 6],
        }
    }

    pub(super) fn answer(_context: &mut ucontext_t, _result: i64) {}
}

/// A line of bounded length, without an allocation. What does not fit is left out.
struct Line {
    bytes: [u8; 384],
    len: usize,
}

impl Line {
    fn new() -> Self {
        Self {
            bytes: [0; 384],
            len: 0,
        }
    }

    fn byte(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    fn text(&mut self, text: &str) {
        text.bytes().for_each(|byte| self.byte(byte));
    }

    fn digits(&mut self, mut number: u64, base: u64) {
        let mut digits = [0u8; 20];
        let mut first = digits.len();
        while first > 0 {
            first -= 1;
            let digit = u8::try_from(number % base).unwrap_or(0);
            digits[first] = if digit < 10 {
                b'0' + digit
            } else {
                b'a' + (digit - 10)
            };
            number /= base;
            if number == 0 {
                break;
            }
        }
        for digit in digits.iter().skip(first) {
            self.byte(*digit);
        }
    }

    fn decimal(&mut self, number: i64) {
        if number < 0 {
            self.byte(b'-');
        }
        self.digits(number.unsigned_abs(), 10);
    }

    fn hex(&mut self, number: i64) {
        self.digits(u64::from_ne_bytes(number.to_ne_bytes()), 16);
    }

    fn write(&self) {
        let mut rest = self.bytes.get(..self.len).unwrap_or_default();
        while !rest.is_empty() {
            match rustix::io::write(io::stderr(), rest) {
                Ok(0) => break,
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Line;

    fn shown(fill: impl Fn(&mut Line)) -> String {
        let mut line = Line::new();
        fill(&mut line);
        String::from_utf8(line.bytes[..line.len].to_vec()).unwrap()
    }

    #[test]
    fn numbers_are_written_without_an_allocation() {
        assert_eq!(shown(|line| line.decimal(0)), "0");
        assert_eq!(shown(|line| line.decimal(-59)), "-59");
        assert_eq!(shown(|line| line.decimal(i64::MIN)), i64::MIN.to_string());
        assert_eq!(shown(|line| line.hex(-1)), format!("{:x}", u64::MAX));
    }

    #[test]
    fn a_line_that_is_too_long_is_cut() {
        assert_eq!(shown(|line| line.text(&"x".repeat(1000))).len(), 384);
    }
}
