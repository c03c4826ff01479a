//! What of a subsystem a controller sees: all namespaces but those that are shown to others alone.

use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use nvme_proto::Nqn;

use super::Local;
use crate::namespace::Attachment;

/// Whose view of a subsystem it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one for each queue, and it is never moved about")]
pub enum Viewer {
    /// All controllers of a host, over fabrics, by HOSTNQN.
    Host(Nqn),
    /// One controller that has no host's name, over PCIe, by CNTLID.
    Controller(u16),
}

/// Who sees a namespace; `None` for everybody.
pub type Mask = Option<Arc<[Viewer]>>;

/// Whether a mask lets somebody see what it is on.
pub(crate) fn shows(mask: &Mask, viewer: &Viewer) -> bool {
    mask.as_ref().is_none_or(|viewers| viewers.contains(viewer))
}

/// A subsystem on one shard, as one controller sees it.
pub(crate) struct Seen {
    local: Rc<Local>,
    viewer: Viewer,
}

impl Seen {
    pub fn new(local: &Rc<Local>, viewer: Viewer) -> Self {
        Seen { local: local.clone(), viewer }
    }

    /// The whole of it.
    pub fn local(&self) -> &Rc<Local> {
        &self.local
    }

    /// The namespace with that NSID.
    pub fn namespace(&self, nsid: u32) -> Option<Rc<Attachment>> {
        self.local.namespace(nsid).filter(|a| shows(&a.mask, &self.viewer))
    }

    /// All namespaces that are seen, by ascending NSID.
    pub fn namespaces(&self) -> Vec<Rc<Attachment>> {
        let mut all = self.local.namespaces();
        all.retain(|a| shows(&a.mask, &self.viewer));
        all
    }

    /// Whose view it is.
    pub fn viewer(&self) -> &Viewer {
        &self.viewer
    }
}

impl Deref for Seen {
    type Target = Local;

    fn deref(&self) -> &Local {
        &self.local
    }
}
