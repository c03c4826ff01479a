//! A Linux guest without MSI: each interrupt is the pin's, which its host tells of having served by a doorbell that QEMU
//! sees; and Linux uses shadow doorbells, which QEMU does not see.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod guest;

use common::grpc::Grpc;
use common::server::Server;
use guest::Builder;

const NQN: &str = "nqn.2025-01.test.isthmus:intx";

const SCRIPT: &str = "
disk=$(disk_of $NQN 1)
verify $disk 8m
grep nvme /proc/interrupts
if grep nvme /proc/interrupts | grep -q MSI; then exit 1; fi
if dmesg | grep -i 'nobody cared'; then exit 1; fi
no_complaint
";

#[test]
fn a_guest_without_msi_is_interrupted_by_the_pin() {
    for doorbells in ["mapped", "trapped"] {
        let Some(guest) = Builder::new("intx", &format!("NQN={NQN}\n{SCRIPT}")) else { return };
        let server = Server::start(&["--doorbells", doorbells]);
        let grpc = Grpc::connect(server.grpc());
        grpc.malloc_volume("disk", 512, 65536).unwrap();
        grpc.subsystem("subsys0", NQN).unwrap();
        grpc.namespace("subsys0", "disk", "disk").unwrap();
        grpc.pcie_controller("subsys0", "pcie").unwrap();
        let printed = guest.kernel("pci=nomsi").vfio_user(&server.path("ctrlr/subsys0/cntrl")).run();
        assert!(printed.contains("IO-APIC"), "{printed}");
    }
}
