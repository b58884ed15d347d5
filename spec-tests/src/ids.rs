//! Names for clauses: the ids of VIRTIO 1.4 are those of the statement inventory, which are long.

/// The id of a clause of VIRTIO 1.4: an abbreviated section and the statement's number in it.
///
/// `clause!(msix "D4")` is a `&'static str` that also stands in `concat!` and patterns.
#[macro_export]
macro_rules! clause {
    (status $n:literal) => { concat!("device-status-field/", $n) };
    (reset $n:literal) => { concat!("device-reset/", $n) };
    (init $n:literal) => { concat!("general-initialization-and-device-operation-device-initialization/", $n) };
    (cleanup $n:literal) => { concat!("general-initialization-and-device-operation-device-cleanup/", $n) };
    (suspend $n:literal) => { concat!("general-initialization-and-device-operation-device-suspend/", $n) };
    (queue_reset $n:literal) => { concat!("virtqueues-virtqueue-reset-virtqueue-reset/", $n) };
    (queue_enable $n:literal) => { concat!("virtqueues-virtqueue-reset-virtqueue-re-enable/", $n) };
    (split $n:literal) => { concat!("virtqueues/", $n) };
    (available_ring $n:literal) => { concat!("virtqueues-the-virtqueue-available-ring/", $n) };
    (packed_indirect $n:literal) => { concat!("packed-virtqueues-the-virtqueue-descriptor-table-indirect-descriptors/", $n) };
    (layout $n:literal) => { concat!("virtio-over-pci-bus-pci-device-layout/", $n) };
    (notify $n:literal) => { concat!("virtio-over-pci-bus-pci-specific-initialization-and-device-operation-available-buffer-notifications/", $n) };
    (features $n:literal) => { concat!("feature-bits/", $n) };
    (reserved $n:literal) => { concat!("reserved-feature-bits/", $n) };
    (config $n:literal) => { concat!("device-configuration-space/", $n) };
    (framing $n:literal) => { concat!("message-framing/", $n) };
    (table $n:literal) => { concat!("virtqueues-the-virtqueue-descriptor-table/", $n) };
    (indirect $n:literal) => { concat!("virtqueues-the-virtqueue-descriptor-table-indirect-descriptors/", $n) };
    (used_ring $n:literal) => { concat!("virtqueues-the-virtqueue-used-ring/", $n) };
    (used_suppression $n:literal) => { concat!("virtqueues-used-buffer-notification-suppression/", $n) };
    (avail_suppression $n:literal) => { concat!("virtqueues-available-buffer-notification-suppression/", $n) };
    (packed $n:literal) => { concat!("packed-virtqueues/", $n) };
    (packed_table $n:literal) => { concat!("packed-virtqueues-the-virtqueue-descriptor-table/", $n) };
    (packed_lists $n:literal) => { concat!("packed-virtqueues-scatter-gather-support/", $n) };
    (admin $n:literal) => { concat!("device-groups-group-administration-commands/", $n) };
    (adminq $n:literal) => { concat!("administration-virtqueues/", $n) };
    (capabilities $n:literal) => { concat!("device-groups-group-administration-commands-device-and-driver-capabilities/", $n) };
    (objects $n:literal) => { concat!("device-groups-group-administration-commands-device-resource-objects/", $n) };
    (parts $n:literal) => { concat!("device-groups-group-administration-commands-device-parts/", $n) };
    (discovery $n:literal) => { concat!("virtio-over-pci-bus-pci-device-discovery/", $n) };
    (caps $n:literal) => { concat!("virtio-over-pci-bus-virtio-structure-pci-capabilities/", $n) };
    (common $n:literal) => { concat!("virtio-over-pci-bus-pci-device-layout-common-configuration-structure-layout/", $n) };
    (doorbell $n:literal) => { concat!("virtio-over-pci-bus-pci-device-layout-notification-capability/", $n) };
    (isr $n:literal) => { concat!("virtio-over-pci-bus-pci-device-layout-isr-status-capability/", $n) };
    (device_config $n:literal) => { concat!("virtio-over-pci-bus-pci-device-layout-device-specific-configuration/", $n) };
    (shared_memory $n:literal) => { concat!("virtio-over-pci-bus-pci-device-layout-shared-memory-capability/", $n) };
    (vendor_data $n:literal) => { concat!("virtio/", $n) };
    (window $n:literal) => { concat!("virtio-over-pci-bus-pci-device-layout-pci-configuration-access-capability/", $n) };
    (msix $n:literal) => { concat!("virtio-over-pci-bus-pci-specific-initialization-and-device-operation-device-initialization-msi-x-vector-configuration/", $n) };
    (used_interrupt $n:literal) => { concat!("virtio-over-pci-bus-pci-specific-initialization-and-device-operation-used-buffer-notifications/", $n) };
    (config_interrupt $n:literal) => { concat!("virtio-over-pci-bus-pci-specific-initialization-and-device-operation-notification-of-device-configuration-changes/", $n) };
    (blk_init $n:literal) => { concat!("block-device-device-initialization/", $n) };
    (blk $n:literal) => { concat!("block-device-device-operation/", $n) };
    (rng $n:literal) => { concat!("entropy-device-device-operation/", $n) };
}
