//! The function's regions: configuration space, registers and doorbells, the MSI-X table.

use std::rc::Rc;

use nvme_proto::aen::ErrorInfo;
use nvme_proto::register::{doorbell, offset};

use super::Function;
use crate::pcie::config::{BAR0_BYTES, BAR4_BYTES, CONFIG_BYTES, PBA};
use crate::pcie::doorbell::Bell;
use crate::pcie::sq::Sq;

/// Which of the function's regions is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// Configuration space.
    Config,
    /// Registers and doorbells.
    Bar0,
    /// The MSI-X table and pending bits.
    Bar4,
}

impl Space {
    /// Bytes.
    pub fn len(self) -> u64 {
        match self {
            Space::Config => CONFIG_BYTES,
            Space::Bar0 => BAR0_BYTES,
            Space::Bar4 => BAR4_BYTES,
        }
    }
}

/// What a write asks for that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Then {
    /// Nothing.
    Done,
    /// The function is to be reset.
    Reset,
    /// It is no bus master any more: it is to let go of its guest's memory.
    LetGo,
}

impl Function {
    /// Reads a region's bytes. What is not there reads as ones.
    pub fn read(&self, space: Space, at: u64, to: &mut [u8]) {
        to.fill(0xff);
        let Some(at) = inside(space, at, to.len()) else { return };
        match space {
            Space::Config => self.config.borrow().read(at, to),
            Space::Bar4 => {
                to.copy_from_slice(&self.msix_table.borrow()[at..at + to.len()]);
                let pending = self.interrupts.pending();
                for (byte, at) in to.iter_mut().zip(at..) {
                    let bits = at.checked_sub(PBA as usize).and_then(|at| pending.get(at));
                    *byte |= bits.copied().unwrap_or(0);
                }
            }
            Space::Bar0 => {
                let registers = (offset::DOORBELLS as usize).saturating_sub(at).min(to.len());
                let (registers, doorbells) = to.split_at_mut(registers);
                self.controller().read(at as u32, registers);
                doorbells.fill(0);
            }
        }
    }

    /// Writes a region's bytes; what is not there swallows them.
    pub fn write(self: &Rc<Self>, space: Space, at: u64, from: &[u8]) -> Then {
        let Some(at) = inside(space, at, from.len()) else { return Then::Done };
        match space {
            Space::Config => {
                let effect = self.config.borrow_mut().write(at, from);
                if effect.interrupts {
                    self.update_pin();
                }
                return match effect.reset {
                    true => Then::Reset,
                    false if self.follow_bus_master() => Then::LetGo,
                    false => Then::Done,
                };
            }
            // The pending bits are ours.
            Space::Bar4 => {
                let end = (at + from.len()).min(PBA as usize);
                if let Some(to) = self.msix_table.borrow_mut().get_mut(at..end) {
                    to.copy_from_slice(&from[..to.len()]);
                }
            }
            Space::Bar0 => match at.checked_sub(offset::DOORBELLS as usize) {
                None => self.controller().write(at as u32, from),
                Some(at) => {
                    if let Ok(value) = <[u8; 4]>::try_from(from) {
                        self.ring(at as u32, u32::from_le_bytes(value));
                    }
                }
            },
        }
        Then::Done
    }

    /// A trapped doorbell write.
    fn ring(self: &Rc<Self>, at: u32, value: u32) {
        if !self.controller().is_ready() {
            return;
        }
        match doorbell(at) {
            Some((qid, false)) => match self.queue(qid) {
                Some(queue) => {
                    self.bells.store(Bell::Tail(qid), value);
                    if self.may_fetch() && queue.transport().has_work(&queue) {
                        Sq::fetch(&queue);
                    }
                }
                None => self.error_event(ErrorInfo::InvalidDoorbellRegister),
            },
            Some((qid, true)) => match self.cq(qid) {
                Some(cq) => {
                    self.bells.store(Bell::Head(qid), value);
                    let starved = cq.is_starved();
                    self.look_at_head(&cq);
                    if starved {
                        self.drain_completions();
                        self.fetch_all();
                    }
                    if !self.interrupts.uses_msix() {
                        self.update_pin();
                    }
                }
                None => self.error_event(ErrorInfo::InvalidDoorbellRegister),
            },
            None => self.error_event(ErrorInfo::InvalidDoorbellRegister),
        }
    }
}

/// The MSI-X table after a reset, and no bits pending.
pub(super) fn msix_table() -> Box<[u8]> {
    let mut table = vec![0; BAR4_BYTES as usize];
    // Every vector is masked after a reset.
    table[..PBA as usize].iter_mut().skip(12).step_by(16).for_each(|control| *control = 1);
    table.into()
}

fn inside(space: Space, at: u64, len: usize) -> Option<usize> {
    let end = at.checked_add(len as u64)?;
    (end <= space.len()).then_some(at as usize)
}
