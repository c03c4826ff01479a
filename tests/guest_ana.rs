//! A Linux guest with native multipath and two NVMe/TCP ways to one disk, under verified writes, while each way becomes
//! inaccessible and comes back: what the kernel makes of the ANA log, its notices and its statuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod guest;

use common::grpc::Grpc;
use common::server::Server;
use common::{count, free_port};
use guest::{Builder, HOST};
use proto::isthmus::AnaState;

const NQN: &str = "nqn.2025-01.test.isthmus:ways";

const SCRIPT: &str = r#"
modprobe nvme_tcp
# The first way is the first controller, and so is the second.
for port in $PORTS; do nvme connect -t tcp -a $HOST -s $port -n $NQN --nr-io-queues=2; done
disk=$(disk_of $NQN 1)
subsystem=$(echo /sys/class/nvme-subsystem/nvme-subsys*)
echo round-robin >$subsystem/iopolicy
first=$(echo $subsystem/nvme0/nvme*c0n1) second=$(echo $subsystem/nvme1/nvme*c1n1)

fio --name=ways --filename=$disk --size=16m --rw=randwrite --bsrange=4k-64k --iodepth=16 \
    --ioengine=libaio --direct=1 --rate_iops=500 --verify=crc32c --verify_backlog=64 --verify_fatal=1 --randseed=$SEED \
    --time_based --runtime=3600 --eta=never --output=/tmp/fio.log &
fio=$!

commands() { awk '{ print $1 + $5 }' "$1/stat"; }
# Waits until commands have ended: moves WAY
moves() {
    goal=$(($(commands $1) + 16))
    for tries in $(seq 600); do
        kill -0 $fio 2>/dev/null || { echo "fio has ended"; cat /tmp/fio.log; return 1; }
        [ "$(commands $1)" -ge $goal ] && return
        sleep 0.05
    done
    echo "$1 stands still"
    return 1
}
# Waits until the kernel knows that a way is so: is WAY STATE
is() {
    for tries in $(seq 600); do [ "$(cat $1/ana_state)" = $2 ] && return; sleep 0.05; done
    echo "$1 is $(cat $1/ana_state), and not $2"
    return 1
}
# Waits until a way has no commands, and looks whether it gets any while another moves: rests WAY OTHER
rests() {
    for tries in $(seq 600); do [ "$(awk '{ print $9 }' $1/stat)" = 0 ] && break; sleep 0.05; done
    before=$(commands $1)
    moves $2
    [ "$(commands $1)" = $before ] || { echo "$1 is still used"; return 1; }
}
is $first optimized
is $second optimized

for cycle in $(seq $CYCLES); do
    moves $first
    moves $second
    [ "$(ask first-inaccessible)" = set ]
    is $first inaccessible
    rests $first $second
    nvme reset /dev/nvme0
    is $first inaccessible
    # No way at all: what is written waits.
    [ "$(ask second-inaccessible)" = set ]
    is $second inaccessible
    sleep 0.5
    kill -0 $fio
    [ "$(ask first-back)" = set ]
    is $first optimized
    moves $first
    [ "$(ask second-non-optimized)" = set ]
    is $second non-optimized
    rests $second $first
    [ "$(ask second-back)" = set ]
    is $second optimized
done
dmesg | grep -iE 'nvme.*(timeout|removing|unable)|I/O error' && exit 1

kill -INT $fio
status=0; wait $fio || status=$?
[ $status = 128 ] && grep 'err= 0' /tmp/fio.log || { echo "fio ended with $status"; cat /tmp/fio.log; exit 1; }
grep -E 'IOPS=' /tmp/fio.log
verify $disk 16m
"#;

#[test]
fn its_io_goes_by_the_ways_that_are_open_and_loses_nothing() {
    let cycles = count(5, 100);
    let Some(guest) = Builder::new("ana", "") else { return };
    let server = Server::start(&["--shards", "2"]);
    let grpc = Grpc::connect(server.grpc());
    let ports = [free_port(), free_port()];
    grpc.aio_volume("file", &server.aio_file("disk", 64 << 20), 512).unwrap();
    grpc.subsystem("subsys0", NQN).unwrap();
    grpc.namespace("subsys0", "disk", "file").unwrap();
    grpc.tcp_controller("subsys0", "first", ports[0]).unwrap();
    grpc.tcp_controller("subsys0", "second", ports[1]).unwrap();

    let [first, second] = ports;
    let variables = format!("HOST={HOST}\nPORTS='{first} {second}'\nNQN={NQN}\nCYCLES={cycles}\n");
    guest.script(&(variables + SCRIPT)).network().run_with(|guest| {
        for _ in 0..cycles {
            for (mark, way, state) in [
                ("first-inaccessible", "first", AnaState::Inaccessible),
                ("second-inaccessible", "second", AnaState::Inaccessible),
                ("first-back", "first", AnaState::Optimized),
                ("second-non-optimized", "second", AnaState::NonOptimized),
                ("second-back", "second", AnaState::Optimized),
            ] {
                guest.wait_for_mark(mark)?;
                grpc.set_ana("subsys0", way, state).unwrap();
                guest.answer("set");
            }
        }
        Ok(())
    });
}
