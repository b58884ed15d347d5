//! Classes of bugs that need descriptors of messages to be shown.

use super::*;

/// CVE-2022-0669, CVE-2019-14818: descriptors that come with a message which is refused, or which
/// takes none, are closed.
#[test]
fn descriptors_of_refused_messages_are_closed_cve_2022_0669() {
    let memory = GuestMemory::new();
    let server = VhostUserServer::new(rig::block(&memory, None), Marking::Bit);
    let server = Arc::new(server.expect("a server"));
    let file = tempfile::tempfile().expect("a file");
    let fd = file.as_fd();
    let count = || {
        let entries = std::fs::read_dir("/proc/self/fd").expect("a list");
        let ours = std::fs::read_link(format!("/proc/self/fd/{}", raw(fd))).expect("a file");
        let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| *link == ours).count()
    };
    assert_eq!(count(), 1);
    // Takes none; takes one; unknown; a table of one region.
    for (request, body) in [
        (ask::GET_FEATURES, Vec::new()),
        (ask::SET_VRING_KICK, words(&[9])),
        (43, Vec::new()),
        (ask::SET_MEM_TABLE, table()),
    ] {
        for many in [1, 2, 8] {
            session(&server, |frontend| {
                greet(frontend);
                let fds = vec![fd; many];
                let heard = frontend.ask(request, &body, &fds, true);
                assert_ne!(heard, Heard::Nothing, "message {request}");
            });
            assert_eq!(count(), 1, "message {request} with {many} descriptors");
        }
    }
}

fn raw(fd: BorrowedFd<'_>) -> i32 {
    use std::os::fd::AsRawFd;
    fd.as_raw_fd()
}
