//! What is measured: the plot or table that a figure belongs to, with its axes.

/// A quantity, and what it is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topic {
    /// The name that its figures carry.
    pub name: &'static str,
    /// The horizontal axis with its unit; empty where nothing varies, which makes a table.
    pub x: &'static str,
    /// The quantity itself, with its unit.
    pub y: &'static str,
    /// Whether the horizontal axis is logarithmic.
    pub log_x: bool,
    /// Whether the vertical axis is.
    pub log_y: bool,
}

const fn linear(name: &'static str, x: &'static str, y: &'static str) -> Topic {
    Topic {
        name,
        x,
        y,
        log_x: false,
        log_y: false,
    }
}

const fn log_x(name: &'static str, x: &'static str, y: &'static str) -> Topic {
    Topic {
        log_x: true,
        ..linear(name, x, y)
    }
}

const fn log(name: &'static str, x: &'static str, y: &'static str) -> Topic {
    Topic {
        log_y: true,
        ..log_x(name, x, y)
    }
}

/// Reported over written pages with marks of whole bytes.
pub const INFLATION: Topic = log_x(
    "inflation",
    "share of pages written",
    "reported per written page",
);
/// What a mark of each width costs.
pub const MARK: Topic = linear("mark", "", "ns a mark");
/// What a mark costs with many writers.
pub const WRITERS: Topic = log("writers", "writers", "ns a mark, wall time");
/// Pages that nobody reported.
pub const LOST: Topic = log(
    "lost",
    "writers",
    "lost pages of a million, none on the axis",
);
/// Pages reported though nothing was new.
pub const SPURIOUS: Topic = log(
    "spurious",
    "writers",
    "spurious pages of a million, none on the axis",
);
/// How often a compare-and-swap has to be tried again.
pub const RETRIES: Topic = log_x("retries", "writers", "retries a mark");
/// Time of an OR by compare-and-swap over that of a plain one.
pub const CAS_TIME: Topic = log_x("time of CAS", "writers", "times an atomic OR");
/// Time to know the dirty pages.
pub const COLLECT: Topic = log("collect", "dirty pages", "µs to collect");
/// The same with the time that the device marks.
pub const BOTH: Topic = log("mark and collect", "dirty pages", "µs to mark and collect");
/// Where the curves of bitmap and records meet.
pub const CROSSING: Topic = log(
    "crossing",
    "guest, GiB",
    "dirty pages from which the bitmap is quicker",
);
/// A round in which nothing was written.
pub const IDLE: Topic = log("nothing written", "guest, GiB", "µs to collect");
/// Bytes of a bitmap with a hole in its guest.
pub const SPARSE_BYTES: Topic = log("sparse bytes", "gap, GiB", "resident bytes");
/// Time to know the dirty pages of such a guest.
pub const SPARSE_COLLECT: Topic = log("sparse collect", "gap, GiB", "µs to collect");
/// Bytes of the bitmap and of the pages that it names.
pub const GRANULARITY: Topic = Topic {
    log_y: true,
    ..linear("granularity", "gra_power", "bytes scanned and sent")
};
/// Pages that a copy has wrong after resets.
pub const RESETS: Topic = linear("lost by resets", "", "lost pages");
/// Reports over pages that were written at all.
pub const REPORTS: Topic = log(
    "reports per page",
    "writes between two reads",
    "reports per page",
);
/// Reports that brought nothing new.
pub const USELESS: Topic = log_x(
    "useless reports",
    "writes between two reads",
    "share of the reports",
);
/// Who can track whom.
pub const NESTING: Topic = linear("nesting", "", "1: works, 0: does not");
/// What a function keeps.
pub const STATE: Topic = log("state", "ranges", "bytes for a function");
/// Reads that find an overflow.
pub const OVERFLOW: Topic = log_x("overflow", "writes between two reads", "share of reads");
/// Written pages that are not among the records.
pub const DROPPED: Topic = log_x(
    "dropped",
    "writes between two reads",
    "share of written pages",
);
/// Pages dropped without an overflow being said.
pub const SILENT: Topic = linear("dropped in silence", "", "pages");
/// Pages that are sent for each written one.
pub const SENT: Topic = log(
    "sent",
    "writes between two reads",
    "pages sent per written page",
);
/// READ of every member in turn.
pub const PASS: Topic = log("READ of all members", "members", "µs");
/// The middle one of these commands.
pub const READ_MEDIAN: Topic = log("READ, median", "members", "µs a command");
/// The slowest but one in a hundred.
pub const READ_SLOW: Topic = log("READ, 99th percentile", "members", "µs a command");
/// Pages lost to a harvest inside a write.
pub const INJECTED: Topic = linear("injected harvest", "", "share of pages lost");
/// Bytes on the bus, by the model.
pub const BUS: Topic = log(
    "bus model, bytes",
    "dirty pages of a round",
    "bytes on the bus per dirty page",
);
/// Packets on the bus, by the model.
pub const BUS_PACKETS: Topic = log(
    "bus model, packets",
    "dirty pages of a round",
    "packets per dirty page",
);

/// Every topic.
const ALL: [Topic; 29] = [
    INFLATION,
    MARK,
    WRITERS,
    LOST,
    SPURIOUS,
    RETRIES,
    CAS_TIME,
    COLLECT,
    BOTH,
    CROSSING,
    IDLE,
    SPARSE_BYTES,
    SPARSE_COLLECT,
    GRANULARITY,
    RESETS,
    REPORTS,
    USELESS,
    NESTING,
    STATE,
    OVERFLOW,
    DROPPED,
    SILENT,
    SENT,
    PASS,
    READ_MEDIAN,
    READ_SLOW,
    INJECTED,
    BUS,
    BUS_PACKETS,
];

/// The topic of that name.
pub fn named(name: &str) -> Option<Topic> {
    ALL.into_iter().find(|topic| topic.name == name)
}
