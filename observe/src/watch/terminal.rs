//! The view in a terminal.

use super::feed::{Feed, Update};
use super::view::{Life, View};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table};
use ratatui::{DefaultTerminal, Frame};
use std::io;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// Between two looks at the keyboard.
const LOOK: Duration = Duration::from_millis(50);
/// How long a device that is to stop is waited for.
const END_WAIT: Duration = Duration::from_secs(15);
/// Columns before the cells: a round's number.
const NUMBER: u16 = 6;
/// From clean to dirty, for eyes that see no colours.
const SHADES: [char; 5] = ['·', '░', '▒', '▓', '█'];

/// Shows `view` in the terminal while `feed` tells, until that ends or somebody presses `q`, Escape
/// or Control-C. The terminal is then as before.
///
/// # Errors
/// What the terminal says. What happened until then is in `view`.
pub fn show_terminal(feed: &Feed, view: &mut View) -> io::Result<()> {
    let mut terminal = ratatui::try_init()?;
    let shown = run(feed, view, &mut terminal);
    let restored = ratatui::try_restore();
    let quit = shown?;
    restored?;
    if quit {
        feed.stop();
        settle(feed, view);
    }
    Ok(())
}

/// True if somebody wants it to end.
fn run(feed: &Feed, view: &mut View, terminal: &mut DefaultTerminal) -> io::Result<bool> {
    loop {
        terminal.draw(|frame| draw(frame, view))?;
        let until = Instant::now() + LOOK;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match feed.updates.recv_timeout(left) {
                Ok(update) => view.take(update),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => view.life = Life::Ended,
            }
            if view.life == Life::Ended {
                terminal.draw(|frame| draw(frame, view))?;
                return Ok(false);
            }
            if left.is_zero() {
                break;
            }
        }
        while event::poll(Duration::ZERO)? {
            if let Event::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
            {
                let interrupt =
                    key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                    return Ok(true);
                }
            }
        }
    }
}

/// Takes in what a device tells that finishes its round.
fn settle(feed: &Feed, view: &mut View) {
    if !feed.ends {
        view.take(Update::Ended(None));
        return;
    }
    let until = Instant::now() + END_WAIT;
    while view.life != Life::Ended {
        let left = until.saturating_duration_since(Instant::now());
        match feed.updates.recv_timeout(left) {
            Ok(update) => view.take(update),
            Err(_) => view.take(Update::Ended(Some(format!(
                "the device did not come to rest within {END_WAIT:?}"
            )))),
        }
    }
}

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let [head, middle, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(4),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let [map, side] =
        Layout::horizontal([Constraint::Min(NUMBER + 18), Constraint::Length(38)]).areas(middle);
    let queues = u16::try_from(view.queues.len()).unwrap_or(u16::MAX);
    let [rounds, queues] = Layout::vertical([
        Constraint::Min(4),
        Constraint::Length(queues.saturating_add(3).min(12)),
    ])
    .areas(side);
    frame.render_widget(title(view), head);
    draw_map(frame, map, view);
    draw_rounds(frame, rounds, view);
    draw_queues(frame, queues, view);
    frame.render_widget(Line::from("q ends").dim(), foot);
}

fn title(view: &View) -> Paragraph<'static> {
    let state = match view.life {
        Life::Suspended => Span::from(view.state()).yellow().bold(),
        Life::Running => Span::from(view.state()).green(),
        Life::Waiting | Life::Ended => Span::from(view.state()),
    };
    let first = Line::from(vec![
        Span::from("tidemark watch ").bold(),
        Span::from(view.target.clone()),
        Span::from("  "),
        state,
        Span::from(match view.status.as_str() {
            "" => String::new(),
            status => format!("  last suspended: {status}"),
        }),
    ]);
    let second = format!(
        "rounds {}  dirty pages {}  lost {}  suspends {}  requests {}",
        view.rounds_total, view.pages_total, view.lost_total, view.suspends, view.requests
    );
    Paragraph::new(vec![first, Line::from(second)])
}

fn draw_map(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let mebibytes = view.memory_pages / 256;
    let block =
        Block::bordered().title(format!("dirty memory, {mebibytes} MiB from left to right"));
    let inner = block.inner(area);
    let room = usize::from(inner.height);
    let width = usize::from(inner.width).saturating_sub(usize::from(NUMBER));
    let latest = view.rounds.len().saturating_sub(room);
    let lines = view.rounds.iter().skip(latest).map(|round| {
        let count = round.cells.len().min(width).max(1);
        let mut spans = vec![Span::from(format!("{:>5} ", round.round)).dim()];
        for column in 0..count {
            // Several cells share a column where there is not room for each: the dirtiest shows.
            let from = column * round.cells.len() / count;
            let to = ((column + 1) * round.cells.len() / count).max(from + 1);
            let cells = round.cells.iter().enumerate().take(to).skip(from);
            let share = cells
                .map(|(cell, dirty)| view.share(cell, *dirty))
                .fold(0.0, f64::max);
            spans.push(Span::styled(
                shade(share).to_string(),
                Style::new().fg(colour(share)),
            ));
        }
        Line::from(spans)
    });
    let lines: Vec<_> = lines.collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// Anything dirty differs from nothing.
fn shade(share: f64) -> char {
    match share {
        0.0 => SHADES[0],
        share if share < 0.25 => SHADES[1],
        share if share < 0.5 => SHADES[2],
        share if share < 0.75 => SHADES[3],
        _ => SHADES[4],
    }
}

fn colour(share: f64) -> Color {
    match share {
        0.0 => Color::DarkGray,
        share if share < 0.25 => Color::Blue,
        share if share < 0.5 => Color::Cyan,
        share if share < 0.75 => Color::Yellow,
        _ => Color::Red,
    }
}

fn draw_rounds(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let block = Block::bordered().title("rounds");
    let room = usize::from(block.inner(area).height).saturating_sub(1);
    let latest = view.rounds.len().saturating_sub(room);
    let rows = view.rounds.iter().skip(latest).map(|round| {
        Row::new([
            Cell::from(format!("{:>5}", round.round)),
            Cell::from(format!("{:>8}", round.pages)),
            Cell::from(format!("{:>9}", size(round.bytes))),
            Cell::from(format!("{:>8.1}", round.seconds * 1e3)),
        ])
    });
    let widths = [5, 8, 9, 8].map(Constraint::Length);
    let header = Row::new(["round", "   pages", "    bytes", "      ms"]).bold();
    let table = Table::new(rows, widths).header(header).block(block);
    frame.render_widget(table, area);
}

fn draw_queues(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let rows = view.queues.iter().map(|queue| {
        let index = |index: Option<u16>| index.map_or("-".to_owned(), |index| index.to_string());
        Row::new([
            Cell::from(format!("{:>5}", queue.queue)),
            Cell::from(format!("{:>5}", queue.size)),
            Cell::from(format!("{:>6}", queue.in_flight)),
            Cell::from(format!("{:>6}", index(queue.indices.map(|both| both.0)))),
            Cell::from(format!("{:>6}", index(queue.indices.map(|both| both.1)))),
        ])
    });
    let widths = [5, 5, 6, 6, 6].map(Constraint::Length);
    let header = Row::new(["queue", " size", "flying", " avail", "  used"]).bold();
    let table = Table::new(rows, widths)
        .header(header)
        .block(Block::bordered().title("queues"));
    frame.render_widget(table, area);
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} B"),
        10_000..=9_999_999 => format!("{} K", bytes >> 10),
        10_000_000..=9_999_999_999 => format!("{} M", bytes >> 20),
        _ => format!("{} G", bytes >> 30),
    }
}
