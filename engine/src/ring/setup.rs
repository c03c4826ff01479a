//! Making the ring, and saying in words why the kernel would not.

use std::io;
use std::time::{Duration, Instant};

use io_uring::IoUring;

/// What this process needs of the kernel.
pub const MINIMUM_KERNEL: &str = "5.19";

/// Submission entries of a ring; what does not fit waits in its slot. The sizes after the first are for where the memory
/// that this user may lock (RLIMIT_MEMLOCK) has no room for it; the last takes 8 KiB.
pub const SIZES: [u32; 4] = [512, 128, 32, 8];

/// How long the kernel may take to give back what rings had locked: it does so some time after they are closed.
const RELEASE: Duration = Duration::from_millis(500);

/// Makes something of rings, all of one size: the largest for which there is memory.
///
/// # Errors
/// Those of `make`; `OutOfMemory` only where the smallest rings have no room either.
pub(crate) fn of_fitting_size<T>(mut make: impl FnMut(u32) -> io::Result<T>) -> io::Result<T> {
    let mut made = make(SIZES[0]);
    for entries in SIZES {
        // What is locked may be that of an attempt before this one, or of a process that has just ended.
        let began = Instant::now();
        while made.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::OutOfMemory)
            && began.elapsed() < RELEASE
        {
            std::thread::sleep(RELEASE / 10);
            made = make(entries);
        }
        if made.is_ok() && entries < SIZES[0] {
            tracing::warn!(
                entries,
                wanted = SIZES[0],
                "little memory may be locked: smaller rings are used; raise RLIMIT_MEMLOCK for more"
            );
        }
        if made.is_ok() {
            break;
        }
    }
    made
}

/// A ring of `entries` submission entries and eight times as many completions.
///
/// # Errors
/// What refused it and what to change.
pub(super) fn build(entries: u32) -> io::Result<IoUring> {
    let build = |flags: bool| {
        let mut b = IoUring::builder();
        b.setup_clamp().setup_cqsize(entries * 8);
        if flags {
            b.setup_coop_taskrun().setup_taskrun_flag().setup_single_issuer().setup_submit_all();
        }
        b.build(entries)
    };
    let old = |e: &io::Error| e.raw_os_error() == Some(libc::EINVAL);
    let uring = build(true).or_else(|e| if old(&e) { build(false) } else { Err(e) });
    let uring = uring.map_err(|e| explain(&e))?;
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
        Some(libc::EACCES) => {
            "a security policy refuses it: allow it in SELinux or whichever module is in force"
        }
        Some(libc::ENOSYS) => {
            "this kernel has none (Linux 5.19 or later with CONFIG_IO_URING is needed), or a seccomp filter hides it: allow io_uring_setup, io_uring_enter and io_uring_register"
        }
        Some(libc::ENOMEM) => {
            "locked memory is exhausted: raise RLIMIT_MEMLOCK (LimitMEMLOCK= in a systemd unit)"
        }
        _ => return io::Error::new(e.kind(), format!("io_uring_setup: {e}")),
    };
    io::Error::new(e.kind(), format!("io_uring is not available ({e}): {cure}"))
}
