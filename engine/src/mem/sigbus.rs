//! SIGBUS in a watched mapping puts a page of zeroes under the access and condemns the mapping; any other SIGBUS ends
//! the process, as it would have.
//!
//! A peer that shares a file with us may truncate it at any time. The signal handler may only do what is
//! async-signal-safe: it walks a fixed table of atomics and calls mmap(2).

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Once};

/// Mappings that can be watched at one time, in the whole process.
const SLOTS: usize = 16384;

struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    condemned: AtomicPtr<AtomicBool>,
    taken: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        condemned: AtomicPtr::new(std::ptr::null_mut()),
        taken: AtomicBool::new(false),
    }
}; SLOTS];
/// One past the highest slot ever taken: how far the handler looks.
static HIGH: AtomicUsize = AtomicUsize::new(0);
static INSTALL: Once = Once::new();

/// A mapping under watch, until dropped.
#[derive(Debug)]
pub(super) struct Watch {
    slot: usize,
    _flag: Arc<AtomicBool>,
}

impl Watch {
    /// Watches `len` bytes at `base`; an access beyond the file's end sets `flag`. `None` when the table is full.
    pub(super) fn new(base: NonNull<u8>, len: usize, flag: Arc<AtomicBool>) -> Option<Watch> {
        INSTALL.call_once(install);
        let slot = TABLE.iter().position(|s| !s.taken.swap(true, Ordering::AcqRel))?;
        let start = base.as_ptr() as usize;
        TABLE[slot].condemned.store(Arc::as_ptr(&flag).cast_mut(), Ordering::Release);
        TABLE[slot].end.store(start + len, Ordering::Release);
        TABLE[slot].start.store(start, Ordering::Release);
        HIGH.fetch_max(slot + 1, Ordering::AcqRel);
        Some(Watch { slot, _flag: flag })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let s = &TABLE[self.slot];
        s.start.store(0, Ordering::Release);
        s.end.store(0, Ordering::Release);
        s.condemned.store(std::ptr::null_mut(), Ordering::Release);
        s.taken.store(false, Ordering::Release);
    }
}

fn install() {
    // SAFETY: `handler` is async-signal-safe, and the structure is initialised field by field from zeroes.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

extern "C" fn handler(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo for a handler installed with SA_SIGINFO.
    let addr = unsafe { (*info).si_addr() } as usize;
    for slot in &TABLE[..HIGH.load(Ordering::Acquire).min(SLOTS)] {
        let (start, end) = (slot.start.load(Ordering::Acquire), slot.end.load(Ordering::Acquire));
        if start == 0 || addr < start || addr >= end {
            continue;
        }
        let page = addr & !4095;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: replaces one page of a mapping that this process watches, which the faulting access proves to be
        // mapped still; the flag lives as long as the watch.
        unsafe {
            let flag = slot.condemned.load(Ordering::Acquire);
            if !flag.is_null() {
                (*flag).store(true, Ordering::Release);
            }
            let got = libc::mmap(page as *mut _, 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            if got != libc::MAP_FAILED {
                return;
            }
        }
    }
    // Not ours: restore the default and return, so that the access faults again and ends the process.
    // SAFETY: sigaction is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}
