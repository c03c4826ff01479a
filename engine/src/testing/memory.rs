//! What a hostile peer may make the process hold, measured by the kernel.

use std::fs;
use std::sync::Once;
use std::thread::available_parallelism;

use nix::sys::resource::{Resource, setrlimit};

const MIB: u64 = 1 << 20;

/// Lets the process have 3 GiB of its own at most from now on, and 64 MiB more for each processor, where tests run side
/// by side: less than one length of 32 bits that is believed. An allocation beyond fails, though nothing is in it yet.
///
/// # Panics
/// If the kernel does not take the limit.
#[expect(clippy::expect_used, reason = "for tests")]
pub fn confine() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let most = 3072 * MIB + 64 * MIB * processors();
        setrlimit(Resource::RLIMIT_DATA, most, most).expect("a limit of memory");
    });
}

/// Asserts that the process never had more in memory than its tests need: 192 MiB, and 64 MiB more for each processor.
///
/// # Panics
/// If it had.
pub fn assert_small() {
    let (peak, most) = (peak(), 192 * MIB + 64 * MIB * processors());
    assert!(peak <= most, "{} MiB were in memory, {} are the most", peak / MIB, most / MIB);
}

/// The most bytes of the process that ever were in memory at once.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB"));
    line.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(u64::MAX / 1024) * 1024
}

fn processors() -> u64 {
    available_parallelism().map_or(1, |n| n.get() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_stays_when_its_memory_is_gone() {
        let before = peak();
        assert!(before > MIB && before < 1 << 40);
        let held = std::hint::black_box(vec![1u8; 256 << 20]);
        drop(held);
        assert!(peak() >= 256 * MIB);
    }
}
