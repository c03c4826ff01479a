//! Isthmus's initiator against the Linux kernel's own target: the guest exports a RAM disk with nvmet-tcp, Isthmus takes
//! it as a remote and exports it again, and the same guest, as its host, writes and verifies through both. What arrives
//! in the RAM disk is compared byte by byte with what the host sees.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod guest;

use common::opi::Opi;
use common::server::Server;
use guest::{Builder, HOST};

const REMOTE: &str = "nqn.2025-01.test.isthmus:remote";
const LOCAL: &str = "nqn.2025-01.test.isthmus:local";

const SCRIPT: &str = r#"
modprobe nvme_tcp
modprobe brd rd_nr=2 rd_size=40960
export_nvmet $REMOTE-plain /dev/ram0
export_nvmet $REMOTE-digests /dev/ram1
[ "$(ask exported)" = declared ]

# through NSID DEVICE: writes through Isthmus, then compares with the RAM disk.
through() {
    disk=$(disk_of $LOCAL $1)
    verify $disk 16m
    yes isthmus-$1 | head -c 262144 >/tmp/pattern
    dd if=/tmp/pattern of=$disk bs=64k seek=600 oflag=direct conv=fsync 2>/dev/null
    nvme write-zeroes $disk --start-block=76864 --block-count=7
    nvme dsm $disk --ad --slbs=77184 --blocks=64
    nvme flush $disk
    echo 3 >/proc/sys/vm/drop_caches
    dd if=$disk bs=1M iflag=direct 2>/dev/null | sha256sum >/tmp/through
    dd if=$2 bs=1M 2>/dev/null | sha256sum >/tmp/beneath
    cmp /tmp/through /tmp/beneath
    dd if=$2 bs=512 skip=76864 count=8 2>/dev/null | cmp -n 4096 - /dev/zero
    dd if=$2 bs=64k skip=601 count=2 2>/dev/null >/tmp/beneath
    dd if=/tmp/pattern bs=64k skip=1 count=2 2>/dev/null | cmp - /tmp/beneath
}
nvme connect -t tcp -a $HOST -s $PORT -n $LOCAL
mark plain
through 1 /dev/ram0
mark digests
through 2 /dev/ram1
no_complaint
# A keep-alive that is out meanwhile is something that the kernel complains of.
nvme disconnect -n $LOCAL
ask undeclare >/dev/null
"#;

#[test]
fn verified_through_the_initiator_with_digests_off_and_on() {
    let Some(guest) = Builder::new("nvmet", "") else { return };
    let server = Server::start(&[]);
    let Some(mut opi) = Opi::connect(server.grpc()) else { return };
    let (remote, local) = (common::free_port(), common::free_port());
    opi.subsystem("local", LOCAL);
    opi.tcp_controller("local", "tcp0", local);

    let variables = format!("HOST={HOST}\nPORT={local}\nLOCAL={LOCAL}\nREMOTE={REMOTE}\n");
    let remotes = [("plain", 1, false), ("digests", 2, true)];
    let mut part = |guest: &mut guest::Guest| {
        guest.wait_for_mark("exported")?;
        for (name, nsid, digests) in remotes {
            opi.remote(name, remote, &format!("{REMOTE}-{name}"), digests);
            opi.namespace("local", name, nsid, &format!("{name}n1"));
        }
        guest.answer("declared");
        guest.wait_for_mark("undeclare")?;
        for (name, ..) in remotes {
            opi.delete(
                "FrontendNvmeService/DeleteNvmeNamespace",
                &format!("nvmeSubsystems/local/nvmeNamespaces/{name}"),
            );
            opi.delete(
                "NvmeRemoteControllerService/DeleteNvmePath",
                &format!("nvmeRemoteControllers/{name}/nvmePaths/{name}-path"),
            );
            opi.delete(
                "NvmeRemoteControllerService/DeleteNvmeRemoteController",
                &format!("nvmeRemoteControllers/{name}"),
            );
        }
        guest.answer("");
        Ok(())
    };
    guest.script(&(variables + SCRIPT)).forward(remote, 4420).run_with(&mut part);
}
