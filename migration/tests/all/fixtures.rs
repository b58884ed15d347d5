//! Streams written by hand from the format's documents, and what they mean, written by hand as
//! well: neither side of it comes from our writer, and the writer is held against them.

use crate::bytes::from_hex;
use migration::stream::libxc::{self, DomainType, TscInfo, VcpuPart, Version};
use migration::stream::libxl::{self, Control, Emulator};
use migration::stream::pages::{Entry, PageType};
use migration::stream::{Context, Format, Item, Reader, SectionKind, Writer};

pub const GUEST: &str = include_str!("fixtures/guest.hex");
pub const CHECKPOINTED: &str = include_str!("fixtures/checkpointed.hex");
const IMAGE_V2: &str = include_str!("fixtures/image-v2.hex");
const IMAGE_CHECKPOINTS: &str = include_str!("fixtures/image-checkpoints.hex");
const IMAGE_PV: &str = include_str!("fixtures/image-pv.hex");

/// An item, and for pages the byte that each page with data is full of.
type Found = (Item, Vec<u8>);

/// Reads all of a stream; panics where it is not one.
pub fn read(bytes: &[u8], format: Format) -> Vec<Found> {
    let mut reader = Reader::new(bytes, format);
    let mut items = Vec::new();
    while let Some(item) = reader.next_item().unwrap() {
        let mut fills = Vec::new();
        while reader.data_left() > 0 {
            let mut page = [0; 4096];
            reader.data(&mut page).unwrap();
            assert!(page.iter().all(|byte| *byte == page[0]));
            fills.push(page[0]);
        }
        items.push((item, fills));
    }
    assert_eq!(reader.next_item().unwrap(), None, "the end stays the end");
    reader.finish().unwrap();
    items
}

/// What the writer makes of the same items.
pub fn write(items: &[Found]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (item, fills) in items {
        match item {
            Item::Stream(header) => writer.header(*header).unwrap(),
            Item::Image(header) => writer.image(*header).unwrap(),
            Item::Libxl(record) => writer.libxl(record).unwrap(),
            Item::Libxc(record) => writer.libxc(record).unwrap(),
            Item::Pages(entries) => {
                let data: Vec<u8> = fills.iter().flat_map(|fill| [*fill; 4096]).collect();
                writer.page_data(entries, &data).unwrap();
            }
            Item::Skipped(..) => panic!("nothing here is unknown"),
        }
    }
    assert_eq!(
        writer.written(),
        u64::try_from(writer.get_ref().len()).unwrap()
    );
    writer.get_ref().clone()
}

fn means(text: &str, format: Format, expected: Vec<Found>) {
    let bytes = from_hex(text);
    assert_eq!(read(&bytes, format), expected);
    assert!(
        write(&expected) == bytes,
        "our writer writes something else"
    );
}

fn plain(item: Item) -> Found {
    (item, Vec::new())
}

fn xl(record: libxl::Record) -> Found {
    plain(Item::Libxl(record))
}

fn xc(record: libxc::Record) -> Found {
    plain(Item::Libxc(record))
}

fn pages(entries: &[(u64, PageType)], fills: &[u8]) -> Found {
    let entry = |(pfn, kind): &(u64, PageType)| Entry {
        pfn: *pfn,
        kind: *kind,
    };
    (
        Item::Pages(entries.iter().map(entry).collect()),
        fills.to_vec(),
    )
}

fn header(version: Version, domain: DomainType, xen: (u32, u32)) -> Found {
    plain(Item::Image(libxc::Header {
        version,
        domain,
        xen_major: xen.0,
        xen_minor: xen.1,
    }))
}

fn option(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

#[test]
fn a_guest() {
    let normal = PageType::Normal;
    means(
        GUEST,
        Format::Libxl,
        vec![
            plain(Item::Stream(libxl::Header { converted: false })),
            xl(libxl::Record::EmulatorXenstoreData(
                Emulator::ours(0),
                vec![option("guest", "a guest")],
            )),
            xl(libxl::Record::LibxcContext),
            header(Version::V3, DomainType::Hvm, (0, 0)),
            xc(libxc::Record::StaticDataEnd),
            pages(&[(0x10, normal), (0x11, normal)], &[0xaa, 0xbb]),
            pages(&[(0x11, normal)], &[0xcc]),
            xc(libxc::Record::End),
            xl(libxl::Record::EmulatorContext(
                Emulator::ours(0),
                Context::of(SectionKind::Cpu, b"[]".to_vec()).to_bytes(),
            )),
            xl(libxl::Record::EmulatorXenstoreData(
                Emulator::ours(1),
                vec![option("name", "virtio-blk0")],
            )),
            xl(libxl::Record::EmulatorContext(
                Emulator::ours(1),
                Context::of(SectionKind::Registers, b"state".to_vec()).to_bytes(),
            )),
            xl(libxl::Record::End),
        ],
    );
}

#[test]
fn an_image_of_version_2() {
    means(
        IMAGE_V2,
        Format::Libxc,
        vec![
            header(Version::V2, DomainType::Hvm, (0, 0)),
            pages(
                &[
                    (1, PageType::Normal),
                    (2, PageType::Broken),
                    (3, PageType::Allocated),
                    (4, PageType::Absent),
                ],
                &[0x5a],
            ),
            xc(libxc::Record::X86TscInfo(TscInfo {
                mode: 2,
                khz: 3_000_000,
                nsec: 7,
                incarnation: 5,
            })),
            xc(libxc::Record::HvmParams(vec![(0x13, 0xfeff)])),
            xc(libxc::Record::HvmContext(vec![1, 2, 3])),
            xc(libxc::Record::End),
        ],
    );
}

#[test]
fn an_image_with_checkpoints() {
    let page = |pfn, fill| pages(&[(pfn, PageType::Normal)], &[fill]);
    let checkpoint = || xc(libxc::Record::Checkpoint);
    means(
        IMAGE_CHECKPOINTS,
        Format::Libxc,
        vec![
            header(Version::V3, DomainType::Hvm, (4, 17)),
            xc(libxc::Record::X86CpuidPolicy(vec![[1; 24]])),
            xc(libxc::Record::X86MsrPolicy(vec![[2; 16]])),
            xc(libxc::Record::StaticDataEnd),
            page(0, 0x11),
            checkpoint(),
            page(1, 0x22),
            checkpoint(),
            page(0, 0x33),
            checkpoint(),
            xc(libxc::Record::End),
        ],
    );
}

#[test]
fn a_checkpointed_stream_of_both_layers() {
    let device = |byte| libxl::Record::EmulatorContext(Emulator::ours(0), vec![byte]);
    means(
        CHECKPOINTED,
        Format::Libxl,
        vec![
            plain(Item::Stream(libxl::Header { converted: false })),
            xl(libxl::Record::LibxcContext),
            header(Version::V3, DomainType::Hvm, (4, 17)),
            xc(libxc::Record::StaticDataEnd),
            pages(&[(0, PageType::Normal)], &[0x11]),
            xc(libxc::Record::Checkpoint),
            xl(device(0x41)),
            xl(libxl::Record::CheckpointState(Control::New)),
            xl(libxl::Record::CheckpointEnd),
            xc(libxc::Record::End),
            xl(device(0x42)),
            xl(libxl::Record::End),
        ],
    );
}

#[test]
fn a_paravirtual_image() {
    let vcpu = |part, bytes: &[u8]| xc(libxc::Record::X86PvVcpu(part, 0, bytes.to_vec()));
    means(
        IMAGE_PV,
        Format::Libxc,
        vec![
            header(Version::V3, DomainType::Pv, (4, 17)),
            xc(libxc::Record::X86PvInfo(8, 4)),
            xc(libxc::Record::StaticDataEnd),
            xc(libxc::Record::X86PvP2mFrames(0, 0x1ff, vec![9])),
            pages(
                &[(9, PageType::Table(1)), (8, PageType::PinnedTable(4))],
                &[0x77, 0x88],
            ),
            vcpu(VcpuPart::Basic, &[1, 2]),
            vcpu(VcpuPart::Extended, &[3]),
            vcpu(VcpuPart::Xsave, &[4; 8]),
            vcpu(VcpuPart::Msrs, &[]),
            xc(libxc::Record::SharedInfo(Box::new([0x99; 4096]))),
            xc(libxc::Record::Verify),
            xc(libxc::Record::End),
        ],
    );
}
