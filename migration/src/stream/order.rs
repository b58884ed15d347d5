//! Which record may follow which: the grammar of both layers, without a byte of them.

use super::framing::{Bad, Layer, NEWER};
use super::libxc::{self, DomainType, Record as Libxc, VcpuPart, Version};
use super::libxl::{Emulator, Record as Libxl};
use std::collections::HashSet;

/// The most emulators of an epoch: more is an attack on memory.
const EMULATORS_MAX: usize = 4096;

/// What may come next.
#[derive(Debug)]
pub(super) struct Order {
    /// An outer layer is there.
    wrapped: bool,
    place: Place,
    image: Image,
    /// What this epoch has brought already.
    named: HashSet<Emulator>,
    restored: HashSet<Emulator>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the outer layer, before the image.
    Before,
    /// In the image.
    Inside,
    /// In the outer layer, between a CHECKPOINT and its CHECKPOINT_END.
    Checkpoint,
    /// In the outer layer, after the image.
    After,
    /// Behind the last record.
    Ended,
}

#[derive(Debug, Default)]
struct Image {
    header: Option<libxc::Header>,
    static_data_ended: bool,
    hvm_context: bool,
}

impl Order {
    /// Of a stream with or without an outer layer.
    pub(super) fn new(wrapped: bool) -> Self {
        Self {
            wrapped,
            place: if wrapped {
                Place::Before
            } else {
                Place::Inside
            },
            image: Image::default(),
            named: HashSet::new(),
            restored: HashSet::new(),
        }
    }

    /// The layer of the next record; none after the last.
    pub(super) fn layer(&self) -> Option<Layer> {
        match self.place {
            Place::Before | Place::Checkpoint | Place::After => Some(Layer::Libxl),
            Place::Inside => Some(Layer::Libxc),
            Place::Ended => None,
        }
    }

    /// The headers of an image have come.
    pub(super) fn image(&mut self, header: libxc::Header) {
        self.image = Image {
            header: Some(header),
            // In version 2 the first page says so.
            static_data_ended: header.version == Version::V2,
            hvm_context: false,
        };
        self.place = Place::Inside;
    }

    /// A record of the outer layer.
    pub(super) fn libxl(&mut self, record: &Libxl) -> Result<(), Bad> {
        self.place = match (self.place, record) {
            // The caller reads the headers that follow, and tells of them.
            (Place::Before, Libxl::LibxcContext) => Place::Before,
            (
                place @ (Place::Before | Place::Checkpoint | Place::After),
                Libxl::EmulatorXenstoreData(emulator, _),
            ) => {
                once(&mut self.named, *emulator)?;
                place
            }
            (place @ (Place::Checkpoint | Place::After), Libxl::EmulatorContext(emulator, _)) => {
                once(&mut self.restored, *emulator)?;
                place
            }
            (Place::Checkpoint, Libxl::CheckpointState(_)) => Place::Checkpoint,
            (Place::Checkpoint, Libxl::CheckpointEnd) => {
                self.new_epoch();
                Place::Inside
            }
            (Place::After, Libxl::End) => Place::Ended,
            (place, _) => {
                let expected = match place {
                    Place::Before => "EMULATOR_XENSTORE_DATA or LIBXC_CONTEXT",
                    Place::Checkpoint => "EMULATOR_* records, CHECKPOINT_STATE or CHECKPOINT_END",
                    _ => "EMULATOR_* records or END",
                };
                return Err(misplaced(expected, Layer::Libxl.record(record.kind())));
            }
        };
        Ok(())
    }

    /// A record of the inner layer that brings pages.
    pub(super) fn pages(&self) -> Result<(), Bad> {
        if self.image.static_data_ended {
            return Ok(());
        }
        Err(misplaced(
            "STATIC_DATA_END before the first PAGE_DATA of a version 3 image",
            "PAGE_DATA",
        ))
    }

    /// Any other record of the inner layer.
    pub(super) fn libxc(&mut self, record: &Libxc) -> Result<(), Bad> {
        let got = || Layer::Libxc.record(record.kind());
        self.belongs(record)?;
        let is_static = matches!(
            record,
            Libxc::X86PvInfo(..) | Libxc::X86CpuidPolicy(_) | Libxc::X86MsrPolicy(_)
        );
        let v3 = self.image.header.is_some_and(|h| h.version == Version::V3);
        match record {
            Libxc::StaticDataEnd if self.image.static_data_ended => {
                return Err(misplaced("exactly one STATIC_DATA_END", "another"));
            }
            Libxc::StaticDataEnd => self.image.static_data_ended = true,
            _ if is_static && v3 && self.image.static_data_ended => {
                return Err(misplaced("static data before STATIC_DATA_END", got()));
            }
            _ if !is_static && !self.image.static_data_ended => {
                return Err(misplaced("STATIC_DATA_END first", got()));
            }
            Libxc::HvmParams(_) if self.image.hvm_context => {
                return Err(misplaced(
                    "HVM_PARAMS before HVM_CONTEXT",
                    "the other order",
                ));
            }
            Libxc::HvmContext(_) => self.image.hvm_context = true,
            Libxc::Checkpoint => {
                self.image.hvm_context = false;
                self.new_epoch();
                if self.wrapped {
                    self.place = Place::Checkpoint;
                }
            }
            Libxc::End if self.wrapped => self.place = Place::After,
            Libxc::End => self.place = Place::Ended,
            _ => {}
        }
        Ok(())
    }

    /// Whether a record belongs to this version of the image, this kind of domain and this direction.
    fn belongs(&self, record: &Libxc) -> Result<(), Bad> {
        let got = || Layer::Libxc.record(record.kind());
        let Some(header) = self.image.header else {
            return Ok(());
        };
        let only_v3 = matches!(
            record,
            Libxc::StaticDataEnd | Libxc::X86CpuidPolicy(_) | Libxc::X86MsrPolicy(_)
        );
        if only_v3 && header.version == Version::V2 {
            return Err(misplaced("a record of a version 2 image", got()));
        }
        let only = match record {
            Libxc::X86PvInfo(..)
            | Libxc::X86PvP2mFrames(..)
            | Libxc::X86PvVcpu(
                VcpuPart::Basic | VcpuPart::Extended | VcpuPart::Xsave | VcpuPart::Msrs,
                ..,
            )
            | Libxc::SharedInfo(_) => Some(DomainType::Pv),
            Libxc::HvmContext(_) | Libxc::HvmParams(_) => Some(DomainType::Hvm),
            _ => None,
        };
        if only.is_some_and(|domain| domain != header.domain) {
            let expected = format!("a record of a {:?} domain", header.domain);
            return Err(misplaced(expected, got()));
        }
        if matches!(record, Libxc::CheckpointDirtyPfnList(_)) {
            return Err(misplaced(
                "a record that travels from primary to secondary",
                format!("{}, which travels back", got()),
            ));
        }
        Ok(())
    }

    fn new_epoch(&mut self) {
        self.named.clear();
        self.restored.clear();
    }
}

fn once(seen: &mut HashSet<Emulator>, emulator: Emulator) -> Result<(), Bad> {
    if seen.len() >= EMULATORS_MAX {
        let expected = format!("at most {EMULATORS_MAX} emulators");
        return Err(misplaced(expected, "one more"));
    }
    if seen.insert(emulator) {
        return Ok(());
    }
    Err(misplaced(
        "each emulator once",
        format!("{:?} with index {} again", emulator.id, emulator.index),
    ))
}

fn misplaced(expected: impl Into<String>, got: impl Into<String>) -> Bad {
    Bad::new(0, expected, got)
}

/// A record of a type that nobody here knows.
pub(super) fn unknown(layer: Layer, kind: u32) -> Bad {
    Bad::new(
        0,
        "a record type that is known, or one with bit 31 set, which may be skipped",
        format!("mandatory {} record type {kind:#x}", layer.name()),
    )
    .advising(NEWER)
}
