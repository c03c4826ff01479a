//! The transport's half of a queue: where a command's data is, and how it is answered.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use std::os::fd::AsFd;
use std::rc::Rc;

use engine::mem::{Buf, Sgl};
use engine::ring::widen_window;
use nvme_proto::dptr::{SglSubtype, SglType};
use nvme_proto::fabrics::Property;
use nvme_proto::opcode::{AdminOpcode, FabricsType};
use nvme_proto::tcp::{DataHdr, Fes, PduType, R2t, flags};
use nvme_proto::{Cqe, Sqe, Status};

use super::budget::Lease;
use super::connection::{Connection, Phase};
use super::pdu::Fatal;
use super::reject::Reason;
use super::send::common;
use super::{MAX_QUEUE_ENTRIES, MAXH2CDATA, wire_len};
use crate::queue::{Completion, Data, Direction, Outcome, Queue, Reply, Ticket, Transport};

/// A connection, as its queue knows it.
pub(super) struct Wire(pub Rc<Connection>);

/// What is kept of a command.
pub(super) struct Capsule {
    /// The data that came with it.
    pub data: Option<Sgl>,
    /// Whether the data digest was right.
    pub intact: bool,
    /// What is given back to the shard's [`super::inflow::Inflow`] when it ends.
    pub held: usize,
}

/// R2Ts of one command that are outstanding at most, where the host takes as many.
const WINDOWS: usize = 4;
/// Bytes that each of several R2Ts of a command asks for.
const WINDOW: usize = MAXH2CDATA as usize;
/// A host that is asked for so many bytes at once has a wide window from then on; one of small data gains nothing by it.
const LARGE: usize = 64 << 10;
/// A TTAG is the command's slot, and above it which of the command's R2Ts it is.
const TAG_SHIFT: u32 = 10;

const _: () = assert!(MAX_QUEUE_ENTRIES <= 1 << TAG_SHIFT && WINDOWS <= 1 << (16 - TAG_SHIFT));

/// What a slot's command has of the connection.
#[derive(Default)]
pub(super) struct SlotState {
    lease: Option<Lease>,
    /// It waits for its share of the budget.
    wants: Option<(Ticket, Direction, usize)>,
    transfer: Option<Transfer>,
}

/// A command whose data the host was asked for, at once or one part after the other.
struct Transfer {
    ticket: Ticket,
    cid: u16,
    sgl: Sgl,
    /// Where what was not asked for yet begins.
    asked: usize,
    received: usize,
    windows: [Window; WINDOWS],
    intact: bool,
    /// When the host last sent some of it, or was first asked.
    since: u64,
}

/// What one R2T has asked for; without a length, there is none.
#[derive(Clone, Copy, Default)]
struct Window {
    from: usize,
    len: usize,
    received: usize,
}

/// The slot and the window that a TTAG names.
fn of_tag(ttag: u16) -> (usize, usize) {
    let slot = ttag & ((1 << TAG_SHIFT) - 1);
    (usize::from(slot), usize::from(ttag >> TAG_SHIFT))
}

impl SlotState {
    pub fn wanted(&self, ticket: Ticket) -> Option<usize> {
        self.wants.as_ref().filter(|w| w.0 == ticket).map(|w| w.2)
    }

    /// Since when the host owes data, on the shard's clock.
    pub fn owed_since(&self) -> Option<u64> {
        self.transfer.as_ref().map(|t| t.since)
    }
}

impl Connection {
    /// Memory for a read. `None` for a write, whose host is asked for its data, and for all that wait for the budget.
    fn reserve(self: &Rc<Self>, ticket: Ticket, cid: u16, direction: Direction, len: usize) -> Option<Sgl> {
        match self.home.budget.lease(&self.pinned, len) {
            Some(lease) => self.begin(ticket, cid, direction, len, lease),
            None => {
                self.slot(ticket, |s| s.wants = Some((ticket, direction, len)));
                self.home.budget.wait(self, ticket, len);
                None
            }
        }
    }

    /// The budget has room for a command that waited.
    pub fn granted(self: &Rc<Self>, ticket: Ticket, lease: Lease) {
        let wants = self.slot(ticket, |s| s.wants.take()).flatten();
        let queue = self.queue.borrow().clone();
        let (Some((_, direction, len)), Some(queue)) = (wants, queue) else { return };
        let Some(cid) = queue.cid(ticket) else { return };
        if let Some(sgl) = self.begin(ticket, cid, direction, len, lease) {
            queue.data(ticket, Ok(sgl));
        }
    }

    fn begin(
        self: &Rc<Self>,
        ticket: Ticket,
        cid: u16,
        direction: Direction,
        len: usize,
        lease: Lease,
    ) -> Option<Sgl> {
        let sgl = Buf::new(len).into_sgl(len);
        if direction == Direction::ToHost {
            self.slot(ticket, |s| s.lease = Some(lease));
            return Some(sgl);
        }
        if len >= LARGE && !self.wide.replace(true) {
            // Without it large writes are slower, and no less right.
            let _ = widen_window(self.fd.as_fd());
        }
        let since = self.shard.now();
        let windows = Default::default();
        let mut transfer = Transfer { ticket, cid, sgl, asked: 0, received: 0, windows, intact: true, since };
        self.ask(&mut transfer);
        self.slot(ticket, |s| (s.lease, s.transfer) = (Some(lease), Some(transfer)));
        None
    }

    /// Asks for what a command still needs: for all of it if the host takes one R2T at a time, else for as many parts
    /// as it takes.
    fn ask(self: &Rc<Self>, transfer: &mut Transfer) {
        let agreed = self.agreed();
        let len = transfer.sgl.len();
        let most = if agreed.r2ts > 1 { WINDOW } else { len };
        for (window, at) in transfer.windows.iter_mut().zip(0..agreed.r2ts) {
            let left = len.saturating_sub(transfer.asked);
            if window.len > 0 || left == 0 {
                continue;
            }
            *window = Window { from: transfer.asked, len: left.min(most), received: 0 };
            transfer.asked = transfer.asked.saturating_add(window.len);
            let r2t = R2t {
                ch: common(PduType::R2t, 0),
                cccid: transfer.cid,
                ttag: transfer.ticket.slot | u16::try_from(at).unwrap_or(0) << TAG_SHIFT,
                r2to: wire_len(window.from),
                r2tl: wire_len(window.len),
                reserved: 0,
            };
            self.tx.borrow_mut().pdu(r2t, None, agreed);
            self.note();
        }
    }

    fn slot<R>(&self, ticket: Ticket, f: impl FnOnce(&mut SlotState) -> R) -> Option<R> {
        let mut slots = self.slots.borrow_mut();
        let at = usize::from(ticket.slot);
        if slots.len() <= at {
            slots.resize_with(at + 1, SlotState::default);
        }
        slots.get_mut(at).map(f)
    }

    /// Where `len` bytes of an H2CData go, if they are the ones that were asked for.
    pub fn expected(&self, header: &DataHdr, len: usize) -> Result<Sgl, Fatal> {
        let slots = self.slots.borrow();
        let (slot, window) = of_tag(header.ttag);
        let transfer = slots.get(slot).and_then(|s| s.transfer.as_ref());
        let window = transfer.and_then(|t| t.windows.get(window)).filter(|w| w.len > 0);
        let (Some(transfer), Some(window)) = (transfer, window) else {
            return Err(Fatal::field(10, Reason::Transfer));
        };
        if transfer.cid != header.cccid {
            return Err(Fatal::field(8, Reason::Transfer));
        }
        let left = window.len.saturating_sub(window.received);
        let from = window.from.saturating_add(window.received);
        let at = header.datao as usize;
        if at != from || len > left {
            // What was asked for, but not now, is out of sequence (3.3.2.2).
            let end = window.from.saturating_add(window.len);
            let inside = at >= window.from && at.saturating_add(len) <= end;
            let fes = if inside { Fes::PduSequenceError } else { Fes::DataOutOfRange };
            return Err(Fatal::new(fes, 0, Reason::Transfer));
        }
        if header.datal as usize != len {
            return Err(Fatal::field(16, Reason::Transfer));
        }
        let last = header.ch.flags & flags::LAST_PDU != 0;
        if last != (len == left) {
            return Err(Fatal::field(1, Reason::Transfer));
        }
        Ok(transfer.sgl.slice(from, len))
    }

    /// An H2CData is whole, its bytes where they belong.
    pub fn data_came(self: &Rc<Self>, header: &DataHdr, intact: bool) -> Result<(), Fatal> {
        let done = {
            let mut slots = self.slots.borrow_mut();
            let (slot, window) = of_tag(header.ttag);
            let Some(state) = slots.get_mut(slot) else { return Ok(()) };
            let Some(transfer) = &mut state.transfer else { return Ok(()) };
            let Some(window) = transfer.windows.get_mut(window) else { return Ok(()) };
            let len = header.datal as usize;
            window.received = window.received.saturating_add(len);
            transfer.received = transfer.received.saturating_add(len);
            transfer.intact &= intact;
            transfer.since = self.shard.now();
            if window.received == window.len {
                *window = Window::default();
                self.ask(transfer);
            }
            if transfer.received < transfer.sgl.len() {
                return Ok(());
            }
            state.transfer.take()
        };
        let queue = self.queue.borrow().clone();
        if let (Some(transfer), Some(queue)) = (done, queue) {
            let data =
                if transfer.intact { Ok(transfer.sgl) } else { Err(Status::TRANSIENT_TRANSPORT_ERROR) };
            queue.data(transfer.ticket, data);
        }
        Ok(())
    }
}

impl Transport for Wire {
    type Command = Capsule;
    const INTERCEPTS_IO: bool = true;
    const BORROWS: bool = true;

    fn intercept(
        &self,
        queue: &Rc<Queue<Self>>,
        _ticket: Ticket,
        sqe: &Sqe,
        capsule: &mut Capsule,
    ) -> Option<Outcome> {
        if !capsule.intact {
            return Some(Status::TRANSIENT_TRANSPORT_ERROR.into());
        }
        if sqe.flags.psdt() != 1 {
            return Some(Status::INVALID_FIELD.dnr().into());
        }
        if sqe.opc != AdminOpcode::Fabrics.0 {
            return None;
        }
        // On the admin queue nothing fused comes so far.
        if sqe.flags.fuse() != 0 {
            return Some(Status::INVALID_FIELD.dnr().into());
        }
        let property = Property::of(sqe);
        Some(match (sqe.fctype(), queue.controller()) {
            (FabricsType::PropertyGet, Some(controller)) => {
                match controller.property_get(property.offset, property.size) {
                    Ok(value) => {
                        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
                        let dw0 = u32::from_le_bytes([a, b, c, d]);
                        let dw1 = u32::from_le_bytes([e, f, g, h]);
                        Outcome::Done(Reply { status: Status::SUCCESS, dw0, dw1 })
                    }
                    Err(status) => status.into(),
                }
            }
            (FabricsType::PropertySet, Some(controller)) => {
                match controller.property_set(property.offset, property.size, property.value) {
                    Ok(()) => Status::SUCCESS.into(),
                    Err(status) => status.into(),
                }
            }
            (FabricsType::Connect, _) => Status::COMMAND_SEQUENCE_ERROR.dnr().into(),
            (FabricsType::Disconnect, None) if sqe.cdw10 & 0xffff != 0 => {
                Status::CONNECT_INCOMPATIBLE_FORMAT.dnr().into()
            }
            (FabricsType::Disconnect, None) => {
                // Sends its answer, and closes.
                self.0.farewell();
                Status::SUCCESS.into()
            }
            (FabricsType::Disconnect, Some(_)) => Status::INVALID_QUEUE_TYPE.dnr().into(),
            _ => Status::INVALID_OPCODE.dnr().into(),
        })
    }

    fn data(
        &self,
        ticket: Ticket,
        sqe: &Sqe,
        capsule: &mut Capsule,
        direction: Direction,
        len: usize,
        to: &mut Sgl,
    ) -> Data {
        let sgl = sqe.sgl();
        let in_capsule = match (sgl.kind(), sgl.subtype()) {
            (SglType::DataBlock, SglSubtype::Offset) => true,
            (SglType::TransportDataBlock, SglSubtype::Transport) => false,
            _ => return Data::Failed(Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr()),
        };
        if (sgl.length as usize) < len {
            return Data::Failed(Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        match (direction, in_capsule, capsule.data.take()) {
            (Direction::FromHost, true, Some(data)) if sgl.address != 0 => {
                drop(data);
                Data::Failed(Status::SGL_OFFSET_INVALID.dnr())
            }
            (Direction::FromHost, true, Some(data)) if data.len() == sgl.length as usize => {
                *to = if data.len() == len { data } else { data.slice(0, len) };
                Data::Ready
            }
            (Direction::FromHost, true, _) => Data::Failed(Status::DATA_SGL_LENGTH_INVALID.dnr()),
            (Direction::ToHost, true, _) | (_, false, Some(_)) => {
                Data::Failed(Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr())
            }
            (_, false, None) => match self.0.reserve(ticket, sqe.cid, direction, len) {
                Some(memory) => {
                    *to = memory;
                    Data::Ready
                }
                None => Data::Later,
            },
        }
    }

    fn may_end(&self, ticket: Ticket) -> bool {
        self.0.slot(ticket, |s| s.transfer.is_none()).unwrap_or(true)
    }

    fn complete(&self, capsule: Capsule, completion: &Completion, data: &mut Sgl) {
        let connection = &self.0;
        connection.consumed();
        if capsule.held > 0 {
            connection.home.inflow.give_back(&connection.capsules, capsule.held);
        }
        let state = connection.slot(completion.ticket, std::mem::take).unwrap_or_default();
        if matches!(connection.phase.get(), Phase::Lingering | Phase::Closed) {
            return;
        }
        let Completion { cid, reply, .. } = *completion;
        if !data.is_empty() && reply.status.is_success() {
            let quiet = !connection.flow_control.get() && reply == Reply::default();
            connection.send_data(cid, std::mem::take(data), state.lease, quiet);
            if quiet {
                return;
            }
        }
        let sqhd = if connection.flow_control.get() { connection.sqhd.get() } else { 0 };
        let cqe = Cqe { dw0: reply.dw0, dw1: reply.dw1, sqhd, ..Cqe::new(cid, reply.status) };
        connection.respond(cqe);
    }

    fn closing(&self) {
        if self.0.phase.get() != Phase::Lingering {
            self.0.close();
        }
    }

    fn probe(&self) {
        self.0.probe();
    }

    fn closed(&self, _queue: &Rc<Queue<Self>>) {
        self.0.queue.take();
        self.0.slots.take();
        self.0.check_gone();
    }
}
