//! The regions of a function, and accesses to them, judged before they go to what is served.

use super::frame::DATA_MAX;
use super::message::{RegionAccess, RegionInfo};
use super::served::{Refusal, Served};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_NUM_REGIONS, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE,
};

/// Bytes of configuration space: extended capabilities need all of PCI Express's.
const CONFIG_SIZE: u64 = 4096;

/// The answer to DEVICE_GET_REGION_INFO. All regions that VFIO knows are there; those that the
/// function lacks have no bytes. None can be mapped, so none has capabilities.
pub(super) fn info(served: &dyn Served, index: u32) -> Result<RegionInfo, Refusal> {
    known(index)?;
    let size = size(served, index);
    let flags = match size {
        0 => 0,
        _ => VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
    };
    Ok(RegionInfo {
        flags: flags.into(),
        index: index.into(),
        size: size.into(),
        ..RegionInfo::default()
    })
}

fn known(index: u32) -> Result<(), Refusal> {
    if index < VFIO_PCI_NUM_REGIONS {
        return Ok(());
    }
    let why = format!("region {index}, there are {VFIO_PCI_NUM_REGIONS}");
    Err(Refusal::invalid(why))
}

/// Bytes of a region, 0 if the function has none.
fn size(served: &dyn Served, index: u32) -> u64 {
    match index {
        VFIO_PCI_CONFIG_REGION_INDEX => CONFIG_SIZE,
        // 6 would be the expansion ROM.
        0..=5 => u8::try_from(index).map_or(0, |bar| served.bar_size(bar)),
        _ => 0,
    }
}

/// Where an access goes that lies within its region.
enum Place {
    Config(u16),
    Bar(u8, u64),
}

/// Where an access goes, and its bytes; `None` if it has none.
fn place(served: &dyn Served, ask: &RegionAccess) -> Result<Option<(Place, usize)>, Refusal> {
    const _: () = assert!(CONFIG_SIZE <= 1 << 16);
    let (region, offset, count) = (ask.region.get(), ask.offset.get(), ask.count.get());
    known(region)?;
    let size = size(served, region);
    let end = offset.checked_add(count.into());
    let len = usize::try_from(count).ok().filter(|len| *len <= DATA_MAX);
    let place = match (region, u16::try_from(offset), u8::try_from(region)) {
        (VFIO_PCI_CONFIG_REGION_INDEX, Ok(offset), _) => Some(Place::Config(offset)),
        (VFIO_PCI_CONFIG_REGION_INDEX, Err(_), _) | (_, _, Err(_)) => None,
        (_, _, Ok(bar)) => Some(Place::Bar(bar, offset)),
    };
    match (len, place) {
        (Some(0), _) => Ok(None),
        (Some(len), Some(place)) if end.is_some_and(|end| end <= size) => Ok(Some((place, len))),
        _ => Err(Refusal::invalid(format!(
            "{count} bytes at {offset:#x} of region {region}: at most {DATA_MAX} within its {size:#x} \
             expected"
        ))),
    }
}

/// REGION_READ: appends the data to `out`.
pub(super) fn read(
    served: &dyn Served,
    ask: &RegionAccess,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let Some((place, len)) = place(served, ask)? else {
        return Ok(());
    };
    let start = out.len();
    out.resize(start + len, 0);
    let data = out.get_mut(start..).unwrap_or_default();
    match place {
        Place::Config(offset) => served.config_read(offset, data),
        Place::Bar(bar, offset) => served.bar_read(bar, offset, data),
    }
    Ok(())
}

/// REGION_WRITE.
pub(super) fn write(served: &dyn Served, ask: &RegionAccess, data: &[u8]) -> Result<(), Refusal> {
    let place = place(served, ask)?;
    let expected = place.as_ref().map_or(0, |(_, len)| *len);
    if data.len() != expected {
        let why = format!("{} bytes of data, {expected} expected", data.len());
        return Err(Refusal::invalid(why));
    }
    match place {
        Some((Place::Config(offset), _)) => served.config_write(offset, data),
        Some((Place::Bar(bar, offset), _)) => served.bar_write(bar, offset, data),
        None => {}
    }
    Ok(())
}
