//! Why connections and commands of hosts are turned away: a counter for each reason, and logs that a peer cannot flood.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($($name:ident $text:literal)+) => {
        /// A reason to turn a host away.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason {
            $(#[doc = concat!($text, ".")] $name,)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Reason] = &[$(Reason::$name),+];

            /// The reason in words.
            pub fn text(self) -> &'static str {
                match self { $(Reason::$name => $text),+ }
            }
        }
    };
}

reasons! {
    TooManyConnections "more connections than allowed"
    HalfOpen "no Connect in time"
    PduType "unknown or misdirected PDU type"
    PduSequence "PDU out of sequence"
    PduHeader "bad PDU header field"
    PduLength "bad PDU length"
    HeaderDigest "wrong header digest"
    DataDigest "wrong data digest"
    IcReq "bad ICReq"
    Transfer "H2CData that was not asked for"
    DataTimeout "no H2CData in time after an R2T"
    QueueOverrun "more commands than the queue has entries"
    ConnectParameters "bad Connect parameters"
    ConnectHostNqn "HOSTNQN in Connect is no NQN"
    ConnectRefused "unknown subsystem, or host not allowed"
    ConnectBusy "no controller left"
    KeepAlive "keep-alive timeout"
    HostTerminated "terminated by the host"
}

const COUNT: usize = Reason::ALL.len();

/// Counters of a target, one for each reason.
#[derive(Debug)]
pub struct Rejections {
    counts: [AtomicU64; COUNT],
}

impl Default for Rejections {
    fn default() -> Self {
        Rejections { counts: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Rejections {
    /// How often that was the reason.
    pub fn count(&self, reason: Reason) -> u64 {
        self.counts[reason as usize].load(Ordering::Relaxed)
    }

    /// Counts a rejection, and logs it when few of its kind came before, else now and then.
    pub(super) fn note(&self, reason: Reason, peer: SocketAddr) {
        let before = self.counts[reason as usize].fetch_add(1, Ordering::Relaxed);
        if before < 16 || before.is_power_of_two() {
            tracing::warn!(%peer, count = before + 1, "nvme/tcp: {}", reason.text());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_counter() {
        let rejections = Rejections::default();
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        rejections.note(Reason::PduLength, peer);
        rejections.note(Reason::PduLength, peer);
        for &reason in Reason::ALL {
            assert_eq!(rejections.count(reason), if reason == Reason::PduLength { 2 } else { 0 });
        }
    }
}
