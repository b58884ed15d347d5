//! The served function from a client's side. Offsets and numbers are typed again from VFIO, PCI and
//! virtio.

mod driven;
mod features;
mod hostile;
mod life;
mod talk;

use super::super::socket::SocketError;
use super::*;
use crate::blk::{BlkDevice, BlkOptions};
use crate::function::{FunctionConfig, PciFunction};
use rustix::event::{EventfdFlags, eventfd};
use std::error::Error;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};
use tempfile::TempDir;
use vfio_user::Client;
use vm_memory::Permissions;

type Outcome = Result<(), Box<dyn Error>>;

const CONFIG: u32 = 7;
const MSIX: u32 = 2;
const STATUS: u64 = 0x14;
const MSIX_CONFIG: u64 = 0x10;
/// DATA_EVENTFD and TRIGGER; DATA_NONE and TRIGGER.
const CONNECT: u32 = 0x24;
const DISABLE: u32 = 0x21;

struct Bench {
    dir: TempDir,
    function: Arc<PciFunction>,
    served: Arc<ServedFunction>,
    server: Arc<VfioUserServer>,
}

impl Bench {
    fn new() -> Result<Self, Box<dyn Error>> {
        let dir = tempfile::tempdir()?;
        let disk = tempfile::tempfile()?;
        disk.set_len(1 << 20)?;
        let options = BlkOptions {
            queues: 2,
            ..BlkOptions::default()
        };
        let function = PciFunction::new(
            FunctionConfig::default(),
            BlkDevice::open(disk, options)? as _,
        );
        let path = dir.path().join("socket");
        let served = ServedFunction::new(Arc::clone(&function));
        let server = Arc::new(VfioUserServer::bind(&path, Arc::clone(&served) as _)?);
        Ok(Self {
            dir,
            function,
            served,
            server,
        })
    }

    fn serve(&self) -> JoinHandle<Result<Ended, ServeError>> {
        let server = Arc::clone(&self.server);
        thread::spawn(move || server.run())
    }

    fn path(&self) -> &Path {
        self.server.path().unwrap_or(Path::new(""))
    }

    /// Serves one client, which disconnects at the end.
    fn with(&self, work: impl FnOnce(&mut Client) -> Outcome) -> Outcome {
        let serving = self.serve();
        let mut client = Client::new(self.path())?;
        work(&mut client)?;
        drop(client);
        serving.join().map_err(|_| "the server panicked")??;
        Ok(())
    }

    fn mapped(&self, iova: u64) -> bool {
        use vm_memory::GuestMemory as _;
        let guard = self.function.dma().enter();
        guard.check_range(vm_memory::GuestAddress(iova), 4096, Permissions::Read)
    }
}

fn read<const N: usize>(
    client: &mut Client,
    region: u32,
    offset: u64,
) -> Result<[u8; N], vfio_user::Error> {
    let mut data = [0; N];
    client.region_read(region, offset, &mut data)?;
    Ok(data)
}

fn event() -> Result<File, Box<dyn Error>> {
    let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
    Ok(eventfd(0, flags)?.into())
}

/// Interrupts since the last time.
fn count(mut event: &File) -> u64 {
    let mut counter = [0; 8];
    match event.read_exact(&mut counter) {
        Ok(()) => u64::from_ne_bytes(counter),
        Err(_) => 0,
    }
}

/// The function is driven up to DRIVER_OK with configuration changes on vector 0, so that the test
/// can raise that vector at will.
fn bring_up(client: &mut Client) -> Outcome {
    let feature_select = 0x08;
    let feature = 0x0c;
    client.region_write(0, STATUS, &[3])?;
    client.region_write(0, feature_select, &1_u32.to_le_bytes())?;
    client.region_write(0, feature, &1_u32.to_le_bytes())?;
    client.region_write(0, STATUS, &[0xb])?;
    client.region_write(0, MSIX_CONFIG, &0_u16.to_le_bytes())?;
    client.region_write(0, STATUS, &[0xf])?;
    assert_eq!(read(client, 0, STATUS)?, [0xf]);
    Ok(())
}

#[test]
fn a_client_finds_a_virtio_block_function() -> Outcome {
    Bench::new()?.with(|client| {
        let sizes: Vec<u64> = (0..9)
            .map(|index| client.region(index).map_or(u64::MAX, |region| region.size))
            .collect();
        let (bar0, bar1) = (PciFunction::bar_size(0), PciFunction::bar_size(1));
        assert_eq!(sizes, [bar0, bar1, 0, 0, 0, 0, 0, 4096, 0]);
        assert_eq!(read(client, CONFIG, 0)?, [0xf4, 0x1a, 0x42, 0x10]);
        for index in 0..5 {
            let info = client.get_irq_info(index)?;
            let expected = if index == MSIX { (9, 3) } else { (0, 0) };
            assert_eq!((info.index, (info.flags, info.count)), (index, expected));
        }
        bring_up(client)?;
        client.reset()?;
        assert_eq!(read(client, 0, STATUS)?, [0]);
        Ok(())
    })
}

#[test]
fn maps_come_and_go() -> Outcome {
    let bench = Bench::new()?;
    bench.with(|client| {
        let memory = tempfile::tempfile()?;
        memory.set_len(64 << 10)?;
        let fd = memory.as_raw_fd();
        client.dma_map(0, 0x1_0000, 0x8000, fd)?;
        client.dma_map(0x8000, 0xfef0_0000, 0x8000, fd)?;
        assert!(bench.mapped(0x1_0000) && bench.mapped(0xfef0_7000));
        client.dma_unmap(0x1_4000, 0x1000)?;
        assert!(bench.mapped(0x1_3000) && !bench.mapped(0x1_4000));
        // QEMU's unmap of the rest of the address space: address and size add up to 2^64.
        client.dma_unmap(0xfef0_0000, 0xffff_ffff_0110_0000)?;
        assert!(!bench.mapped(0xfef0_0000) && bench.mapped(0x1_0000));
        client.dma_unmap(0x5000_0000, u64::MAX)?;
        // What is refused changes nothing: over another map, beyond the file, beyond all addresses.
        client.dma_map(0, 0x1_0000, 0x2000, fd)?;
        client.dma_map(0xf000, 0x10_0000, 0x2000, fd)?;
        client.dma_map(1, u64::MAX, u64::MAX, fd)?;
        assert!(bench.mapped(0x1_0000) && !bench.mapped(0x10_0000));
        assert_eq!(read(client, CONFIG, 0)?, [0xf4, 0x1a], "in step");
        Ok(())
    })?;
    assert!(
        !bench.mapped(0x1_3000),
        "nothing stays when the client goes"
    );
    Ok(())
}

#[test]
fn each_vector_has_its_eventfd() -> Outcome {
    let bench = Bench::new()?;
    bench.with(|client| {
        bring_up(client)?;
        let (first, second) = (event()?, event()?);
        client.set_irqs(MSIX, CONNECT, 0, 1, &[first.as_raw_fd()])?;
        client.set_irqs(MSIX, CONNECT, 1, 1, &[second.as_raw_fd()])?;
        bench.function.notify_config_change();
        assert_eq!((count(&first), count(&second)), (1, 0));
        client.set_irqs(MSIX, 0x21, 1, 1, &[])?;
        assert_eq!((count(&first), count(&second)), (0, 1), "triggered by hand");

        // Without its eventfd a vector waits, whichever way it lost it.
        for (flags, vectors, fds) in [(CONNECT, 1, &[][..]), (DISABLE, 0, &[])] {
            client.set_irqs(MSIX, flags, 0, vectors, fds)?;
            bench.function.notify_config_change();
            bench.function.notify_config_change();
            assert_eq!(count(&first), 0);
            client.set_irqs(MSIX, CONNECT, 0, 1, &[first.as_raw_fd()])?;
            assert_eq!(count(&first), 1, "what happened meanwhile is told");
        }

        // Nothing of this means anything, and nothing of it disturbs.
        let (pipe, _writer) = std::io::pipe()?;
        let odd: [(u32, u32, u32, u32, &[RawFd]); 7] = [
            (0, CONNECT, 0, 1, &[]),
            (4, DISABLE, 0, 0, &[]),
            (MSIX, CONNECT, u32::MAX, u32::MAX, &[]),
            (MSIX, CONNECT, 3, 1, &[first.as_raw_fd()]),
            (MSIX, CONNECT, 1, 1, &[pipe.as_raw_fd()]),
            (MSIX, 0x09, 0, 1, &[]),
            (MSIX, 0, 0, 1, &[]),
        ];
        for (index, flags, start, count, fds) in odd {
            client.set_irqs(index, flags, start, count, fds)?;
        }
        bench.function.notify_config_change();
        assert_eq!(count(&first), 1);
        Ok(())
    })
}

#[test]
fn the_next_client_finds_a_fresh_function() -> Outcome {
    let bench = Bench::new()?;
    let event = event()?;
    bench.with(|client| {
        bring_up(client)?;
        client.set_irqs(MSIX, CONNECT, 0, 1, &[event.as_raw_fd()])?;
        Ok(())
    })?;
    bench.function.notify_config_change();
    assert_eq!(count(&event), 0, "the interrupts went with the client");
    bench.with(|client| {
        assert_eq!(read(client, 0, STATUS)?, [0]);
        bring_up(client)
    })
}

#[test]
fn a_client_may_go_in_the_middle_or_talk_nonsense() -> Outcome {
    let bench = Bench::new()?;
    let header = |command: u16, size: u32| {
        let mut bytes = vec![1, 0];
        bytes.extend(command.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend([0; 8]);
        bytes
    };
    // Nothing; half a region write; a reset whose answer nobody reads.
    for bytes in [vec![], header(10, 32), header(13, 16)] {
        let serving = bench.serve();
        UnixStream::connect(bench.path())?.write_all(&bytes)?;
        let result = serving.join().map_err(|_| "the server panicked")?;
        assert!(result.is_ok(), "{result:?}");
    }
    // A VERSION message with text that does not end.
    let mut version = header(1, 21);
    version.extend([0, 0, 1, 0, b'x']);
    let serving = bench.serve();
    UnixStream::connect(bench.path())?.write_all(&version)?;
    let result = serving.join().map_err(|_| "the server panicked")?;
    assert!(matches!(result, Err(ServeError::Protocol(_))), "{result:?}");
    bench.with(|client| {
        assert_eq!(read(client, CONFIG, 0)?, [0xf4, 0x1a]);
        Ok(())
    })
}

#[test]
fn only_a_dead_servers_socket_is_replaced() -> Outcome {
    let bench = Bench::new()?;
    let bind =
        |path: &Path| VfioUserServer::bind(path, ServedFunction::new(Arc::clone(&bench.function)));

    let live = bind(bench.path());
    assert!(
        matches!(live, Err(ServeError::Socket(SocketError::InUse { .. }))),
        "{live:?}"
    );
    // The probe took nobody's place.
    bench.with(|client| {
        assert_eq!(read(client, CONFIG, 0)?, [0xf4, 0x1a]);
        Ok(())
    })?;

    let file = bench.dir.path().join("file");
    fs::write(&file, "kept")?;
    let taken = bind(&file);
    assert!(
        matches!(
            taken,
            Err(ServeError::Socket(SocketError::NotASocket { .. }))
        ),
        "{taken:?}"
    );
    assert_eq!(fs::read(&file)?, b"kept");

    let nowhere = bind(&bench.dir.path().join("no/such/folder"));
    assert!(
        matches!(nowhere, Err(ServeError::Socket(SocketError::Bind { .. }))),
        "{nowhere:?}"
    );

    let dead = bench.dir.path().join("dead");
    drop(UnixListener::bind(&dead)?);
    let server = bind(&dead)?;
    server.remove_socket();
    assert!(!dead.exists());
    let other = UnixListener::bind(&dead)?;
    drop(server);
    assert!(dead.exists(), "another's socket stays");
    drop(other);
    Ok(())
}
