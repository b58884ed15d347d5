//! Checking a saved guest against plainly reading the same file, from the page cache; and what the
//! stream adds to the pages that it carries.

use benches::memory::{Random, memory_file};
use benches::{Bound, Line, Mode, finish, interleave, settle, wanted};
use driver::memory::DmaMemory;
use migration::stream::inspect::walk;
use migration::stream::libxl::{self, Emulator};
use migration::stream::{Format, Writer, libxc};
use std::fs::File;
use std::io::Read;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const MEMORY: u64 = 512 << 20;
const ROUNDS: usize = 21;
/// What the plain reader reads at a time: the same as the checker, so that only the checks differ.
const CHUNK: usize = 256 << 10;

/// Writes a guest of random bytes: first all of it in order, then every fourth page again.
fn write(file: File) -> std::io::Result<u64> {
    let memory = DmaMemory::from_file(&memory_file(MEMORY)?, 0, MEMORY, 0)?;
    let mut random = Random(1);
    let mut block = vec![0; 1 << 20];
    let mut at = 0;
    while at < MEMORY {
        for (word, value) in block.chunks_exact_mut(8).zip(&mut random) {
            word.copy_from_slice(&value.to_le_bytes());
        }
        memory.write(at, &block)?;
        at += block.len() as u64;
    }
    let mut writer = Writer::new(file);
    writer.header(libxl::Header::default())?;
    writer.libxl(&libxl::Record::LibxcContext)?;
    writer.image(libxc::Header::OURS)?;
    writer.libxc(&libxc::Record::StaticDataEnd)?;
    let windows = [memory];
    for step in [1, 4] {
        let pages: Vec<u64> = (0..MEMORY / 4096).step_by(step).collect();
        let mut rest = pages.as_slice();
        while !rest.is_empty() {
            rest = &rest[writer.pages(&windows, rest)?.pages..];
        }
    }
    writer.libxc(&libxc::Record::End)?;
    let state = libxl::Record::EmulatorContext(Emulator::ours(1), vec![1; 4096]);
    writer.libxl(&state)?;
    writer.libxl(&libxl::Record::End)?;
    Ok(writer.written())
}

fn main() -> ExitCode {
    if !wanted("stream") {
        return ExitCode::SUCCESS;
    }
    let mode = Mode::from_args();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("guest.xl");
    let bytes = write(File::create(&path).expect("a file")).expect("a stream");
    settle();
    let open = || File::open(&path).expect("the file");
    let mut totals = None;
    let mut buffer = vec![0; CHUNK];
    let verify = || {
        let begin = Instant::now();
        totals = Some(walk(open(), Format::Libxl, |_| {}).expect("a whole stream"));
        begin.elapsed()
    };
    let plain = || {
        let (mut file, mut sum) = (open(), 0);
        let begin = Instant::now();
        while let Ok(count @ 1..) = file.read(&mut buffer) {
            sum += count as u64;
        }
        let elapsed: Duration = begin.elapsed();
        assert_eq!(sum, bytes);
        elapsed
    };
    // The subject is the plain read: what is asked is how much of its rate checking keeps.
    let ratio = interleave(ROUNDS, plain, verify);
    let totals = totals.expect("at least one round");
    let rate = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;
    let overhead = totals.overhead() as f64 / totals.bytes as f64;
    let lines = [
        Line {
            name: "stream/verify / plain read of the same file from the page cache".into(),
            bound: Bound::AtLeast(0.5),
            figure: ratio.median(),
            spread: ratio.spread(),
            detail: format!(
                "{:.2} GB/s : {:.2} GB/s",
                rate(ratio.peer),
                rate(ratio.subject)
            ),
        },
        Line {
            name: "stream/bytes that are not pages / all bytes, a quarter of it scattered pages"
                .into(),
            bound: Bound::AtMost(0.003),
            figure: overhead,
            spread: [overhead, overhead],
            detail: format!("{} : {} bytes", totals.overhead(), totals.bytes),
        },
    ];
    for line in &lines {
        line.print(mode);
    }
    finish(&lines)
}
