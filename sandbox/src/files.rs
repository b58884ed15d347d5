//! Files: what there is for the process from now on (landlock).

use crate::{Kind, SandboxError};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort,
    PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus,
    Scope, make_bitflags,
};
use std::io;
use std::path::{Path, PathBuf};

/// The landlock that all of this is written for, of Linux 6.12. A kernel with less gives less, and that
/// is said.
const ABI_WANTED: ABI = ABI::V6;

/// Something that a process goes on using by name. What it has open it needs no grant for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// A socket that was made, or is to be made, at this path: files of its folder may be removed, and
    /// sockets made there.
    Socket(PathBuf),
    /// A file, or a folder with all below it, may be read.
    Read(PathBuf),
    /// The same, written as well. Nothing is made or removed in a folder.
    Write(PathBuf),
    /// A folder may be kept house in: files below it read, written, made, renamed and removed.
    Folder(PathBuf),
    /// A TCP port may be listened on.
    Listen(u16),
}

impl Grant {
    /// What it takes to open devices by VFIO, as far as this machine has it.
    pub fn vfio() -> Vec<Self> {
        let write = ["/dev/vfio", "/dev/iommu"].map(|path| Self::Write(path.into()));
        let read = ["/sys/bus/pci", "/sys/devices", "/sys/kernel/iommu_groups"];
        let read = read.map(|path| Self::Read(path.into()));
        write.into_iter().chain(read).filter(Self::there).collect()
    }

    /// What it takes to find the address of a host's name.
    pub fn names() -> Vec<Self> {
        let files = [
            "hosts",
            "host.conf",
            "resolv.conf",
            "nsswitch.conf",
            "gai.conf",
        ];
        let read = files.map(|file| Self::Read(Path::new("/etc").join(file)));
        read.into_iter().filter(Self::there).collect()
    }

    /// A file where it is now, to be read and written, or a folder to be kept house in.
    pub fn whatever(path: &Path) -> Self {
        match path.is_dir() {
            true => Self::Folder(path.to_owned()),
            false => Self::Write(path.to_owned()),
        }
    }

    fn there(&self) -> bool {
        match self {
            Self::Socket(path) | Self::Read(path) | Self::Write(path) | Self::Folder(path) => {
                path.exists()
            }
            Self::Listen(_) => true,
        }
    }
}

/// Gives up everything that is not granted.
pub(crate) fn give_up(kind: Kind, grants: &[Grant]) -> Result<(), SandboxError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI_WANTED))?
        .handle_access(AccessNet::from_all(ABI_WANTED))?
        .scope(Scope::from_all(ABI_WANTED))?
        .create()?;
    for grant in grants {
        rules = add(rules, grant)?;
    }
    let status = rules.restrict_self()?;
    let name = kind.name();
    match (status.ruleset, status.landlock) {
        (RulesetStatus::FullyEnforced, _) => {}
        (RulesetStatus::PartiallyEnforced, there) => eprintln!(
            "tidemark: sandbox: this kernel's landlock has less than what `{name}` gives up elsewhere \
             ({there:?}, {ABI_WANTED:?} wanted)"
        ),
        (RulesetStatus::NotEnforced, LandlockStatus::NotEnabled) => eprintln!(
            "tidemark: sandbox: WITHOUT LANDLOCK: it is switched off in this kernel (boot parameter `lsm=`); \
             `{name}` is held by its list of system calls alone"
        ),
        (RulesetStatus::NotEnforced, _) => eprintln!(
            "tidemark: sandbox: WITHOUT LANDLOCK: this kernel has none; `{name}` is held by its list of \
             system calls alone"
        ),
    }
    Ok(())
}

fn add(rules: RulesetCreated, grant: &Grant) -> Result<RulesetCreated, SandboxError> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let write = make_bitflags!(AccessFs::{WriteFile | Truncate | IoctlDev});
    let keep = make_bitflags!(AccessFs::{
        WriteFile | Truncate | MakeReg | MakeDir | RemoveFile | RemoveDir | Refer
    });
    let socket = make_bitflags!(AccessFs::{MakeSock | RemoveFile});
    match grant {
        Grant::Socket(path) => {
            // A name alone is in the folder where the process is.
            let folder = path.parent().filter(|folder| *folder != Path::new(""));
            beneath(rules, folder.unwrap_or_else(|| Path::new(".")), socket)
        }
        Grant::Read(path) => beneath(rules, path, read),
        Grant::Write(path) => beneath(rules, path, read | write),
        Grant::Folder(path) => beneath(rules, path, read | keep),
        Grant::Listen(port) => Ok(rules.add_rule(NetPort::new(*port, AccessNet::BindTcp))?),
    }
}

fn beneath(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, SandboxError> {
    let opened = PathFd::new(path).map_err(|error| SandboxError::Path {
        path: path.to_owned(),
        error: io::Error::other(error),
    });
    let access = if path.is_dir() {
        access
    } else {
        access & AccessFs::from_file(ABI_WANTED)
    };
    Ok(rules.add_rule(PathBeneath::new(opened?, access))?)
}
