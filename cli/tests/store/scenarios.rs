//! What every store must do, wherever it is.

use crate::guest::{Guest, Random};
use crate::place::Place;
use migration::names::{Conflict, Mode, Name};
use migration::store::{Base, Extent, Sealed, Store, StoreError, Wanted};
use std::collections::BTreeMap;

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn give(store: &Store, text: &str, sealed: &Sealed) {
    let applied = store.commit(&[(name(text), Wanted::Put(sealed))], Mode::Atomic);
    assert_eq!(applied.unwrap().refused, []);
}

pub fn put(store: &Store, text: &str, guest: &Guest) {
    let deposit = store.deposit(None).unwrap();
    give(store, text, &deposit.stream(&guest.stream()[..]).unwrap());
}

pub fn get(store: &Store, text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    store
        .checkpoint(&name(text))
        .unwrap()
        .write(&mut bytes)
        .unwrap();
    bytes
}

fn listed(store: &Store) -> Vec<String> {
    let all = store.list(None).unwrap();
    all.iter().map(|(name, _)| name.to_string()).collect()
}

fn increment(store: &Store, base: &Base, guest: &Guest, written: &[u64]) -> Sealed {
    let mut deposit = store.deposit(Some(base)).unwrap();
    for page in written {
        deposit.pages(&[*page], &guest.pages[page]).unwrap();
    }
    let sealed = deposit.seal(Extent::Increment, &guest.description(), &guest.devices());
    sealed.unwrap()
}

/// What goes in comes out, byte for byte; a name is put once.
pub fn comes_back(place: &Place) {
    let store = place.open();
    let guest = Guest::new(&mut Random::new(1), 5000);
    put(&store, "vm/1/epoch/1", &guest);
    assert_eq!(get(&store, "vm/1/epoch/1"), guest.stream());
    let deposit = store.deposit(None).unwrap();
    let sealed = deposit.stream(&guest.stream()[..]).unwrap();
    let wanted = ["vm/1/epoch/1", "vm/1", "vm/1/epoch/1/x", "vm/2"];
    let wanted: Vec<_> = wanted.map(|text| (name(text), Wanted::Put(&sealed))).into();
    let applied = store.commit(&wanted, Mode::Atomic).unwrap();
    assert_eq!((applied.made, applied.refused.len()), (0, 3));
    assert!(matches!(&applied.refused[1], Conflict::Exists(_)));
    assert_eq!(listed(&store), ["vm/1/epoch/1"]);
    let applied = store.commit(&wanted, Mode::PerItem).unwrap();
    assert_eq!((applied.made, applied.refused.len()), (1, 3));
    assert_eq!(listed(&store), ["vm/1/epoch/1", "vm/2"]);
    assert!(matches!(
        store.checkpoint(&name("vm/3")),
        Err(StoreError::Unknown(_))
    ));
    assert_eq!(store.verify().unwrap().faults, []);
}

/// More epochs than a checkpoint has indexes, then all but some are removed: those are whole.
pub fn increments_stand_alone(place: &Place) {
    let store = place.open();
    let mut random = Random::new(2);
    let mut guest = Guest::new(&mut random, 3000);
    let mut deposit = store.deposit(None).unwrap();
    let (pages, data): (Vec<u64>, Vec<_>) = guest.pages.clone().into_iter().unzip();
    deposit.pages(&pages, &data.concat()).unwrap();
    let sealed = deposit.seal(Extent::Whole, &guest.description(), &guest.devices());
    let sealed = sealed.unwrap();
    let whole = sealed.record().new_bytes;
    give(&store, "vm/1/epoch/0", &sealed);
    let mut base = sealed.into_base(name("vm/1/epoch/0"));
    let mut streams = BTreeMap::new();
    for epoch in 1..40 {
        let written = guest.run(&mut random, 50);
        let sealed = increment(&store, &base, &guest, &written);
        assert!(sealed.record().new_pages <= 50 && sealed.record().new_bytes < whole / 10);
        let text = format!("vm/1/epoch/{epoch}");
        give(&store, &text, &sealed);
        streams.insert(text.clone(), guest.stream());
        base = sealed.into_base(name(&text));
    }
    let kept = [
        "vm/1/epoch/7",
        "vm/1/epoch/16",
        "vm/1/epoch/17",
        "vm/1/epoch/39",
    ];
    let names = listed(&store)
        .into_iter()
        .filter(|name| !kept.contains(&name.as_str()));
    let gone: Vec<_> = names.map(|text| (name(&text), Wanted::Remove)).collect();
    assert_eq!(store.commit(&gone, Mode::Atomic).unwrap().made, 36);
    let collected = store.gc().unwrap();
    assert!(collected.removed >= 36, "{collected:?}");
    for text in kept {
        assert_eq!(get(&store, text), streams[text], "{text}");
    }
    let verified = store.verify().unwrap();
    assert_eq!((verified.faults, verified.unnamed), (vec![], 0));
    let all = store.list(None).unwrap();
    let gone: Vec<_> = all
        .into_iter()
        .map(|(name, _)| (name, Wanted::Remove))
        .collect();
    store.commit(&gone, Mode::Atomic).unwrap();
    assert_eq!(store.gc().unwrap().kept, 0);
}

/// A whole stream beside an older one costs what differs, pages that are alike once, and a page
/// that is gone is gone.
pub fn like_is_shared(place: &Place) {
    let store = place.open();
    let mut random = Random::new(3);
    let mut guest = Guest::new(&mut random, 4000);
    put(&store, "vm/1/epoch/1", &guest);
    let (_, first) = store.list(None).unwrap()[0];
    assert!(
        first.new_pages < 4000 * 4 / 5,
        "pages of zeros are one: {first:?}"
    );
    let written = guest.run(&mut random, 30);
    guest.pages.remove(&17);
    let base = store
        .neighbour(&name("vm/1/epoch/2"))
        .unwrap()
        .expect("a neighbour");
    let deposit = store.deposit(Some(&base)).unwrap();
    let sealed = deposit.stream(&guest.stream()[..]).unwrap();
    assert!(sealed.record().new_pages <= written.len() as u64);
    give(&store, "vm/1/epoch/2", &sealed);
    assert_eq!(get(&store, "vm/1/epoch/2"), guest.stream());
    assert!(store.neighbour(&name("vm/2/epoch/1")).unwrap().is_none());
}

/// Neither a collection nor the loss of its base spoils what is being put.
pub fn puts_and_collections(place: &Place) {
    let (store, other) = (place.open(), place.open());
    let mut random = Random::new(4);
    let mut guest = Guest::new(&mut random, 5000);
    put(&store, "vm/1/epoch/1", &guest);
    let base = store
        .neighbour(&name("vm/1/epoch/2"))
        .unwrap()
        .expect("a neighbour");
    let written = guest.run(&mut random, 20);
    let sealed = increment(&store, &base, &guest, &written);
    let whole = store
        .deposit(None)
        .unwrap()
        .stream(&guest.stream()[..])
        .unwrap();
    let rm = [(name("vm/1/epoch/1"), Wanted::Remove)];
    other.commit(&rm, Mode::Atomic).unwrap();
    let collected = other.gc().unwrap();
    assert!(collected.removed > 0 && collected.kept > 0, "{collected:?}");
    let wanted = [(name("vm/1/epoch/2"), Wanted::Put(&sealed))];
    let refused = store.commit(&wanted, Mode::Atomic);
    assert!(
        matches!(refused, Err(StoreError::BaseGone(_))),
        "{refused:?}"
    );
    give(&store, "vm/1/epoch/2", &whole);
    drop((sealed, whole));
    assert_eq!(other.gc().unwrap().removed, 3);
    assert_eq!(get(&store, "vm/1/epoch/2"), guest.stream());
    // Nobody names this one.
    drop(
        store
            .deposit(None)
            .unwrap()
            .stream(&guest.stream()[..])
            .unwrap(),
    );
    assert!(other.gc().unwrap().removed >= 3);
    assert_eq!(store.verify().unwrap().faults, []);
}

/// A batch larger than any transaction of etcd.
pub fn large_batches(place: &Place) {
    let store = place.open();
    let guest = Guest::new(&mut Random::new(5), 10);
    let sealed = store
        .deposit(None)
        .unwrap()
        .stream(&guest.stream()[..])
        .unwrap();
    let texts: Vec<String> = (0..2000)
        .map(|n| format!("vm/{}/epoch/{n}", n % 50))
        .collect();
    let wanted: Vec<_> = texts
        .iter()
        .map(|text| (name(text), Wanted::Put(&sealed)))
        .collect();
    assert_eq!(store.commit(&wanted, Mode::Atomic).unwrap().made, 2000);
    assert_eq!(store.list(None).unwrap().len(), 2000);
    assert_eq!(store.list(Some(&name("vm/7"))).unwrap().len(), 40);
    let again = store.commit(&wanted, Mode::PerItem).unwrap();
    assert_eq!((again.made, again.refused.len()), (0, 2000));
    let below = texts.iter().map(|text| name(&format!("{text}/x")));
    let below: Vec<_> = below.map(|name| (name, Wanted::Put(&sealed))).collect();
    assert_eq!(
        store.commit(&below, Mode::PerItem).unwrap().refused.len(),
        2000
    );
    let gone: Vec<_> = texts
        .iter()
        .map(|text| (name(text), Wanted::Remove))
        .collect();
    assert_eq!(store.commit(&gone, Mode::Atomic).unwrap().made, 2000);
    assert_eq!(store.list(None).unwrap().len(), 0);
    assert_eq!(store.commit(&below, Mode::Atomic).unwrap().made, 2000);
}
