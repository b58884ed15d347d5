use super::*;
use std::os::unix::fs::symlink;

/// A machine's /sys and /dev with one function, in a folder that goes with the test.
struct Machine {
    root: PathBuf,
    address: Address,
}

impl Machine {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("vfio-{name}-{}", std::process::id()));
        let address = "0000:03:00.1".parse().unwrap();
        Self { root, address }
    }

    fn folder(&self) -> PathBuf {
        folder(&self.root, self.address)
    }

    fn with_function(self) -> Self {
        fs::create_dir_all(self.folder()).unwrap();
        self
    }

    fn bound_to(self, driver: &str) -> Self {
        symlink(self.root.join(driver), self.folder().join("driver")).unwrap();
        self
    }

    fn in_group(self) -> Self {
        let group = self.root.join("kernel/iommu_groups/7");
        fs::create_dir_all(group.join("devices")).unwrap();
        fs::write(group.join("reserved_regions"), "0x1000 0x1fff msi\n").unwrap();
        symlink(&group, self.folder().join("iommu_group")).unwrap();
        symlink(self.folder(), group.join("devices/0000:03:00.1")).unwrap();
        self
    }

    fn with_files(self) -> Self {
        fs::create_dir_all(self.root.join("vfio")).unwrap();
        for name in ["vfio/vfio", "vfio/7"] {
            fs::write(self.root.join(name), "").unwrap();
        }
        self
    }

    fn locate(&self) -> Result<Found, OpenError> {
        locate(&self.root, &self.root, self.address)
    }

    fn complaint(&self) -> String {
        self.locate().unwrap_err().to_string()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.root).ok();
    }
}

#[test]
fn addresses() {
    let address: Address = "0000:03:1f.7".parse().unwrap();
    assert_eq!(address.to_string(), "0000:03:1f.7");
    assert_eq!("03:1f.7".parse(), Ok(address));
    assert_eq!(
        "10000:e1:00.0".parse::<Address>().unwrap().to_string(),
        "10000:e1:00.0"
    );
    for bad in [
        "",
        "3",
        "03:00",
        "0000:03:20.0",
        "0000:03:00.8",
        "x:03:00.0",
    ] {
        assert!(bad.parse::<Address>().is_err(), "{bad}");
    }
}

#[test]
fn what_is_missing_is_said() {
    let machine = Machine::new("nothing");
    assert!(machine.complaint().contains("no PCI function 0000:03:00.1"));

    let machine = Machine::new("unbound").with_function();
    let text = machine.complaint();
    assert!(
        text.contains("no driver") && !text.contains("unbind"),
        "{text}"
    );

    let machine = Machine::new("bound").with_function().bound_to("virtio-pci");
    let text = machine.complaint();
    assert!(text.contains("bound to virtio-pci"), "{text}");
    assert!(text.contains("echo 0000:03:00.1 > /sys/bus/pci/drivers/virtio-pci/unbind"));
    assert!(text.contains("driver_override") && text.contains("drivers_probe"));

    let machine = Machine::new("alone").with_function().bound_to("vfio-pci");
    assert!(machine.complaint().contains("intel_iommu=on"));
}

#[cfg(not(feature = "iommufd"))]
#[test]
fn a_missing_group_file_is_named() {
    let machine = Machine::new("nodev").with_function().bound_to("vfio-pci");
    let machine = machine.in_group();
    assert!(machine.complaint().contains("vfio/vfio does not exist"));
}

#[test]
fn a_function_is_found_with_its_group() {
    let machine = Machine::new("good").with_function().bound_to("vfio-pci");
    let machine = machine.in_group().with_files();
    let found = machine.locate().unwrap();
    assert_eq!(found.group, "7");
    assert_eq!(found.reserved.first(), Some(&(0x1000..0x2000)));
    assert!(found.others.is_empty());
    assert!(!can_reset(&machine.root, machine.address));

    let other = machine
        .root
        .join("kernel/iommu_groups/7/devices/0000:03:00.0");
    fs::create_dir(&other).unwrap();
    symlink(machine.root.join("nvme"), other.join("driver")).unwrap();
    assert_eq!(machine.locate().unwrap().others, ["0000:03:00.0 (nvme)"]);
}
