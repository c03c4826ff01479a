//! Ways to a subsystem whose state is set over gRPC: two listeners and a vfio-user device of a running server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::free_port;
use common::grpc::Grpc;
use common::host::{command, connect_tcp, connect_vfio_user, fill, load};
use common::server::Server;
use host::workload::Amount;
use host::{Command, Kind, Queue, tcp};
use nvme_proto::log::{AnaGroupDescriptor, GetLogPage, LogId};
use nvme_proto::zerocopy::FromBytes;
use nvme_proto::{Sqe, Status};
use proto::isthmus::AnaState;
use tonic::Code;

const NQN: &str = "nqn.2024-01.com.example:ways";
const MIB: u64 = 1 << 20;

/// What a read of the first block completes with.
fn read(queue: &mut dyn Queue) -> Status {
    command(queue, Command { kind: Kind::Read, lba: 0, blocks: 1 })
}

/// The change count and the state of the group of all namespaces.
fn log(controller: &mut tcp::Controller) -> (u64, u8) {
    let mut sqe = Sqe { opc: 2, nsid: u32::MAX, ..Sqe::default() };
    GetLogPage::new(LogId::Ana, 0, 52).put(&mut sqe);
    let page = controller.admin_read("ANA log", sqe, 52).unwrap();
    let group = AnaGroupDescriptor::read_from_bytes(&page[16..48]).unwrap();
    (group.chgcnt, group.state.0)
}

#[test]
fn ways_go_and_come_one_by_one_and_stay_so_over_a_kill() {
    const REFUSED: Status = Status::ASYMMETRIC_ACCESS_INACCESSIBLE;
    let mut server = Server::start(&["--shards", "2"]);
    let grpc = Grpc::connect(server.grpc());
    grpc.aio_volume("file", &server.aio_file("disk", 4 * MIB), 4096).unwrap();
    grpc.subsystem("subsys0", NQN).unwrap();
    grpc.namespace("subsys0", "disk", "file").unwrap();
    let ports = [free_port(), free_port()];
    grpc.tcp_controller("subsys0", "tcp0", ports[0]).unwrap();
    grpc.tcp_controller("subsys0", "tcp1", ports[1]).unwrap();
    grpc.pcie_controller("subsys0", "pcie0").unwrap();
    let socket = server.path("ctrlr/subsys0/cntrl");
    let [(mut admin, mut first), (mut other_admin, mut second)] = ports.map(|port| connect_tcp(port, NQN));
    let (device, mut third) = connect_vfio_user(&socket, 1);
    let mut ledger = fill(&mut first);

    let set = |grpc: &Grpc, id: &str, state| grpc.set_ana("subsys0", id, state).unwrap();
    set(&grpc, "tcp0", AnaState::Inaccessible);
    assert_eq!(
        [read(&mut first), read(&mut second), read(&mut third)],
        [REFUSED, Status::SUCCESS, Status::SUCCESS]
    );
    assert_eq!((log(&mut admin), log(&mut other_admin)), ((1, 3), (0, 1)));
    set(&grpc, "tcp0", AnaState::NonOptimized);
    set(&grpc, "pcie0", AnaState::Inaccessible);
    assert_eq!(
        [read(&mut first), read(&mut second), read(&mut third)],
        [Status::SUCCESS, Status::SUCCESS, REFUSED]
    );
    assert_eq!(log(&mut admin), (2, 2));
    load(&mut second, &mut ledger, 50, true, Amount::Commands(300));
    let unknown = grpc.set_ana("subsys0", "tcp2", AnaState::Optimized).unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
    drop((admin, other_admin, first, second, device, third));

    server.kill();
    server.launch();
    let grpc = Grpc::connect(server.grpc());
    let states = ["tcp0", "tcp1", "pcie0"].map(|id| grpc.ana("subsys0", id).unwrap());
    assert_eq!(states, [AnaState::NonOptimized, AnaState::Optimized, AnaState::Inaccessible]);
    let (mut admin, mut first) = connect_tcp(ports[0], NQN);
    assert_eq!((log(&mut admin), read(&mut first)), ((0, 2), Status::SUCCESS));
    let (_device, mut third) = connect_vfio_user(&socket, 1);
    assert_eq!(read(&mut third), REFUSED);
    set(&grpc, "pcie0", AnaState::Optimized);
    assert_eq!(load(&mut third, &mut ledger, 100, false, Amount::Once), 4 * MIB, "all that was written");
}
