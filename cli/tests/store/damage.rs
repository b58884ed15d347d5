//! A store in a folder whose files are not what they were.

use crate::guest::{Guest, Random};
use crate::place::Place;
use crate::redb_file::{RedbFile, Unused};
use crate::scenarios::{give, name, put};
use migration::store::{Address, Fault, Store, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Everything that can be asked of a store: what `verify` says is wrong, or all that is in it.
fn ask(place: &Place) -> Result<Vec<Vec<u8>>, String> {
    let told = |error: StoreError| error.to_string();
    let address = Address::parse(&place.bodies, None).map_err(told)?;
    let store = Store::open(&address, false).map_err(told)?;
    let verified = store.verify().map_err(told)?;
    if let Some(fault) = verified.faults.first() {
        return Err(fault.fault.clone());
    }
    // Whatever it says nothing about must be had.
    let mut all = Vec::new();
    for (name, _) in store.list(None).unwrap() {
        let mut bytes = name.octets();
        let checkpoint = store.checkpoint(&name).unwrap();
        checkpoint.write(&mut bytes).unwrap();
        all.push(bytes);
    }
    Ok(all)
}

fn small() -> Place {
    let place = Place::folder();
    let store = place.open();
    let mut random = Random::new(9);
    let mut guest = Guest::new(&mut random, 300);
    put(&store, "vm/1/epoch/1", &guest);
    guest.run(&mut random, 30);
    put(&store, "vm/2/epoch/1", &guest);
    place
}

fn is_database(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "redb")
}

/// Two checkpoints that share pages, of a few objects that are small enough to flip every byte.
fn tiny() -> Place {
    let place = Place::folder();
    let store = place.open();
    let mut random = Random::new(9);
    let mut guest = Guest::new(&mut random, 24);
    put(&store, "vm/1/epoch/1", &guest);
    guest.run(&mut random, 5);
    let base = store.neighbour(&name("vm/1/epoch/2")).unwrap();
    let deposit = store.deposit(base.as_ref()).unwrap();
    give(
        &store,
        "vm/1/epoch/2",
        &deposit.stream(&guest.stream()[..]).unwrap(),
    );
    place
}

/// The places of a file to flip a bit at: all of a small one, else both ends and a sample; every place
/// of every file if `TIDEMARK_STORE_ALL_BYTES` is set.
fn places(length: usize, random: &mut Random) -> Vec<usize> {
    const SMALL: usize = 4096;
    const SAMPLE: usize = 250;
    if length <= SMALL || std::env::var_os("TIDEMARK_STORE_ALL_BYTES").is_some() {
        return (0..length).collect();
    }
    let any = |_| usize::try_from(random.below(length as u64)).unwrap();
    let sample = (0..SAMPLE).map(any);
    (0..64).chain(length - 64..length).chain(sample).collect()
}

fn flipped(bytes: &[u8], place: usize, random: &mut Random) -> Vec<u8> {
    let mut other = bytes.to_vec();
    other[place] ^= 1 << random.below(8);
    other
}

#[test]
fn verify_names_every_object_with_a_flipped_bit_and_what_it_spoils() {
    let place = tiny();
    let store = place.open();
    let mut random = Random::new(10);
    let mut flips = 0;
    for path in place.objects() {
        let parts: Vec<_> = path.iter().rev().take(2).collect();
        let id = format!("{}/{}", parts[1].display(), parts[0].display());
        let bytes = fs::read(&path).unwrap();
        // Who needs it: those that are told when it is gone.
        fs::remove_file(&path).unwrap();
        let gone = store.verify().unwrap().faults;
        let spoiled = |faults: &[Fault]| -> BTreeSet<String> {
            let about = faults.iter().filter(|fault| fault.fault.contains(&id));
            about.flat_map(|fault| fault.names.clone()).collect()
        };
        let needed_by = spoiled(&gone);
        assert!(!needed_by.is_empty(), "{id}: {gone:?}");
        for at in places(bytes.len(), &mut random) {
            fs::write(&path, flipped(&bytes, at, &mut random)).unwrap();
            let faults = store.verify().unwrap().faults;
            assert_eq!(spoiled(&faults), needed_by, "byte {at} of {id}: {faults:?}");
            flips += 1;
        }
        fs::write(&path, &bytes).unwrap();
        assert_eq!(store.verify().unwrap().faults, []);
    }
    println!("{flips} flips of objects, all of them told");
    assert!(flips > 3000, "{flips}");
}

/// What is not told must hold nothing, and it must be known why: redb's checksums cover what a
/// reader of the current commit comes by, each page up to its last entry. The rest is the header's
/// padding, the slot and the pages of older commits, free pages and the ends of others. With all such
/// bytes inverted at once, everything is as it was.
#[test]
fn verify_tells_every_flipped_bit_of_the_names_that_says_anything() {
    let place = tiny();
    let sound = ask(&place).unwrap();
    let files = place.files();
    let path = files.iter().find(|path| is_database(path)).unwrap();
    let bytes = fs::read(path).unwrap();
    let file = RedbFile::read(&bytes);
    let mut random = Random::new(12);
    let (mut told, mut silent) = (0, BTreeSet::new());
    let mut why: BTreeMap<Unused, u32> = BTreeMap::new();
    // Its pages are of 4 KiB, and most of them are empty: more of those that are not.
    let used = bytes.chunks(4096).enumerate();
    let used: Vec<usize> = used
        .filter(|(_, page)| page.iter().any(|byte| *byte != 0))
        .map(|(number, _)| number * 4096)
        .collect();
    let all = std::env::var_os("TIDEMARK_STORE_ALL_BYTES").is_some();
    let mut places: BTreeSet<usize> = (0..512).collect();
    for page in &used {
        let any = |_| page + usize::try_from(random.below(4096)).unwrap();
        match all {
            true => places.extend(*page..page + 4096),
            false => places.extend((0..40).map(any)),
        }
    }
    places.extend((0..100).map(|_| usize::try_from(random.below(bytes.len() as u64)).unwrap()));
    for at in places {
        fs::write(path, flipped(&bytes, at, &mut random)).unwrap();
        match ask(&place) {
            Err(_) => told += 1,
            Ok(all) => {
                assert!(all == sound, "byte {at} is lost and nobody tells");
                let unused = file.unused(at);
                let unused = unused.unwrap_or_else(|| panic!("byte {at} is covered, yet not told"));
                *why.entry(unused).or_default() += 1;
                silent.insert(at);
            }
        }
    }
    let mut other = bytes.clone();
    for at in &silent {
        other[*at] ^= 0xff;
    }
    fs::write(path, &other).unwrap();
    assert!(ask(&place).unwrap() == sound, "what nobody told was of use");
    fs::write(path, &bytes).unwrap();
    assert!(ask(&place).unwrap() == sound);
    println!(
        "{told} flips of names told; {} of what nobody reads: {why:?}",
        silent.len()
    );
    assert!(told > 100, "{told}");
}

/// redb panics on some damage. Who asks is told so in words, without a panic's traces.
#[test]
fn a_panic_about_damage_is_an_error_and_nothing_else() {
    const SAYS: &str = "the database is damaged";
    let place = tiny();
    let files = place.files();
    let path = files.iter().find(|path| is_database(path)).unwrap();
    let bytes = fs::read(path).unwrap();
    let mut random = Random::new(12);
    let mut panics = (0..bytes.len()).filter(|at| {
        fs::write(path, flipped(&bytes, *at, &mut random)).unwrap();
        ask(&place).is_err_and(|told| told.contains(SAYS))
    });
    assert!(panics.next().is_some(), "no flip makes it panic");
    let verified = Command::new(env!("CARGO_BIN_EXE_tidemark"))
        .args(["store", "verify"])
        .args(place.arguments())
        .output()
        .unwrap();
    let told = [verified.stdout, verified.stderr].concat();
    let told = String::from_utf8(told).unwrap();
    assert_eq!(verified.status.code(), Some(1), "{told}");
    assert!(told.contains(SAYS) && !told.contains("panicked"), "{told}");
}

#[test]
fn files_of_others_are_told_by_name() {
    let place = small();
    let sound = ask(&place).unwrap();
    let files = place.files();
    let mut random = Random::new(11);
    for path in &files {
        let bytes = fs::read(path).unwrap();
        let other = files.iter().rev().find(|other| *other != path).unwrap();
        let half = bytes[..bytes.len() / 2].to_vec();
        let garbage: Vec<u8> = (0..bytes.len())
            .map(|_| random.next_u64().to_le_bytes()[0])
            .collect();
        let longer = [&bytes[..], &[0]].concat();
        let replaced = [half, Vec::new(), garbage, longer, fs::read(other).unwrap()];
        for (number, replaced) in replaced.into_iter().enumerate() {
            fs::write(path, replaced).unwrap();
            match ask(&place) {
                Err(told) => assert!(!told.is_empty()),
                // A database may have room at its end.
                Ok(all) => assert!(
                    is_database(path) && number == 3 && all == sound,
                    "{number} for {}",
                    path.display()
                ),
            }
            fs::write(path, &bytes).unwrap();
        }
        fs::remove_file(path).unwrap();
        ask(&place).expect_err("a file is gone");
        fs::write(path, &bytes).unwrap();
    }
    assert_eq!(ask(&place).unwrap(), sound);
}

#[test]
fn a_fault_names_what_it_spoils_and_stops_collections() {
    let place = small();
    let is =
        |path: &&std::path::PathBuf, ending: &str| path.extension().is_some_and(|e| e == ending);
    let files = place.files();
    let root = files.iter().find(|path| is(path, "root")).unwrap();
    let before = files.len();
    fs::write(root, b"none").unwrap();
    let store = place.open();
    let verified = store.verify().unwrap();
    assert_eq!(verified.faults.len(), 1);
    assert_eq!(verified.faults[0].names.len(), 1);
    let told = store.gc().unwrap_err().to_string();
    assert!(told.contains("is damaged: expected"), "{told}");
    assert_eq!(
        place.files().len(),
        before,
        "a collection that cannot know removes nothing"
    );
    let spoiled = name(&verified.faults[0].names[0]);
    assert!(matches!(
        store.checkpoint(&spoiled),
        Err(StoreError::Damaged { .. })
    ));
}
