//! Making the ring, and saying in words why the kernel would not.

use std::io;

use io_uring::IoUring;

/// What this process needs of the kernel.
pub const MINIMUM_KERNEL: &str = "5.19";

/// The smallest ring that is worth having: it fits into 16 KiB of locked memory.
const SMALLEST: u32 = 32;

/// A ring of `entries` submission entries and eight times as many completions; smaller where the memory that this user
/// may lock (RLIMIT_MEMLOCK) has no room for it: what does not fit into a ring waits in its slot.
///
/// # Errors
/// What refused it and what to change.
pub(super) fn build(entries: u32) -> io::Result<IoUring> {
    let build = |entries: u32, flags: bool| {
        let mut b = IoUring::builder();
        b.setup_clamp().setup_cqsize(entries * 8);
        if flags {
            b.setup_coop_taskrun().setup_taskrun_flag().setup_single_issuer().setup_submit_all();
        }
        b.build(entries)
    };
    let is = |e: &io::Error, code| e.raw_os_error() == Some(code);
    let mut size = entries;
    let uring = loop {
        let built =
            build(size, true).or_else(|e| if is(&e, libc::EINVAL) { build(size, false) } else { Err(e) });
        match built {
            Err(e) if is(&e, libc::ENOMEM) && size > SMALLEST => size = (size / 4).max(SMALLEST),
            Err(e) => return Err(explain(&e)),
            Ok(uring) => break uring,
        }
    };
    if size < entries {
        tracing::warn!(
            entries = size,
            wanted = entries,
            "little memory may be locked: a smaller ring is used; raise RLIMIT_MEMLOCK for more"
        );
    }
    let p = uring.params();
    if !(p.is_feature_ext_arg() && p.is_feature_nodrop() && p.is_feature_fast_poll()) {
        return Err(io::Error::other(format!(
            "this kernel's io_uring is too old: Linux {MINIMUM_KERNEL} or later is needed"
        )));
    }
    Ok(uring)
}

fn explain(e: &io::Error) -> io::Error {
    let cure = match e.raw_os_error() {
        Some(libc::EPERM) => match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
            .as_deref()
            .map(str::trim)
        {
            Ok("2") => "kernel.io_uring_disabled is 2: set it to 0 (sysctl -w kernel.io_uring_disabled=0)",
            Ok("1") => {
                "kernel.io_uring_disabled is 1: set it to 0, or run in the group of kernel.io_uring_group, or with CAP_SYS_ADMIN"
            }
            _ => {
                "a seccomp filter refuses it: allow io_uring_setup, io_uring_enter and io_uring_register (in a container: a seccomp profile that has them)"
            }
        },
        Some(libc::ENOSYS) => "this kernel has none: Linux 5.19 or later with CONFIG_IO_URING is needed",
        Some(libc::ENOMEM) => {
            "locked memory is exhausted: raise RLIMIT_MEMLOCK (LimitMEMLOCK= in a systemd unit)"
        }
        _ => return io::Error::new(e.kind(), format!("io_uring_setup: {e}")),
    };
    io::Error::new(e.kind(), format!("io_uring is not available ({e}): {cure}"))
}
