//! Every type of record: written, read back, the same.

use crate::fixtures::{read, write};
use migration::stream::libxc::{self, DomainType, TscInfo, VcpuPart, Version};
use migration::stream::libxl::{self, Control, Emulator, EmulatorId, Options};
use migration::stream::pages::{Entry, PageType};
use migration::stream::{Context, Format, Item, Reader, SectionKind, Writer};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

fn blob() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40)
}

fn emulator() -> impl Strategy<Value = Emulator> {
    let ids = select(vec![
        EmulatorId::Unknown,
        EmulatorId::QemuTraditional,
        EmulatorId::QemuUpstream,
    ]);
    (ids, any::<u32>()).prop_map(|(id, index)| Emulator { id, index })
}

fn options() -> impl Strategy<Value = Options> {
    vec(("[A-Za-z0-9_@-][A-Za-z0-9/_@-]{0,20}", "[^\0]{0,20}"), 0..5)
}

fn control() -> impl Strategy<Value = Control> {
    select(vec![
        Control::New,
        Control::Suspended,
        Control::Ready,
        Control::Resumed,
    ])
}

fn entry() -> impl Strategy<Value = Entry> {
    let kinds = prop_oneof![
        Just(PageType::Normal),
        (1_u8..=4).prop_map(PageType::Table),
        (1_u8..=4).prop_map(PageType::PinnedTable),
        Just(PageType::Broken),
        Just(PageType::Allocated),
        Just(PageType::Absent),
    ];
    (0..1_u64 << 52, kinds).prop_map(|(pfn, kind)| Entry { pfn, kind })
}

fn tsc() -> impl Strategy<Value = TscInfo> {
    let fields = (any::<u32>(), any::<u32>(), any::<u64>(), any::<u32>());
    fields.prop_map(|(mode, khz, nsec, incarnation)| TscInfo {
        mode,
        khz,
        nsec,
        incarnation,
    })
}

fn vcpu() -> impl Strategy<Value = libxc::Record> {
    let parts = select(vec![
        VcpuPart::Basic,
        VcpuPart::Extended,
        VcpuPart::Xsave,
        VcpuPart::Msrs,
    ]);
    let fields = (parts, any::<u32>(), blob());
    fields.prop_map(|(part, vcpu, bytes)| libxc::Record::X86PvVcpu(part, vcpu, bytes))
}

/// A record of the inner layer that may stand after the static data, and the domain it needs.
fn any_libxc() -> impl Strategy<Value = (DomainType, libxc::Record)> {
    use libxc::Record;
    let hvm = prop_oneof![
        vec(any::<u8>(), 1..40).prop_map(Record::HvmContext),
        vec(any::<(u64, u64)>(), 0..5).prop_map(Record::HvmParams),
        tsc().prop_map(Record::X86TscInfo),
        Just(Record::Verify),
        Just(Record::Checkpoint),
    ];
    let pv = prop_oneof![
        (any::<u32>(), any::<u32>(), vec(any::<u64>(), 0..5))
            .prop_map(|(first, last, frames)| Record::X86PvP2mFrames(first, last, frames)),
        vcpu(),
        any::<u8>().prop_map(|fill| Record::SharedInfo(Box::new([fill; 4096]))),
    ];
    prop_oneof![
        hvm.prop_map(|record| (DomainType::Hvm, record)),
        pv.prop_map(|record| (DomainType::Pv, record)),
    ]
}

fn any_static() -> impl Strategy<Value = (DomainType, libxc::Record)> {
    use libxc::Record;
    prop_oneof![
        (select(vec![4_u8, 8]), 3_u8..=4)
            .prop_map(|(width, levels)| (DomainType::Pv, Record::X86PvInfo(width, levels))),
        vec(any::<[u8; 24]>(), 1..4)
            .prop_map(|leaves| (DomainType::Hvm, Record::X86CpuidPolicy(leaves))),
        vec(any::<[u8; 16]>(), 1..4)
            .prop_map(|entries| (DomainType::Pv, Record::X86MsrPolicy(entries))),
    ]
}

type Found = (Item, Vec<u8>);

fn plain(item: Item) -> Found {
    (item, Vec::new())
}

fn header(domain: DomainType, xen: (u32, u32)) -> Found {
    plain(Item::Image(libxc::Header {
        version: Version::V3,
        domain,
        xen_major: xen.0,
        xen_minor: xen.1,
    }))
}

/// Whether items come back from their bytes, and every record starts on a multiple of 8.
fn comes_back(items: &[Found], format: Format) {
    let bytes = write(items);
    assert_eq!(bytes.len() % 8, 0);
    assert_eq!(read(&bytes, format), items);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn of_the_outer_layer(
        converted: bool,
        (first, second) in (emulator(), emulator()),
        (before, after) in (options(), options()),
        (bytes, more) in (blob(), blob()),
        control in control(),
    ) {
        use libxl::Record;
        let xl = |record| plain(Item::Libxl(record));
        comes_back(
            &[
                plain(Item::Stream(libxl::Header { converted })),
                xl(Record::EmulatorXenstoreData(first, before)),
                xl(Record::LibxcContext),
                header(DomainType::Hvm, (4, 17)),
                plain(Item::Libxc(libxc::Record::StaticDataEnd)),
                plain(Item::Libxc(libxc::Record::Checkpoint)),
                xl(Record::EmulatorXenstoreData(second, after)),
                xl(Record::EmulatorContext(first, bytes)),
                xl(Record::CheckpointState(control)),
                xl(Record::CheckpointEnd),
                plain(Item::Libxc(libxc::Record::End)),
                xl(Record::EmulatorContext(second, more)),
                xl(Record::End),
            ],
            Format::Libxl,
        );
    }

    #[test]
    fn of_the_inner_layer((domain, record) in any_libxc(), xen: (u32, u32)) {
        comes_back(
            &[
                header(domain, xen),
                plain(Item::Libxc(libxc::Record::StaticDataEnd)),
                plain(Item::Libxc(record)),
                plain(Item::Libxc(libxc::Record::End)),
            ],
            Format::Libxc,
        );
    }

    #[test]
    fn of_static_data((domain, record) in any_static()) {
        comes_back(
            &[
                header(domain, (0, 0)),
                plain(Item::Libxc(record)),
                plain(Item::Libxc(libxc::Record::StaticDataEnd)),
                plain(Item::Libxc(libxc::Record::End)),
            ],
            Format::Libxc,
        );
    }

    #[test]
    fn of_pages(entries in vec(entry(), 1..20), fill: u8) {
        let with_data = entries.iter().filter(|entry| entry.kind.has_data()).count();
        comes_back(
            &[
                header(DomainType::Pv, (4, 17)),
                plain(Item::Libxc(libxc::Record::StaticDataEnd)),
                (Item::Pages(entries), vec![fill; with_data]),
                plain(Item::Libxc(libxc::Record::End)),
            ],
            Format::Libxc,
        );
    }

    /// The one record that travels back: it has no stream around it.
    #[test]
    fn of_the_way_back(pfns in vec(any::<u64>(), 0..20)) {
        let mut writer = Writer::new(Vec::new());
        writer.libxc(&libxc::Record::CheckpointDirtyPfnList(pfns.clone())).unwrap();
        let bytes = writer.get_ref();
        prop_assert_eq!(&bytes[..4], 15_u32.to_le_bytes());
        let length = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
        prop_assert_eq!(u64::from(length), 8 * u64::try_from(pfns.len()).unwrap());
        let (numbers, rest) = bytes[8..].as_chunks::<8>();
        prop_assert!(rest.is_empty());
        let numbers: Vec<u64> = numbers.iter().map(|n| u64::from_le_bytes(*n)).collect();
        prop_assert_eq!(numbers, pfns);
    }

    /// Blobs of our own: through a stream and out of it.
    #[test]
    fn of_contexts(cpu in blob(), registers in blob(), parts in blob()) {
        let context = Context::of(SectionKind::Parts, parts.clone())
            .with(SectionKind::Cpu, cpu.clone())
            .with(SectionKind::Registers, registers.clone());
        let sections: Vec<_> = context.sections().map(|(k, b)| (k, b.to_vec())).collect();
        prop_assert_eq!(
            sections,
            [
                (SectionKind::Cpu, cpu),
                (SectionKind::Registers, registers),
                (SectionKind::Parts, parts),
            ]
        );
        prop_assert_eq!(context.to_bytes().len() % 8, 0);
        prop_assert_eq!(Context::from_bytes(&context.to_bytes()).unwrap(), context);
    }

    /// Noise ends in an error or at the end, after as many items as it has room for.
    #[test]
    fn noise_is_no_stream(noise in vec(any::<u8>(), 0..300), flips in vec((0_usize..9000, 0_u8..8), 0..4)) {
        let mut bytes = crate::bytes::from_hex(crate::fixtures::GUEST);
        bytes.extend(&noise);
        for (at, bit) in flips {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
        for start in [0, 200] {
            let mut reader = Reader::new(&bytes[start..], Format::Libxl);
            let mut items = 0;
            while let Ok(Some(_)) = reader.next_item() {
                let mut data = vec![0; usize::try_from(reader.data_left()).unwrap()];
                if reader.data(&mut data).is_err() {
                    break;
                }
                items += 1;
            }
            prop_assert!(items <= bytes.len() / 8);
        }
    }
}
