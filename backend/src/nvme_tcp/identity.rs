//! Who a namespace is and what it can do, from what the controller says of it (Base 2.1, 5.1.13; NVM Command Set 1.1,
//! 4.1.5). Nothing here is believed further than [`engine::Limits`] can hold.
#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use engine::Limits;
use nvme_proto::identify::{
    IdentifyController, IdentifyNamespace, NamespaceIdDescriptor, NamespaceIdType, NvmIdentifyController,
};
use nvme_proto::register::Cap;
use nvme_proto::zerocopy::FromBytes;

use super::issued::Spans;
use super::reason::Reason;

/// The largest I/O that is sent, whatever the remote takes.
const MAX_BYTES: u64 = 1 << 20;

/// What names a namespace for ever; `None` where it has no such name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// UUID.
    pub uuid: Option<[u8; 16]>,
    /// NGUID.
    pub nguid: Option<[u8; 16]>,
    /// EUI64.
    pub eui64: Option<[u8; 8]>,
}

impl Identity {
    /// From Identify Namespace and the list of namespace identification descriptors, which may be absent or garbage.
    pub(super) fn of(namespace: &IdentifyNamespace, descriptors: &[u8]) -> Self {
        let mut identity = Identity {
            uuid: None,
            nguid: Some(namespace.nguid).filter(|id| id.iter().any(|&b| b != 0)),
            eui64: Some(namespace.eui64).filter(|id| id.iter().any(|&b| b != 0)),
        };
        let mut rest = descriptors;
        while let Ok((head, after)) = NamespaceIdDescriptor::read_from_prefix(rest) {
            let Some((id, next)) = after.split_at_checked(usize::from(head.nidl)) else { break };
            if id.is_empty() {
                break;
            }
            match head.nidt {
                NamespaceIdType::Uuid => identity.uuid = id.try_into().ok(),
                NamespaceIdType::Nguid => identity.nguid = id.try_into().ok(),
                NamespaceIdType::Eui64 => identity.eui64 = id.try_into().ok(),
                _ => {}
            }
            rest = next;
        }
        identity
    }

    /// Whether this namespace can be the one that had the identity `old`: no name that it had is missing or another.
    pub fn is_still(&self, old: &Identity) -> bool {
        (old.uuid.is_none() || self.uuid == old.uuid)
            && (old.nguid.is_none() || self.nguid == old.nguid)
            && (old.eui64.is_none() || self.eui64 == old.eui64)
    }
}

/// What of a controller bears on its namespaces.
pub(super) struct ControllerFacts {
    pub identify: Box<IdentifyController>,
    /// Identify Controller of the NVM command set, where there is one.
    pub nvm: Option<Box<NvmIdentifyController>>,
    pub cap: Cap,
}

impl ControllerFacts {
    /// Bytes of a size that is told as a power of two in units of the smallest page; zero for no limit.
    fn pages(&self, power: u8) -> u64 {
        let page_bits = u32::from(self.cap.mpsmin()).saturating_add(12);
        match power {
            0 => 0,
            n => 1u64.checked_shl(page_bits.saturating_add(u32::from(n))).unwrap_or(0),
        }
    }

    /// The limits of one of its namespaces, and how much one command may cover.
    ///
    /// # Errors
    /// Why the namespace cannot be used.
    pub fn limits(&self, ns: &IdentifyNamespace) -> Result<(Limits, Spans), Reason> {
        let format = ns.lbaf.get(usize::from(ns.flbas.index())).copied().unwrap_or_default();
        if format.ms != 0 {
            return Err(Reason::Unfit("its format has metadata"));
        }
        if !(9..=16).contains(&format.lbads) {
            return Err(Reason::Unfit("its block size is not between 512 bytes and 64 KiB"));
        }
        let block_size = 1u32.wrapping_shl(u32::from(format.lbads));
        let bytes = u128::from(ns.nsze).saturating_mul(u128::from(block_size));
        if bytes == 0 || i64::try_from(bytes).is_err() {
            return Err(Reason::Unfit("it has no blocks, or more than can be addressed"));
        }
        let blocks_of = |bytes: u64| u32::try_from(bytes.wrapping_shr(u32::from(format.lbads))).unwrap_or(0);
        let mdts = self.pages(self.identify.mdts);
        let largest = if mdts == 0 { MAX_BYTES } else { mdts.min(MAX_BYTES) };
        let max_blocks = blocks_of(largest);
        if max_blocks == 0 {
            return Err(Reason::Unfit("one of its blocks is larger than MDTS allows"));
        }
        let id = &self.identify;
        let nvm = self.nvm.as_deref();
        let wzsl = self.pages(nvm.map_or(0, |n| n.wzsl));
        let write_zeroes = match (wzsl, mdts) {
            // A controller that tells no WZSL may apply MDTS, as those before 1.4 did.
            (0, 0) => u32::MAX,
            (0, bytes) | (bytes, _) => {
                u32::try_from(bytes.wrapping_shr(u32::from(format.lbads))).unwrap_or(u32::MAX)
            }
        };
        let deallocate = nvm.map_or(0, |n| n.dmrsl);
        let spans = Spans {
            write_zeroes: write_zeroes.max(1),
            deallocate: if deallocate == 0 { u32::MAX } else { deallocate },
        };
        let own_atomicity = ns.nsfeat.nsabp() && ns.nawupf_z != 0;
        let atomic_z = if own_atomicity { ns.nawupf_z } else { id.awupf_z };
        let bounded = ns.nabspf_z != 0;
        let mut limits = Limits::full(block_size, ns.nsze);
        limits.max_blocks = max_blocks;
        limits.optimal_boundary = u32::from(ns.noiob);
        limits.write_granularity =
            if ns.nsfeat.optperf() == 0 { 1 } else { u32::from(ns.npwg_z).saturating_add(1) };
        limits.atomic_blocks =
            if bounded { 1 } else { u32::from(atomic_z).saturating_add(1).min(max_blocks) };
        limits.volatile_cache = id.vwc.vwcp();
        limits.write_zeroes = id.oncs.nvmwzsv();
        limits.unmap = id.oncs.nvmdsmsv();
        limits.compare = id.oncs.nvmcmps();
        limits.unmapped_reads_zero = ns.dlfeat.rb() == 1;
        for (limit, less) in
            [("write_zeroes", !limits.write_zeroes), ("unmap", !limits.unmap), ("compare", !limits.compare)]
        {
            if less {
                limits = limits.because(limit, "nvme_tcp", "the remote controller's ONCS does not have it");
            }
        }
        if !limits.unmapped_reads_zero {
            limits = limits.because(
                "unmapped_reads_zero",
                "nvme_tcp",
                "the remote namespace's DLFEAT does not say so",
            );
        }
        let why = if mdts == 0 || mdts > MAX_BYTES {
            "the initiator's largest I/O"
        } else {
            "the remote controller's MDTS"
        };
        Ok((limits.because("max_blocks", "nvme_tcp", why), spans))
    }
}

#[cfg(test)]
mod tests {
    use nvme_proto::identify::{Flbas, LbaFormat, Nsfeat};
    use nvme_proto::zerocopy::FromZeros;

    use super::*;

    fn facts(mdts: u8, mpsmin: u8) -> ControllerFacts {
        let mut identify = Box::new(IdentifyController::new_zeroed());
        identify.mdts = mdts;
        ControllerFacts { identify, nvm: None, cap: Cap::new().with_mpsmin(mpsmin) }
    }

    fn namespace(blocks: u64, lbads: u8) -> IdentifyNamespace {
        let mut ns = IdentifyNamespace::new_zeroed();
        ns.nsze = blocks;
        ns.lbaf[0] = LbaFormat::of_lbads(lbads);
        ns
    }

    #[test]
    fn mdts_bounds_an_io_and_so_do_we() {
        for (mdts, mpsmin, max_blocks) in [
            (0, 0, 2048),
            (1, 0, 16),
            (5, 0, 256),
            (8, 0, 2048),
            (9, 0, 2048),
            (1, 4, 256),
            (60, 15, 2048),
            (255, 15, 2048),
        ] {
            let (limits, _) = facts(mdts, mpsmin).limits(&namespace(1 << 30, 9)).unwrap();
            assert_eq!(limits.max_blocks, max_blocks, "MDTS {mdts}, MPSMIN {mpsmin}");
        }
        assert!(facts(1, 0).limits(&namespace(100, 16)).is_err(), "a block larger than MDTS");
    }

    #[test]
    fn what_cannot_be_a_volume_is_none() {
        let refused = |ns: &IdentifyNamespace| facts(0, 0).limits(ns).is_err();
        for (blocks, lbads) in
            [(0, 9), (1, 0), (1, 8), (1, 17), (1, 63), (1, 255), (u64::MAX, 9), (1 << 54, 9)]
        {
            assert!(refused(&namespace(blocks, lbads)), "{blocks} blocks, LBADS {lbads}");
        }
        assert!(!refused(&namespace((1 << 54) - 1, 9)));
        let mut metadata = namespace(100, 9);
        metadata.lbaf[0].ms = 8;
        assert!(refused(&metadata));
        let mut beyond = namespace(100, 9);
        beyond.flbas = Flbas::from_bits(0x6f);
        assert!(refused(&beyond), "a format that is not there");
    }

    #[test]
    fn atomicity_is_promised_where_it_is_sure() {
        let mut facts = facts(0, 0);
        facts.identify.awupf_z = 7;
        let mut ns = namespace(100, 9);
        assert_eq!(facts.limits(&ns).unwrap().0.atomic_blocks, 8);
        (ns.nsfeat, ns.nawupf_z) = (Nsfeat::new().with_nsabp(true), 15);
        assert_eq!(facts.limits(&ns).unwrap().0.atomic_blocks, 16);
        ns.nabspf_z = 3;
        assert_eq!(facts.limits(&ns).unwrap().0.atomic_blocks, 1, "boundaries within");
    }

    #[test]
    fn identities_are_read_from_any_list() {
        let mut ns = namespace(100, 9);
        ns.eui64 = [1; 8];
        let mut list = vec![3, 16, 0, 0];
        list.extend([7; 16]);
        list.extend([9, 3, 0, 0, 1, 2, 3, 4, 1, 0, 0, 0]);
        let id = Identity::of(&ns, &list);
        assert_eq!(id, Identity { uuid: Some([7; 16]), nguid: None, eui64: Some([1; 8]) });
        assert!(id.is_still(&id) && id.is_still(&Identity::default()));
        assert!(!Identity::default().is_still(&id));
        // Lengths that lead beyond the list, or are another type's.
        assert_eq!(Identity::of(&ns, &[3, 200, 0, 0, 1]).uuid, None);
        assert_eq!(Identity::of(&ns, &[3, 2, 0, 0, 1, 1]).uuid, None);
        assert_eq!(Identity::of(&ns, &vec![0xff; 4096]).uuid, None);
    }
}
