//! The store of checkpoints, wherever it is: what it must do, what damage it must find, and what
//! must be left when its processes are killed.
//!
//! `TIDEMARK_STORE_KILLS` says how many processes are killed in each place, before their own end, and
//! `TIDEMARK_STORE_ALL_BYTES` has every byte flipped. With the features
//! `etcd` and `s3` the same is asked of Debian's etcd and of an S3 server, which are started here:
//! `TIDEMARK_ETCD` and `TIDEMARK_S3` name the programs.

#[cfg(feature = "s3")]
mod bucket;
mod damage;
mod guest;
mod kills;
#[cfg(feature = "etcd")]
mod leases;
mod place;
mod redb_file;
mod scenarios;
#[cfg(any(feature = "etcd", feature = "s3"))]
mod server;
mod victim;

use place::Place;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

macro_rules! everywhere {
    ($($module:ident: $place:expr;)*) => {$(
        mod $module {
            use crate::{kills, place::Place, scenarios};

            fn place() -> Place {
                $place
            }

            #[test]
            fn what_is_put_comes_back() {
                scenarios::comes_back(&place());
            }

            #[test]
            fn increments_stand_alone() {
                scenarios::increments_stand_alone(&place());
            }

            #[test]
            fn like_is_shared() {
                scenarios::like_is_shared(&place());
            }

            #[test]
            fn puts_and_collections_do_not_meet() {
                scenarios::puts_and_collections(&place());
            }

            #[test]
            fn batches_of_any_size_are_one() {
                scenarios::large_batches(&place());
            }

            #[test]
            fn killed_anywhere_nothing_named_is_damaged() {
                kills::run(stringify!($module), place);
            }
        }
    )*};
}

everywhere! {
    folder: Place::folder();
}

/// A child has all descriptors of its parent until it becomes another program, locked ones among them.
#[test]
fn children_of_other_threads_are_in_nobodys_way() {
    let place = Place::folder();
    let store = place.open();
    let listing = AtomicBool::new(true);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while listing.load(Ordering::Relaxed) {
                    assert!(Command::new("/bin/true").status().unwrap().success());
                }
            });
        }
        let failed = (0..1000).find_map(|_| store.list(None).err());
        listing.store(false, Ordering::Relaxed);
        assert!(failed.is_none(), "{failed:?}");
    });
}

#[cfg(feature = "etcd")]
everywhere! {
    etcd: crate::server::etcd();
}

#[cfg(feature = "s3")]
everywhere! {
    s3: crate::server::s3();
}

#[cfg(all(feature = "etcd", feature = "s3"))]
everywhere! {
    etcd_and_s3: crate::server::both();
}
