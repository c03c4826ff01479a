//! What the control plane says of a remote controller.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nvme_proto::Nqn;
use nvme_proto::nqn::DISCOVERY_NQN;

/// When writes that were out on a lost connection are sent again on the next one. All other I/O is as soon as that is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resend {
    /// When the remote must have given the old association up (Base 2.1, 3.9.4): the keep-alive timeout and the
    /// controller's command quiesce time after contact was lost. Until then everything on their blocks waits.
    #[default]
    Strict,
    /// As soon as the next association is up, as Linux does. Right where the remote fences the association before, as
    /// Isthmus's own target does with one that was cleanly lost; on another, or after a silent loss, a write of the old
    /// association could land after a newer one.
    Fast,
}

/// A remote controller: where it is, and how it is spoken to.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names it in logs and states.
    pub name: String,
    /// TRADDR and TRSVCID.
    pub address: SocketAddr,
    /// HOST_TRADDR: the local address that all connections come from, of the family of [`Config::address`].
    pub source: Option<IpAddr>,
    /// SUBNQN.
    pub subnqn: Nqn,
    /// HOSTNQN.
    pub hostnqn: Nqn,
    /// HOSTID.
    pub hostid: [u8; 16],
    /// I/O queues at most; zero for one per shard.
    pub io_queues: u16,
    /// Entries of an I/O queue: 2 to 4095.
    pub queue_size: u16,
    /// Header digests. A remote that does not grant them is refused.
    pub hdgst: bool,
    /// Data digests. As above.
    pub ddgst: bool,
    /// KATO. The remote gives the association up when it hears nothing for so long; this side when a Keep Alive is not
    /// answered for so long. A third of it passes between two. Zero for none.
    pub kato: Duration,
    /// How long each step of an attempt to connect may take.
    pub connect_timeout: Duration,
    /// The pause before the second attempt; it doubles with each.
    pub first_pause: Duration,
    /// The longest pause between attempts.
    pub longest_pause: Duration,
    /// See [`Resend`].
    pub resend: Resend,
}

impl Config {
    /// A remote with the defaults: a queue of 128 per shard, no digests, KATO 15 s (Linux: 5 s for a path among several;
    /// here the path is the only one), attempts for ever, at most 5 s apart.
    pub fn new(
        name: impl Into<String>,
        address: SocketAddr,
        subnqn: Nqn,
        hostnqn: Nqn,
        hostid: [u8; 16],
    ) -> Self {
        Config {
            name: name.into(),
            address,
            source: None,
            subnqn,
            hostnqn,
            hostid,
            io_queues: 0,
            queue_size: 128,
            hdgst: false,
            ddgst: false,
            kato: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(5),
            resend: Resend::default(),
        }
    }

    /// The discovery service at `address`.
    pub fn discovery(address: SocketAddr, hostnqn: Nqn, hostid: [u8; 16]) -> Self {
        // The well-known name is a name.
        let subnqn = Nqn::new(DISCOVERY_NQN).unwrap_or(hostnqn);
        Config { kato: Duration::ZERO, ..Self::new("discovery", address, subnqn, hostnqn, hostid) }
    }

    /// KATO in milliseconds, as Connect has it.
    pub(super) fn kato_ms(&self) -> u32 {
        u32::try_from(self.kato.as_millis()).unwrap_or(u32::MAX)
    }
}
