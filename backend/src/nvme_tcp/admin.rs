//! Commands of control sequences, each awaited (Base 2.1, 5 and 6).

use engine::mem::{Buf, Sgl};
use nvme_proto::aen::{AsyncEventConfiguration, Event};
use nvme_proto::fabrics::{Cattr, Connect, ConnectData, Property};
use nvme_proto::feature::{FeatureId, NumberOfQueues, SetFeaturesCdw10};
use nvme_proto::identify::{Cns, CommandSet, IDENTIFY_LEN, IdentifyCdw10, IdentifyCdw11};
use nvme_proto::log::{GetLogPage, LogId};
use nvme_proto::opcode::AdminOpcode;
use nvme_proto::zerocopy::{FromZeros, IntoBytes};
use nvme_proto::{Sqe, Status};

use super::config::Config;
use super::conn::Conn;
use super::queue::{Answer, Way};
use super::reason::Reason;

/// Runs a command, and gives its answer if it succeeded.
async fn run(conn: &Conn, command: &'static str, sqe: Sqe, way: Way, memory: Sgl) -> Result<Answer, Reason> {
    let answer = conn.run(sqe, way, memory).await?;
    if answer.damaged {
        return Err(Reason::Command { command, status: Status::TRANSIENT_TRANSPORT_ERROR });
    }
    if !answer.status.is_success() {
        return Err(Reason::Command { command, status: answer.status });
    }
    Ok(answer)
}

/// Connect: makes the connection queue `qid` of controller `cntlid`; the controller's identifier.
pub(super) async fn connect(
    conn: &Conn,
    config: &Config,
    qid: u16,
    entries: u16,
    cntlid: u16,
) -> Result<u16, Reason> {
    let mut data = ConnectData::new_zeroed();
    data.hostid = config.hostid;
    data.cntlid = cntlid;
    data.subnqn = config.subnqn.to_field();
    data.hostnqn = config.hostnqn.to_field();
    let memory = Buf::new(size_of::<ConnectData>()).into_sgl(size_of::<ConnectData>());
    memory.copy_in(0, data.as_bytes());
    let kato = if qid == 0 { config.kato_ms() } else { 0 };
    // A queue never has more commands out than entries, so SQHD tells nothing new, and reads may end without a response.
    let cattr = Cattr::new().with_disable_sqfc(qid != 0);
    let sqsize_z = entries.saturating_sub(1);
    let sqe = Connect { recfmt: 0, qid, sqsize_z, cattr, kato }.to_sqe(0);
    let answer = run(conn, "Connect", sqe, Way::Out, memory).await?;
    Ok((answer.result & 0xffff) as u16)
}

/// Property Get; `wide` for a property of 8 bytes.
pub(super) async fn property(conn: &Conn, offset: u32, wide: bool) -> Result<u64, Reason> {
    let sqe = Property { offset, size: u8::from(wide), value: 0 }.get(0);
    let value = run(conn, "Property Get", sqe, Way::Out, Sgl::empty()).await?.result;
    Ok(if wide { value } else { value & u64::from(u32::MAX) })
}

/// Property Set of a property of 4 bytes.
pub(super) async fn set_property(conn: &Conn, offset: u32, value: u32) -> Result<(), Reason> {
    let sqe = Property { offset, size: 0, value: u64::from(value) }.set(0);
    run(conn, "Property Set", sqe, Way::Out, Sgl::empty()).await.map(drop)
}

/// Identify.
pub(super) async fn identify(conn: &Conn, cns: Cns, nsid: u32) -> Result<Vec<u8>, Reason> {
    let sqe = Sqe {
        opc: AdminOpcode::Identify.0,
        nsid,
        cdw10: IdentifyCdw10::new().with_cns(cns).into_bits(),
        cdw11: IdentifyCdw11::new().with_csi(CommandSet::Nvm).into_bits(),
        ..Sqe::default()
    };
    read(conn, "Identify", sqe, IDENTIFY_LEN).await
}

/// Get Log Page: `len` bytes (a multiple of 4) of a page from byte `offset` on.
pub(super) async fn log_page(conn: &Conn, lid: LogId, offset: u64, len: u32) -> Result<Vec<u8>, Reason> {
    let mut sqe = Sqe { opc: AdminOpcode::GetLogPage.0, ..Sqe::default() };
    GetLogPage::new(lid, offset, len).put(&mut sqe);
    read(conn, "Get Log Page", sqe, len as usize).await
}

async fn read(conn: &Conn, command: &'static str, sqe: Sqe, len: usize) -> Result<Vec<u8>, Reason> {
    let memory = Buf::zeroed(len).into_sgl(len);
    run(conn, command, sqe, Way::In, memory.clone()).await?;
    let mut bytes = vec![0; len];
    memory.copy_out(0, &mut bytes);
    Ok(bytes)
}

/// Set Features, Number of Queues: asks for `queues` and gives how many are granted.
pub(super) async fn set_queues(conn: &Conn, queues: u16) -> Result<u16, Reason> {
    let z = queues.max(1) - 1;
    let wanted = NumberOfQueues::new().with_nsq_z(z).with_ncq_z(z);
    let result = set_feature(conn, FeatureId::NumberOfQueues, wanted.into_bits()).await?;
    let granted = NumberOfQueues::from_bits((result & u64::from(u32::MAX)) as u32);
    Ok(granted.nsq_z().min(granted.ncq_z()).saturating_add(1).min(queues.max(1)))
}

/// Set Features, Asynchronous Event Configuration: the events that are wanted.
pub(super) async fn set_events(conn: &Conn, events: AsyncEventConfiguration) -> Result<(), Reason> {
    set_feature(conn, FeatureId::AsyncEventConfiguration, events.into_bits()).await.map(drop)
}

async fn set_feature(conn: &Conn, fid: FeatureId, value: u32) -> Result<u64, Reason> {
    let cdw10 = SetFeaturesCdw10::new().with_fid(fid).into_bits();
    let sqe = Sqe { opc: AdminOpcode::SetFeatures.0, cdw10, cdw11: value, ..Sqe::default() };
    Ok(run(conn, "Set Features", sqe, Way::Out, Sgl::empty()).await?.result)
}

/// Keep Alive.
pub(super) async fn keep_alive(conn: &Conn) -> Result<(), Reason> {
    let sqe = Sqe { opc: AdminOpcode::KeepAlive.0, ..Sqe::default() };
    run(conn, "Keep Alive", sqe, Way::Out, Sgl::empty()).await.map(drop)
}

/// Asynchronous Event Request: the event, whenever it comes.
pub(super) async fn next_event(conn: &Conn) -> Result<Event, Reason> {
    let sqe = Sqe { opc: AdminOpcode::AsyncEventRequest.0, ..Sqe::default() };
    let result = run(conn, "Asynchronous Event Request", sqe, Way::Out, Sgl::empty()).await?.result;
    Ok(Event::from_bits((result & u64::from(u32::MAX)) as u32))
}
