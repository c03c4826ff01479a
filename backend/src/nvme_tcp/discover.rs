//! Questions to a controller outside any [`Remote`](super::Remote): what a discovery service knows (Base 2.1, 3.1.3.3
//! and 5.1.12.3.1), and what a controller says of itself. For a command line.

use std::sync::mpsc;

use engine::{Shard, ShardHandle};
use nvme_proto::Nqn;
use nvme_proto::fabrics::{AddressFamily, SubsystemType, TransportType};
use nvme_proto::identify::{IdentifyController, IdentifyNamespace};
use nvme_proto::log::{DiscoveryEntry, DiscoveryHeader, LogId};
use nvme_proto::zerocopy::FromBytes;

use super::admin;
use super::config::Config;
use super::controller::Controller;
use super::identity::Identity;
use super::promise::within;
use super::reason::Reason;
use super::scan;

/// Bytes of the discovery log's header, and of each entry.
const RECORD: u32 = 1024;
/// Entries that are read at most.
const MAX_ENTRIES: u64 = 1024;
/// How often the log is read anew because it changed meanwhile.
const TRIES: usize = 5;

/// An entry of a discovery log page; its texts hold printable ASCII alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// TRTYPE.
    pub trtype: TransportType,
    /// ADRFAM.
    pub adrfam: AddressFamily,
    /// SUBTYPE.
    pub subtype: SubsystemType,
    /// PORTID.
    pub portid: u16,
    /// CNTLID.
    pub cntlid: u16,
    /// ASQSZ.
    pub asqsz: u16,
    /// TRADDR.
    pub traddr: String,
    /// TRSVCID.
    pub trsvcid: String,
    /// SUBNQN; `None` if it is no name.
    pub subnqn: Option<Nqn>,
}

/// A controller and its namespaces.
pub struct Identified {
    /// CNTLID of the controller that was made for the question.
    pub cntlid: u16,
    /// Identify Controller.
    pub controller: Box<IdentifyController>,
    /// NSID, Identify Namespace and names of each active namespace.
    pub namespaces: Vec<(u32, Box<IdentifyNamespace>, Identity)>,
}

/// Asks the discovery service at `config`'s address ([`Config::discovery`]) what it knows. Blocks; never called on a
/// shard.
///
/// # Errors
/// Why it could not be asked.
pub fn discover(shard: &ShardHandle, config: Config) -> Result<Vec<Discovered>, Reason> {
    ask(shard, async move |shard| {
        let controller = Controller::open(&shard, &config).await?;
        let wait = config.connect_timeout;
        let log = within(&shard, wait, log(&controller)).await;
        let _ = within(&shard, wait, controller.shut_down()).await;
        log.ok_or(Reason::Timeout("the discovery log"))?
    })
}

/// Connects to a controller, asks it for itself and its namespaces, and leaves. Blocks; never called on a shard.
///
/// # Errors
/// Why it could not be asked.
pub fn identify(shard: &ShardHandle, config: Config) -> Result<Identified, Reason> {
    ask(shard, async move |shard| {
        let controller = Controller::open(&shard, &config).await?;
        let wait = config.connect_timeout;
        let known = within(&shard, wait, known(&controller)).await;
        let _ = within(&shard, wait, controller.shut_down()).await;
        known.ok_or(Reason::Timeout("identifying the controller"))?
    })
}

/// Runs a question on a shard and waits for its answer.
fn ask<T: Send + 'static>(
    shard: &ShardHandle,
    question: impl AsyncFnOnce(Shard) -> Result<T, Reason> + Send + 'static,
) -> Result<T, Reason> {
    let (tx, rx) = mpsc::sync_channel(1);
    shard.run(move |shard| {
        let here = shard.clone();
        shard.spawn(async move { drop(tx.send(question(here).await)) }).detach();
    });
    rx.recv().unwrap_or(Err(Reason::Closed))
}

async fn log(controller: &Controller) -> Result<Vec<Discovered>, Reason> {
    let malformed = Reason::Unfit("a discovery log of another size");
    let header = async || {
        let bytes = admin::log_page(&controller.conn, LogId::Discovery, 0, RECORD).await?;
        DiscoveryHeader::read_from_bytes(&bytes).map_err(|_| malformed.clone())
    };
    let mut found = Vec::new();
    for _ in 0..TRIES {
        let before = header().await?;
        found.clear();
        for i in 0..before.numrec.min(MAX_ENTRIES) {
            let at = u64::from(RECORD) * (i + 1);
            let bytes = admin::log_page(&controller.conn, LogId::Discovery, at, RECORD).await?;
            found.push(entry(&DiscoveryEntry::read_from_bytes(&bytes).map_err(|_| malformed.clone())?));
        }
        if header().await?.genctr == before.genctr {
            break;
        }
    }
    Ok(found)
}

fn entry(e: &DiscoveryEntry) -> Discovered {
    Discovered {
        trtype: e.trtype,
        adrfam: e.adrfam,
        subtype: e.subtype,
        portid: e.portid,
        cntlid: e.cntlid,
        asqsz: e.asqsz,
        traddr: text(&e.traddr),
        trsvcid: text(&e.trsvcid),
        subnqn: Nqn::from_field(&e.subnqn).ok(),
    }
}

/// An ASCII field up to its padding; what is not printable becomes `?`.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    let field = field.get(..end).unwrap_or_default().trim_ascii();
    field.iter().map(|&b| if b.is_ascii_graphic() || b == b' ' { char::from(b) } else { '?' }).collect()
}

async fn known(controller: &Controller) -> Result<Identified, Reason> {
    let identify = scan::identify(controller).await?;
    let mut namespaces = Vec::new();
    for nsid in scan::active(controller).await? {
        let (namespace, descriptors) = scan::structures(controller, nsid).await?;
        let identity = Identity::of(&namespace, &descriptors);
        namespaces.push((nsid, namespace, identity));
    }
    Ok(Identified { cntlid: controller.cntlid, controller: identify, namespaces })
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn texts_are_clean() {
        assert_eq!(text(b"127.0.0.1\0\0junk"), "127.0.0.1");
        assert_eq!(text(b"4420    "), "4420");
        assert_eq!(text(b"a\x1b[2Jb\xff"), "a?[2Jb?");
    }
}
