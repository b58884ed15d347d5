//! What a release takes beside its programs: what is made from definitions, the packages, and what is
//! known of the dependencies.

pub mod deb;
pub mod deny;
pub mod generate;
pub mod sbom;
