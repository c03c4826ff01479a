//! One connection: from its first byte to its last (NVMe/TCP Transport 1.1, 3.1 to 3.4).

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::mem::Sgl;
use engine::ring::{Completion, Fd, RingClient, RingOp};
use engine::{Shard, TurnEnd};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use nvme_proto::opcode::{AdminOpcode, FabricsType};
use nvme_proto::tcp::{
    CapsuleCmd, CapsuleResp, CommonHdr, DataHdr, Fes, IcReq, IcResp, PDA_MAX_Z, PFV, PduType, TermReq, dgst,
    flags,
};
use nvme_proto::zerocopy::{FromZeros, IntoBytes};
use nvme_proto::{Cqe, Nqn, Sqe, Status};

use super::budget::Lease;
use super::pdu::{Agreed, Fatal, Framer};
use super::receive::Receiver;
use super::reject::Reason;
use super::send::{Batch, Sender, common, digest};
use super::shard::ShardTarget;
use super::transfer::{Capsule, SlotState, Wire};
use super::{ADMIN_IN_CAPSULE, Listening, MAXH2CDATA, wire_len};
use crate::queue::{Queue, Ticket};

/// Bytes waiting to be sent from which on nothing more is read.
const BACKLOG: usize = 8 << 20;
/// How long a connection that ends in error may take to send what it has to say.
const FAREWELL: Duration = Duration::from_secs(2);

const RECEIVED: u64 = 0;
const SENT: u64 = 1;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// ICReq has not come.
    New,
    /// Waits for Connect.
    Initialised,
    /// A Connect is being decided; nothing is read.
    Connecting,
    /// It is a queue.
    Live,
    /// Only what is left is sent; nothing is read.
    Farewell,
    /// All is said: what still comes is thrown away until the peer closes, so that it hears the last word.
    Lingering,
    /// The socket is shut down; what the kernel has comes back.
    Closed,
}

pub(super) struct Connection {
    pub id: u64,
    pub shard: Shard,
    pub home: Rc<ShardTarget>,
    pub listening: Arc<Listening>,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub fd: Fd,
    pub phase: Cell<Phase>,
    /// When it is closed at the latest; on the shard's clock. Zero for never.
    pub deadline: Cell<u64>,
    pub rx: RefCell<Receiver>,
    /// A receive is out, or due.
    receiving: Cell<bool>,
    /// One is due: it begins at the end of the turn.
    due: Cell<bool>,
    pub tx: RefCell<Sender>,
    noted: Cell<bool>,
    pub queue: RefCell<Option<Rc<Queue<Wire>>>>,
    pub slots: RefCell<Vec<SlotState>>,
    /// Bytes of the shard's budget that its commands hold.
    pub pinned: Rc<Cell<usize>>,
    /// Bytes that came in capsules and that its commands hold.
    pub capsules: Cell<usize>,
    /// It waits until it may read on.
    pub held_up: Cell<bool>,
    /// It has a wide window.
    pub wide: Cell<bool>,
    /// SQHD, and the queue's entries; zero entries: the host does without flow control.
    pub sqhd: Cell<u16>,
    pub entries: Cell<u16>,
    pub flow_control: Cell<bool>,
}

impl Connection {
    pub fn new(
        id: u64,
        home: &Rc<ShardTarget>,
        listening: Arc<Listening>,
        fd: Fd,
        peer: SocketAddr,
        local: SocketAddr,
    ) -> Rc<Self> {
        Rc::new(Connection {
            id,
            shard: home.shard.clone(),
            home: home.clone(),
            listening,
            peer,
            local,
            fd,
            phase: Cell::new(Phase::New),
            deadline: Cell::new(0),
            rx: RefCell::new(Receiver::new(Framer::new(ADMIN_IN_CAPSULE, MAXH2CDATA as usize))),
            receiving: Cell::new(false),
            due: Cell::new(false),
            tx: RefCell::new(Sender::new()),
            noted: Cell::new(false),
            queue: RefCell::default(),
            slots: RefCell::default(),
            pinned: Rc::default(),
            capsules: Cell::new(0),
            held_up: Cell::new(false),
            wide: Cell::new(false),
            sqhd: Cell::new(0),
            entries: Cell::new(0),
            flow_control: Cell::new(true),
        })
    }

    pub fn agreed(&self) -> Agreed {
        self.rx.borrow().framer.agreed()
    }

    /// Takes what has come, and asks for more.
    pub fn pump(self: &Rc<Self>) {
        loop {
            let reads = matches!(self.phase.get(), Phase::New | Phase::Initialised | Phase::Live);
            if !reads || self.receiving.get() {
                return;
            }
            if self.tx.borrow().backlog() > BACKLOG {
                // Read on when it has been sent.
                return;
            }
            if !self.home.inflow.is_open(&self.capsules) {
                return self.home.inflow.wait(self);
            }
            let step = self.rx.borrow_mut().step();
            let step = step.and_then(|progress| match progress {
                super::receive::Step::Header => self.header_complete(),
                super::receive::Step::Whole => self.whole(),
                super::receive::Step::Again => Ok(()),
                super::receive::Step::Starved => {
                    self.receive();
                    Ok(())
                }
            });
            if let Err(fatal) = step {
                return self.fatal(fatal);
            }
        }
    }

    /// Receives at the end of the turn: by then the volume has copied what came, as a rule, and what comes next has the same
    /// memory, which is near.
    fn receive(self: &Rc<Self>) {
        self.receiving.set(true);
        self.due.set(true);
        self.note();
    }

    /// A header is there: where does the data go?
    fn header_complete(self: &Rc<Self>) -> Result<(), Fatal> {
        let header = {
            let rx = self.rx.borrow();
            match rx.framer.pdu_type() {
                Some(PduType::H2cData) => rx.framer.read::<DataHdr>(),
                _ => None,
            }
        };
        if let Some(header) = header {
            let len = self.rx.borrow().framer.data_len();
            let sink = self.expected(&header, len)?;
            self.rx.borrow_mut().sink(sink);
        }
        Ok(())
    }

    /// A PDU is there, with its data.
    fn whole(self: &Rc<Self>) -> Result<(), Fatal> {
        let (pdu_type, data, intact) = {
            let mut rx = self.rx.borrow_mut();
            let mut data = rx.take_data();
            let intact = match (rx.framer.data_digest(), &mut data) {
                (Some(want), Some((data, crc))) => crc.unwrap_or_else(|| digest(data)) == want,
                _ => true,
            };
            (rx.framer.pdu_type(), data.map(|(data, _)| data), intact)
        };
        if !intact {
            self.home.rejections().note(Reason::DataDigest, self.peer);
        }
        match pdu_type {
            Some(PduType::IcReq) => {
                let request = self.rx.borrow().framer.read();
                request.map_or(Ok(()), |r| self.initialise(&r))?;
            }
            Some(PduType::CapsuleCmd) => {
                let capsule = self.rx.borrow().framer.read::<CapsuleCmd>();
                if let Some(capsule) = capsule {
                    self.rx.borrow_mut().framer.next();
                    return self.command(capsule.sqe, data, intact);
                }
            }
            Some(PduType::H2cData) => {
                let header = self.rx.borrow().framer.read::<DataHdr>();
                if let Some(header) = header {
                    self.rx.borrow_mut().framer.next();
                    return self.data_came(&header, intact);
                }
            }
            _ => {
                self.home.rejections().note(Reason::HostTerminated, self.peer);
                self.close();
            }
        }
        self.rx.borrow_mut().framer.next();
        Ok(())
    }

    fn initialise(self: &Rc<Self>, request: &IcReq) -> Result<(), Fatal> {
        if request.pfv != PFV {
            return Err(Fatal::new(Fes::UnsupportedParameter, 8, Reason::IcReq));
        }
        if request.hpda_z > PDA_MAX_Z {
            return Err(Fatal::field(10, Reason::IcReq));
        }
        let cpda_z = self.home.target.config.cpda_z.min(PDA_MAX_Z);
        let agreed = Agreed {
            hdgst: request.dgst & dgst::HDGST_ENABLE != 0,
            ddgst: request.dgst & dgst::DDGST_ENABLE != 0,
            hpda: usize::from(request.hpda_z).saturating_add(1).saturating_mul(4),
            cpda: usize::from(cpda_z).saturating_add(1).saturating_mul(4),
            r2ts: request.maxr2t_z.saturating_add(1),
        };
        let response = IcResp {
            ch: CommonHdr { pdu_type: PduType::IcResp, flags: 0, hlen: 128, pdo: 0, plen: 128 },
            pfv: PFV,
            cpda_z,
            dgst: request.dgst & (dgst::HDGST_ENABLE | dgst::DDGST_ENABLE),
            maxh2cdata: MAXH2CDATA,
            reserved: [0; 112],
        };
        self.tx.borrow_mut().raw(response.as_bytes());
        self.note();
        self.rx.borrow_mut().framer.initialised(agreed);
        self.phase.set(Phase::Initialised);
        Ok(())
    }

    fn command(self: &Rc<Self>, sqe: Sqe, data: Option<Sgl>, intact: bool) -> Result<(), Fatal> {
        let queue = self.queue.borrow().clone();
        let Some(queue) = queue else {
            let connect = sqe.opc == AdminOpcode::Fabrics.0 && sqe.fctype() == FabricsType::Connect;
            if !intact {
                self.respond(Cqe::new(sqe.cid, Status::TRANSIENT_TRANSPORT_ERROR));
            } else if connect {
                self.connect(&sqe, data);
            } else {
                self.respond(Cqe::new(sqe.cid, Status::COMMAND_SEQUENCE_ERROR.dnr()));
            }
            return Ok(());
        };
        let held = data.as_ref().map_or(0, |data| data.len().max(self.rx.borrow().share()));
        self.home.inflow.take(&self.capsules, held);
        let Err(capsule) = queue.execute(&sqe, Capsule { data, intact, held }) else { return Ok(()) };
        self.home.inflow.give_back(&self.capsules, capsule.held);
        if queue.is_closing() {
            return Ok(());
        }
        // More commands than the queue has entries: the host does not keep to SQ flow control.
        Err(Fatal::new(Fes::LimitExceeded, 0, Reason::QueueOverrun))
    }

    /// A command has ended: SQHD moves on. Not when one comes, since a host may take SQHD for leave to send, and there are
    /// as many slots as entries.
    pub fn consumed(&self) {
        let head = self.sqhd.get().saturating_add(1);
        self.sqhd.set(if head >= self.entries.get() { 0 } else { head });
    }

    /// Sends a response capsule at the end of the turn.
    pub fn respond(self: &Rc<Self>, cqe: Cqe) {
        let response = CapsuleResp { ch: common(PduType::CapsuleResp, 0), cqe };
        self.tx.borrow_mut().pdu(response, None, self.agreed());
        self.note();
    }

    /// Sends data to the host; with `last`, no response capsule follows.
    pub fn send_data(self: &Rc<Self>, cid: u16, data: Sgl, lease: Option<Lease>, success: bool) {
        let flags = flags::LAST_PDU | if success { flags::SUCCESS } else { 0 };
        let header = DataHdr {
            ch: common(PduType::C2hData, flags),
            cccid: cid,
            ttag: 0,
            datao: 0,
            datal: wire_len(data.len()),
            reserved: 0,
        };
        self.tx.borrow_mut().pdu(header, Some((data, lease)), self.agreed());
        self.note();
    }

    /// There is something to do at the turn's end: once is enough.
    pub fn note(self: &Rc<Self>) {
        if !self.noted.replace(true) {
            self.shard.at_turn_end(self.clone());
        }
    }

    fn flush(self: &Rc<Self>) {
        if self.phase.get() == Phase::Closed {
            return self.tx.borrow_mut().forget();
        }
        let send = self.tx.borrow_mut().next(self.fd.as_fd());
        if let Some(Batch { lists: sgls, lent: now }) = send {
            let op = RingOp::Send { fd: self.fd.clone(), sgls, skip: 0, now };
            self.shard.ring().start(op, self.clone(), SENT);
        } else if self.phase.get() == Phase::Farewell && self.tx.borrow().is_idle() {
            self.linger();
        }
    }

    fn linger(self: &Rc<Self>) {
        self.phase.set(Phase::Lingering);
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Write);
        self.end_queue();
        if !self.receiving.get() {
            self.rx.borrow_mut().discard();
            self.receive();
        }
    }

    /// Tells the host what it did wrong, and closes.
    pub fn fatal(self: &Rc<Self>, fatal: Fatal) {
        self.home.rejections().note(fatal.reason, self.peer);
        let mut quote = [0u8; 128];
        let quoted = {
            let rx = self.rx.borrow();
            let bytes = rx.framer.quote();
            quote[..bytes.len()].copy_from_slice(bytes);
            bytes.len()
        };
        let fei = fatal.fei.to_le_bytes();
        let mut term = TermReq::new_zeroed();
        term.ch = CommonHdr {
            pdu_type: PduType::C2hTermReq,
            flags: 0,
            hlen: 24,
            pdo: 0,
            plen: wire_len(quoted).saturating_add(24),
        };
        term.fes = fatal.fes;
        term.fei_lo = u16::from_le_bytes([fei[0], fei[1]]);
        term.fei_hi = u16::from_le_bytes([fei[2], fei[3]]);
        {
            let mut tx = self.tx.borrow_mut();
            tx.raw(term.as_bytes());
            tx.raw(&quote[..quoted]);
            tx.finish();
        }
        self.farewell();
    }

    /// Sends what is left and closes; reads no more.
    pub fn farewell(self: &Rc<Self>) {
        if matches!(self.phase.get(), Phase::Farewell | Phase::Lingering | Phase::Closed) {
            return;
        }
        self.phase.set(Phase::Farewell);
        self.expire_in(FAREWELL);
        self.note();
    }

    /// Sets when the connection is closed at the latest.
    pub fn expire_in(&self, time: Duration) {
        let at = self.shard.now().saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        self.deadline.set(at.max(1));
    }

    /// Closes the socket, and ends the queue; an admin queue takes its controller along.
    pub fn close(self: &Rc<Self>) {
        if self.phase.replace(Phase::Closed) == Phase::Closed {
            return;
        }
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
        self.end_queue();
        self.check_gone();
    }

    fn end_queue(&self) {
        let queue = self.queue.borrow().clone();
        if let Some(queue) = queue {
            if let Some(controller) = queue.controller() {
                controller.terminate();
            }
            queue.close();
        }
    }

    /// Closes the connection if its peer has: a host that comes back may be faster than the news of its leaving.
    pub fn probe(self: &Rc<Self>) {
        let hangup = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);
        let mut fds = [PollFd::new(self.fd.as_fd(), hangup)];
        let polled = poll(&mut fds, PollTimeout::ZERO).is_ok();
        // Nothing but hang-ups and errors can be told.
        if polled && fds[0].any() != Some(false) {
            self.close();
        }
    }

    /// Forgets the connection when nothing of it is left.
    pub fn check_gone(self: &Rc<Self>) {
        let left = self.receiving.get() || self.tx.borrow().is_sending() || self.queue.borrow().is_some();
        if self.phase.get() == Phase::Closed && !left {
            self.home.forget(self.id);
        }
    }

    /// The controller whose queue it is: its subsystem and its identifier.
    pub fn controller(&self) -> Option<(Nqn, u16)> {
        let queue = self.queue.borrow();
        let shared = queue.as_ref()?.shared();
        Some((*shared.subsystem().nqn(), shared.cntlid()))
    }

    /// The command that waits for `ticket`'s bytes: how many.
    pub fn wanted(&self, ticket: Ticket) -> Option<usize> {
        self.slots.borrow().get(usize::from(ticket.slot))?.wanted(ticket)
    }
}

impl RingClient for Connection {
    fn done(self: Rc<Self>, completion: Completion, cookie: u64) {
        match (cookie, completion.op) {
            (RECEIVED, by) => {
                self.receiving.set(false);
                let n = completion.result.unwrap_or(0) as usize;
                self.rx.borrow_mut().received(by, n);
                match self.phase.get() {
                    _ if n == 0 => self.close(),
                    Phase::Closed => {}
                    Phase::Lingering => {
                        self.rx.borrow_mut().discard();
                        self.receive();
                    }
                    _ => self.pump(),
                }
            }
            (_, RingOp::Send { fd, mut sgls, skip, now }) => {
                let total: usize = sgls.iter().map(Sgl::len).sum();
                let result = match completion.result {
                    Err(e) if now && e.kind() == ErrorKind::WouldBlock => Ok(0),
                    result => result,
                };
                let sent = skip.saturating_add(result.as_ref().map_or(0, |n| *n as usize));
                let failed = result.is_err() || self.phase.get() == Phase::Closed;
                if !failed && sent < total {
                    // The host takes its time with the rest.
                    let skip = self.tx.borrow_mut().sent_part(&mut sgls, sent);
                    let op = RingOp::Send { fd, sgls, skip, now: false };
                    self.shard.ring().start(op, self.clone(), SENT);
                    return;
                }
                self.tx.borrow_mut().sent(sgls);
                if failed {
                    self.tx.borrow_mut().forget();
                    self.close();
                } else {
                    // What stayed goes at the turn's end, with what there is by then; the last word's end is noticed there.
                    if self.phase.get() == Phase::Farewell || !self.tx.borrow().is_idle() {
                        self.note();
                    }
                    self.pump();
                }
            }
            _ => {}
        }
        self.check_gone();
    }
}

impl TurnEnd for Connection {
    fn turn_end(self: Rc<Self>) {
        self.noted.set(false);
        self.flush();
        if self.due.replace(false) {
            let receive = self.rx.borrow_mut().receive(self.fd.clone());
            self.shard.ring().start(receive, self.clone(), RECEIVED);
        }
    }
}
