//! A Linux kernel as the NVMe/TCP host of a standalone target on a file: discover, connect, verified I/O, disconnect.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod guest;

use std::io::Read;

use common::opi::Opi;
use common::server::Server;
use guest::{Builder, HOST};

const NQN: &str = "nqn.2025-01.test.isthmus:disk";

const SCRIPT: &str = r#"
modprobe nvme_tcp
nvme discover -t tcp -a $HOST -s $PORT >/tmp/discovered
cat /tmp/discovered
grep -q "subnqn: *$NQN" /tmp/discovered

mark plain
nvme connect -t tcp -a $HOST -s $PORT -n $NQN
disk=$(disk_of $NQN 1)
nvme id-ctrl $disk | grep -E '^(vid|sn|mn|fr|mdts|ver|oncs|vwc|subnqn)'
nvme id-ns $disk | grep -E '^(nsze|lbaf)'
verify $disk 16m
yes isthmus-over-tcp | head -c 1048576 >/tmp/pattern
dd if=/tmp/pattern of=$disk bs=64k seek=512 oflag=direct conv=fsync 2>/dev/null
before=$(dd if=$disk bs=1M count=40 iflag=direct 2>/dev/null | sha256sum)
# The kernel complains of a keep-alive that is out when it disconnects.
no_complaint
nvme disconnect -n $NQN
dmesg -c >/dev/null

mark digests
nvme connect -t tcp -a $HOST -s $PORT -n $NQN --hdr-digest --data-digest --nr-io-queues=2 --keep-alive-tmo=5
disk=$(disk_of $NQN 1)
after=$(dd if=$disk bs=1M count=40 iflag=direct 2>/dev/null | sha256sum)
[ "$before" = "$after" ]
verify $disk 16m
sleep 7
nvme flush $disk
no_complaint
nvme disconnect -n $NQN
[ ! -e $disk ]
"#;

/// Where the script writes its pattern, and the pattern's first line.
const PATTERN_AT: u64 = 512 * 65536;
const PATTERN: &[u8] = b"isthmus-over-tcp\n";

#[test]
fn the_kernel_discovers_connects_verifies_and_disconnects() {
    let Some(guest) = Builder::new("host-tcp", "") else { return };
    let server = Server::start(&[]);
    let Some(mut opi) = Opi::connect(server.grpc()) else { return };
    let port = common::free_port();
    let file = server.aio_file("disk", 64 << 20);
    opi.aio_volume("disk", &file, 512);
    opi.subsystem("subsys0", NQN);
    opi.tcp_controller("subsys0", "tcp0", port);
    opi.namespace("subsys0", "disk0", 1, "disk");

    let variables = format!("HOST={HOST}\nPORT={port}\nNQN={NQN}\n");
    let printed = guest.script(&(variables + SCRIPT)).network().run();
    assert_eq!(printed.matches("disconnected 1 controller").count(), 2, "{printed}");

    // The medium is the file as it is: what the guest wrote lies there in the clear.
    let mut medium = std::fs::File::open(&file).unwrap();
    std::io::Seek::seek(&mut medium, std::io::SeekFrom::Start(PATTERN_AT)).unwrap();
    let mut bytes = vec![0; 1 << 20];
    medium.read_exact(&mut bytes).unwrap();
    assert!(bytes.iter().eq(PATTERN.iter().cycle().take(bytes.len())), "the file holds other bytes");
}
