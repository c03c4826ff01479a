//! F.65 to F.67 and F.70: descriptors and memory that clients must not give, or take away, over the socket. Whoever is
//! beside them notices nothing.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::mem::Mapping;
use engine::ring::send_with_fds;
use frontend::Doorbells;
use frontend::vfio_user::Reject;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::SignalFd;
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use nvme_proto::Status;

use crate::client::{DATA, RAM, command, event, longs, rw, words};
use crate::f_socket::{message, raw, rest, version};
use crate::rig::Rig;

fn dma_map(flags: u32, offset: u64, gpa: u64, size: u64) -> Vec<u8> {
    [words(&[32, flags]), longs(&[offset, gpa, size])].concat()
}

fn dma_unmap(argsz: u32, flags: u32, gpa: u64, size: u64) -> Vec<u8> {
    [words(&[argsz, flags]), longs(&[gpa, size])].concat()
}

/// Descriptors of this process whose name has `what` in it.
pub fn open_files(what: &str) -> usize {
    let names = std::fs::read_dir("/proc/self/fd").unwrap();
    let names = names.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    names.filter(|name| name.to_string_lossy().contains(what)).count()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < limit, "never: {what}");
        std::thread::yield_now();
    }
}

/// F.65
#[test]
fn f65_descriptors() {
    let rig = Rig::new("f65", Doorbells::Trapped);
    let mut neighbour = rig.neighbour();
    // 253 in one message, the most that a kernel carries: its sender is let go, and none is kept.
    let (_map, odd) = Mapping::memfd("f65-odd", 4096).unwrap();
    let here = open_files("f65-odd");
    for n in [17, 253] {
        let stream = raw(&rig);
        let fds: Vec<BorrowedFd<'_>> = (0..n).map(|_| odd.as_fd()).collect();
        send_with_fds(stream.as_fd(), &message(1, command::VERSION, 0, &version(b"")), &fds).unwrap();
        rest(stream);
        until("they are closed", || open_files("f65-odd") == here);
        neighbour.is_well();
    }
    // With each byte of a message one, until they are too many.
    let mut stream = raw(&rig);
    for byte in message(1, command::VERSION, 0, &[0; 64]) {
        if send_with_fds(stream.as_fd(), &[byte], &[odd.as_fd()]).is_err() {
            break;
        }
        std::thread::yield_now();
    }
    let _ = stream.flush();
    rest(stream);
    until("they are closed", || open_files("f65-odd") == here);
    assert_eq!(rig.handle().rejections().count(Reject::Descriptors), 3);

    // One where none belongs: closed, whatever becomes of the message.
    let mut c = rig.connect();
    let get = [longs(&[8]), words(&[0, 4])].concat();
    for (command, body) in [
        (command::REGION_READ, get),
        (command::RESET, vec![]),
        (command::GET_REGION_INFO, words(&[32, 0, 0, 0, 0, 0, 0, 0])),
        (command::DMA_UNMAP, dma_unmap(24, 2, 0, 0)),
        (99, vec![]),
        (command::DMA_MAP, vec![]),
        (command::SET_IRQS, vec![]),
        (command::SET_IRQS, words(&[20, 1 | 32, 2, 0, 0])),
        (command::SET_IRQS, words(&[20, 4 | 32, 3, 0, 1])),
        (command::SET_IRQS, words(&[20, 4 | 32, 2, 0, 1])),
    ] {
        c.ask(command, &body, &[odd.as_fd()]);
        until("it is closed", || open_files("f65-odd") == here);
    }
    // What is no memory file, or gives less than is asked of it.
    let read_only: OwnedFd = std::fs::File::open("/proc/self/exe").unwrap().into();
    let zero: OwnedFd = std::fs::File::open("/dev/zero").unwrap().into();
    let directory: OwnedFd = std::fs::File::open("/").unwrap().into();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let open = |path: &Path, flags| -> OwnedFd {
        std::fs::File::options().write(true).custom_flags(flags).open(path).unwrap().into()
    };
    let null = open(Path::new("/dev/null"), 0);
    let [write_only, path] = [0, nix::libc::O_PATH].map(|flags| open(file.path(), flags));
    let (pipe, other) = nix::unistd::pipe().unwrap();
    let (socket, _peer) = UnixStream::pair().unwrap();
    let listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC).unwrap();
    let signals = SignalFd::new(&SigSet::empty()).unwrap();
    let kinds = [
        read_only.as_fd(),
        zero.as_fd(),
        directory.as_fd(),
        null.as_fd(),
        path.as_fd(),
        write_only.as_fd(),
        pipe.as_fd(),
        other.as_fd(),
        socket.as_fd(),
        listening.as_fd(),
        timer.as_fd(),
        signals.as_fd(),
    ];
    for (i, fd) in kinds.into_iter().enumerate() {
        // Neither memory nor an event.
        for flags in if i == 0 { 2..4 } else { 1..4 } {
            assert_ne!(c.ask(command::DMA_MAP, &dma_map(flags, 0, 0, 4096), &[fd]).errno, 0, "{i}");
        }
        for index in [0, 2] {
            assert_ne!(c.ask(command::SET_IRQS, &words(&[20, 4 | 32, index, 0, 1]), &[fd]).errno, 0, "{i}");
        }
    }
    assert_ne!(c.ask(command::DMA_MAP, &dma_map(3, 0, 0, 8), &[event().as_fd()]).errno, 0);
    neighbour.is_well();
    assert_ne!(c.ask(command::DMA_MAP, &dma_map(3, 0, 0, 8192), &[odd.as_fd()]).errno, 0, "it is shorter");
    assert_ne!(c.ask(command::DMA_MAP, &dma_map(3, 4096, 0, 1), &[odd.as_fd()]).errno, 0);
    // A file that may only be read is memory that may only be read.
    assert_eq!(c.ask(command::DMA_MAP, &dma_map(1, 0, 1 << 40, 4096), &[read_only.as_fd()]).errno, 0);
    assert_eq!(c.map(0, 0, RAM as u64, true), 0);
    c.enable();
    let mut q = c.create(1, 16);
    assert!(c.run(&mut q, rw(true, 0, 8, 1 << 40, 0)).status().is_success());
    assert!(c.run(&mut q, rw(false, 0, 8, DATA, 0)).status().is_success());
    assert_eq!(c.get(DATA, 4), b"\x7fELF");
    assert_eq!(c.run(&mut q, rw(false, 0, 8, 1 << 40, 0)).status().code(), Status::DATA_TRANSFER_ERROR);
    neighbour.is_well();
}

/// F.65: a file that shrinks after it was mapped fails the controller whose memory it is, at once, and no other.
#[test]
fn f65_a_truncated_file_condemns_its_controller_alone() {
    for doorbells in [Doorbells::Mapped, Doorbells::Trapped] {
        let rig = Rig::new(&format!("f65-short-{doorbells:?}"), doorbells);
        let mut neighbour = rig.neighbour();
        // Where the data is, and where the queues are.
        for queues in [false, true] {
            let file = std::fs::File::from(memfd_create("f65-short", MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(RAM as u64).unwrap();
            let mut c = rig.connect();
            let split = DATA;
            let (whole, short) = if queues { (split, 0) } else { (0, split) };
            let rest = RAM as u64 - split;
            let size = |at| if at == 0 { split } else { rest };
            assert_eq!(c.map(whole, whole, size(whole), true), 0);
            let body = dma_map(3, short, short, size(short));
            if queues {
                // All that the client does to its queues it does to this file.
                let theirs = Mapping::shared(&file.try_clone().unwrap().into(), 0, RAM, true).unwrap();
                c.ram = Arc::new(theirs);
            }
            assert_eq!(c.ask(command::DMA_MAP, &body, &[file.as_fd()]).errno, 0);
            c.map_doorbells();
            c.enable();
            let mut q = c.create(1, 16);
            file.set_len(4096).unwrap();
            // One command: the next look at the controller finds it failed.
            let sqe = rw(true, 0, 8, DATA, 0);
            if queues {
                c.ring(1, false, 1);
            } else {
                c.submit(&mut q, sqe);
            }
            c.wait_csts(2, 2);
            neighbour.is_well();
        }
    }
}

/// F.66
#[test]
fn f66_maps() {
    let rig = Rig::new("f66", Doorbells::Trapped);
    let mut neighbour = rig.neighbour();
    let mut c = rig.connect();
    let fd = c.ram_fd.try_clone().unwrap();
    let mut map = |flags, offset, gpa, size, with_fd: bool| {
        let fds: &[BorrowedFd<'_>] = if with_fd { &[fd.as_fd()] } else { &[] };
        c.ask(command::DMA_MAP, &dma_map(flags, offset, gpa, size), fds).errno
    };
    let ram = RAM as u64;
    for shared in [true, false] {
        for (flags, offset, gpa, size) in [
            (3, 0, 0, 0),
            (3, 0, u64::MAX, 2),
            (3, 0, 1 << 63, (1 << 63) + 1),
            (3, u64::MAX - 4095, 0, 8192),
            (0, 0, 0, 4096),
            (4, 0, 0, 4096),
            (u32::MAX, 0, 0, 4096),
        ] {
            assert_eq!(
                map(flags, offset, gpa, size, shared),
                Errno::EINVAL as u32,
                "{flags} {offset} {gpa} {size}"
            );
        }
    }
    for (offset, size) in [(0, ram + 1), (ram, 1), (1 << 62, 4096), (i64::MAX as u64, 4096), (0, 1 << 62)] {
        assert_ne!(map(3, offset, 0, size, true), 0, "beyond the file: {offset} {size}");
    }
    // Overlaps: the same, from below, from above, around, inside.
    assert_eq!(map(3, 0x10000, 0x10000, 0x10000, true), 0);
    for (gpa, size) in [(0x10000, 0x10000), (0xf000, 0x1001), (0x1ffff, 0x1000), (0, 0x100000), (0x11000, 1)]
    {
        for shared in [true, false] {
            assert_eq!(map(3, 0, gpa, size, shared), Errno::EEXIST as u32, "{gpa:#x}");
        }
    }
    // Its neighbours touch it. The whole of the rest is memory without a descriptor, up to the last byte that has an end.
    assert_eq!(map(3, 0xf123, 0xf123, 0x1000 - 0x123, true), 0);
    assert_eq!(map(3, 0, 0x20000, u64::MAX - 0x20000, false), 0);
    // As many more as there may be; the rest are refused, and none of it costs what it says.
    assert_eq!(c.ask(command::DMA_UNMAP, &dma_unmap(24, 2, 0, 0), &[]).errno, 0);
    let mut taken = 0;
    for i in 0..5000u64 {
        match c.map(1 << 40 | i << 24, 0, 1 << 24, i < 100) {
            0 => taken += 1,
            errno => assert_eq!(errno, Errno::ENOSPC as u32),
        }
    }
    assert_eq!(taken, 4096);
    assert_eq!(c.ask(command::DMA_UNMAP, &dma_unmap(24, 2, 0, 0), &[]).errno, 0);
    // Sealed files are as good as others, and one sealed against writes is memory that is only read.
    let sealed = memfd_create("f66", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    let file = std::fs::File::from(sealed);
    file.set_len(8192).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_WRITE)).unwrap();
    assert_eq!(c.ask(command::DMA_MAP, &dma_map(3, 0, 0, 8192), &[file.as_fd()]).errno, Errno::EPERM as u32);
    assert_eq!(c.ask(command::DMA_MAP, &dma_map(1, 0, 1 << 40, 8192), &[file.as_fd()]).errno, 0);
    assert_eq!(c.map(0, 0, ram, true), 0);
    c.enable();
    let mut q = c.create(1, 16);
    assert!(c.run(&mut q, rw(true, 0, 8, 1 << 40, 0)).status().is_success());
    neighbour.is_well();
}

/// F.67; those with I/O in flight are among the slow volumes.
#[test]
fn f67_unmaps() {
    let rig = Rig::new("f67", Doorbells::Trapped);
    let mut neighbour = rig.neighbour();
    let mut c = rig.connect();
    assert_eq!(c.map(0, 0, DATA, true), 0);
    assert_eq!(c.map(DATA, DATA, 0x10000, true), 0);
    c.enable();
    let mut q = c.create(1, 16);
    for (argsz, flags, gpa, size) in [
        (24, 0, DATA, 0x8000),
        (24, 0, DATA + 0x8000, 0x8000),
        (24, 0, DATA, 0x20000),
        (24, 0, DATA - 4096, 0x11000),
        (24, 0, 1 << 40, 4096),
        (24, 0, 0, 0),
        (24, 0, u64::MAX, 2),
        (24, 2, DATA, 0),
        (24, 2, 0, 0x10000),
        (24, 3, 0, 0),
        (24, 4, DATA, 0x10000),
        (24, u32::MAX, DATA, 0x10000),
        (0, 0, DATA, 0x10000),
        (23, 0, DATA, 0x10000),
    ] {
        assert_ne!(c.ask(command::DMA_UNMAP, &dma_unmap(argsz, flags, gpa, size), &[]).errno, 0);
    }
    // Dirty pages: by no page size, 0 and 3 among them, and no bitmap is made room for.
    for pgsize in [0, 3, 4096, u64::MAX] {
        for argsz in [24, 40, u32::MAX] {
            let bitmap = [dma_unmap(argsz, 1, DATA, 0x10000), longs(&[pgsize, u64::MAX])].concat();
            assert_eq!(c.ask(command::DMA_UNMAP, &bitmap, &[]).errno, Errno::ENOTSUP as u32);
        }
    }
    assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success(), "all of it is there");
    // The reply is the request, whatever ARGSZ says.
    let body = dma_unmap(u32::MAX, 0, DATA, 0x10000);
    assert_eq!(c.ask(command::DMA_UNMAP, &body, &[]).body, body);
    assert_eq!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().code(), Status::DATA_TRANSFER_ERROR);
    // The memory of the queues, while a command waits there: its host gets no answer, and nobody else is harmed.
    c.place(&mut q, rw(true, 0, 8, 0x5000, 0));
    assert_eq!(c.ask(command::DMA_UNMAP, &dma_unmap(24, 2, 0, 0), &[]).errno, 0);
    c.ring(1, false, 3);
    assert!(c.register(0x1c) & 1 == 1);
    neighbour.is_well();
    assert_eq!(c.map(0, 0, RAM as u64, true), 0);
    assert_eq!(c.ask(command::RESET, &[], &[]).errno, 0);
    c.enable();
    let mut q = c.create(1, 16);
    assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success());
}

/// F.70; those that are killed at any time are among the others.
#[test]
fn f70_clients_that_leave_and_come_again() {
    let rig = Rig::new("f70", Doorbells::Mapped);
    let mut neighbour = rig.neighbour();
    // Gone within a message, at each byte of it, its descriptor with it.
    let (_map, fd) = Mapping::memfd("f70-half", 4096).unwrap();
    let here = open_files("f70-half");
    let greeting = message(1, command::VERSION, 0, &version(b""));
    let whole = [greeting.clone(), message(2, command::DMA_MAP, 0, &dma_map(3, 0, 0, 4096))].concat();
    for n in 0..whole.len() {
        let mut stream = raw(&rig);
        stream.write_all(&whole[..n.min(greeting.len())]).unwrap();
        if n > greeting.len() {
            send_with_fds(stream.as_fd(), &whole[greeting.len()..n], &[fd.as_fd()]).unwrap();
        }
    }
    // The next one is served when these are, and has nothing of theirs.
    let mut c = rig.host();
    assert_eq!(open_files("f70-half"), here);
    // It goes with I/O on its way, and another comes with other memory at the same addresses.
    for round in 0..20u8 {
        let mut q = c.create(1, 64);
        for i in 0..40 {
            c.submit(&mut q, rw(false, i * 8, 8, DATA + i * 4096, 0));
        }
        let other = rig.handle().path().to_owned();
        let next = std::thread::spawn(move || crate::client::Client::connect(&other));
        assert!(c.stream.as_raw_fd() >= 0 && !next.is_finished(), "one client at a time");
        drop((c, q));
        c = next.join().unwrap();
        c.put(DATA, &[round; 40 * 4096]);
        assert_eq!(c.map(0, 0, RAM as u64, true), 0);
        c.map_doorbells();
        c.enable();
        assert!(c.get(DATA, 40 * 4096).iter().all(|b| *b == round), "nothing of the last one's lands here");
        neighbour.is_well();
    }
}
