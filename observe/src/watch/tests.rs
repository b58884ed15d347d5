//! Views from fixed models, and feeds whose truth is known.

use super::terminal::draw;
use super::*;
use quick_xml::Reader;
use quick_xml::events::Event;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::io::Cursor;
use std::time::Duration;
use vm::Target;
use vm::exercise::{Comeback, TrackOptions};
use vm::guest::Pattern;

/// Three rounds over 256 pages, of which each cell has four.
fn model() -> View {
    let mut view = View::new("emulated");
    view.take(Update::Memory { pages: 256 });
    view.take(Update::Moves {
        requests: 120,
        queues: vec![(128, 3), (128, 0)],
    });
    view.take(Update::Suspended {
        status: "ACKNOWLEDGE | DRIVER | SUSPEND".to_owned(),
        indices: vec![(0, 128, 40, 37), (1, 128, 80, 80)],
    });
    for round in 1..=3_u32 {
        let cells = (0..64).map(|cell| u64::from((cell + round) % 5));
        let cells: Vec<u64> = cells.collect();
        view.take(Update::Round(Round {
            round,
            pages: cells.iter().sum(),
            bytes: 5000 * u64::from(round).pow(8),
            written: None,
            lost: Some(0),
            harvests: Some(7),
            seconds: f64::from(round) / 100.0,
            suspended: round == 2,
            cells,
        }));
    }
    view
}

/// The screen as text.
fn screen(view: &View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, view)).unwrap();
    let buffer = terminal.backend().buffer();
    let cells: Vec<&str> = buffer.content().iter().map(|cell| cell.symbol()).collect();
    let lines = cells.chunks(usize::from(width));
    lines
        .map(|line| line.concat().trim_end().to_owned())
        .collect()
}

#[test]
fn the_screen_is_as_it_was() {
    let expected = include_str!("screen.txt");
    let lines = screen(&model(), 112, 16);
    let shown = lines.join("\n");
    assert_eq!(shown, expected.trim_end(), "\n{shown}");
}

#[test]
fn any_screen_can_be_drawn() {
    let mut many = model();
    for round in 4..200 {
        many.take(Update::Round(Round {
            round,
            cells: vec![1; 64],
            ..Round::default()
        }));
    }
    for view in [View::new(""), model(), many] {
        for (width, height) in [(1, 1), (10, 3), (40, 8), (300, 100)] {
            assert_eq!(screen(&view, width, height).len(), usize::from(height));
        }
    }
}

/// How often each element with this class comes, of a text that must be well-formed.
fn elements(text: &str, class: &str) -> Result<usize, quick_xml::Error> {
    let mut reader = Reader::from_str(text);
    reader.config_mut().check_end_names = true;
    let (mut found, mut open) = (0, 0_i32);
    loop {
        match reader.read_event()? {
            Event::Start(element) => {
                open += 1;
                for attribute in element.attributes() {
                    let attribute = attribute?;
                    let is_class = attribute.key.as_ref() == b"class";
                    found += usize::from(is_class && *attribute.value == *class.as_bytes());
                }
            }
            Event::Empty(_) => {}
            Event::End(_) => open -= 1,
            Event::Text(text) => assert!(!text.contains(&b'<')),
            Event::Eof => break,
            _ => {}
        }
    }
    assert_eq!(open, 0, "elements are left open");
    Ok(found)
}

#[test]
fn pictures_are_whole_and_hold_every_dirty_cell() {
    let mut view = model();
    view.target = "vfio-user:/run/<odd> & \"quoted\"".to_owned();
    let dirty = view.rounds.iter().flat_map(|round| &round.cells);
    let dirty = dirty.filter(|pages| **pages != 0).count();
    assert!(dirty > 100);
    assert_eq!(elements(&svg(&view), "cell").unwrap(), dirty);
    let page = html(&view);
    assert_eq!(elements(&page, "cell").unwrap(), dirty);
    assert!(page.starts_with("<!DOCTYPE html>"));
    assert!(svg(&view).contains("round 3, cell 1: 4 pages"));
    // The judge sees what is missing.
    let torn = svg(&view).replacen("</rect>", "", 1);
    assert!(elements(&torn, "cell").is_err());
    let fewer = svg(&view).replacen("class=\"cell\"", "", 1);
    assert_eq!(elements(&fewer, "cell").unwrap(), dirty - 1);
}

/// A device in this process, whose own account of what it wrote is the truth.
fn watched(rounds: u32) -> (Feed, View) {
    let options = TrackOptions {
        rounds,
        requests: 300,
        pages: 512,
        pattern: Pattern::Zipf,
        suspensions: vec![Comeback::Resume],
        ..TrackOptions::default()
    };
    let bus = Target::Emulated.open().unwrap();
    let feed = watch_device(bus, options, Duration::ZERO);
    (feed, View::new("emulated"))
}

#[test]
fn a_device_is_told_of_round_by_round() {
    let (feed, mut view) = watched(3);
    let mut text = Vec::new();
    show_lines(&feed, &mut view, Some(&mut text)).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.lines().count(), 1 + 3, "{text}");
    assert_eq!(view.trouble, None);
    assert_eq!(view.life, Life::Ended);
    assert_eq!(
        (view.rounds_total, view.suspends, view.lost_total),
        (3, 3, 0)
    );
    assert_eq!(view.memory_pages, 512);
    assert_eq!(view.requests, 900);
    assert!(view.status.contains("SUSPEND"), "{}", view.status);
    assert_eq!(view.queues.len(), 4);
    assert!(view.queues.iter().all(|queue| queue.indices.is_some()));
    for round in &view.rounds {
        assert!(round.pages > 0);
        assert_eq!(round.cells.iter().sum::<u64>(), round.pages, "{round:?}");
        assert_eq!(round.written, Some(round.pages), "{round:?}");
        assert!(round.bytes >= round.pages * 4096 / 8);
    }
}

#[test]
fn a_device_that_is_to_stop_ends_with_its_round() {
    let (feed, mut view) = watched(1000);
    // Not before it has begun.
    let first = feed.updates.recv().unwrap();
    view.take(first);
    feed.stop();
    show_lines(&feed, &mut view, None).unwrap();
    assert_eq!(view.trouble, None);
    assert!(
        (1..1000).contains(&view.rounds_total),
        "{}",
        view.rounds_total
    );
}

#[test]
fn a_migration_is_told_of_by_its_events() {
    let text = r#"a line of somebody else's
{"event":"round","round":1,"pages":100,"last":false}
{"event":"map","round":1,"memory_pages":128,"cells":[2,0,1]}
{"event":"progress","round":1,"pages_sent":3,"bandwidth_bytes_per_second":null}
{"event":"round_end","round":1,"pages":3,"zeros":0,"bytes":12288,"unchanged":0,"shares":[],"elapsed_ns":2000000,"harvest_ns":1,"throttle":0,"last":false}
{"event":"dirty","round":2,"dirty_pages":1}
{"event":"round","round":2,"pages":1,"last":true}
{"event":"map","round":2,"memory_pages":128,"cells":[0,0,1]}
{"event":"round_end","round":2,"pages":1,"zeros":0,"bytes":4096,"unchanged":0,"shares":[],"elapsed_ns":1000000,"harvest_ns":1,"throttle":0,"last":true}
verified
"#;
    let feed = read_events(Cursor::new(text));
    let mut view = View::new("migration");
    show_lines(&feed, &mut view, None).unwrap();
    assert_eq!(view.trouble, None);
    assert_eq!(view.others, ["a line of somebody else's", "verified"]);
    assert_eq!(
        (view.rounds_total, view.pages_total, view.suspends),
        (2, 4, 1)
    );
    assert_eq!(view.memory_pages, 128);
    assert_eq!(view.rounds[0].cells, [2, 0, 1]);
    assert!(!view.rounds[0].suspended && view.rounds[1].suspended);
}

/// What is no events is bounded and never a panic.
#[test]
fn hostile_events_end_with_a_reason() {
    let endless = "x".repeat(1 << 17);
    let mut view = View::new("");
    show_lines(&read_events(Cursor::new(endless)), &mut view, None).unwrap();
    assert!(
        view.trouble
            .unwrap()
            .contains("a line of at most 65536 octets")
    );

    let cells = vec!["18446744073709551615"; 500].join(",");
    let odd = format!(
        "{{\"event\":\"map\",\"round\":1,\"memory_pages\":0,\"cells\":[{cells}]}}\n\
         {{\"event\":\"round_end\",\"round\":4294967295,\"pages\":18446744073709551615,\
         \"bytes\":18446744073709551615,\"elapsed_ns\":18446744073709551615,\"last\":true}}\n"
    )
    .repeat(3);
    let mut view = View::new("");
    show_lines(&read_events(Cursor::new(odd)), &mut view, None).unwrap();
    assert_eq!((view.trouble.as_deref(), view.rounds.len()), (None, 3));
    assert_eq!(view.rounds[0].cells.len(), 64);
    assert_eq!(screen(&view, 80, 24).len(), 24);
    elements(&svg(&view), "cell").unwrap();

    let many = "line\n".repeat(5000);
    let mut view = View::new("");
    show_lines(&read_events(Cursor::new(many)), &mut view, None).unwrap();
    assert_eq!(view.others.len(), 1000);
}
