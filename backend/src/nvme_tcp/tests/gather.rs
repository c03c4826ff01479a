//! Which commands go out together.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use engine::Sim;
use engine::mem::Sgl;
use nvme_proto::Sqe;

use crate::nvme_tcp::conn::Conn;
use crate::nvme_tcp::queue::{Queue, Way};
use crate::nvme_tcp::wire::Agreed;

/// Bytes of a command's capsule.
const CAPSULE: usize = 72;

/// A connection on a shard whose turns are taken one by one.
struct Rig {
    sim: Sim,
    conn: Rc<Conn>,
    peer: UnixStream,
}

impl Rig {
    fn new() -> Self {
        let sim = Sim::new(1).unwrap();
        let (near, peer) = UnixStream::pair().unwrap();
        peer.set_nonblocking(true).unwrap();
        let agreed = Agreed { header_digest: false, data_digest: false, align: 4, max_h2c_data: 4096 };
        let queue = Queue::new(agreed, 64, 4096);
        let fd = Arc::new(OwnedFd::from(near));
        let conn = sim.on(0, |shard| Conn::start(shard, fd, queue, Weak::new()));
        Rig { sim, conn, peer }
    }

    fn issue(&self, n: usize) {
        for _ in 0..n {
            let conn = self.conn.clone();
            let run = async move { drop(conn.run(Sqe::default(), Way::Out, Sgl::empty()).await) };
            self.sim.on(0, |shard| shard.spawn(run).detach());
        }
    }

    /// A turn, and how many commands it sent.
    fn turn(&mut self) -> usize {
        self.sim.turn();
        let mut bytes = [0; CAPSULE * 64];
        self.peer.read(&mut bytes).unwrap_or(0) / CAPSULE
    }
}

#[test]
fn a_few_commands_wait_two_turns_for_more_while_others_are_out() {
    let mut rig = Rig::new();
    rig.issue(1);
    assert_eq!(rig.turn(), 1, "nothing else is out");
    rig.issue(3);
    assert_eq!(rig.turn(), 0);
    rig.issue(2);
    assert_eq!(rig.turn(), 0);
    assert_eq!(rig.turn(), 5, "nor do they wait for long");
    rig.issue(4);
    assert_eq!(rig.turn(), 0);
    rig.issue(4);
    assert_eq!(rig.turn(), 8, "eight are worth a send");
    assert_eq!([rig.turn(), rig.turn()], [0, 0]);
}
