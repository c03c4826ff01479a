//! Asymmetric Namespace Access (Base 2.1, 8.1.1): one group of all namespaces, which every controller reaches as well as
//! any other.

use nvme_proto::log::{AnaGroupDescriptor, AnaHeader, AnaState, LSP_ANA_GROUPS_ONLY};
use nvme_proto::zerocopy::IntoBytes;

use super::Controller;

/// ANAGRPID of every namespace.
pub(super) const GROUP: u32 = 1;

impl Controller {
    /// The log page; a group without namespaces is not in it. `lsp` may leave the namespaces out.
    pub(super) fn ana_log(&self, lsp: u8) -> Vec<u8> {
        let namespaces = self.local.namespaces();
        let groups = u16::from(!namespaces.is_empty());
        let mut page = AnaHeader { nanagrpd: groups, ..AnaHeader::default() }.as_bytes().to_vec();
        if groups == 0 {
            return page;
        }
        let nsids: Vec<u32> = match lsp & LSP_ANA_GROUPS_ONLY {
            0 => namespaces.iter().map(|n| n.namespace.nsid).collect(),
            _ => Vec::new(),
        };
        let group = AnaGroupDescriptor {
            anagrpid: GROUP,
            nnv: u32::try_from(nsids.len()).unwrap_or(0),
            chgcnt: 0,
            state: AnaState::Optimized,
            reserved17: [0; 15],
        };
        page.extend_from_slice(group.as_bytes());
        page.extend(nsids.iter().flat_map(|nsid| nsid.to_le_bytes()));
        page
    }
}
