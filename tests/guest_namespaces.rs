//! A Linux guest with a thousand namespaces (in `cargo xtask test` fewer), over vfio-user and over TCP at once: it finds all
//! of them, and is told when one is shown to the one way in and hidden from the other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod guest;

use common::grpc::Grpc;
use common::server::Server;
use common::{count, free_port};
use guest::{Builder, HOST};
use proto::isthmus::NamespaceMask;

const NQN: &str = "nqn.2025-01.test.isthmus:subsys0";
const GUEST: &str = "nqn.2025-01.test.isthmus:guest";
const PCIE: &str = "nvmeSubsystems/subsys0/nvmeControllers/pcie0";

const SCRIPT: &str = r#"
disks() { ls /sys/class/nvme/$1 | grep -c '^nvme.*n' || true; }
# Waits until a controller has so many disks: has CONTROLLER COUNT
has() {
    for tries in $(seq 600); do [ $(disks $1) = $2 ] && return; sleep 0.5; done
    echo "$1 has $(disks $1) disks, not $2"
    return 1
}
# The disk of a namespace at a controller: disk CONTROLLER NSID
disk() {
    nsids=$(grep -l "^$2\$" /sys/class/nvme/$1/nvme*n*/nsid) || { echo "$1 has no namespace $2" >&2; return 1; }
    basename ${nsids%/nsid}
}
has nvme0 $((MANY - 1))
modprobe nvme_tcp
nvme connect -t tcp -a $HOST -s $PORT -n $NQN --hostnqn=$GUEST
has nvme1 $MANY
if disk nvme0 2; then exit 1; fi
verify /dev/$(disk nvme0 $MANY) 1m
verify /dev/$(disk nvme1 2) 1m

# Nobody asks for a scan.
[ "$(ask other)" = done ]
has nvme0 $MANY
has nvme1 $((MANY - 1))
if disk nvme1 2; then exit 1; fi
verify /dev/$(disk nvme0 2) 1m
[ "$(ask less)" = done ]
has nvme0 $((MANY - 1))
has nvme1 $((MANY - 2))
no_complaint
nvme disconnect -d nvme1
"#;

#[test]
fn a_guest_finds_the_namespaces_that_are_for_it() {
    let many = count(64, 1024) as i32;
    let Some(guest) = Builder::new("namespaces", "") else { return };
    let server = Server::start(&["--shards", "2"]);
    let grpc = Grpc::connect(server.grpc());
    let port = free_port();
    grpc.subsystem_of("subsys0", NQN, 1024).unwrap();
    grpc.pcie_controller("subsys0", "pcie0").unwrap();
    grpc.tcp_controller("subsys0", "tcp0", port).unwrap();
    // The second is hidden from the guest's first controller before there is such a namespace.
    let only = |hosts: &[&str], controllers: &[&str]| NamespaceMask {
        namespace_name_ref: "nvmeSubsystems/subsys0/nvmeNamespaces/name2".into(),
        hostnqns: hosts.iter().map(|name| (*name).to_owned()).collect(),
        controller_name_refs: controllers.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    grpc.mask("mask2", only(&[GUEST], &[])).unwrap();
    for nsid in 1..=many {
        let volume = format!("volume{nsid}");
        if nsid == 2 || nsid == many {
            grpc.malloc_volume(&volume, 512, 2048).unwrap();
        } else {
            grpc.null_volume(&volume, 512, 2048).unwrap();
        }
        grpc.namespace_at("subsys0", &format!("name{nsid}"), &volume, nsid).unwrap();
    }
    let variables = format!("HOST={HOST}\nPORT={port}\nNQN={NQN}\nGUEST={GUEST}\nMANY={many}\n");
    // Each controller has disks of its own.
    let guest = guest.script(&(variables + SCRIPT)).kernel("nvme_core.multipath=N").network();
    guest.vfio_user(&server.path("ctrlr/subsys0/cntrl")).run_with(|guest| {
        guest.wait_for_mark("other")?;
        // A connection is given up while nobody answers for it: each call has its own.
        Grpc::connect(server.grpc()).set_mask("mask2", only(&[], &[PCIE])).unwrap();
        guest.answer("done");
        guest.wait_for_mark("less")?;
        Grpc::connect(server.grpc()).delete_namespace("subsys0", "name3").unwrap();
        guest.answer("done");
        Ok(())
    });
}
