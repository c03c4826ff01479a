//! nvme-cli in a Linux guest, on one subsystem's namespace over vfio-user and over TCP at once: every command answers as the
//! specification says, and the kernel has nothing to complain of.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod guest;

use common::opi::Opi;
use common::server::Server;
use guest::{Builder, HOST};

const NQN: &str = "nqn.2025-01.test.isthmus:shared";

const SCRIPT: &str = r#"
modprobe nvme_tcp
nvme connect -t tcp -a $HOST -s $PORT -n $NQN --hostnqn=$NQN-host
for tries in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/nvme1n1 ] && break; sleep 1; done

says() { # says PATTERN COMMAND ...: the command succeeds and prints that
    pattern=$1; shift
    "$@" >/tmp/said 2>&1 || { echo "FAILED ($?): $*"; cat /tmp/said; return 1; }
    [ -z "$pattern" ] || grep -qE -- "$pattern" /tmp/said || { echo "NOT SAID: $pattern by $*"; cat /tmp/said; return 1; }
}
refuses() { # refuses PATTERN COMMAND ...: the command fails and prints that
    pattern=$1; shift
    if "$@" >/tmp/said 2>&1; then echo "NOT REFUSED: $*"; cat /tmp/said; return 1; fi
    grep -qE -- "$pattern" /tmp/said || { echo "NOT SAID: $pattern by $*"; cat /tmp/said; return 1; }
}

head -c 4096 /dev/urandom >/tmp/data
printf '\1\2\3\4\5\6\0\0' >/tmp/stamp
for c in /dev/nvme0 /dev/nvme1; do
    d=${c}n1
    mark $c
    says "^subnqn *: $NQN" nvme id-ctrl $c
    says "^ver *: 0x20100" nvme id-ctrl $c
    says "^nsze *: 0x8000" nvme id-ns $c -n 1
    says "uuid" nvme ns-descs $c -n 1
    says "0\]:0x1" nvme list-ns $c
    says "ctrl list|num of ctrls|\[ *0\]:" nvme list-ctrl $c
    says "host_read_commands|Host Read Commands" nvme smart-log $c
    says "error_count" nvme error-log $c
    # Without a command set nvme-cli maps the registers, which the kernel keeps for itself.
    says "Verify" nvme effects-log $c --csi=0
    says "frs1" nvme fw-log $c
    says "ANA|Asymmetric" nvme ana-log $c
    says "" nvme supported-log-pages $c
    says "" nvme changed-ns-list-log $c
    for f in 1 2 4 7 0xa 0xb 0xe 0x16; do
        says "" nvme get-feature $c -f $f -n 0
        says "" nvme get-feature $c -f $f -s 1 -n 0
        says "" nvme get-feature $c -f $f -s 3 -n 0
    done
    says "" nvme get-feature $c -f 5 -n 1
    says "" nvme set-feature $c -f 1 -V 3
    says "0x0*3" nvme get-feature $c -f 1
    says "" nvme set-feature $c -f 0xa -V 1
    says "0x0*1" nvme get-feature $c -f 0xa
    for f in "2 0" "4 343" "0xb 0x100"; do
        set -- $f
        says "" nvme set-feature $c -f $1 -V $2
        says "$(printf '0x0*%x' $2)" nvme get-feature $c -f $1
    done
    says "" nvme set-feature $c -f 0xe -l 8 -d /tmp/stamp
    says "" nvme set-feature $c -f 5 -n 1 -V 0
    # The cache is the medium's, and memory has none. Number of Queues (7) and Host Behavior (16h) the kernel sets itself and lets nobody set.
    says "0x0*0" nvme get-feature $c -f 6
    refuses "Not Changeable|NOT_CHANGEABLE" nvme set-feature $c -f 6 -V 1
    says "" nvme set-feature $c -f 0x84 -n 1 -V 1
    says "0x0*1" nvme get-feature $c -f 0x84 -n 1
    refuses "Write Protected|WRITE_PROTECTED" nvme write-zeroes $d -s 0 -c 7
    says "" nvme set-feature $c -f 0x84 -n 1 -V 0
    refuses "Invalid Field|INVALID_FIELD" nvme get-feature $c -f 0x7f
    refuses "Invalid Field|INVALID_FIELD" nvme admin-passthru $c --opcode=6 -l 4096 -r --cdw10=0xff
    refuses "Invalid Command Opcode|Invalid Opcode|INVALID_OPCODE" nvme admin-passthru $c --opcode=0x30
    says "" nvme ns-rescan $c

    says "" nvme write $d -s 0 -c 7 -z 4096 -d /tmp/data
    says "" nvme flush $d
    says "" nvme compare $d -s 0 -c 7 -z 4096 -d /tmp/data
    head -c 4096 /dev/zero >/tmp/zeroes
    refuses "Compare Failure|COMPARE_FAILED" nvme compare $d -s 0 -c 7 -z 4096 -d /tmp/zeroes
    says "" nvme verify $d -s 0 -c 7
    refuses "LBA" nvme verify $d -s 0x8000 -c 0
    says "" nvme write-zeroes $d -s 0 -c 7
    says "" nvme compare $d -s 0 -c 7 -z 4096 -d /tmp/zeroes
    says "" nvme write $d -s 0 -c 7 -z 4096 -d /tmp/data
    says "" nvme write-zeroes $d -s 0 -c 7 --deac
    says "" nvme compare $d -s 0 -c 7 -z 4096 -d /tmp/zeroes
    says "" nvme dsm $d -n 1 --ad -s 8 -b 8
    refuses "LBA" nvme read $d -s 0x8000 -c 0 -z 512
    verify $d 4m
done
for f in 8 9; do says "" nvme get-feature /dev/nvme0 -f $f; done
says "" nvme set-feature /dev/nvme0 -f 8 -V 0x102
says "0x0*102" nvme get-feature /dev/nvme0 -f 8
says "" nvme set-feature /dev/nvme0 -f 8 -V 0
says "" nvme set-feature /dev/nvme0 -f 9 -V 0x10001
says "" nvme set-feature /dev/nvme1 -f 0xf -V 120000
says "" nvme get-feature /dev/nvme1 -f 0xf

mark reservations
printf '0123456789abcdef' >/tmp/hostid
nvme set-feature /dev/nvme0 -f 0x81 -V 1 -l 16 -d /tmp/hostid
a=/dev/nvme0n1 b=/dev/nvme1n1
says "" nvme resv-register $a -n 1 --nrkey=0xaa --rrega=0
says "" nvme resv-register $b -n 1 --nrkey=0xbb --rrega=0
says "regctl *: 2" nvme resv-report $a -n 1 --eds
for c in /dev/nvme0 /dev/nvme1; do
    says "" nvme set-feature $c -f 0x82 -n 1 -V 0
    says "" nvme get-feature $c -f 0x82 -n 1
    says "" nvme set-feature $c -f 0x83 -n 1 -V 1
    says "0x0*1" nvme get-feature $c -f 0x83 -n 1
    says "" nvme set-feature $c -f 0x83 -n 1 -V 0
done
says "" nvme resv-acquire $a -n 1 --crkey=0xaa --rtype=1 --racqa=0
says "rtype *: 1" nvme resv-report $b -n 1 --eds
refuses "Reservation Conflict|RESERVATION_CONFLICT" nvme write $b -s 0 -c 7 -z 4096 -d /tmp/data
says "" nvme read $b -s 0 -c 7 -z 4096
refuses "Reservation Conflict|RESERVATION_CONFLICT" nvme resv-acquire $b -n 1 --crkey=0xbb --rtype=1 --racqa=0
says "" nvme resv-acquire $b -n 1 --crkey=0xbb --prkey=0xaa --rtype=3 --racqa=1
says "regctl *: 1" nvme resv-report $b -n 1 --eds
refuses "Reservation Conflict|RESERVATION_CONFLICT" nvme write $a -s 0 -c 7 -z 4096 -d /tmp/data
says "" nvme write $b -s 0 -c 7 -z 4096 -d /tmp/data
says "Reservation|resv|NSID|nsid" nvme resv-notif-log /dev/nvme0
says "" nvme resv-release $b -n 1 --crkey=0xbb --rtype=3 --rrela=0
says "" nvme resv-register $b -n 1 --crkey=0xbb --rrega=1
says "regctl *: 0" nvme resv-report $a -n 1 --eds
says "" nvme write $a -s 0 -c 7 -z 4096 -d /tmp/data
no_complaint

mark resets
for c in /dev/nvme0 /dev/nvme1; do
    nvme reset $c
    for tries in $(seq 20); do nvme id-ctrl $c >/dev/null 2>&1 && [ -b ${c}n1 ] && break; sleep 0.5; done
    verify ${c}n1 2m
done
nvme subsystem-reset /dev/nvme1
# The other controller was reset with it, and its driver finds out when it asks.
nvme reset /dev/nvme0
for c in /dev/nvme0 /dev/nvme1; do
    for tries in $(seq 40); do nvme id-ctrl $c >/dev/null 2>&1 && [ -b ${c}n1 ] && break; sleep 0.5; done
    verify ${c}n1 2m
done
nvme disconnect -d nvme1
"#;

#[test]
fn nvme_cli_gets_every_answer() {
    let Some(guest) = Builder::new("nvme-cli", "") else { return };
    let server = Server::start(&["--shards", "2"]);
    let Some(mut opi) = Opi::connect(server.grpc()) else { return };
    let port = common::free_port();
    opi.malloc_volume("disk", 512, 0x8000);
    opi.subsystem("subsys0", NQN);
    opi.namespace("subsys0", "disk0", 1, "disk");
    opi.pcie_controller("subsys0", "pcie0");
    opi.tcp_controller("subsys0", "tcp0", port);
    let variables = format!("HOST={HOST}\nPORT={port}\nNQN={NQN}\n");
    // Each controller has a disk of its own: what is asked of one is not answered by the other.
    let guest = guest.script(&(variables + SCRIPT)).kernel("nvme_core.multipath=N").network();
    guest.vfio_user(&server.path("ctrlr/subsys0/cntrl")).run();
}
