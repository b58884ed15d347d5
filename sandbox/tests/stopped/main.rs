//! What the sandbox stops: each kind of process, for real, in a process of its own.
//!
//! The test starts itself again with a word in its environment, gives up what the kind gives up, and
//! tries one thing. Every attempt is made without the sandbox as well, where it must get through to the
//! kernel: an attempt that would fail anyway proves nothing.

mod raw;

use libtest_mimic::{Arguments, Failed, Trial};
use sandbox::{EXIT, Grant, Kind, Mode, Sandbox, descriptors};
use std::fs::File;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output};

/// Tells the process that it is to try something: kind, mode and attempt.
const TRY: &str = "TIDEMARK_SANDBOX_TRY";

/// Something that no kind of process may do.
struct Attempt {
    /// The call that is to be named.
    call: &'static str,
    /// What is tried.
    what: &'static str,
    number: libc::c_long,
    arguments: [libc::c_long; 6],
}

const fn attempt(
    call: &'static str,
    what: &'static str,
    number: libc::c_long,
    arguments: [libc::c_long; 6],
) -> Attempt {
    Attempt {
        call,
        what,
        number,
        arguments,
    }
}

const NONE: [libc::c_long; 6] = [0; 6];
const BAD_FD: [libc::c_long; 6] = [-1, 0, 0, 0, 0, 0];

const FORBIDDEN: &[Attempt] = &[
    attempt("execve", "another program", libc::SYS_execve, NONE),
    attempt("execveat", "one by descriptor", libc::SYS_execveat, BAD_FD),
    // SIGHAND without VM, which the kernel refuses: no second process comes of it.
    attempt(
        "clone",
        "a process",
        libc::SYS_clone,
        [0x800, 0, 0, 0, 0, 0],
    ),
    attempt("socket", "IPv4", libc::SYS_socket, [2, 1, 0, 0, 0, 0]),
    attempt("socket", "IPv6", libc::SYS_socket, [10, 2, 0, 0, 0, 0]),
    attempt("socket", "netlink", libc::SYS_socket, [16, 3, 0, 0, 0, 0]),
    attempt("socket", "packets", libc::SYS_socket, [17, 3, 0, 0, 0, 0]),
    attempt(
        "ptrace",
        "reading others",
        libc::SYS_ptrace,
        [2, 0, 0, 0, 0, 0],
    ),
    attempt(
        "process_vm_readv",
        "reading others",
        libc::SYS_process_vm_readv,
        NONE,
    ),
    attempt(
        "process_vm_writev",
        "writing others",
        libc::SYS_process_vm_writev,
        NONE,
    ),
    attempt("mprotect", "code", libc::SYS_mprotect, [0, 0, 4, 0, 0, 0]),
    attempt(
        "mprotect",
        "code one can write",
        libc::SYS_mprotect,
        [0, 0, 7, 0, 0, 0],
    ),
    attempt(
        "pkey_mprotect",
        "code by a key",
        libc::SYS_pkey_mprotect,
        [0, 0, 4, -1, 0, 0],
    ),
    attempt("mmap", "code", libc::SYS_mmap, [0, 4096, 5, 0x22, -1, 0]),
    attempt(
        "memfd_secret",
        "hidden memory",
        libc::SYS_memfd_secret,
        [-1, 0, 0, 0, 0, 0],
    ),
    attempt(
        "personality",
        "executable reads",
        libc::SYS_personality,
        [0xffff_ffff, 0, 0, 0, 0, 0],
    ),
    attempt("mount", "file systems", libc::SYS_mount, NONE),
    attempt("umount2", "file systems", libc::SYS_umount2, NONE),
    attempt("pivot_root", "another root", libc::SYS_pivot_root, NONE),
    attempt("chroot", "another root", libc::SYS_chroot, NONE),
    attempt("open_tree", "file systems", libc::SYS_open_tree, BAD_FD),
    attempt(
        "bpf",
        "programs in the kernel",
        libc::SYS_bpf,
        [-1, 0, 0, 0, 0, 0],
    ),
    attempt(
        "perf_event_open",
        "counters",
        libc::SYS_perf_event_open,
        NONE,
    ),
    attempt("keyctl", "keys", libc::SYS_keyctl, [-1, 0, 0, 0, 0, 0]),
    attempt("add_key", "keys", libc::SYS_add_key, NONE),
    attempt("unshare", "namespaces", libc::SYS_unshare, NONE),
    attempt("setns", "namespaces", libc::SYS_setns, BAD_FD),
    // The signal 0 only asks whether one may.
    attempt(
        "kill",
        "another process",
        libc::SYS_kill,
        [1, 0, 0, 0, 0, 0],
    ),
    attempt(
        "tgkill",
        "another's thread",
        libc::SYS_tgkill,
        [1, 1, 0, 0, 0, 0],
    ),
    attempt(
        "pidfd_open",
        "another process",
        libc::SYS_pidfd_open,
        BAD_FD,
    ),
    attempt(
        "pidfd_getfd",
        "its descriptors",
        libc::SYS_pidfd_getfd,
        BAD_FD,
    ),
    attempt(
        "pidfd_send_signal",
        "signals",
        libc::SYS_pidfd_send_signal,
        BAD_FD,
    ),
    attempt(
        "setuid",
        "another user",
        libc::SYS_setuid,
        [-1, 0, 0, 0, 0, 0],
    ),
    attempt(
        "setgid",
        "another group",
        libc::SYS_setgid,
        [-1, 0, 0, 0, 0, 0],
    ),
    attempt(
        "setresuid",
        "another user",
        libc::SYS_setresuid,
        [-1, -1, -1, 0, 0, 0],
    ),
    attempt("capset", "capabilities", libc::SYS_capset, NONE),
    attempt(
        "prctl",
        "a core to be read",
        libc::SYS_prctl,
        [4, 1, 0, 0, 0, 0],
    ),
    attempt(
        "prctl",
        "another list",
        libc::SYS_prctl,
        [22, 0, 0, 0, 0, 0],
    ),
    attempt(
        "seccomp",
        "another list",
        libc::SYS_seccomp,
        [-1, 0, 0, 0, 0, 0],
    ),
    attempt(
        "prlimit64",
        "higher limits",
        libc::SYS_prlimit64,
        // Reading them is allowed where metrics tell them: this would set them, from nowhere.
        [0, 7, -1, 0, 0, 0],
    ),
    attempt("init_module", "modules", libc::SYS_init_module, NONE),
    attempt("finit_module", "modules", libc::SYS_finit_module, BAD_FD),
    attempt(
        "kexec_load",
        "another kernel",
        libc::SYS_kexec_load,
        [0, 0, 0, -1, 0, 0],
    ),
    attempt("reboot", "the end", libc::SYS_reboot, NONE),
    attempt("swapon", "swap", libc::SYS_swapon, NONE),
    attempt(
        "quotactl",
        "quotas",
        libc::SYS_quotactl,
        [-1, 0, 0, 0, 0, 0],
    ),
    attempt(
        "userfaultfd",
        "page faults",
        libc::SYS_userfaultfd,
        [-1, 0, 0, 0, 0, 0],
    ),
    attempt(
        "io_uring_setup",
        "another ring",
        libc::SYS_io_uring_setup,
        NONE,
    ),
    attempt(
        "io_uring_register",
        "more of a ring",
        libc::SYS_io_uring_register,
        BAD_FD,
    ),
    attempt(
        "open_by_handle_at",
        "files",
        libc::SYS_open_by_handle_at,
        BAD_FD,
    ),
    attempt("openat2", "files", libc::SYS_openat2, BAD_FD),
    attempt("creat", "files", libc::SYS_creat, NONE),
    attempt("link", "names", libc::SYS_link, NONE),
    attempt("symlink", "names", libc::SYS_symlink, NONE),
    attempt("mknod", "devices", libc::SYS_mknod, NONE),
    attempt("chmod", "modes", libc::SYS_chmod, NONE),
    attempt("fchmod", "modes", libc::SYS_fchmod, BAD_FD),
    attempt("chown", "owners", libc::SYS_chown, [0, -1, -1, 0, 0, 0]),
    attempt("setxattr", "attributes", libc::SYS_setxattr, NONE),
    attempt("truncate", "files", libc::SYS_truncate, NONE),
    attempt(
        "fanotify_init",
        "watching files",
        libc::SYS_fanotify_init,
        [-1, 0, 0, 0, 0, 0],
    ),
    // TIOCSTI: keys for whoever has the terminal.
    attempt("ioctl", "typing", libc::SYS_ioctl, [-1, 0x5412, 0, 0, 0, 0]),
    attempt(
        "shmget",
        "shared memory",
        libc::SYS_shmget,
        [0, 0, 0, 0, 0, 0],
    ),
    attempt("fork", "a process, as older programs do", 1 << 20, NONE),
];

fn main() -> ExitCode {
    if let Ok(order) = std::env::var(TRY) {
        return obey(&order);
    }
    let mut trials = Vec::new();
    for kind in Kind::ALL {
        let name = kind.name();
        for (index, attempt) in FORBIDDEN.iter().enumerate() {
            let shown = format!("{name}::{} ({})", attempt.call, attempt.what);
            let stopped = move || is_stopped(kind, index, attempt);
            trials.push(Trial::test(format!("stopped::{shown}"), stopped));
        }
        trials.push(Trial::test(format!("{name}::files"), move || files(kind)));
        trials.push(Trial::test(format!("{name}::names"), move || names(kind)));
        trials.push(Trial::test(format!("{name}::tcp"), move || tcp(kind)));
        let descriptors = move || descriptors_are_few(kind);
        trials.push(Trial::test(format!("{name}::descriptors"), descriptors));
        trials.push(Trial::test(format!("{name}::panic"), move || panics(kind)));
        let threads = move || threads_are_noticed(kind);
        trials.push(Trial::test(format!("{name}::threads"), threads));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn start(kind: Kind, mode: &str, what: &str) -> Output {
    let this = std::env::current_exe().unwrap();
    let order = format!("{} {mode} {what}", kind.name());
    Command::new(this)
        .env(TRY, order)
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "{:?}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}

fn expect(holds: bool, what: &str, output: &Output) -> Result<(), Failed> {
    match holds {
        true => Ok(()),
        false => Err(format!("{what}: {}", said(output)).into()),
    }
}

fn is_stopped(kind: Kind, index: usize, attempt: &Attempt) -> Result<(), Failed> {
    let what = index.to_string();
    let strict = start(kind, "strict", &what);
    let stopped = strict.status.code() == Some(EXIT.into());
    expect(stopped, "it was to be stopped", &strict)?;
    let line = match attempt.number {
        number if number < 1 << 20 => {
            format!("stopped the system call {} ({number})", attempt.call)
        }
        // There is none of this number, and so no name.
        number => format!("stopped the system call (unknown) ({number})"),
    };
    expect(said(&strict).contains(&line), &line, &strict)?;
    for mode in ["off", "log"] {
        let open = start(kind, mode, &what);
        let passed = open.status.success() && said(&open).contains("passed");
        expect(passed, "without the list it gets to the kernel", &open)?;
    }
    Ok(())
}

/// A file outside cannot be opened, one of `/proc` neither; without the sandbox both can.
fn files(kind: Kind) -> Result<(), Failed> {
    let strict = start(kind, "strict", "open");
    expect(strict.status.success(), "refused, and it goes on", &strict)?;
    let text = said(&strict);
    expect(
        text.contains("open: PermissionDenied"),
        "both refused",
        &strict,
    )?;
    // Where files may be opened, it is landlock that says which.
    let named = text.contains("refused the system call openat (257)");
    let by_name = kind.profile()?.has("openat");
    expect(named != by_name, "named if the list has no files", &strict)?;
    let off = start(kind, "off", "open");
    expect(said(&off).contains("open: opened"), "opened", &off)
}

/// A library that asks again and again for a file does not fill anybody's log.
fn names(kind: Kind) -> Result<(), Failed> {
    if kind.profile()?.has("openat") {
        // What a list has is not named.
        let output = start(kind, "strict", "opens");
        return expect(
            output.status.success() && !said(&output).contains("system call"),
            "refused by landlock, without a word",
            &output,
        );
    }
    let output = start(kind, "strict", "opens");
    let lines = said(&output).matches("refused the system call").count();
    expect(
        lines == 16 && output.status.success(),
        "16 are named, and all are refused",
        &output,
    )
}

/// A thread that panics, with all that it says then, is no reason to end the process.
fn panics(kind: Kind) -> Result<(), Failed> {
    let output = start(kind, "strict", "panic");
    let text = said(&output);
    let went_on = output.status.success() && text.contains("went on");
    expect(
        went_on && text.contains("stack backtrace"),
        "it goes on",
        &output,
    )
}

/// Landlock knows of TCP by itself, whatever a list says.
fn tcp(kind: Kind) -> Result<(), Failed> {
    for (mode, expected) in [
        (
            "confined",
            "listen: PermissionDenied, connect: PermissionDenied",
        ),
        ("off", "listen: done, connect: done"),
    ] {
        let output = start(kind, mode, "tcp");
        expect(said(&output).contains(expected), expected, &output)?;
    }
    Ok(())
}

fn descriptors_are_few(kind: Kind) -> Result<(), Failed> {
    let strict = start(kind, "strict", "descriptors");
    let expected = format!("descriptors: {} open, then EMFILE", descriptors(1));
    expect(said(&strict).contains(&expected), &expected, &strict)
}

/// Landlock would not hold a thread that is there already, so that is an error and not a half sandbox.
fn threads_are_noticed(kind: Kind) -> Result<(), Failed> {
    let output = start(kind, "strict", "threads");
    let noticed = !output.status.success() && said(&output).contains("2 threads run already");
    expect(noticed, "two threads", &output)
}

/// The process that tries.
fn obey(order: &str) -> ExitCode {
    let words: Vec<_> = order.split(' ').collect();
    let [kind, mode, what] = words[..] else {
        panic!("three words expected: {order}");
    };
    let kind = Kind::ALL
        .into_iter()
        .find(|known| known.name() == kind)
        .unwrap();
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    if what == "threads" {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let waits = std::thread::spawn(move || ended.recv());
        let confined = Sandbox::confine(Mode::Strict, kind, &[]);
        drop(end);
        waits.join().unwrap().unwrap_err();
        return match confined {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => {
                println!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let folder = tempfile::tempdir().unwrap();
    let grants = [
        Grant::Folder(folder.path().to_owned()),
        Grant::Socket(PathBuf::from("/tmp/x")),
    ];
    match mode {
        "strict" => enter(Mode::Strict, kind, &grants),
        "log" => enter(Mode::Log, kind, &grants),
        // Files only: what landlock does by itself.
        "confined" => drop(Sandbox::confine(Mode::Strict, kind, &grants).unwrap()),
        _ => enter(Mode::Off, kind, &grants),
    }
    match what {
        "open" => {
            let open = |path| match File::open(path) {
                Ok(_) => "opened".to_owned(),
                Err(error) => format!("{:?}", error.kind()),
            };
            let (first, second) = (open("/etc/passwd"), open("/proc/self/mem"));
            println!("open: {first}");
            assert_eq!(first, second);
        }
        "opens" => (0..40).for_each(|_| {
            let opened = File::open("/etc/passwd");
            assert_eq!(opened.unwrap_err().kind(), ErrorKind::PermissionDenied);
        }),
        "panic" => {
            let panicked = std::thread::spawn(|| panic!("as asked")).join();
            assert!(panicked.is_err());
            println!("went on");
        }
        "tcp" => {
            let shown = |done: Result<(), std::io::Error>| match done {
                Ok(()) => "done".to_owned(),
                Err(error) => format!("{:?}", error.kind()),
            };
            let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop);
            let connect = TcpStream::connect(port.local_addr().unwrap()).map(drop);
            println!("listen: {}, connect: {}", shown(listen), shown(connect));
        }
        "descriptors" => {
            let mut held = Vec::new();
            let error = loop {
                match rustix::io::dup(&port) {
                    Ok(descriptor) => held.push(descriptor),
                    Err(error) => break error,
                }
            };
            assert_eq!(error, rustix::io::Errno::MFILE);
            let last = held.iter().map(AsRawFd::as_raw_fd).max();
            let most = last.unwrap() + 1;
            println!("descriptors: {most} open, then EMFILE");
        }
        index => {
            let attempt = &FORBIDDEN[index.parse::<usize>().unwrap()];
            let result = raw::call(attempt.number, attempt.arguments);
            println!("passed: {result}");
        }
    }
    ExitCode::SUCCESS
}

fn enter(mode: Mode, kind: Kind, grants: &[Grant]) {
    let sandbox = Sandbox::confine(mode, kind, grants).unwrap();
    sandbox.seal(descriptors(1)).unwrap();
}
