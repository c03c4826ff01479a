//! SIGBUS in a watched mapping puts a page of zeroes under the access and condemns the mapping; any other SIGBUS ends
//! the process, as it would have.
//!
//! A peer that shares a file with us may truncate it at any time. The signal handler may only do what is
//! async-signal-safe: it walks a fixed table of atomics and calls mmap(2).

use std::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::share;

/// Mappings that can be watched at one time, in the whole process: those of clients, and some of our own.
const SLOTS: usize = share::ALL + 4096;

/// A slot is never freed, so that the handler may look at any of them at any time.
struct Slot {
    /// Zero while the range is not (or no longer) watched.
    start: AtomicUsize,
    end: AtomicUsize,
    condemned: AtomicBool,
    taken: AtomicBool,
}

impl Slot {
    const fn new() -> Self {
        let (start, end) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Slot { start, end, condemned: AtomicBool::new(false), taken: AtomicBool::new(false) }
    }

    /// Whether the slot watches `addr`. Another thread may give the slot to another range meanwhile: both ends are of
    /// one range only if the start is the same before and after.
    fn watches(&self, addr: usize) -> bool {
        let start = self.start.load(Ordering::Acquire);
        let end = self.end.load(Ordering::Acquire);
        start != 0 && start <= addr && addr < end && self.start.load(Ordering::Acquire) == start
    }
}

static TABLE: [Slot; SLOTS] = [const { Slot::new() }; SLOTS];
/// One past the highest slot ever taken: how far the handler looks.
static HIGH: AtomicUsize = AtomicUsize::new(0);
static INSTALL: Once = Once::new();
/// How often an access found no file behind a mapping.
static CONDEMNED: AtomicUsize = AtomicUsize::new(0);

/// A mapping under watch, until dropped.
#[derive(Debug)]
pub(super) struct Watch {
    slot: usize,
}

impl Watch {
    /// Watches `len` bytes at `base`. `None` when the table is full.
    pub(super) fn new(base: NonNull<u8>, len: usize) -> Option<Watch> {
        INSTALL.call_once(install);
        let free = |s: &Slot| !s.taken.load(Ordering::Relaxed) && !s.taken.swap(true, Ordering::AcqRel);
        let slot = TABLE.iter().position(free)?;
        let start = base.as_ptr() as usize;
        TABLE[slot].condemned.store(false, Ordering::Release);
        TABLE[slot].end.store(start + len, Ordering::Release);
        TABLE[slot].start.store(start, Ordering::Release);
        HIGH.fetch_max(slot + 1, Ordering::AcqRel);
        Some(Watch { slot })
    }

    /// Whether an access found no file behind the mapping.
    pub(super) fn is_condemned(&self) -> bool {
        TABLE[self.slot].condemned.load(Ordering::Relaxed)
    }
}

/// How often accesses of this process found no file behind a mapping: when it has changed, [`Mapping::is_condemned`]
/// tells of which.
///
/// [`Mapping::is_condemned`]: super::Mapping::is_condemned
pub fn condemnations() -> usize {
    CONDEMNED.load(Ordering::Acquire)
}

impl Drop for Watch {
    fn drop(&mut self) {
        let s = &TABLE[self.slot];
        s.start.store(0, Ordering::Release);
        s.end.store(0, Ordering::Release);
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
        // Whoever touches a mapping holds it, so this slot stays what it is from here on.
        if slot.watches(addr) {
            slot.condemned.store(true, Ordering::Release);
            CONDEMNED.fetch_add(1, Ordering::Release);
            // The page is 4 KiB large, or as large as the pages of the hugetlbfs file behind it.
            if [12, 21, 30].into_iter().any(|shift| put_zeroes(slot, addr >> shift << shift, 1 << shift)) {
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

/// Puts `len` bytes of zeroes at `page`. Whether that could be done.
fn put_zeroes(slot: &Slot, page: usize, len: usize) -> bool {
    let (start, end) = (slot.start.load(Ordering::Acquire), slot.end.load(Ordering::Acquire));
    // No more than the mapping: what lies behind it is somebody else's.
    if page < start || page + len > end.next_multiple_of(4096) {
        return false;
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: replaces a page of a mapping that this process watches, and which the faulting access proves to be
    // mapped still; the kernel refuses to replace a part of a page.
    let got = unsafe { libc::mmap(page as *mut _, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    got != libc::MAP_FAILED
}
