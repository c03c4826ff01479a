//! Commands on a volume that is out of reach. They wait, in the hope that it comes back; but a driver does not wait for
//! ever, and Linux gives a controller up when commands outlive their time in the middle of its reset. A host that heeds
//! Command Retry Delay (ACRE) therefore gets them back before, as Namespace Not Ready, and is told when to ask again.

use std::rc::Rc;
use std::time::Duration;

use super::Controller;

/// How long a command waits at least, and how often somebody looks. Linux waits for 30 s.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_secs(5);

/// CRDT2, in 100 ms: when a command on a volume out of reach may succeed. With Linux's five tries more, its users see
/// no error for three minutes, as long as if the commands were aborted.
pub(super) const DELAY: u16 = 150;

impl Controller {
    /// The host heeds delays from now on, or does not any more.
    pub(super) fn heed_delays(self: &Rc<Self>, on: bool) {
        self.shared.set_retry_delay(on);
        let me = Rc::downgrade(self);
        let shard = self.local.shard().clone();
        let look = async move {
            loop {
                shard.sleep(LOOK).await;
                let Some(controller) = me.upgrade() else { return };
                // Nobody is asked while all is well.
                if controller.local.namespaces().iter().any(|a| a.namespace.volume.is_away()) {
                    controller.shared.give_back(PATIENCE);
                }
            }
        };
        self.away.replace(on.then(|| self.local.shard().spawn(look)));
    }
}
