//! UEFI firmware boots a guest from an Isthmus disk: its loader, kernel and initial file system lie encrypted on a remote,
//! written there by a host over TCP, and come back over vfio-user.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod guest;

use common::chain::{Chain, Disk, SIZE};
use common::host;
use common::opi::Opi;
use guest::{Builder, esp};

const DISK: Disk = Disk {
    cipher: "ENCRYPTION_TYPE_AES_XTS_128",
    key: "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    block: esp::BLOCK as u64,
};

const SCRIPT: &str = r#"
grep -q initrd= /proc/cmdline
disk=$(disk_of $NQN 1)
[ $disk = /dev/nvme0n1 ]
mark "partition at $(cat /sys/class/block/nvme0n1p1/start)"
no_complaint
"#;

#[test]
fn firmware_finds_its_loader_and_the_kernel_on_the_disk() {
    let Some(guest) = Builder::new("boot", "").and_then(Builder::firmware) else { return };
    let Some(chain) = Chain::build(&[DISK], &["--shards", "2"]) else { return };
    let Some(mut opi) = Opi::connect(chain.bridge.grpc()) else { return };
    let guest = guest.script(&format!("NQN={}\n{SCRIPT}", chain.nqn)).vfio_user(&chain.socket());

    let port = common::free_port();
    opi.tcp_controller("here", "tcp0", port);
    let (loader, files) = guest.boot_files();
    let files: Vec<_> = files.iter().map(|(name, content)| (*name, content.as_slice())).collect();
    let (_controller, mut queue) = host::connect_tcp(port, &chain.nqn);
    host::write_pieces(&mut queue, &esp::disk(SIZE / esp::BLOCK as u64, &loader, &files));

    let printed = guest.run_with(|guest| guest.wait_for_mark("partition at 2048"));
    assert!(printed.contains("starting Boot0001 \"UEFI Isthmus ISTHMUS-TEST"), "{printed}");
}
