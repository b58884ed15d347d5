use super::layout::{Entry, Index, Root};
use super::record::hash;
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

fn reference(kind: Kind, number: u32, bytes: u64) -> Reference {
    Reference {
        id: ObjectId {
            put: Uuid::from_u128(7),
            number,
            kind,
        },
        bytes,
        hash: hash(&number.to_le_bytes()),
    }
}

fn record() -> Record {
    Record {
        root: reference(Kind::Root, 3, 100),
        created_ms: 1,
        pages: 2,
        new_pages: 3,
        new_bytes: 4,
    }
}

fn index() -> Index {
    let entry = |page: u64, pack, place| Entry {
        page,
        pack,
        place,
        hash: hash(&page.to_le_bytes()),
    };
    Index {
        packs: vec![
            reference(Kind::Pack, 0, 8192),
            reference(Kind::Pack, 1, 4096),
        ],
        entries: vec![entry(0, 0, 1), entry(5, 1, 0), entry(6, 0, 0)],
    }
}

#[test]
fn an_entry_is_good_for_its_name_only() {
    let name = |text: &str| -> Name { text.parse().expect("well-formed") };
    let bytes = record().to_bytes(&name("vm/7"));
    assert_eq!(Record::from_bytes(&name("vm/7"), &bytes).unwrap(), record());
    let told = Record::from_bytes(&name("vm/8"), &bytes).unwrap_err();
    assert!(
        told.to_string().contains("the entry of 'vm/8' is damaged"),
        "{told}"
    );
    for bit in 0..8 * bytes.len() {
        let mut other = bytes.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        assert!(
            Record::from_bytes(&name("vm/7"), &other).is_err(),
            "bit {bit}"
        );
    }
}

#[test]
fn objects_are_called_in_one_way() {
    let id = reference(Kind::Index, 12, 0).id;
    let text = id.to_string();
    let (folder, file) = text.split_once('/').expect("a folder");
    assert_eq!(ObjectId::parse(folder, file), Some(id));
    for other in [
        "012.index",
        "12.Index",
        "12",
        "12.root#1",
        "-1.pack",
        "+12.pack",
    ] {
        assert_eq!(ObjectId::parse(folder, other), None, "{other}");
    }
    assert_eq!(
        ObjectId::parse(&folder.to_uppercase().replace('0', "A"), file),
        None
    );
}

#[test]
fn an_index_that_leads_out_of_its_packs_is_refused() {
    let what = "an index";
    let sound = index();
    assert_eq!(Index::from_bytes(&what, &sound.to_bytes()).unwrap(), sound);
    let spoil = |change: &dyn Fn(&mut Index)| {
        let mut other = index();
        change(&mut other);
        Index::from_bytes(&what, &other.to_bytes())
            .unwrap_err()
            .to_string()
    };
    for told in [
        spoil(&|index| index.entries[1].place = 1),
        spoil(&|index| index.entries[1].pack = 2),
        spoil(&|index| index.entries[1].page = 6),
        spoil(&|index| index.entries[2].page = 1 << 52),
        spoil(&|index| index.packs[0].id.kind = Kind::Root),
        spoil(&|index| index.entries[0].place = u32::MAX),
    ] {
        assert!(told.contains("an index is damaged: expected"), "{told}");
    }
}

proptest! {
    #[test]
    fn garbage_is_refused(garbage in vec(any::<u8>(), 0..400), magic in any::<bool>()) {
        let root = Root {
            indexes: vec![reference(Kind::Index, 1, 9)],
            packs: vec![reference(Kind::Pack, 0, 9)],
            pages: 1,
            rest: Vec::new(),
        };
        for sound in [root.to_bytes(), index().to_bytes()] {
            let mut bytes = garbage.clone();
            if magic {
                bytes.splice(0..0, sound.iter().copied().take(8));
            }
            let refused = [
                Root::from_bytes(&"it", &bytes).is_err(),
                Index::from_bytes(&"it", &bytes).is_err(),
            ];
            prop_assert_eq!(refused, [true, true]);
        }
    }

    #[test]
    fn the_last_of_a_page_counts(
        below in proptest::collection::btree_map(0_u64..40, 0_u32..9, 0..20),
        above in proptest::collection::btree_map(0_u64..40, 0_u32..9, 0..20),
    ) {
        let entries = |of: &std::collections::BTreeMap<u64, u32>| -> Vec<Entry> {
            let entry = |(page, place): (&u64, &u32)| Entry {
                page: *page,
                pack: 0,
                place: *place,
                hash: Hash::default(),
            };
            of.iter().map(entry).collect()
        };
        let mut both = below.clone();
        both.extend(above.clone());
        prop_assert_eq!(pages::laid_over(entries(&below), &entries(&above)), entries(&both));
    }
}
