//! UEFI firmware boots a guest from an Isthmus disk: its loader, kernel and initial file system lie encrypted on a remote,
//! written there by a host over TCP, and come back over vfio-user. Then, while fio verifies what it writes to that disk,
//! the guest resets the controller, namespaces come and go, and a second path over TCP connects and disconnects.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod guest;

use common::chain::{Chain, Disk, SIZE};
use common::opi::Opi;
use common::{count, host};
use guest::{Builder, HOST, esp};

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

# Behind the partition's files.
fio --name=cycles --filename=$disk --offset=96m --size=16m --rw=randwrite --bsrange=4k-32k --iodepth=16 \
    --ioengine=libaio --direct=1 --rate_iops=500 --verify=crc32c --verify_backlog=64 --verify_fatal=1 --randseed=$SEED \
    --time_based --runtime=3600 --eta=never --output=/tmp/fio.log &
fio=$!

commands() { awk '{ print $1 + $5 }' "$1/stat"; }
# Waits until commands have ended: moves DISK-IN-SYSFS
moves() {
    goal=$(($(commands $1) + 16))
    for tries in $(seq 600); do
        kill -0 $fio 2>/dev/null || { echo "fio has ended"; cat /tmp/fio.log; return 1; }
        [ "$(commands $1 2>/dev/null || echo 0)" -ge $goal ] && return
        sleep 0.05
    done
    echo "$1 stands still"
    return 1
}
# Waits until a command succeeds: comes COMMAND ...
comes() {
    for tries in $(seq 600); do "$@" && return; sleep 0.05; done
    echo "never: $*"
    return 1
}
moves /sys/block/nvme0n1

mark resets
for cycle in $(seq $CYCLES); do
    if [ $((cycle % 2)) = 0 ]; then nvme reset /dev/nvme0; else echo 1 >/sys/class/nvme/nvme0/reset_controller; fi
    moves /sys/block/nvme0n1
done
# The kernel tells of those that came by nvme-cli.
echo "resets: $(dmesg | grep -c 'resetting controller')"
dmesg | grep -iE 'nvme.*(timeout|removing|unable|not ready)|I/O error' && exit 1
dmesg -c >/dev/null

# Nobody asks for a scan: the controller's event is what makes the disk come and go.
for cycle in $(seq $CYCLES); do
    [ "$(ask attach)" = attached ]
    comes test -b /dev/nvme0n2
    yes namespace-$cycle | head -c 65536 >/tmp/pattern
    dd if=/tmp/pattern of=/dev/nvme0n2 bs=64k oflag=direct 2>/dev/null
    dd if=/dev/nvme0n2 bs=64k count=1 iflag=direct 2>/dev/null | cmp - /tmp/pattern
    # Every other one is taken away while it is written to.
    dd=
    if [ $((cycle % 2)) = 0 ]; then
        (while dd if=/dev/zero of=/dev/nvme0n2 bs=4k count=2000 oflag=direct; do :; done) 2>/dev/null &
        dd=$!
        moves /sys/block/nvme0n2
    fi
    [ "$(ask detach)" = detached ]
    comes test ! -e /sys/block/nvme0n2
    [ -z "$dd" ] || wait $dd || true
    rm -f /dev/nvme0n2
    moves /sys/block/nvme0n1
done
dmesg | grep -iE 'nvme.*(timeout|reset|removing|unable)|nvme0n1.*error' && exit 1
dmesg -c >/dev/null

# The same disk by a second path, and I/O on both.
mark paths
modprobe nvme_tcp
echo round-robin >/sys/class/nvme-subsystem/nvme-subsys0/iopolicy
path_is_there() { path=$(echo /sys/class/nvme-subsystem/nvme-subsys0/nvme*/nvme0c[1-9]*n1); [ -e "$path" ]; }
path_is_gone() { ! path_is_there; }
for cycle in $(seq $CYCLES); do
    nvme connect -t tcp -a $HOST -s $PORT -n $NQN --nr-io-queues=2
    comes path_is_there
    moves $path
    nvme disconnect -d $(basename ${path%/*}) >/dev/null
    comes path_is_gone
    moves /sys/block/nvme0n1
done
dmesg | grep -iE 'nvme.*timeout|I/O error' && exit 1

kill -INT $fio
status=0; wait $fio || status=$?
[ $status = 128 ] && grep 'err= 0' /tmp/fio.log || { echo "fio ended with $status"; cat /tmp/fio.log; exit 1; }
grep -E 'IOPS=' /tmp/fio.log
verify $disk 64k
"#;

#[test]
fn firmware_boots_it_and_it_survives_resets_and_comings_and_goings() {
    let cycles = count(10, 200);
    let Some(guest) = Builder::new("boot", "").and_then(Builder::firmware) else { return };
    let Some(chain) = Chain::build(&[DISK], &["--shards", "2"]) else { return };
    let Some(mut opi) = Opi::connect(chain.bridge.grpc()) else { return };
    let port = common::free_port();
    let variables = format!("NQN={}\nHOST={HOST}\nPORT={port}\nCYCLES={cycles}\n", chain.nqn);
    let guest = guest.script(&(variables + SCRIPT)).network().vfio_user(&chain.socket());

    opi.tcp_controller("here", "tcp0", port);
    let (loader, files) = guest.boot_files();
    let files: Vec<_> = files.iter().map(|(name, content)| (*name, content.as_slice())).collect();
    let (controller, mut queue) = host::connect_tcp(port, &chain.nqn);
    host::write_pieces(&mut queue, &esp::disk(SIZE / esp::BLOCK as u64, &loader, &files));
    drop((controller, queue));

    opi.malloc_volume("more", 512, 8192);
    let printed = guest.run_with(|guest| {
        guest.wait_for_mark("partition at 2048")?;
        guest.wait_for_mark("resets")?;
        for _ in 0..cycles {
            guest.wait_for_mark("attach")?;
            opi.namespace("here", "more", 2, "more");
            guest.answer("attached");
            guest.wait_for_mark("detach")?;
            opi.delete("FrontendNvmeService/DeleteNvmeNamespace", "nvmeSubsystems/here/nvmeNamespaces/more");
            guest.answer("detached");
        }
        guest.wait_for_mark("paths")
    });
    assert!(printed.contains("starting Boot0001 \"UEFI Isthmus ISTHMUS-TEST"), "{printed}");
    assert!(printed.contains(&format!("resets: {}\n", cycles / 2)), "{printed}");
}
