//! A host in this process, for what `isthmus bench` cannot show: single commands, and a memory of what was written.

use std::net::SocketAddr;
use std::path::Path;

use host::workload::{self, Amount, Job, Ledger, Pattern};
use host::{Command, Done, Kind, Queue, tcp, vfio_user};
use nvme_proto::{Nqn, Status};

/// Commands in flight.
const DEPTH: u16 = 8;

/// Connects to namespace 1 of a subsystem over loopback TCP, with digests.
pub fn connect_tcp(port: u16, nqn: &str) -> (tcp::Controller, tcp::IoQueue) {
    let mut controller = connect_tcp_as("nqn.2024-01.com.example:host", 3, port, nqn);
    let queue = controller.io_queue(1).unwrap();
    (controller, queue)
}

/// Connects to a subsystem over loopback TCP as the host of that name and identifier.
pub fn connect_tcp_as(hostnqn: &str, id: u8, port: u16, nqn: &str) -> tcp::Controller {
    let options = tcp::Options {
        subnqn: Nqn::new(nqn).unwrap(),
        hostnqn: Nqn::new(hostnqn).unwrap(),
        hostid: [id; 16],
        digests: tcp::Digests { header: true, data: true },
        max_transfer: 64 << 10,
        queues: 1,
        depth: DEPTH,
        kato: 0,
        flow_control: true,
        among: None,
    };
    tcp::Controller::connect(SocketAddr::from(([127, 0, 0, 1], port)), options).unwrap()
}

/// Connects to namespace `nsid` over vfio-user.
pub fn connect_vfio_user(socket: &Path, nsid: u32) -> (vfio_user::Controller, vfio_user::IoQueue) {
    let options = vfio_user::Options { max_transfer: 64 << 10, queues: 1, depth: DEPTH };
    let mut controller = vfio_user::Controller::connect(socket, options).unwrap();
    let queue = controller.io_queue(nsid).unwrap();
    (controller, queue)
}

/// Reads and writes, `reads` in a hundred of them reads, and verifies what is read; bytes verified.
pub fn load(queue: &mut dyn Queue, ledger: &mut Ledger, reads: u8, random: bool, amount: Amount) -> u64 {
    let pattern = Pattern { random, reads, trims: false };
    let job = Job { pattern, io_size: 16 << 10, amount, depth: DEPTH, seed: 5, ..Job::default() };
    workload::run(&mut [queue], &job, Some(ledger), |_| true).unwrap().verified
}

/// Writes every block, and then here and there; what the blocks hold now.
pub fn fill(queue: &mut dyn Queue) -> Ledger {
    let mut ledger = Ledger::new(1, queue.namespace().blocks, queue.namespace().block_size);
    load(queue, &mut ledger, 0, false, Amount::Once);
    load(queue, &mut ledger, 50, true, Amount::Commands(500));
    ledger
}

/// One command to its end.
pub fn command(queue: &mut dyn Queue, command: Command) -> Status {
    queue.submit(0, command).unwrap();
    let mut done: Vec<Done> = Vec::new();
    while done.is_empty() {
        queue.poll(&mut done).unwrap();
    }
    done[0].status
}

/// Writes pieces of bytes, each at its offset; both fill whole blocks.
pub fn write_pieces(queue: &mut dyn Queue, pieces: &[(u64, Vec<u8>)]) {
    let block = u64::from(queue.namespace().block_size);
    let step = queue.max_transfer();
    let chunks = pieces.iter().flat_map(|(offset, bytes)| {
        bytes.chunks(step).zip((*offset / block..).step_by(step / block as usize))
    });
    let mut free: Vec<u16> = (0..queue.depth()).collect();
    let mut done: Vec<Done> = Vec::new();
    let mut wait = |queue: &mut dyn Queue, free: &mut Vec<u16>| {
        queue.poll(&mut done).unwrap();
        for Done { tag, status } in done.drain(..) {
            assert_eq!(status, Status::SUCCESS);
            free.push(tag);
        }
    };
    for (chunk, lba) in chunks {
        while free.is_empty() {
            wait(queue, &mut free);
        }
        let tag = free.pop().unwrap();
        queue.buffer(tag).copy_in(0, chunk);
        let blocks = (chunk.len() as u64 / block) as u32;
        queue.submit(tag, Command { kind: Kind::Write { fua: false }, lba, blocks }).unwrap();
    }
    while free.len() < usize::from(queue.depth()) {
        wait(queue, &mut free);
    }
    assert_eq!(command(queue, Command { kind: Kind::Flush, lba: 0, blocks: 0 }), Status::SUCCESS);
}
