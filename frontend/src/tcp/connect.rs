//! Connect: a connection becomes a queue of a controller (Base 2.1, 6.3).

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::VolumeStats;
use engine::mem::Sgl;
use nvme_proto::dptr::{SglSubtype, SglType};
use nvme_proto::fabrics::{Connect, ConnectData, invalid_parameter};
use nvme_proto::zerocopy::FromBytes;
use nvme_proto::{Cqe, Nqn, Sqe, Status};

use super::connection::{Connection, Phase};
use super::discovery::DiscoveryPort;
use super::reject::Reason;
use super::transfer::Wire;
use super::{IN_CAPSULE, IOCCSZ, Inner, MAX_QUEUE_ENTRIES};
use crate::controller::{AttachError, Config, Controller, Host, Port, Way};
use crate::queue::{Queue, QueueConfig};
use crate::subsystem::{Local, Subsystem, SubsystemError};

/// How often, and how many times, it is looked whether a host's lost association has ended.
const LOOK: Duration = Duration::from_millis(1);
const LOOKS: usize = 5000;
/// A discovery controller without keep-alive lasts that long.
const DISCOVERY_KATO: u32 = 120_000;

/// Why a Connect is refused: status, DW0, and the counter.
struct Refused(Status, u32, Reason);

/// A parameter in the command (`false`) or its data, by byte offset.
fn parameter(in_data: bool, offset: u16) -> Refused {
    let status = Status::CONNECT_INVALID_PARAMETERS.dnr();
    Refused(status, invalid_parameter(in_data, offset), Reason::ConnectParameters)
}

/// An unknown subsystem and one that this host may not see: the answers are the same.
fn unknown() -> Refused {
    Refused(Status::CONNECT_INVALID_PARAMETERS.dnr(), invalid_parameter(true, 256), Reason::ConnectRefused)
}

impl Connection {
    /// Decides on a Connect; nothing is read meanwhile.
    pub fn connect(self: &Rc<Self>, sqe: &Sqe, data: Option<Sgl>) {
        self.phase.set(Phase::Connecting);
        let (me, sqe) = (self.clone(), *sqe);
        let decide = async move {
            let decided = match parse(&sqe, data) {
                Ok((connect, data)) => me.admit(&connect, &data).await,
                Err(refused) => Err(refused),
            };
            if me.phase.get() != Phase::Connecting {
                // It was closed meanwhile; what was made goes with it.
                if let Ok(queue) = decided {
                    me.queue.replace(Some(queue.clone()));
                    end(&queue);
                }
                return;
            }
            match decided {
                Ok(queue) => me.connected(sqe.cid, queue),
                Err(Refused(status, dw0, reason)) => {
                    me.home.rejections().note(reason, me.peer);
                    me.phase.set(Phase::Initialised);
                    me.respond(Cqe { dw0, ..Cqe::new(sqe.cid, status) });
                }
            }
            me.pump();
        };
        self.shard.spawn(decide).detach();
    }

    fn connected(self: &Rc<Self>, cid: u16, queue: Rc<Queue<Wire>>) {
        let dw0 = u32::from(queue.shared().cntlid());
        let sqhd = if self.flow_control.get() {
            // The Connect itself was the first entry.
            self.sqhd.set(1);
            self.sqhd.get()
        } else {
            0xffff
        };
        if queue.qid() != 0 {
            self.rx.borrow_mut().framer.set_max_capsule(IN_CAPSULE);
        }
        self.queue.replace(Some(queue));
        self.deadline.set(0);
        self.phase.set(Phase::Live);
        self.respond(Cqe { dw0, sqhd, ..Cqe::new(cid, Status::SUCCESS) });
    }

    async fn admit(
        self: &Rc<Self>,
        connect: &Connect,
        data: &ConnectData,
    ) -> Result<Rc<Queue<Wire>>, Refused> {
        let nqn = Nqn::from_field(&data.hostnqn)
            .map_err(|_| Refused { 2: Reason::ConnectHostNqn, ..parameter(true, 512) })?;
        let subnqn = Nqn::from_field(&data.subnqn).map_err(|_| parameter(true, 256))?;
        let host = Host { nqn, id: data.hostid };
        let subsystem = &self.listening.find(&subnqn, &self.home.target).ok_or_else(unknown)?;
        if !subsystem.allows(&host.nqn) {
            return Err(unknown());
        }
        if connect.sqsize_z == 0 || connect.sqsize_z >= MAX_QUEUE_ENTRIES {
            return Err(parameter(false, 44));
        }
        self.entries.set(connect.sqsize_z.saturating_add(1));
        self.flow_control.set(!connect.cattr.disable_sqfc());
        match connect.qid {
            0 => self.admit_admin(connect, data, host, subsystem).await,
            _ => self.admit_io(connect, data, host, subsystem),
        }
    }

    async fn admit_admin(
        self: &Rc<Self>,
        connect: &Connect,
        data: &ConnectData,
        host: Host,
        subsystem: &Arc<Subsystem>,
    ) -> Result<Rc<Queue<Wire>>, Refused> {
        let meant = || self.listening.meant(subsystem.nqn(), data.cntlid, &self.home.target);
        if meant().is_empty() {
            return Err(parameter(true, 16));
        }
        let busy = Refused(Status::CONNECT_CONTROLLER_BUSY, 0, Reason::ConnectBusy);
        // What the host sent by an association that was lost lands before it is admitted again, or never. It may be
        // back before we have heard that it left.
        let probed = Arc::new(());
        subsystem.probe(&host, &probed);
        let mut looks = 0;
        while Arc::strong_count(&probed) > 1 || subsystem.is_draining(&host) {
            if looks == LOOKS || self.phase.get() != Phase::Connecting {
                return Err(busy);
            }
            looks = looks.saturating_add(1);
            self.shard.sleep(LOOK).await;
        }
        let discovery = Arc::ptr_eq(subsystem, &self.home.target.discovery);
        for shown in meant() {
            let config = Config {
                fabrics: true,
                cntlid: shown.cntlid,
                discovery,
                max_queue_entries: MAX_QUEUE_ENTRIES,
                max_io_queues: shown.max_io_queues,
                ioccsz: IOCCSZ,
                kato: if discovery && connect.kato == 0 { DISCOVERY_KATO } else { connect.kato },
            };
            let port: Box<dyn Port> = match discovery {
                true => Box::new(DiscoveryPort::new(&self.home.target, host.nqn, self.local)),
                false => Box::new(FabricsPort {
                    target: self.home.target.clone(),
                    peer: self.peer,
                    // What a dynamic controller counts is its own, and its listener's for good.
                    stats: match shown.cntlid {
                        Some(_) => shown.stats,
                        None => VolumeStats::part_of(&shown.stats),
                    },
                    way: shown.way,
                }),
            };
            let controller = match Controller::new(subsystem, &self.shard, config, Some(host), port) {
                Ok(controller) => controller,
                // This one has an association; where any will do, the next may be free.
                Err(SubsystemError::CntlidInUse) => continue,
                Err(SubsystemError::Host) => return Err(unknown()),
                Err(_) => break,
            };
            let shared = controller.shared().clone();
            let queue = self.attach(0, &Local::of(subsystem, &self.shard), &shared, Some(controller.clone()));
            if queue.is_err() {
                controller.terminate();
            }
            return queue;
        }
        Err(busy)
    }

    fn admit_io(
        self: &Rc<Self>,
        connect: &Connect,
        data: &ConnectData,
        host: Host,
        subsystem: &Arc<Subsystem>,
    ) -> Result<Rc<Queue<Wire>>, Refused> {
        // A controller of another host is as unknown as one that is not there.
        let shared = subsystem.controller(data.cntlid).filter(|c| c.host() == Some(&host));
        let shared = shared.ok_or_else(|| parameter(true, 16))?;
        self.attach(connect.qid, &Local::of(subsystem, &self.shard), &shared, None)
    }

    fn attach(
        self: &Rc<Self>,
        qid: u16,
        local: &Rc<Local>,
        shared: &Arc<crate::controller::Shared>,
        controller: Option<Rc<Controller>>,
    ) -> Result<Rc<Queue<Wire>>, Refused> {
        let config = QueueConfig { qid, depth: self.entries.get() };
        Queue::attach(config, local, shared, controller, Wire(self.clone())).map_err(|e| match e {
            AttachError::QidRange => parameter(false, 42),
            AttachError::NotEnabled | AttachError::QidInUse => {
                Refused(Status::COMMAND_SEQUENCE_ERROR.dnr(), 0, Reason::ConnectParameters)
            }
        })
    }
}

fn end(queue: &Rc<Queue<Wire>>) {
    if let Some(controller) = queue.controller() {
        controller.terminate();
    }
    queue.close();
}

fn parse(sqe: &Sqe, data: Option<Sgl>) -> Result<(Connect, ConnectData), Refused> {
    let connect = Connect::of(sqe);
    if connect.recfmt != 0 {
        let status = Status::CONNECT_INCOMPATIBLE_FORMAT.dnr();
        return Err(Refused(status, 0, Reason::ConnectParameters));
    }
    let bad = |status: Status| Refused(status.dnr(), 0, Reason::ConnectParameters);
    if sqe.flags.psdt() != 1 || sqe.flags.fuse() != 0 {
        return Err(bad(Status::INVALID_FIELD));
    }
    let sgl = sqe.sgl();
    if (sgl.kind(), sgl.subtype()) != (SglType::DataBlock, SglSubtype::Offset) {
        return Err(bad(Status::SGL_DESCRIPTOR_TYPE_INVALID));
    }
    if sgl.address != 0 {
        return Err(bad(Status::SGL_OFFSET_INVALID));
    }
    let mut bytes = [0u8; size_of::<ConnectData>()];
    match data.filter(|data| data.len() == sgl.length as usize && data.len() >= bytes.len()) {
        Some(data) => data.copy_out(0, &mut bytes),
        None => return Err(bad(Status::DATA_SGL_LENGTH_INVALID)),
    }
    match ConnectData::read_from_bytes(&bytes) {
        Ok(data) => Ok((connect, data)),
        Err(_) => Err(parameter(true, 0)),
    }
}

/// What a controller with namespaces asks of the target.
struct FabricsPort {
    target: Arc<Inner>,
    peer: SocketAddr,
    stats: Arc<VolumeStats>,
    way: Arc<Way>,
}

impl Port for FabricsPort {
    fn keep_alive_expired(&self) {
        self.target.rejections.note(Reason::KeepAlive, self.peer);
    }

    fn stats(&self) -> Arc<VolumeStats> {
        self.stats.clone()
    }

    fn way(&self) -> Arc<Way> {
        self.way.clone()
    }
}
