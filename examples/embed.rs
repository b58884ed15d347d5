//! Embeds the device in a VMM: guest memory in, register accesses in, interrupts out.
//!
//! What a guest's firmware does first stands in for a guest: it looks for the virtio structures and
//! greets the device.

use anyhow::{Result, ensure};
use device::blk::{BlkDevice, BlkOptions};
use device::function::{FunctionConfig, InterruptSink, MsixOwner, PciFunction};
use spec::status::DeviceStatus;
use std::sync::Arc;
use vm_memory::Permissions;

/// Bytes of guest memory.
const MEMORY: u64 = 64 << 20;

/// Where this VMM's interrupt controller would be.
#[derive(Debug)]
struct Interrupts;

impl InterruptSink for Interrupts {
    fn signal(&self, vector: u16) {
        println!("inject MSI-X vector {vector}");
    }
}

fn main() -> Result<()> {
    // The guest's memory is a file, because the device maps it by itself.
    let (memory, disk) = (tempfile::tempfile()?, tempfile::tempfile()?);
    memory.set_len(MEMORY)?;
    disk.set_len(1 << 20)?;
    let disk = BlkDevice::open(disk, BlkOptions::default())?;
    let function = PciFunction::new(FunctionConfig::default(), disk);
    let dma = function.dma();
    dma.map(0, MEMORY, &memory, 0, Permissions::ReadWrite)?;
    function.set_interrupts(Arc::new(Interrupts), MsixOwner::Function);

    // An exit for configuration space: a capability of type 9 is a virtio structure.
    let config = |at: u8| {
        let mut byte = [0];
        function.config_read(at.into(), &mut byte);
        byte[0]
    };
    let mut at = config(0x34);
    while at != 0 {
        if config(at) == 9 {
            let (kind, bar) = (config(at + 3), config(at + 4));
            println!("structure {kind:#04x} in BAR {bar}");
        }
        at = config(at + 1);
    }

    // An exit for a BAR: `device_status` is byte 20 of the common configuration in BAR 0.
    let hello = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
    function.config_write(4, &6_u16.to_le_bytes());
    function.bar_write(0, 20, &[hello.bits()]);
    let mut status = [0];
    function.bar_read(0, 20, &mut status);
    ensure!(status == [hello.bits()], "the device presents {status:?}");
    println!("the device presents {hello:?}");
    Ok(())
}
