//! F.63, F.64, F.68 and F.69: clients that say what they must not, over the socket. Whoever is beside them notices nothing.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use frontend::Doorbells;
use frontend::vfio_user::Reject;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::client::{DATA, RAM, await_event, command, event, longs, rw, words};
use crate::rig::Rig;

/// A whole message.
pub fn message(id: u16, command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = id.to_le_bytes().to_vec();
    bytes.extend(command.to_le_bytes());
    bytes.extend(words(&[16 + body.len() as u32, flags, 0]));
    bytes.extend(body);
    bytes
}

pub fn version(json: &[u8]) -> Vec<u8> {
    [&[0, 0, 0, 0], json].concat()
}

/// A connection without a greeting.
pub fn raw(rig: &Rig) -> UnixStream {
    let stream = UnixStream::connect(rig.handle().path()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// What is said until the server hangs up.
pub fn rest(mut stream: UnixStream) -> Vec<u8> {
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(e) => panic!("the server does not hang up: {e}"),
    }
    said
}

/// F.63
#[test]
fn f63_headers() {
    let rig = Rig::new("f63", Doorbells::Trapped);
    let mut neighbour = rig.neighbour();
    // Sizes that cannot be, before and after the greeting; types that there are not.
    let greeting = message(1, command::VERSION, 0, &version(b""));
    for after in [&[][..], &greeting] {
        for size in [0, 1, 15, (1 << 20) + 81, 1 << 31, u32::MAX] {
            let mut stream = raw(&rig);
            let mut bytes = message(2, command::REGION_READ, 0, &[]);
            bytes[4..8].copy_from_slice(&size.to_le_bytes());
            stream.write_all(&[after, &bytes].concat()).unwrap();
            rest(stream);
        }
        for flags in 2..16 {
            let mut stream = raw(&rig);
            stream.write_all(&[after, &message(2, command::VERSION, flags, &version(b""))].concat()).unwrap();
            rest(stream);
        }
        neighbour.is_well();
    }
    let counted = |reject| rig.handle().rejections().count(reject);
    assert_eq!((counted(Reject::Size), counted(Reject::Type)), (12, 28));

    // A name twice, names out of order, flags that mean nothing: answered under their name, one after the other.
    let mut c = rig.connect();
    let get = [longs(&[8]), words(&[0, 4])].concat();
    let ids = [7, 7, 0, 0xffff, 3];
    for id in ids {
        c.stream.write_all(&message(id, command::REGION_READ, 0xffff_ff00, &get)).unwrap();
    }
    for id in ids {
        let (answered, reply) = c.reply();
        assert_eq!((answered, reply.errno), (id, 0));
    }
    // Answers to what was never asked.
    for id in 0..100 {
        for command in [command::DMA_READ, command::DMA_WRITE, command::VERSION, 99] {
            c.stream.write_all(&message(id, command, 1, &[0; 32])).unwrap();
            c.stream.write_all(&message(id, command, 0x21, &[])).unwrap();
        }
    }
    for unknown in (14..30).chain([0, 6, 0x7fff, 0xffff]) {
        assert_eq!(c.ask(unknown, &[0xff; 64], &[]).errno, Errno::ENOTSUP as u32, "{unknown}");
    }
    assert_eq!(c.map(0, 0, RAM as u64, true), 0);
    c.enable();
    neighbour.is_well();
}

/// F.64
#[test]
fn f64_versions() {
    let rig = Rig::new("f64", Doorbells::Mapped);
    let mut neighbour = rig.neighbour();
    let deep = [b"{\"capabilities\":".repeat(30_000), b"1".to_vec(), b"}".repeat(30_000)].concat();
    let huge = [b"{\"x\":\"".to_vec(), vec![b'a'; 1_000_000], b"\"}".to_vec()].concat();
    for body in [
        version(b"{\"a\xff\xfe\":1}"),
        version(&b"[".repeat(1 << 20)),
        version(&deep),
        version(b"{\"capabilities\":{\"max_data_xfer_size\":1}}"),
        version(b"{]}\0"),
        vec![1, 0, 0, 0],
        vec![0xff; 4],
        vec![0, 0, 0],
        vec![],
    ] {
        let mut stream = raw(&rig);
        stream.write_all(&message(1, command::VERSION, 0, &body)).unwrap();
        let said = rest(stream);
        assert_eq!((said.len(), said[8]), (16, 0x21), "refused");
        neighbour.is_well();
    }
    // Odd, and allowed: nothing, much, unknown names, no migration to speak of.
    for json in [
        &b""[..],
        b"\0",
        b"{}",
        b"7",
        &huge,
        b"{\"capabilities\":7}",
        b"{\"capabilities\":{\"max_msg_fds\":-1,\"migration\":{\"pgsize\":0}}}\0",
        b"{\"capabilities\":{\"max_data_xfer_size\":18446744073709551615}}",
    ] {
        let mut stream = raw(&rig);
        stream.write_all(&message(1, command::VERSION, 0, &version(json))).unwrap();
        let mut head = [0; 16];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(head[8], 1, "{:?}", String::from_utf8_lossy(&json[..json.len().min(60)]));
    }
    // Again, in the middle of its life: refused, and nothing else.
    let mut c = rig.host();
    let mut q = c.create(1, 16);
    for body in [version(b""), version(b"{]"), vec![], vec![9; 4]] {
        assert_ne!(c.ask(command::VERSION, &body, &[]).errno, 0);
    }
    assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success());
    neighbour.is_well();
}

/// F.64: a client that takes no descriptors is offered nothing to map.
#[test]
fn f64_a_client_that_takes_no_descriptors() {
    let rig = Rig::new("f64-none", Doorbells::Mapped);
    let json = b"{\"capabilities\":{\"max_msg_fds\":0}}\0";
    let mut c = crate::client::Client::greeting(rig.handle().path(), RAM, json);
    assert!(!c.map_doorbells(), "nothing is there to be mapped");
    let info = c.ask(command::GET_REGION_INFO, &words(&[64, 0, 0, 0, 0, 0, 0, 0]), &[]);
    assert_eq!((info.fds.len(), info.body.len(), info.body[4] & 4), (0, 32, 0));
    assert_eq!(c.map(0, 0, RAM as u64, true), 0);
    c.enable();
    let mut q = c.create(1, 16);
    assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success());
}

/// F.68
#[test]
fn f68_regions() {
    let rig = Rig::new("f68", Doorbells::Mapped);
    let mut neighbour = rig.neighbour();
    let mut c = rig.host();
    let sizes = [16384u64, 0, 0, 0, 16384, 0, 0, 4096, 0];
    let access = |at: u64, region: u32, count: u32| [longs(&[at]), words(&[region, count])].concat();
    for region in (0..12).chain([u32::MAX]) {
        let size = sizes.get(region as usize).copied().unwrap_or(0);
        for (at, count) in [
            (size, 4),
            (size.wrapping_sub(2), 4),
            (u64::MAX, 1),
            (u64::MAX - 3, 4),
            (u64::MAX - 3, 8),
            (1 << 32, 4),
            (1 << 63, 4),
        ] {
            // Ones are read of what is not there; nothing is written to it.
            assert_eq!(c.read(region, at, count), vec![0xff; count as usize], "{region} {at:#x}");
            assert_eq!(c.write(region, at, &vec![0; count as usize]), Errno::EINVAL as u32);
        }
        // Nothing of it, all of it, more than there is.
        assert_eq!(c.read(region, 0, 0).len(), 0);
        c.write(region, 0, &[]);
        for count in [(64 << 10) + 1, 1 << 20, u32::MAX] {
            assert_eq!(
                c.ask(command::REGION_READ, &access(0, region, count), &[]).errno,
                Errno::EINVAL as u32
            );
            assert_eq!(
                c.ask(command::REGION_WRITE, &access(0, region, count), &[]).errno,
                Errno::EINVAL as u32
            );
        }
        assert_eq!(c.read(region, 0, 64 << 10), vec![0xff; 64 << 10]);
        // More or fewer bytes than the count says.
        for data in [&[][..], &[0; 3], &[0; 5]] {
            let body = [&access(0x14, region, 4), data].concat();
            assert_eq!(c.ask(command::REGION_WRITE, &body, &[]).errno, Errno::EINVAL as u32);
        }
        for n in 0..16 {
            assert_ne!(c.ask(command::REGION_READ, &access(0, region, 4)[..n], &[]).errno, 0);
        }
    }
    // Configuration space in every width from every place is the same bytes.
    let whole = c.read(7, 0, 4096);
    for at in (0..0x90).chain([0xfe, 0xff, 0x100, 0xff0, 0xffc]) {
        for width in [1, 2, 3, 4, 8] {
            if at + width <= 4096 {
                assert_eq!(c.read(7, at as u64, width as u32), whole[at..at + width], "{at:#x} {width}");
            }
        }
    }
    // Written in every width with what it holds, it holds the same: identity, class, capabilities.
    for at in (0..0x68).chain(0x6a..0x100) {
        for width in [1, 2, 3, 8] {
            if !(at..at + width).contains(&0x69) {
                let bytes = &whole[at..at + width];
                assert_eq!(c.write(7, at as u64, bytes), 0);
            }
        }
    }
    assert_eq!(c.read(7, 0, 4096), whole);
    assert_eq!(c.write(7, 0, &[0xff; 12]), 0);
    assert_eq!(c.read(7, 0, 4), whole[..4], "read only");
    assert_eq!(c.read(7, 8, 4), whole[8..12]);
    assert_eq!(c.register(0x1c) & 3, 1, "none of it reset the controller");
    neighbour.is_well();
}

/// F.69
#[test]
fn f69_interrupts() {
    let rig = Rig::new("f69", Doorbells::Mapped);
    let mut neighbour = rig.neighbour();
    let mut c = rig.host();
    let mut q = c.create(1, 64);
    let events: Vec<_> = (0..4).map(|_| event()).collect();
    let set = |flags, index, start, count| words(&[20, flags, index, start, count]);
    let einval = Errno::EINVAL as u32;
    // Kinds that there are not, ranges that wrap or reach too far, with and without descriptors.
    for fds in [&[][..], &[events[0].as_fd()]] {
        for (flags, index, start, count) in [
            (4 | 32, 5, 0, 1),
            (4 | 32, u32::MAX, 0, 1),
            (4 | 32, 1, 0, 1),
            (4 | 32, 4, 0, 1),
            (4 | 32, 0, 1, 1),
            (4 | 32, 0, 0, 2),
            (4 | 32, 2, 257, 1),
            (4 | 32, 2, 256, 2),
            (4 | 32, 2, u32::MAX, 1),
            (4 | 32, 2, 1, u32::MAX),
            (4 | 32, 2, u32::MAX, u32::MAX),
            (0, 2, 0, 1),
            (32, 2, 0, 1),
            (4, 2, 0, 1),
            (4 | 1 | 32, 2, 0, 1),
            (4 | 8 | 32, 2, 0, 1),
            (64 | 4 | 32, 2, 0, 1),
            (4 | 8, 2, 0, 1),
            (4 | 16, 2, 0, 1),
            (2 | 32, 2, 0, 1),
        ] {
            let errno = c.ask(command::SET_IRQS, &set(flags, index, start, count), fds).errno;
            assert_eq!(errno, einval, "{flags:#x} {index} {start} {count}");
        }
    }
    // Descriptors that are fewer or more than the vectors, or come along with other data.
    let two = [events[0].as_fd(), events[1].as_fd()];
    for (flags, count) in [(4 | 32, 1), (4 | 32, 3), (4 | 32, 0), (1 | 32, 2), (1 | 32, 0)] {
        assert_eq!(c.ask(command::SET_IRQS, &set(flags, 2, 0, count), &two).errno, einval);
    }
    let bools = [set(2 | 32, 2, 0, 2), vec![1, 1]].concat();
    assert_eq!(c.ask(command::SET_IRQS, &bools, &two).errno, einval);
    for argsz in [0, 19] {
        assert_eq!(c.ask(command::SET_IRQS, &words(&[argsz, 4 | 32, 2, 0, 1]), &two[..1]).errno, einval);
    }
    // Triggered by the client, each way.
    assert_eq!(c.vectors(0, &events.iter().collect::<Vec<_>>()), 0);
    assert_eq!(c.ask(command::SET_IRQS, &set(1 | 32, 2, 0, 2), &[]).errno, 0);
    (0..2).for_each(|i| await_event(&events[i]));
    let bools = [set(2 | 32, 2, 0, 4), vec![0, 0, 1, 0]].concat();
    assert_eq!(c.ask(command::SET_IRQS, &bools, &[]).errno, 0);
    await_event(&events[2]);
    assert!(events[3].read().is_err());

    // Set and taken away while they fire, and every completion is told of by whichever descriptor is there.
    for round in 0..200u64 {
        for i in 0..16 {
            c.submit(&mut q, rw(i % 2 == 0, i, 1, DATA, 0));
        }
        match round % 4 {
            0 => assert_eq!(c.vectors(1, &[&events[(round % 3) as usize]]), 0),
            1 => assert_eq!(c.ask(command::SET_IRQS, &set(4 | 32, 2, 1, 1), &[]).errno, 0),
            2 => assert_eq!(c.ask(command::SET_IRQS, &set(1 | 32, 2, 0, 0), &[]).errno, 0),
            _ => assert_eq!(c.ask(command::SET_IRQS, &set(4 | 32, 0, 0, 1), &two[..1]).errno, 0),
        }
        (0..16).for_each(|_| assert!(c.wait(&mut q).status().is_success()));
    }
    let last = event();
    assert_eq!(c.vectors(1, &[&last]), 0);
    while last.read().is_ok() {}
    assert!(c.run(&mut q, rw(true, 0, 1, DATA, 0)).status().is_success());
    await_event(&last);
    // One that is full for ever holds up nobody, though a write to it would block, nor does it hold up the end.
    for flags in [EfdFlags::EFD_NONBLOCK, EfdFlags::empty(), EfdFlags::EFD_SEMAPHORE] {
        let full = EventFd::from_flags(flags | EfdFlags::EFD_CLOEXEC).unwrap();
        full.write(u64::MAX - 1).unwrap();
        assert_eq!(c.vectors(1, &[&full]), 0);
        for _ in 0..200 {
            assert!(c.run(&mut q, rw(true, 0, 1, DATA, 0)).status().is_success());
        }
        neighbour.is_well();
    }
    assert_eq!(c.ask(command::RESET, &[], &[]).errno, 0);
}
