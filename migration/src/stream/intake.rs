//! What a destination makes of a stream's items: a guest's description, its pages, its devices.

use super::context::Context;
use super::framing::Bad;
use super::libxc::DomainType;
use super::libxl::{Emulator, EmulatorId, Options};
use super::outgoing::GUEST_KEY;
use super::pages::PageType;
use super::reader::Item;
use super::{Order, libxc, libxl};
use crate::guest::DeviceRecord;

/// Longest description of a guest, in bytes.
const DESCRIPTION_MAX: usize = 1 << 20;
const ANOTHERS: &str = "it is the stream of another kind of machine; `tidemark stream inspect` \
                        shows what it holds";

/// Turns items into orders.
#[derive(Debug, Default)]
pub(super) struct Intake {
    opened: bool,
    /// Options that wait for the state of their device.
    names: Option<(Emulator, Options)>,
}

impl Intake {
    /// For a connection that brings pages alone: the guest is described elsewhere.
    pub(super) fn of_pages() -> Self {
        Self {
            opened: true,
            names: None,
        }
    }

    /// What an item asks for; nothing, for items that only frame others. A fault is told from the
    /// start of the record.
    pub(super) fn order(&mut self, item: Item) -> Result<Option<Order>, Bad> {
        Ok(match item {
            Item::Stream(_) | Item::Skipped(..) => None,
            Item::Libxl(record) => self.libxl(record)?,
            Item::Image(header) if !self.opened => {
                let got = format!("an image of a {:?} domain", header.domain);
                return Err(Bad::new(0, "the guest's description first", got).advising(ANOTHERS));
            }
            Item::Image(header) if header.domain == DomainType::Hvm => None,
            Item::Image(_) => {
                return Err(Bad::new(0, "an HVM domain", "a PV domain").advising(ANOTHERS));
            }
            Item::Libxc(libxc::Record::StaticDataEnd | libxc::Record::End) => None,
            Item::Libxc(libxc::Record::Checkpoint) => {
                let bad = Bad::new(0, "a migration", "CHECKPOINT, as of a checkpointed pair");
                return Err(bad.advising("a migration takes streams without checkpoints"));
            }
            Item::Libxc(_) => {
                let got = "a record for a hypervisor, which nobody here could apply";
                return Err(Bad::new(0, "memory and the end of the image", got).advising(ANOTHERS));
            }
            Item::Pages(entries) => {
                // One kind a record: its data goes straight to where it belongs, or it has none.
                let zeros = entries.first().map(|e| e.kind) == Some(PageType::Allocated);
                let kind = if zeros {
                    PageType::Allocated
                } else {
                    PageType::Normal
                };
                if let Some(entry) = entries.iter().find(|e| e.kind != kind) {
                    let got = format!("page {:#x}, which is {:?}", entry.pfn, entry.kind);
                    let expected = "a record of pages of type 0, or of type 14, alone";
                    return Err(Bad::new(0, expected, got).advising(ANOTHERS));
                }
                let pages = entries.into_iter().map(|e| e.pfn).collect();
                Some(if zeros {
                    Order::ZeroPages(pages)
                } else {
                    Order::Pages(pages)
                })
            }
        })
    }

    fn libxl(&mut self, record: libxl::Record) -> Result<Option<Order>, Bad> {
        if let Some((emulator, _)) = &self.names
            && !matches!(&record, libxl::Record::EmulatorContext(of, _) if of == emulator)
        {
            let expected = format!("the state of device {}, whose names came", emulator.index);
            return Err(Bad::new(0, expected, "another record"));
        }
        match record {
            libxl::Record::EmulatorXenstoreData(emulator, options) if !self.opened => {
                self.open(emulator, options).map(Some)
            }
            libxl::Record::EmulatorXenstoreData(emulator, options) => {
                self.names = Some((ours(emulator)?, options));
                Ok(None)
            }
            libxl::Record::EmulatorContext(emulator, blob) => {
                let id = ours(emulator)?.index;
                // The emulator's id and index stand before the blob.
                let context = Context::parse(&blob).map_err(|bad| Bad {
                    at: bad.at + 16,
                    ..bad
                })?;
                let options = self.names.take().map(|(_, options)| options);
                Ok(Some(Order::Device(DeviceRecord {
                    id,
                    options: options.unwrap_or_default(),
                    context,
                })))
            }
            libxl::Record::End => Ok(Some(Order::End)),
            _ => Ok(None),
        }
    }

    fn open(&mut self, emulator: Emulator, options: Options) -> Result<Order, Bad> {
        let [(key, text)] = <[_; 1]>::try_from(options).map_err(|options| {
            let got = format!("{} options of emulator {}", options.len(), emulator.index);
            Bad::new(0, "one option, the guest's description", got).advising(ANOTHERS)
        })?;
        if emulator != Emulator::ours(0) || key != GUEST_KEY {
            let got = format!("'{key:.64}' of emulator {}", emulator.index);
            let expected = format!("the option '{GUEST_KEY}' of emulator 0");
            return Err(Bad::new(0, expected, got).advising(ANOTHERS));
        }
        if text.len() > DESCRIPTION_MAX {
            let expected = format!("a description of at most {DESCRIPTION_MAX} bytes");
            return Err(Bad::new(0, expected, format!("{} bytes", text.len())));
        }
        self.opened = true;
        Ok(Order::Open(text.into_bytes()))
    }
}

fn ours(emulator: Emulator) -> Result<Emulator, Bad> {
    if emulator.id == EmulatorId::QemuUpstream {
        return Ok(emulator);
    }
    let got = format!("{:?}", emulator.id);
    Err(Bad::new(0, "an emulator with id 2", got).advising(ANOTHERS))
}
