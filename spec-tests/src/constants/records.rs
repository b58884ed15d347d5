//! Page-write recording: rules of this project, after ideas of 2023. None of these numbers is of
//! OASIS.

/// Opcode: what the device can record.
pub const CAP_QUERY: u16 = 0x40;
/// Opcode: starts.
pub const START: u16 = 0x41;
/// Opcode: stops.
pub const STOP: u16 = 0x42;
/// Opcode: reads records, which removes them.
pub const READ: u16 = 0x43;
/// Output of READ: number of records.
pub const COUNT: u32 = 0x3fff_ffff;
/// Output of READ: there are more.
pub const MORE: u32 = 1 << 30;
/// Output of READ: records were lost.
pub const OVERFLOW: u32 = 1 << 31;
