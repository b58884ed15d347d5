//! Where names are, as the rest of the store sees it.

use super::error::StoreError;
use crate::names::{Batch, Conflict, Name};
use std::collections::BTreeSet;
use std::fmt;
use uuid::Uuid;

/// Names with what stands behind each, in bytes.
pub(super) type Entries = Vec<(Name, Vec<u8>)>;

/// A place for names.
pub(super) trait Catalogue: fmt::Debug + Send + Sync {
    /// All that is visible, at one moment, sorted; with a directory, what is within it.
    fn entries(&self, within: Option<&Name>) -> Result<Entries, StoreError>;

    /// What stands behind a name.
    fn entry(&self, name: &Name) -> Result<Option<Vec<u8>>, StoreError>;

    /// Takes the lock that everybody who changes names needs. It goes with its holder.
    fn lock(&self) -> Result<Box<dyn Locked + '_>, StoreError>;

    /// Announces that objects of this put are going to be written: they are nobody's garbage for as
    /// long as the announcement lives, which goes with its holder.
    fn announce(&self, put: Uuid) -> Result<Box<dyn Announcement>, StoreError>;

    /// Checks what only this kind of place has to be checked for; what is wrong, in words.
    fn check(&self) -> Result<Vec<String>, StoreError>;
}

/// Holds an announcement, and takes it back when it goes.
pub(super) trait Announcement: fmt::Debug + Send {}

/// A change of what stands behind a name: nothing, to remove it.
pub(super) type Edit = (Name, Option<Vec<u8>>);

/// Names, locked.
pub(super) trait Locked {
    /// What of a batch cannot be made.
    fn judge(&mut self, batch: &Batch<Name>) -> Result<Vec<Conflict<Name>>, StoreError>;

    /// What stands behind a name.
    fn entry(&mut self, name: &Name) -> Result<Option<Vec<u8>>, StoreError>;

    /// All, sorted.
    fn entries(&mut self) -> Result<Entries, StoreError>;

    /// The puts that are announced. Of those that are not, nothing can be committed any more. An
    /// error if the lock was lost until now.
    fn announced(&mut self) -> Result<BTreeSet<Uuid>, StoreError>;

    /// Makes all changes, visibly at once and durably, or none.
    fn commit(self: Box<Self>, edits: &[Edit]) -> Result<(), StoreError>;
}
