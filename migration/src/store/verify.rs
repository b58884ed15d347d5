//! Looking at every byte that any name needs.

use super::Store;
use super::checkpoint::parts;
use super::error::StoreError;
use super::layout::{Index, PAGE_BYTES, Root};
use super::pages::Pages;
use super::record::{Hash, ObjectId, Record, Reference, hash};
use crate::names::Name;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Something that is not what was put, and what cannot be had for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// What is wrong, and where.
    pub fault: String,
    /// The names that need it.
    pub names: Vec<String>,
}

/// What was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Names.
    pub names: u64,
    /// Objects that they need.
    pub objects: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Pages held against their indexes, those of an index once.
    pub pages: u64,
    /// Objects that no name needs, and nobody looked at: gc removes them, or a put is under way.
    pub unnamed: u64,
    /// What is wrong. None: all that was put can be had.
    pub faults: Vec<Fault>,
}

#[derive(Debug, Default)]
struct Survey {
    verified: Verified,
    /// Who needs what.
    needs: BTreeMap<Reference, Vec<Name>>,
    /// What packs must hold, by what indexes say.
    places: BTreeMap<Reference, Vec<(u32, Hash)>>,
    looked_at: BTreeSet<ObjectId>,
}

impl Survey {
    fn fault(&mut self, fault: &dyn std::fmt::Display, names: &[Name]) {
        self.verified.faults.push(Fault {
            fault: fault.to_string(),
            names: names.iter().map(Name::to_string).collect(),
        });
    }

    fn seen(&mut self, object: &Reference) {
        if self.looked_at.insert(object.id) {
            self.verified.objects += 1;
            self.verified.bytes += object.bytes;
        }
    }
}

impl Store {
    /// Reads all that any name needs, and the names, and tells what is not as it was put.
    ///
    /// # Errors
    /// [`StoreError`] if the names cannot be read or the objects not be listed at all.
    pub fn verify(&self) -> Result<Verified, StoreError> {
        let mut survey = Survey::default();
        for fault in self.names.check()? {
            survey.fault(&fault, &[]);
        }
        let listed = self.bodies.list()?;
        for (name, value) in self.names.entries(None)? {
            survey.verified.names += 1;
            match Record::from_bytes(&name, &value) {
                Ok(record) => survey.needs.entry(record.root).or_default().push(name),
                Err(error) => survey.fault(&error, &[name]),
            }
        }
        for (root, names) in std::mem::take(&mut survey.needs) {
            survey.seen(&root);
            if let Err(error) = self.root(&mut survey, &root, &names) {
                survey.fault(&error, &names);
            }
        }
        for (pack, names) in std::mem::take(&mut survey.needs) {
            survey.seen(&pack);
            if let Err(error) = self.pack(&mut survey, &pack) {
                survey.fault(&error, &names);
            }
        }
        let unnamed = listed
            .iter()
            .filter(|(id, _)| !survey.looked_at.contains(id));
        survey.verified.unnamed = u64::try_from(unnamed.count()).unwrap_or(u64::MAX);
        Ok(survey.verified)
    }

    /// Looks at a root and its indexes; its packs are noted for later.
    fn root(
        &self,
        survey: &mut Survey,
        reference: &Reference,
        names: &[Name],
    ) -> Result<(), StoreError> {
        let what = reference.id.to_string();
        let root = Root::from_bytes(&what, &self.bodies.get(reference)?)?;
        for pack in &root.packs {
            let needs = survey.needs.entry(*pack).or_default();
            needs.extend_from_slice(names);
        }
        parts(&what, &root.rest)?;
        for index in &root.indexes {
            if !survey.looked_at.contains(&index.id) {
                survey.seen(index);
                let parsed = Index::from_bytes(&index.id, &self.bodies.get(index)?)?;
                for entry in &parsed.entries {
                    let at = usize::try_from(entry.pack).unwrap_or(usize::MAX);
                    if let Some(pack) = parsed.packs.get(at) {
                        let places = survey.places.entry(*pack).or_default();
                        places.push((entry.place, entry.hash));
                    }
                }
            }
        }
        Pages::read(&self.bodies, &root, &what).map(drop)
    }

    fn pack(&self, survey: &mut Survey, reference: &Reference) -> Result<(), StoreError> {
        let bytes = self.bodies.get(reference)?;
        for (place, expected) in survey.places.remove(reference).unwrap_or_default() {
            let from = usize::try_from(place).unwrap_or(usize::MAX);
            let from = from.saturating_mul(PAGE_BYTES);
            let page = bytes.get(from..from.saturating_add(PAGE_BYTES));
            if page.is_none_or(|page| hash(page) != expected) {
                let what = format!("place {place} of {}", reference.id);
                return Err(super::error::damaged(
                    what,
                    "a page of its index",
                    "other bytes",
                ));
            }
            survey.verified.pages += 1;
        }
        Ok(())
    }
}
