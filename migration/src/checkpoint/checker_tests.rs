use super::*;
use proptest::prelude::*;

type Part = (Side, Vec<u8>);

fn record(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    let mut bytes = [kind.to_le_bytes(), length.to_le_bytes()].concat();
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn memory() -> Vec<u8> {
    [
        record(1, &[0xff; 35]),
        record(1, &[5; 8]),
        record(0x0e, &[]),
    ]
    .concat()
}

fn plain(kind: Kind) -> Part {
    (kind.sender(), Message::Plain(kind).to_bytes())
}

/// Two checkpoints, the return path speaking first.
fn conversation() -> Vec<Part> {
    let mut parts = vec![
        (Side::Primary, vec![0x51; 1000]),
        (Side::Secondary, vec![0, 2, 0, 4, 0, 0, 0, 1]),
        plain(Kind::Ready),
    ];
    for size in [5, 0] {
        parts.push(plain(Kind::Request));
        parts.push(plain(Kind::Reply));
        parts.push(plain(Kind::Send));
        parts.push((Side::Primary, memory()));
        parts.push((Side::Primary, Message::Size(size).to_bytes()));
        // Bytes of device state that look like messages.
        parts.push((Side::Primary, vec![0; usize::try_from(size).unwrap()]));
        parts.push(plain(Kind::Received));
        parts.push(plain(Kind::Loaded));
    }
    parts
}

fn judge(parts: &[Part], chunk: usize) -> Result<Vec<Kind>, Verdict> {
    let mut checker = Checker::new(LibxcMemory::default());
    let mut kinds = Vec::new();
    for (from, bytes) in parts {
        for bytes in bytes.chunks(chunk) {
            let seen = checker.feed(*from, bytes)?;
            kinds.extend(seen.into_iter().map(|seen| seen.message.kind()));
        }
    }
    checker.end(Side::Primary)?;
    checker.end(Side::Secondary)?;
    Ok(kinds)
}

#[test]
fn a_conversation_is_followed_however_it_is_cut_up() {
    let expected: Vec<Kind> = [0, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]
        .into_iter()
        .filter_map(Kind::from_number)
        .collect();
    for chunk in [1, 2, 3, 5, 7, 4096] {
        assert_eq!(
            judge(&conversation(), chunk).as_ref(),
            Ok(&expected),
            "{chunk}"
        );
    }
}

#[test]
fn each_message_flipped_is_reported_with_what_was_expected() {
    let parts = conversation();
    let messages = parts.iter().enumerate().filter(|(_, (from, bytes))| {
        bytes.len() == 4 || (*from == Side::Primary && bytes.len() == 12)
    });
    for (place, (_, bytes)) in messages {
        for bit in 0..32 {
            let mut flipped = parts.clone();
            flipped[place].1[bit / 8] ^= 0x80 >> (bit % 8);
            // Before READY some words are the return path's, and the end is missed later.
            let error = judge(&flipped, 4096).unwrap_err();
            let name = Kind::from_number(u32::from(bytes[3])).unwrap().name();
            let text = error.to_string();
            assert!(place == 2 || text.contains(name), "{text}");
        }
    }
}

#[test]
fn each_message_left_out_or_doubled_is_reported() {
    let parts = conversation();
    for place in 2..parts.len() {
        if parts[place].1.is_empty() {
            continue;
        }
        let (mut fewer, mut more) = (parts.clone(), parts.clone());
        fewer.remove(place);
        more.insert(place, parts[place].clone());
        assert!(judge(&fewer, 4096).is_err(), "{place} left out");
        assert!(judge(&more, 4096).is_err(), "{place} doubled");
    }
}

#[test]
fn messages_are_told_with_their_place() {
    let mut checker = Checker::new(LibxcMemory::default());
    let mut all = Vec::new();
    for (from, bytes) in conversation() {
        all.extend(checker.feed(from, &bytes).unwrap());
    }
    let place = |kind, nth| {
        let found = all
            .iter()
            .find(|s| s.message.kind() == kind && s.nth == nth);
        found.map(|seen| seen.at)
    };
    assert_eq!(place(Kind::Ready, 1), Some(8));
    assert_eq!(place(Kind::Request, 1), Some(1000));
    assert_eq!(place(Kind::Send, 1), Some(1004));
    let size = 1008 + u64::try_from(memory().len()).unwrap();
    assert_eq!(place(Kind::Size, 1), Some(size));
    assert_eq!(place(Kind::Request, 2), Some(size + 12 + 5));
    assert_eq!(place(Kind::Loaded, 2), Some(8 + 4 + 3 * 4 + 2 * 4));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        parts in proptest::collection::vec((any::<bool>(), any::<Vec<u8>>()), 0..20),
        start in 0_usize..19,
    ) {
        let mut checker = Checker::new(LibxcMemory::default());
        for (from, bytes) in conversation().into_iter().take(start) {
            checker.feed(from, &bytes).unwrap();
        }
        for (primary, bytes) in parts {
            let from = if primary { Side::Primary } else { Side::Secondary };
            if checker.feed(from, &bytes).is_err() {
                break;
            }
        }
    }
}

/// A memory format of which only the length is known.
struct OfLength(usize, usize);

impl MemoryEnd for OfLength {
    fn pass(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        let now = bytes.len().min(self.0 - self.1);
        self.1 += now;
        Ok((self.1 == self.0).then(|| {
            self.1 = 0;
            now
        }))
    }
}

/// As captured between two QEMU 7.2, by its bytes and lengths: one checkpoint.
#[test]
fn what_qemu_says_is_in_order() {
    let mut checker = Checker::new(OfLength(17641, 0));
    let (p, s) = (Side::Primary, Side::Secondary);
    let mut say = |from, bytes: &[u8]| checker.feed(from, bytes).unwrap().len();
    assert_eq!(say(p, &vec![0x51; 740_103]), 0);
    assert_eq!(say(s, &[0, 0, 0, 0]), 1);
    assert_eq!(say(p, &[0, 0, 0, 1]), 1);
    assert_eq!(say(s, &[0, 0, 0, 2]), 1);
    let mut rest = vec![0, 0, 0, 3];
    rest.extend(vec![0; 17641]);
    rest.extend([0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0x32, 0x59]);
    rest.extend(vec![0; 12889]);
    assert_eq!(say(p, &rest), 2);
    assert_eq!(say(s, &[0, 0, 0, 5, 0, 0, 0, 6]), 2);
    assert_eq!(checker.step(), Step::Idle);
}
