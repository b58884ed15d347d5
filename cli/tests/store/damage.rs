//! A store in a folder whose files are not what they were.

use crate::guest::{Guest, Random};
use crate::place::Place;
use crate::scenarios::{name, put};
use migration::store::{Address, Store, StoreError};
use std::fs;
use std::path::Path;

/// Everything that can be asked of a store: what it says is wrong, or all that is in it.
fn ask(place: &Place) -> Result<Vec<Vec<u8>>, String> {
    let told = |error: StoreError| error.to_string();
    let address = Address::parse(&place.bodies, None).map_err(told)?;
    let store = Store::open(&address, false).map_err(told)?;
    let verified = store.verify().map_err(told)?;
    if let Some(fault) = verified.faults.first() {
        return Err(fault.fault.clone());
    }
    let mut all = Vec::new();
    for (name, _) in store.list(None).map_err(told)? {
        let mut bytes = name.octets();
        store
            .checkpoint(&name)
            .map_err(told)?
            .write(&mut bytes)
            .map_err(told)?;
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

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let place = small();
    let sound = ask(&place).unwrap();
    let mut random = Random::new(10);
    let (mut objects, mut database, mut unused) = (0, 0, 0);
    for path in place.files() {
        let bytes = fs::read(&path).unwrap();
        let length = bytes.len() as u64;
        // The database is mostly empty: more of its bits are tried.
        let tries = if is_database(&path) { 200 } else { 8 };
        for _ in 0..tries {
            let bit = random.below(8 * length);
            let mut other = bytes.clone();
            other[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
            fs::write(&path, &other).unwrap();
            match ask(&place) {
                Err(_) if is_database(&path) => database += 1,
                Err(_) => objects += 1,
                // redb has pages that hold nothing: who flips a bit there takes nothing away.
                Ok(all) => {
                    assert!(is_database(&path), "bit {bit} of {}", path.display());
                    assert_eq!(all, sound, "bit {bit} of {}", path.display());
                    unused += 1;
                }
            }
            fs::write(&path, &bytes).unwrap();
        }
    }
    println!("{objects} flips of objects and {database} of names found, {unused} of unused bits");
    assert!(objects >= 40 && database > 0);
    assert_eq!(ask(&place).unwrap(), sound);
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
