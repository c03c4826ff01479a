//! Keep Alive (Base 2.1, 3.9): a host that says nothing for KATO is gone. Any command counts (TBKAS). On fabrics its
//! association ends; over PCIe the controller fails, and KATO is 0 until the host sets it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use engine::{OnTimer, TimerId};
use nvme_proto::Status;

use super::Controller;

/// KAS: the granularity of KATO, in 100 ms.
pub(super) const KAS: u16 = 10;

/// How long the host may be silent, and the timer that looks.
#[derive(Default)]
pub(super) struct KeepAlive {
    /// KATO in milliseconds; 0 for ever.
    kato: Cell<u32>,
    timer: Cell<Option<TimerId>>,
}

impl Controller {
    /// KATO in milliseconds; 0 for none.
    pub(super) fn kato(&self) -> u32 {
        self.keep_alive.kato.get()
    }

    /// Sets KATO, in Connect or by Set Features, rounded up as [`KAS`] has it: the time begins anew.
    pub(super) fn set_kato(self: &Rc<Self>, kato: u32) {
        self.stop_keep_alive();
        let granularity = u32::from(KAS) * 100;
        let kato = kato.div_ceil(granularity).saturating_mul(granularity);
        self.keep_alive.kato.set(kato);
        if kato != 0 {
            let timer = self.local.shard().timer(Duration::from_millis(kato.into()), self.clone(), 0);
            self.keep_alive.timer.set(Some(timer));
        }
    }

    /// Nobody needs to be watched any more.
    pub(super) fn stop_keep_alive(&self) {
        if let Some(timer) = self.keep_alive.timer.take() {
            self.local.shard().cancel_timer(timer);
        }
    }
}

impl OnTimer for Controller {
    fn on_timer(self: Rc<Self>, _cookie: u64) {
        self.keep_alive.timer.set(None);
        if self.shared.take_traffic() {
            return self.set_kato(self.kato());
        }
        self.port.keep_alive_expired();
        match self.config.fabrics {
            true => self.terminate(),
            false => self.shared.errors().note_event(Status::KEEP_ALIVE_TIMER_EXPIRED),
        }
    }
}
