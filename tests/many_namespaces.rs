//! 1,024 namespaces and more in a subsystem, 10,000 in a process: each costs the same to make, and nothing while nobody
//! uses it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::grpc::Grpc;
use common::server::Server;
use common::{free_port, host};
use nvme_proto::Sqe;

const NQN: &str = "nqn.2025-01.test.isthmus:many";
/// Namespaces of the first subsystem, which has a host.
const WATCHED: i32 = 2000;
const OTHERS: i32 = 8;
const EACH: i32 = 1000;
/// How many clients make them.
const CLIENTS: i32 = 4;
/// For how long the server is watched while nothing is done.
const IDLE: Duration = Duration::from_secs(5);

/// Makes namespaces 1 to `count` of a subsystem, each on a volume of its own.
fn fill(server: &Server, subsystem: &str, count: i32) {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                let grpc = Grpc::connect(server.grpc());
                for nsid in (1..=count).skip(client as usize).step_by(CLIENTS as usize) {
                    let volume = format!("{subsystem}-{nsid}");
                    grpc.null_volume(&volume, 512, 1 << 20).unwrap();
                    grpc.namespace_at(subsystem, &format!("name{nsid}"), &volume, nsid).unwrap();
                }
            });
        }
    });
    let each = begun.elapsed() / count as u32;
    println!(
        "{subsystem}: {count} namespaces with their volumes, {each:?} each, {} KiB",
        server.anonymous_memory() >> 10
    );
}

#[test]
fn ten_thousand_namespaces() {
    let mut server = Server::start(&["--shards", "2"]);
    let grpc = Grpc::connect(server.grpc());
    let port = free_port();
    grpc.subsystem_of("many", NQN, 4096).unwrap();
    grpc.tcp_controller("many", "tcp0", port).unwrap();
    let (mut controller, queue) = {
        grpc.null_volume("first", 512, 1 << 20).unwrap();
        grpc.namespace_at("many", "first", "first", 1).unwrap();
        let connected = host::connect_tcp(port, NQN);
        grpc.delete_namespace("many", "first").unwrap();
        connected
    };
    let empty = server.anonymous_memory();
    fill(&server, "many", WATCHED);
    for number in 0..OTHERS {
        let subsystem = format!("other{number}");
        grpc.subsystem_of(&subsystem, &format!("{NQN}{number}"), 1024).unwrap();
        fill(&server, &subsystem, EACH);
    }
    println!(
        "{} bytes a namespace and its volume",
        (server.anonymous_memory() - empty) / (WATCHED + OTHERS * EACH) as u64
    );

    // The list of active namespaces, page by page.
    let mut listed = Vec::new();
    loop {
        let after = listed.last().copied().unwrap_or(0);
        let list = Sqe { opc: 6, nsid: after, cdw10: 2, ..Sqe::default() };
        let page = controller.admin_read("Active Namespace ID list", list, 4096).unwrap();
        let page = page.chunks(4).map(|nsid| u32::from_le_bytes(nsid.try_into().unwrap()));
        let before = listed.len();
        listed.extend(page.take_while(|nsid| *nsid != 0));
        if listed.len() - before < 1024 {
            break;
        }
    }
    assert!(listed.iter().copied().eq(1..=WATCHED as u32));

    let before = server.cpu_time();
    std::thread::sleep(IDLE);
    println!("{:?} of processor time in {IDLE:?} of idleness", server.cpu_time() - before);

    drop((controller, queue));
    let begun = Instant::now();
    server.terminate();
    server.launch();
    println!("they are there again after {:?}", begun.elapsed());
    let (mut controller, queue) = host::connect_tcp(port, NQN);
    assert_eq!(controller.namespaces().unwrap().len(), 1024, "the first page");
    drop((controller, queue));

    let begun = Instant::now();
    let grpc = Grpc::connect(server.grpc());
    for nsid in 1..=100 {
        grpc.delete_namespace("other0", &format!("name{nsid}")).unwrap();
    }
    println!("{:?} to take one away", begun.elapsed() / 100);
}
