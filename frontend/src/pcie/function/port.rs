//! What the controller asks of its function: the admin queues when it is enabled, and their end.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use nvme_proto::feature::InterruptCoalescing;

use super::Function;
use crate::controller::{Controller, Port};
use crate::pcie::config::VENDOR_ID;
use crate::pcie::cq::Cq;
use crate::pcie::sq::Sq;

/// The controller's way to its function.
#[derive(Clone, Default)]
pub(super) struct FunctionPort(pub(super) Rc<RefCell<Weak<Function>>>);

impl FunctionPort {
    fn function(&self) -> Option<Rc<Function>> {
        self.0.borrow().upgrade()
    }
}

impl Function {
    fn disabled(self: &Rc<Self>) {
        if let Some(poller) = self.poller.take() {
            self.shard.remove_poller(poller);
        }
        self.failed.set(false);
        self.look_at_memory();
        self.cqs.borrow_mut().clear();
        self.late.clear();
        drop(self.deleting.take());
        self.bells.clear();
        self.interrupts.forget();
        self.coalescing.forget(&self.shard);
        self.update_pin();
    }

    /// Makes the admin queues. Whether the registers allow it.
    fn enable(self: &Rc<Self>, controller: &Rc<Controller>) -> bool {
        let (aqa, asq, acq) = controller.admin_queue_registers();
        let (sq_entries, cq_entries) = (u32::from(aqa.asqs_z()) + 1, u32::from(aqa.acqs_z()) + 1);
        let usable = self.has_memory(asq, u64::from(sq_entries) * 64)
            && self.has_memory(acq, u64::from(cq_entries) * 16)
            && sq_entries > 1
            && cq_entries > 1;
        if !usable {
            self.complain("AQA, ASQ or ACQ give no admin queue in mapped memory");
            return false;
        }
        if self.is_condemned() {
            self.complain("the file behind guest memory was truncated");
            return false;
        }
        self.bells.clear();
        let cq = Rc::new(Cq::new(0, acq, cq_entries, Some(0)));
        self.add_cq(cq.clone());
        let sq = Sq::new(self, 0, asq, sq_entries, cq);
        if !self.is_bus_master() {
            self.complain(
                "enabled before Bus Master Enable (PCI Command, bit 2): nothing is fetched until that is set",
            );
        }
        let attached = crate::pcie::admin::attach(self, controller.local(), sq, sq_entries).is_ok();
        if attached && self.poller.get().is_none() {
            self.poller.set(Some(self.shard.add_poller(self.clone())));
        }
        attached
    }
}

impl Port for FunctionPort {
    fn enable(&self, controller: &Rc<Controller>) -> bool {
        self.function().is_some_and(|f| f.enable(controller))
    }

    fn disabled(&self) {
        if let Some(function) = self.function() {
            function.disabled();
        }
    }

    fn ended(&self) {
        if let Some(function) = self.function() {
            function.disabled();
            function.ended.set(true);
            if let Some(f) = function.on_end.take() {
                f();
            }
        }
    }

    fn keep_alive_expired(&self) {
        if let Some(function) = self.function() {
            function.complain("the host was silent for longer than KATO");
            function.fail();
        }
    }

    fn pci_ids(&self) -> (u16, u16) {
        (VENDOR_ID, VENDOR_ID)
    }

    fn has_completion_queues(&self) -> bool {
        self.function().is_some_and(|f| f.cqs.borrow().keys().any(|qid| *qid != 0))
    }

    fn vectors(&self) -> u16 {
        self.function().map_or(0, |f| f.interrupts.vectors() as u16)
    }

    fn set_coalescing(&self, setting: InterruptCoalescing) {
        if let Some(function) = self.function() {
            function.set_coalescing(setting);
        }
    }

    fn set_prompt(&self, vector: u16, cd: bool) {
        if let Some(function) = self.function() {
            function.set_prompt(vector, cd);
        }
    }

    fn interrupt_mask(&self) -> u32 {
        self.function().map_or(0, |f| f.interrupts.mask.get())
    }

    fn mask(&self, vectors: u32) {
        if let Some(function) = self.function() {
            function.interrupts.mask.set(function.interrupts.mask.get() | vectors);
            function.update_pin();
        }
    }

    fn unmask(&self, vectors: u32) {
        if let Some(function) = self.function() {
            function.interrupts.mask.set(function.interrupts.mask.get() & !vectors);
            function.update_pin();
        }
    }
}
