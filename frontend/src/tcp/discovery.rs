//! The discovery service: which subsystems are to be had where (Base 2.1, 3.1.3.3 and 5.1.12.3.1).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nvme_proto::Nqn;
use nvme_proto::fabrics::{AddressFamily, CNTLID_DYNAMIC, SubsystemType, TransportType, Treq};
use nvme_proto::identify::ascii;
use nvme_proto::log::{DiscoveryEntry, DiscoveryHeader};
use nvme_proto::zerocopy::{FromZeros, IntoBytes};

use super::{Inner, MAX_QUEUE_ENTRIES};
use crate::controller::Port;

/// What a discovery controller asks of the target.
pub(super) struct DiscoveryPort {
    target: Arc<Inner>,
    host: Nqn,
    /// The address that the host reached us by.
    via: SocketAddr,
}

impl DiscoveryPort {
    pub fn new(target: &Arc<Inner>, host: Nqn, via: SocketAddr) -> Self {
        DiscoveryPort { target: target.clone(), host, via }
    }

    fn entry(&self, addr: SocketAddr, portid: u16, subtype: SubsystemType, nqn: &Nqn) -> DiscoveryEntry {
        // A listener for all addresses is reached by the one that this host has used.
        let ip = match addr.ip() {
            ip if ip.is_unspecified() && self.via.is_ipv4() == ip.is_ipv4() => self.via.ip(),
            ip => ip,
        };
        let mut entry = DiscoveryEntry::new_zeroed();
        entry.trtype = TransportType::Tcp;
        entry.adrfam = match ip {
            IpAddr::V4(_) => AddressFamily::Ipv4,
            IpAddr::V6(_) => AddressFamily::Ipv6,
        };
        entry.subtype = subtype;
        entry.treq = Treq::new().with_secure_channel(2).with_sqfc_disable(true);
        entry.portid = portid;
        entry.cntlid = CNTLID_DYNAMIC;
        entry.asqsz = MAX_QUEUE_ENTRIES;
        entry.trsvcid = ascii(&addr.port().to_string());
        entry.subnqn = nqn.to_field();
        entry.traddr = ascii(&ip.to_string());
        entry
    }
}

impl Port for DiscoveryPort {
    fn discovery_log(&self) -> Option<Vec<u8>> {
        let mut header = DiscoveryHeader::new_zeroed();
        let mut page = header.as_bytes().to_vec();
        // Nothing that the page tells changes while this is held: entries that were read with the same GENCTR before
        // and after them belong together.
        let listeners = self.target.listeners();
        header.genctr = self.target.generation.load(Ordering::Relaxed);
        for (addr, listener) in listeners.iter() {
            let portid = listener.listening.portid;
            for shown in listener.listening.subsystems().iter() {
                if shown.subsystem.allows(&self.host) {
                    let nqn = shown.subsystem.nqn();
                    let mut entry = self.entry(*addr, portid, SubsystemType::Nvm, nqn);
                    entry.cntlid = shown.cntlid.unwrap_or(CNTLID_DYNAMIC);
                    page.extend_from_slice(entry.as_bytes());
                    header.numrec += 1;
                }
            }
        }
        for addr in self.target.referrals().iter() {
            let nqn = self.target.discovery.nqn();
            page.extend_from_slice(self.entry(*addr, 0, SubsystemType::Referral, nqn).as_bytes());
            header.numrec += 1;
        }
        page[..size_of::<DiscoveryHeader>()].copy_from_slice(header.as_bytes());
        Some(page)
    }
}
