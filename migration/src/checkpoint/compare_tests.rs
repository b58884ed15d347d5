use super::*;
use crate::checkpoint::link::Line;
use proptest::prelude::*;
use std::os::unix::net::UnixStream;

fn comparison() -> (Arc<Comparison>, Switch, Line<UnixStream>) {
    let (here, _) = UnixStream::pair().unwrap();
    let (line, switch) = Line::new(here);
    (Comparison::new(switch.clone()), switch, line)
}

fn output(lane: u64, index: u64, digest: u64) -> Output {
    Output {
        lane,
        index,
        digest,
    }
}

fn record(epoch: u64, output: Output) -> Vec<u8> {
    let fields = [epoch, output.lane, output.index, output.digest];
    fields.iter().flat_map(|f| f.to_be_bytes()).collect()
}

fn stream(records: &[(u64, Output)]) -> Vec<u8> {
    let records = records.iter().flat_map(|(epoch, out)| record(*epoch, *out));
    MAGIC.into_iter().chain(records).collect()
}

/// Written by hand, from the format's description.
#[test]
fn the_format_is_the_documented_one() {
    let reporter = Reporter::new();
    // Before the first copy nothing is told.
    reporter.output(output(9, 9, 9));
    reporter.checkpoint();
    reporter.checkpoint();
    reporter.output(output(2, 3, 0x0405));
    let sent = reporter.next().unwrap();
    // And nothing after the end.
    reporter.close();
    reporter.output(output(9, 9, 9));
    let mut all = Vec::new();
    reporter.run(&mut all).unwrap();
    assert_eq!(all, MAGIC);
    let mut expected = vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2];
    expected.extend([0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 4, 5]);
    assert_eq!(sent, expected);
    assert_eq!(MAGIC, [0x54, 0x44, 0x4d, 0x4b, 0x43, 0x4d, 0x50, 0x31]);
}

#[test]
fn the_same_outputs_in_any_order_are_alike() {
    let (comparison, _, _line) = comparison();
    comparison.checkpoint();
    let all: Vec<Output> = (0..50).map(|n| output(n % 3, n / 3, n * n)).collect();
    all[..20].iter().for_each(|one| comparison.output(*one));
    let theirs: Vec<_> = all.iter().rev().map(|one| (0, *one)).collect();
    comparison.hear(&*stream(&theirs)).unwrap();
    all[20..].iter().for_each(|one| comparison.output(*one));
    let figures = comparison.figures();
    assert_eq!((figures.alike, figures.diverged, figures.ahead), (50, 0, 0));
}

#[test]
fn a_difference_is_asked_about_once_until_the_next_checkpoint() {
    let (comparison, _, _line) = comparison();
    comparison.checkpoint();
    comparison.output(output(1, 1, 5));
    comparison.output(output(1, 2, 5));
    let theirs = [(0, output(1, 1, 6)), (0, output(1, 2, 6))];
    comparison.hear(&*stream(&theirs)).unwrap();
    assert_eq!(comparison.figures().diverged, 1);
    comparison.checkpoint();
    // What was undone says nothing any more.
    comparison.hear(&*stream(&theirs)).unwrap();
    let figures = comparison.figures();
    assert_eq!((figures.diverged, figures.late), (1, 2));
    comparison.output(output(1, 1, 5));
    comparison.hear(&*stream(&[(1, output(1, 1, 6))])).unwrap();
    assert_eq!(comparison.figures().diverged, 2);
}

#[test]
fn a_side_far_ahead_asks_for_a_checkpoint() {
    let (comparison, _, _line) = comparison();
    comparison.checkpoint();
    for index in 0..=u64::try_from(AHEAD_MAX).unwrap() {
        assert_eq!(comparison.figures().ahead, 0);
        comparison.output(output(0, index, 0));
    }
    assert_eq!(comparison.figures().ahead, 1);
}

#[test]
fn a_copy_is_never_held_up_by_a_primary_that_does_not_listen() {
    let reporter = Reporter::new();
    reporter.checkpoint();
    for index in 0..u64::try_from(AHEAD_MAX).unwrap() + 10 {
        reporter.output(output(0, index, 0));
    }
    assert_eq!(reporter.lock().left_out, 10);
    assert_eq!(reporter.lock().bytes.len(), WAITING_MAX);
}

#[test]
fn what_is_none_is_named() {
    let (comparison, _, _line) = comparison();
    comparison.checkpoint();
    let text = |bytes: &[u8]| comparison.hear(bytes).unwrap_err().to_string();
    assert!(text(b"NOTATALL").contains("expected [54, 44"));
    assert!(text(&stream(&[(7, output(0, 0, 0))])).contains("got 7"));
    let whole = stream(&[(0, output(0, 0, 0))]);
    for cut in (0..8).chain(9..whole.len()) {
        assert!(comparison.hear(&whole[..cut]).is_err(), "{cut}");
    }
    assert!(comparison.hear(&whole[..8]).is_ok());
}

#[test]
fn every_byte_counts_in_a_digest() {
    let sum = |bytes: &[u8]| Digest::default().bytes(bytes).value();
    let page = vec![7; 4096];
    for place in [0, 1, 8, 4095] {
        let mut other = page.clone();
        other[place] ^= 1;
        assert_ne!(sum(&page), sum(&other), "{place}");
    }
    assert_ne!(sum(&[0; 7]), sum(&[0; 8]));
    assert_ne!(sum(&[]), sum(&[0]));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>()) {
        let (comparison, _, _line) = comparison();
        comparison.checkpoint();
        let bytes: Vec<u8> = MAGIC.into_iter().chain(bytes).collect();
        let heard = comparison.hear(&*bytes);
        prop_assert!(heard.is_ok() || heard.is_err_and(|error| !error.to_string().is_empty()));
    }
}
