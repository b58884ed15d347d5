//! The claims in words: who made them, what is measured of them, and what would change the answer.

use super::topics::{
    BOTH, CAS_TIME, COLLECT, CROSSING, DROPPED, GRANULARITY, IDLE, INFLATION, INJECTED, LOST, MARK,
    NESTING, OVERFLOW, PASS, READ_MEDIAN, READ_SLOW, REPORTS, RESETS, RETRIES, SENT, SILENT,
    SPARSE_BYTES, SPARSE_COLLECT, SPURIOUS, STATE, Topic, USELESS, WRITERS,
};

/// One claim of 2023.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// C1 to C14.
    pub id: &'static str,
    /// What was claimed.
    pub said: &'static str,
    /// By whom, and where that is known from.
    pub who: &'static str,
    /// What is measured here.
    pub measured: &'static str,
    /// What would change the answer.
    pub change: &'static str,
    /// Where its figures are shown.
    pub topics: &'static [Topic],
}

/// The thread that most claims are known from, quoted there by its participants.
pub const THREAD: &str = "virtio-comment, \"[PATCH V2 6/6] virtio-pci: implement dirty page \
     tracking\", Nov 2023, message-id 2615baa2-9450-4504-aa8a-e46fdbb332b8@intel.com";

/// All of them.
pub const CLAIMS: [Claim; 14] = [
    Claim {
        id: "C1",
        said: "Marking by whole bytes has a resolution of 8 pages and multiplies the bandwidth of migration by 8.",
        who: "Michael S. Tsirkin",
        measured: "Reported over written pages of the tracker with whole-byte marks, by density and locality, beside what random pages give by calculation; the price of a mark of each kind, as built and as bare as it can be.",
        change: "A guest whose writes are scattered or are not.",
        topics: &[INFLATION, MARK],
    },
    Claim {
        id: "C2",
        said: "A device's read-modify-write of the bitmap races with the CPU that clears it.",
        who: "Parav Pandit; Zhu Lingshan answers that atomics settle it",
        measured: "Lost and spurious pages of a million written, for every pair of device and driver, with one writer, two and sixteen. A pair with a load-store harvest or a plain read-modify-write on the device's side is counted as one with a plain access. Below: what a mark costs by writers that mark pages of their own, beside vm-memory's.",
        change: "A pair with atomics on both sides that loses a page; or none with a plain access on either side that loses any.",
        topics: &[LOST, SPURIOUS, WRITERS],
    },
    Claim {
        id: "C3",
        said: "PCI Express has no atomic OR, so a device cannot set a bit.",
        who: "Parav Pandit; Zhu Lingshan answers that there are atomic operations",
        measured: "Retries and time of an OR made of compare-and-swap beside a plain atomic OR, where the swap follows the read at once and where a round trip on a bus (0.5 µs, simulated) is between them. That AtomicOps are FetchAdd, Swap and CAS is known, not measured.",
        change: "Retries that do not stay few where writers seldom meet.",
        topics: &[RETRIES, CAS_TIME],
    },
    Claim {
        id: "C4",
        said: "Scanning a bitmap is bad when few pages are dirty.",
        who: "Michael S. Tsirkin",
        measured: "Time of a round for a bitmap (vector scan, cold caches) and for records in answers of 1 MiB, fetched by commands of the emulated administration queue (a worker of the device has to be woken) and from a device that spins; by guest size and dirty pages. The crossing is where the bitmap becomes the quicker one.",
        change: "A summary above the bitmap (not in the draft, so not measured), a quicker or slower round trip, caches that hold the bitmap.",
        topics: &[CROSSING, COLLECT, BOTH, IDLE],
    },
    Claim {
        id: "C5",
        said: "A bitmap from page 0 on wastes memory when the guest's memory is sparse.",
        who: "Parav Pandit",
        measured: "Resident bytes of the bitmap and time of a harvest, for 4 GiB at 0 and 4 GiB at a distance: if all of the bitmap is looked at, and if only the two places are; records of the two ranges beside it.",
        change: "A driver that never looks at the gap: memory that nobody touches is not there. An offset or ranges for the bitmap, where all of it is pinned.",
        topics: &[SPARSE_BYTES, SPARSE_COLLECT],
    },
    Claim {
        id: "C6",
        said: "A larger gra_power makes the bitmap small, and reading it is local anyway.",
        who: "Zhu Lingshan; Parav Pandit answers that it turns 8 KiB of writes into 2 MiB",
        measured: "Bytes of the bitmap plus bytes of pages to be sent, for gra_power 0 to 9 and three kinds of locality.",
        change: "Locality; a network whose bytes are cheap beside a read of memory.",
        topics: &[GRANULARITY],
    },
    Claim {
        id: "C7",
        said: "A reset or function level reset of the member loses what was tracked.",
        who: "Parav Pandit; Zhu Lingshan answers that forgetting is by design",
        measured: "Pages that a copy has wrong at the end, by a comparison of memories, while a guest resets its device again and again in the middle of reads: with the device's tracker, with a hypervisor that sets the tracker up anew before the device is live, and with records started by the owner.",
        change: "Whether a hypervisor sees its guest set the device up after a reset.",
        topics: &[RESETS],
    },
    Claim {
        id: "C8",
        said: "The device cannot know whether a reported page was read, so a shared bitmap reports pages again.",
        who: "Parav Pandit",
        measured: "Reports for each page written, with the device writing all the time and never more than two reads ahead, by the writes between two reads, for both mechanisms.",
        change: "A difference between the two mechanisms.",
        topics: &[REPORTS],
    },
    Claim {
        id: "C9",
        said: "The tracker works for nested guests, administration commands do not.",
        who: "Zhu Lingshan; Parav Pandit answers with emulation, or SR-IOV on the virtual function",
        measured: "What a driver can do that holds a virtual function and nothing else, and whether its host goes on hearing of writes (1: works, 0: does not).",
        change: "A virtual function with a queue of its own; a second tracker for the host, or one that the host emulates.",
        topics: &[NESTING],
    },
    Claim {
        id: "C10",
        said: "Registers grow without end (Appendix B).",
        who: "Parav Pandit; Zhu Lingshan answers that there are five control fields",
        measured: "Bytes of tracker registers, and resident bytes of a recording with ten thousand records, as built here, by the ranges that are tracked.",
        change: "Registers of their own for each range. For records: a device that keeps less; bits to know duplicates by are most of what it keeps.",
        topics: &[STATE],
    },
    Claim {
        id: "C11",
        said: "Records need storage in the device, which is bounded; a bitmap never overflows.",
        who: "raised in the debate by analogy with page-modification logs; by whom is not known here",
        measured: "Share of reads that find an overflow, share of written pages that are then not among the records, pages lost without an overflow being said, and pages sent for each written one (after an overflow all of the guest is), by capacity and writes between two reads.",
        change: "More storage than the pages that are written between two reads.",
        topics: &[OVERFLOW, DROPPED, SILENT, SENT],
    },
    Claim {
        id: "C12",
        said: "One administration queue makes many virtual functions wait for each other.",
        who: "raised in the debate; by whom is not known here",
        measured: "READ of every member in turn through one queue, and through two at the same time: time of the pass, median and 99th percentile of one command.",
        change: "A device that works on commands of one queue side by side (the standard has them in order); more processors.",
        topics: &[PASS, READ_MEDIAN, READ_SLOW],
    },
    Claim {
        id: "C13",
        said: "False positives by races are benign.",
        who: "raised in the debate, as KVM's dirty log has it; by whom is not known here",
        measured: "Share of reports that bring nothing new while a device writes all the time. A run that loses a page ends without a report.",
        change: "So many of them that a round does not get smaller.",
        topics: &[USELESS],
    },
    Claim {
        id: "C14",
        said: "The data has to be written before its mark.",
        who: "a question of the project: no text of 2023 that is known here says it",
        measured: "Pages lost with a harvest put between the two of every write, and in a free race.",
        change: "A handshake that keeps a driver from harvesting inside a write.",
        topics: &[INJECTED],
    },
];

/// What the model of the bus counts.
pub const BUS_MODEL: &str = "PCI Express with 64-bit addresses: 24 bytes of framing and header for each \
     request, 20 for each completion, payloads of at most 256 bytes; acknowledgements and flow control are left \
     out. Retries of compare-and-swap as measured above, for two writers anywhere in 1 GiB. A record is 8 bytes; \
     a command adds its doorbell, descriptors, answer and interrupt. Reading a bitmap is reading memory and \
     sends nothing.";
