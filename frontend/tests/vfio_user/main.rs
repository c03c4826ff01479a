//! A controller over vfio-user as a host sees it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod abort;
mod away;
mod breadth;
mod client;
mod coalesce;
mod emulators;
mod f_memory;
mod f_socket;
mod fused;
mod fuzz;
mod g_limits;
mod g_lists;
mod g_pairs;
mod g_queues;
mod keep_alive;
mod master;
mod messages;
mod parked;
mod peer;
mod refusals;
mod rig;
mod slow;
mod specified;
#[path = "../common/stall.rs"]
mod stall;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use backend::ram::RamVolume;
use frontend::{Doorbells, Subsystem};
use nvme_proto::dptr::{SglDescriptor, SglSubtype, SglType};
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Sqe, Status};

use client::{DATA, RAM, await_event, command, event, longs, rw, words};
use rig::Rig;

const BOTH: [(&str, Doorbells); 2] = [("mapped", Doorbells::Mapped), ("trapped", Doorbells::Trapped)];

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed).wrapping_add((i / 512) as u8)).collect()
}

#[test]
fn identify_write_and_read_back() {
    for (name, doorbells) in BOTH {
        let rig = Rig::new(&format!("rw-{name}"), doorbells);
        let mut c = rig.connect();
        assert_eq!(c.map(0, 0, RAM as u64, true), 0);
        assert_eq!(c.map_doorbells(), doorbells == Doorbells::Mapped);
        c.enable();
        let identify = Sqe { opc: 6, cdw10: 1, dptr: [DATA + 0x800, DATA + 0x1000], ..Sqe::default() };
        assert!(c.admin(identify).status().is_success());
        assert_eq!(c.get(DATA + 0x800, 2), 0x4953u16.to_le_bytes());
        assert_eq!(c.get(DATA + 0x804, 8), b"TEST0001");

        let events = [event(), event(), event()];
        assert_eq!(c.vectors(0, &[&events[0], &events[1], &events[2]]), 0);
        for qid in 1..=2u16 {
            let mut q = c.create(qid, 64);
            // A list that starts mid-page, of pages that do not touch.
            let data = pattern(qid as u8, 5 * 4096);
            let list: Vec<u64> = (1..5).map(|i| DATA + i * 0x3000).collect();
            c.put(DATA + 0x100000 + 0xfe0, &longs(&list));
            for (page, bytes) in [DATA].iter().chain(&list).zip(data.chunks(4096)) {
                c.put(*page, bytes);
            }
            let write = rw(true, 100, 40, DATA, DATA + 0x100fe0);
            assert!(c.run(&mut q, write).status().is_success());
            await_event(&events[usize::from(qid)]);
            assert!(c.run(&mut q, rw(false, 100, 8, DATA + 0x200000, 0)).status().is_success());
            assert_eq!(c.get(DATA + 0x200000, 4096), data[..4096]);
            assert!(
                c.run(&mut q, rw(false, 101, 39, DATA + 0x300200, DATA + 0x100fe0)).status().is_success()
            );
            assert_eq!(c.get(DATA + 0x300200, 0xe00), data[512..4096]);
            assert_eq!(c.get(list[3], 4096), data[4 * 4096..]);
        }
        assert!(events[0].read().is_ok(), "the admin queue's own vector");
    }
}

#[test]
fn scatter_gather_lists_and_bit_buckets() {
    let rig = Rig::new("sgl", Doorbells::Trapped);
    let mut c = rig.host();
    let mut q = c.create(1, 16);
    assert!(c.admin(Sqe { opc: 6, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() }).status().is_success());
    assert_eq!(c.get(DATA + 538, 1)[0] & 1, 1, "SGLS says so");
    let d = |kind, address, length| SglDescriptor::new(kind, SglSubtype::Address, address, length);
    let data = pattern(9, 4096);
    c.put(DATA + 3, &data[..1000]);
    c.put(DATA + 0x5001, &data[1000..]);
    c.put(
        DATA + 0x8000,
        [d(SglType::DataBlock, DATA + 3, 1000), d(SglType::LastSegment, DATA + 0x9000, 16)].as_bytes(),
    );
    c.put(DATA + 0x9000, d(SglType::DataBlock, DATA + 0x5001, 3096).as_bytes());
    let mut sqe = rw(true, 0, 8, 0, 0);
    sqe.set_sgl(d(SglType::Segment, DATA + 0x8000, 32));
    assert!(c.run(&mut q, sqe).status().is_success());
    // The read wants bytes 512..1024 alone.
    let want = [
        (SglType::BitBucket, 0, 512),
        (SglType::DataBlock, DATA + 0x20000, 512),
        (SglType::BitBucket, 0, 3072),
    ];
    c.put(DATA + 0x8000, want.map(|(k, a, l)| d(k, a, l)).as_bytes());
    let mut sqe = rw(false, 0, 8, 0, 0);
    sqe.set_sgl(d(SglType::LastSegment, DATA + 0x8000, 48));
    assert!(c.run(&mut q, sqe).status().is_success());
    assert_eq!(c.get(DATA + 0x20000, 512), data[512..1024]);
    assert_eq!(c.get(DATA + 0x20200, 512), [0; 512]);
}

#[test]
fn the_pin_interrupts_until_entries_are_consumed() {
    let rig = Rig::new("intx", Doorbells::Trapped);
    let mut c = rig.host();
    let pin = event();
    use std::os::fd::AsFd;
    let set = |flags| words(&[20, flags, 0, 0, 1]);
    assert_eq!(c.ask(command::SET_IRQS, &set(4 | 32), &[pin.as_fd()]).errno, 0);
    let mut admin = std::mem::replace(&mut c.admin, client::none());
    c.submit(&mut admin, Sqe { opc: 6, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() });
    await_event(&pin);
    // Not consumed: the unmask brings the interrupt anew.
    assert_eq!(c.ask(command::SET_IRQS, &set(1 | 16), &[]).errno, 0);
    await_event(&pin);
    assert_eq!(c.read(7, 6, 1)[0] & 8, 8, "interrupt status");
    assert!(c.wait(&mut admin).status().is_success());
    assert_eq!(c.ask(command::SET_IRQS, &set(1 | 16), &[]).errno, 0);
    assert_eq!(c.read(7, 6, 1)[0] & 8, 0);
    assert!(pin.read().is_err());
    // INTMS holds the pin down.
    c.post(0x0c, 1);
    c.submit(&mut admin, Sqe { opc: 6, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() });
    let cqe = loop {
        if let Some(cqe) = c.peek(&admin) {
            break cqe;
        }
    };
    assert!(cqe.status().is_success() && pin.read().is_err());
    c.post(0x10, 1);
    await_event(&pin);
}

/// The pin's client waits for an access to a BAR: with shadow doorbells the host must be asked for one.
#[test]
fn the_pin_is_served_by_a_doorbell_rung_for_real() {
    for (name, doorbells) in BOTH {
        let rig = Rig::new(&format!("intx-shadow-{name}"), doorbells);
        let mut c = rig.host();
        let pin = event();
        use std::os::fd::AsFd;
        let set = |flags| words(&[20, flags, 0, 0, 1]);
        assert_eq!(c.ask(command::SET_IRQS, &set(4 | 32), &[pin.as_fd()]).errno, 0);
        let mut q = c.create(1, 16);
        let (shadow, events) = (DATA + 0x400000, DATA + 0x401000);
        c.put(shadow, &[0; 0x2000]);
        let config = Sqe { opc: 0x7c, dptr: [shadow, events], ..Sqe::default() };
        assert!(c.admin(config).status().is_success());
        c.shadow = Some((shadow, events));
        let _ = pin.read();
        for round in 0..40 {
            assert_eq!(c.ask(command::SET_IRQS, &set(1 | 16), &[]).errno, 0);
            c.submit(&mut q, rw(false, 0, 8, DATA, 0));
            await_event(&pin);
            let before = c.rung;
            assert!(c.wait(&mut q).status().is_success());
            assert_eq!(c.rung, before + 1, "the head's doorbell in round {round}");
        }
    }
}

#[test]
fn g83_a_vector_without_a_descriptor_is_pending_until_it_gets_one() {
    let rig = Rig::new("pending", Doorbells::Mapped);
    let mut c = rig.host();
    let (first, second) = (event(), event());
    assert_eq!(c.vectors(0, &[&first, &second]), 0);
    let mut q = c.create(1, 16);
    assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success());
    await_event(&second);
    // Masked: the descriptor is taken away.
    assert_eq!(c.ask(command::SET_IRQS, &words(&[20, 4 | 32, 2, 1, 1]), &[]).errno, 0);
    assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success());
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while c.read(4, 8192, 8) != [2, 0, 0, 0, 0, 0, 0, 0] {
        assert!(std::time::Instant::now() < until, "the pending bit is never set");
    }
    assert!(second.read().is_err());
    assert_eq!(c.vectors(1, &[&second]), 0);
    await_event(&second);
    assert_eq!(c.read(4, 8192, 8), [0; 8]);
}

#[test]
fn f67_memory_goes_and_comes_while_queues_run() {
    for (name, doorbells) in BOTH {
        let rig = Rig::new(&format!("unmap-{name}"), doorbells);
        let mut c = rig.connect();
        let low = DATA;
        assert_eq!(c.map(0, 0, low, true), 0);
        assert_eq!(c.map(low, low, RAM as u64 - low, true), 0);
        assert_ne!(c.map(low - 4096, 0, 8192, true), 0, "overlaps");
        c.map_doorbells();
        c.enable();
        let mut q = c.create(1, 64);
        for round in 0..20 {
            for i in 0..30 {
                c.submit(&mut q, rw(i % 2 == 0, i * 8, 8, low + i * 4096, 0));
            }
            assert_eq!(c.unmap(low, RAM as u64 - low), 0);
            assert_ne!(c.unmap(low, RAM as u64 - low), 0, "it is gone");
            let failed = (0..30).filter(|_| !c.wait(&mut q).status().is_success()).count();
            assert!(failed < 30 || round < 20);
            let error = c.run(&mut q, rw(true, 0, 8, low, 0)).status();
            assert_eq!(error.code(), Status::DATA_TRANSFER_ERROR);
            assert_eq!(c.map(low, low, RAM as u64 - low, true), 0);
            assert!(c.run(&mut q, rw(true, 0, 8, low, 0)).status().is_success());
        }
    }
}

#[test]
fn pipelined_maps_keep_their_order_and_their_descriptors() {
    use std::os::fd::AsFd;
    let rig = Rig::new("pipelined", Doorbells::Trapped);
    let mut c = rig.host();
    let mut q = c.create(1, 16);
    // Eight files, each with its own bytes, mapped at addresses in the order in which they are asked for.
    let files: Vec<_> = (0..8u8)
        .map(|i| {
            let (map, fd) = engine::mem::Mapping::memfd("part", 8192).unwrap();
            Arc::new(map).sgl(0, 8192).unwrap().copy_in(0, &[i + 1; 8192]);
            fd
        })
        .collect();
    let base = 1u64 << 32;
    let mut asked = Vec::new();
    for (i, file) in files.iter().enumerate() {
        let body = [words(&[32, 3]), longs(&[4096, base + i as u64 * 4096, 4096])].concat();
        asked.push(c.send(command::DMA_MAP, 0, &body, &[file.as_fd()]));
        asked.push(c.send(command::REGION_READ, 0, &[longs(&[8]), words(&[0, 4])].concat(), &[]));
    }
    for id in asked {
        let (answered, reply) = c.reply();
        assert_eq!((answered, reply.errno), (id, 0));
    }
    for i in 0..8u8 {
        let page = base + u64::from(i) * 4096;
        assert!(c.run(&mut q, rw(true, 8 * u64::from(i), 8, page, 0)).status().is_success());
        assert!(c.run(&mut q, rw(false, 8 * u64::from(i), 8, DATA, 0)).status().is_success());
        assert_eq!(c.get(DATA, 4096), [i + 1; 4096]);
    }
    // One command over all eight.
    c.put(DATA + 0x10000, &longs(&(1..8).map(|i| DATA + i * 4096).collect::<Vec<_>>()));
    assert!(c.run(&mut q, rw(false, 0, 64, DATA, DATA + 0x10000)).status().is_success());
    assert_eq!(c.get(DATA + 7 * 4096, 4096), [8; 4096]);
}

#[test]
fn memory_without_a_descriptor_is_reached_by_messages() {
    for narrow in [false, true] {
        by_messages(narrow);
    }
}

fn by_messages(narrow: bool) {
    let rig = Rig::new(&format!("messages-{narrow}"), Doorbells::Trapped);
    let mut c = rig.connect();
    c.narrow = narrow;
    // First the queues are in shared memory and the data is not; then nothing is.
    for shared in [true, false] {
        assert_eq!(c.map(0, 0, DATA, shared), 0);
        assert_eq!(c.map(DATA, DATA, RAM as u64 - DATA, false), 0);
        c.enable();
        let events = [event(), event()];
        assert_eq!(c.vectors(0, &[&events[0], &events[1]]), 0);
        let mut q = c.create(1, 64);
        let data = pattern(3, 200 * 1024);
        let list: Vec<u64> = (1..50).map(|i| DATA + i * 0x2000).collect();
        c.put(DATA + 0x100000, &longs(&list));
        for (page, bytes) in [DATA].iter().chain(&list).zip(data.chunks(4096)) {
            c.put(*page, bytes);
        }
        assert!(c.run(&mut q, rw(true, 7, 400, DATA, DATA + 0x100000)).status().is_success());
        for page in [DATA].iter().chain(&list) {
            c.put(*page, &[0; 4096]);
        }
        assert!(c.run(&mut q, rw(false, 7, 400, DATA, DATA + 0x100000)).status().is_success());
        for (page, bytes) in [DATA].iter().chain(&list).zip(data.chunks(4096)) {
            assert_eq!(c.get(*page, 4096), bytes);
        }
        await_event(&events[1]);
        for _ in 0..3 {
            for i in 0..50 {
                c.submit(&mut q, rw(i % 2 == 0, i, 1, DATA + i * 512, 0));
            }
            (0..50).for_each(|_| assert!(c.wait(&mut q).status().is_success()));
        }
        assert_eq!(c.unmap(0, DATA), 0);
        assert_eq!(c.unmap(DATA, RAM as u64 - DATA), 0);
        assert_eq!(c.ask(command::RESET, &[], &[]).errno, 0);
    }
}

#[test]
fn shadow_doorbells_spare_writes_and_lose_no_command() {
    let rig = Rig::new("shadow", Doorbells::Trapped);
    let mut c = rig.host();
    let (shadow, events) = (DATA + 0x400000, DATA + 0x401000);
    let config = |a, b| Sqe { opc: 0x7c, dptr: [a, b], ..Sqe::default() };
    assert!(!c.admin(config(shadow, shadow)).status().is_success(), "g81");
    assert!(!c.admin(config(shadow + 8, events)).status().is_success(), "g81");
    assert!(c.admin(config(shadow, events)).status().is_success());
    c.shadow = Some((shadow, events));
    let mut q = c.create(1, 64);
    for round in 0..500u64 {
        if round % 50 == 0 {
            // The shard falls asleep, and arms the event index.
            std::thread::sleep(Duration::from_millis(3));
        }
        assert!(c.run(&mut q, rw(round % 3 == 0, round, 1, DATA, 0)).status().is_success());
    }
    assert!(c.rung < 1500, "{} writes for 500 commands", c.rung);
}

#[test]
fn g74_doorbells_that_make_no_sense_are_events() {
    // Also where the shard never sleeps, or is kept awake.
    let kinds = BOTH.map(|(name, doorbells)| (name, doorbells, engine::Config::default().spin));
    let awake = ("awake", Doorbells::Mapped, Duration::from_secs(3600));
    for (name, doorbells, spin) in kinds.into_iter().chain([awake]) {
        let volume = RamVolume::new(512, (64 << 20) / 512).unwrap();
        let rig = Rig::spinning(&format!("bell-{name}"), doorbells, volume, spin);
        let mut c = rig.host();
        let mut q = c.create(1, 16);
        let mut admin = std::mem::replace(&mut c.admin, client::none());
        // The tail, and the head of a completion queue that is empty.
        for completion in [false, true] {
            let aer = c.submit(&mut admin, Sqe { opc: 0x0c, ..Sqe::default() });
            c.ring(1, completion, 16);
            let cqe = c.wait(&mut admin);
            assert_eq!((cqe.cid, cqe.dw0 & 0xffff), (aer, 0x0100), "Invalid Doorbell Write Value");
            c.ring(1, completion, 0);
            let log = Sqe { opc: 2, cdw10: 15 << 16 | 1, dptr: [DATA, 0], ..Sqe::default() };
            assert!(c.run(&mut admin, log).status().is_success(), "read, so the next is told");
        }
        c.admin = admin;
        assert!(c.run(&mut q, rw(true, 0, 1, DATA, 0)).status().is_success());
    }
}

#[test]
fn g73_admin_queues_that_cannot_be() {
    let rig = Rig::new("admin", Doorbells::Trapped);
    let mut c = rig.connect();
    c.map(0, 0, RAM as u64, true);
    for (aqa, asq, acq) in [
        (31 << 16 | 31, 0, 0x20000),
        (31 << 16 | 31, 0x10000, RAM as u32),
        (31 << 16, 0x10000, 0x20000),
        (31, 0x10000, 0x20000),
        (0x0fff_0fff, RAM as u32 - 4096, 0x20000),
    ] {
        c.post(0x24, aqa);
        c.post(0x28, asq);
        c.post(0x30, acq);
        c.post(0x14, 4 << 20 | 6 << 16 | 1);
        c.wait_csts(2, 2);
        c.post(0x14, 0);
        c.wait_csts(3, 0);
    }
    c.enable();
}

#[test]
fn g72_accesses_of_any_width() {
    let rig = Rig::new("widths", Doorbells::Mapped);
    let mut c = rig.host();
    let vs = c.register(8);
    assert_eq!(vs >> 16, 2);
    for region in 0..12 {
        for at in (0..0x20).chain(0xff8..0x1008).chain(0x3ff8..0x4008).chain([u64::MAX - 3, u64::MAX]) {
            for width in [0, 1, 2, 3, 4, 8] {
                assert_eq!(c.read(region, at, width).len(), width as usize);
            }
        }
    }
    assert_eq!(c.read(0, 0x4000, 4), [0xff; 4]);
    assert_eq!(c.read(0, u64::MAX, 4), [0xff; 4]);
    assert_eq!(c.read(0, 10, 2), vs.to_le_bytes()[2..]);
    assert_ne!(c.write(0, 0x3ffe, &[0; 4]), 0);
    assert_ne!(c.write(3, 0, &[0; 4]), 0);
    assert_eq!(c.write(7, 0x0e, &[0; 3]), 0);
    let huge = [longs(&[0]), words(&[0, u32::MAX])].concat();
    assert_ne!(c.ask(command::REGION_READ, &huge, &[]).errno, 0);
    c.enable();
}

#[test]
fn resets_of_all_kinds() {
    for (name, doorbells) in BOTH {
        let rig = Rig::new(&format!("reset-{name}"), doorbells);
        let mut c = rig.host();
        for kind in 0..9 {
            let mut q = c.create(1, 64);
            assert!(c.run(&mut q, rw(true, 0, 1, DATA, 0)).status().is_success());
            for i in 0..20 {
                c.submit(&mut q, rw(false, i, 8, DATA + i * 4096, 0));
            }
            match kind % 3 {
                0 => assert_eq!(c.ask(command::RESET, &[], &[]).errno, 0),
                1 => assert_eq!(c.write(7, 0x68, &[0x10, 0xa8]), 0),
                _ => {
                    c.post(0x14, 0);
                    c.wait_csts(1, 0);
                }
            }
            assert_eq!(c.register(0x1c), 0);
            c.enable();
        }
    }
}

#[test]
fn f70_killed_clients_leave_nothing_behind() {
    // Other tests of this process come and go: what their clients have is called otherwise.
    let ram = client::ram_name();
    let maps =
        || std::fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|l| l.contains(&ram)).count();
    for (name, doorbells) in BOTH {
        let rig = Rig::new(&format!("kill-{name}"), doorbells);
        let mut before = None;
        for round in 0..100u32 {
            let mut c = rig.host();
            let events = [event(), event()];
            assert_eq!(c.vectors(0, &[&events[0], &events[1]]), 0);
            let mut q = c.create(1, 64);
            for i in 0..40 {
                c.submit(&mut q, rw(i % 2 == 0, i * 8, 8, DATA + i * 4096, 0));
            }
            if round % 3 == 0 {
                // Half a message.
                use std::io::Write;
                c.stream.write_all(&[1, 0, 9, 0, 32]).unwrap();
            }
            drop((c, q, events));
            let until = std::time::Instant::now() + Duration::from_secs(10);
            while rig.handle().is_connected() {
                assert!(std::time::Instant::now() < until, "the session does not end");
                std::thread::yield_now();
            }
            if round == 5 {
                before = Some((f_memory::open_files(&ram), maps(), f_memory::open_files("doorbells")));
            }
        }
        let (fds, mapped, doorbells) = before.unwrap();
        assert_eq!(f_memory::open_files(&ram), fds, "descriptors leak");
        assert_eq!(maps(), mapped, "maps leak");
        // What leaks here leaks with every client; those of other tests are few.
        assert!(f_memory::open_files("doorbells") < doorbells + 50, "doorbells leak");
        assert_eq!(rig.handle().controller().queue_count(), 0);
        let mut c = rig.host();
        let mut q = c.create(1, 64);
        assert!(c.run(&mut q, rw(true, 0, 1, DATA, 0)).status().is_success());
    }
}

#[test]
fn f63_to_f66_hostile_messages() {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    let rig = Rig::new("hostile", Doorbells::Mapped);
    let header = |id: u16, command: u16, size: u32, flags: u32| {
        [&id.to_le_bytes()[..], &command.to_le_bytes(), &words(&[size, flags, 0])].concat()
    };
    // None of these gets any further: too short, too long, no version first, no such type, no version in common.
    let version = [header(1, 1, 20, 0), vec![9, 0, 0, 0]].concat();
    let json = [header(1, 1, 23, 0), vec![0, 0, 0, 0], b"{]}".to_vec()].concat();
    for bytes in [
        header(1, 1, 15, 0),
        header(1, 1, u32::MAX, 0),
        header(1, 4, 16, 0),
        header(1, 1, 16, 5),
        version,
        json,
    ] {
        let mut stream = UnixStream::connect(rig.handle().path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.is_empty() || answer[8] & 0x20 != 0 && answer[12..16] != [0; 4]);
    }
    let mut c = rig.connect();
    let map = |gpa, size| [words(&[32, 3]), longs(&[0, gpa, size])].concat();
    let null = std::fs::File::open("/dev/null").unwrap();
    let short = std::fs::File::open("/proc/self/exe").unwrap();
    let (pipe, _other) = nix::unistd::pipe().unwrap();
    for fd in [null.as_fd(), pipe.as_fd(), short.as_fd()] {
        assert_ne!(c.ask(command::DMA_MAP, &map(0, 1 << 40), &[fd]).errno, 0);
        assert_ne!(c.ask(command::DMA_MAP, &map(0, 4096), &[fd, fd]).errno, 0);
        assert_ne!(c.ask(command::SET_IRQS, &words(&[20, 36, 2, 0, 1]), &[fd]).errno, 0);
    }
    for unknown in [0, 6, 11, 12, 14, 15, 16, 17, 18, 99] {
        assert_ne!(c.ask(unknown, &[0; 64], &[]).errno, 0);
    }
    assert_ne!(c.ask(command::VERSION, &[0; 4], &[]).errno, 0, "twice");
    c.send(command::DMA_MAP, 1 << 4, &[], &[]);
    c.map(0, 0, RAM as u64, true);
    c.enable();
}

#[test]
fn f65_a_truncated_file_kills_nobody() {
    let rig = Rig::new("truncated", Doorbells::Trapped);
    let fd = nix::sys::memfd::memfd_create("short", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
    let file = std::fs::File::from(fd);
    file.set_len(1 << 20).unwrap();
    let mut c = rig.connect();
    let other = &file;
    use std::os::fd::AsFd;
    assert_eq!(c.map(0, 0, DATA, true), 0);
    let body = [words(&[32, 3]), longs(&[0, DATA, 1 << 20])].concat();
    assert_eq!(c.ask(command::DMA_MAP, &body, &[other.as_fd()]).errno, 0);
    c.enable();
    let mut q = c.create(1, 16);
    file.set_len(4096).unwrap();
    // Some commands later the controller has failed: the others that are under way may never be answered.
    for i in 0..64 {
        let mut sqe = rw(true, 0, 8, DATA + 0x10000, 0);
        sqe.cid = i;
        c.submit(&mut q, sqe);
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while c.poll(&mut q).is_none() && c.register(0x1c) & 2 == 0 {
            assert!(std::time::Instant::now() < until, "neither answered nor failed");
        }
    }
    assert_eq!(c.register(0x1c) & 2, 2);
    drop((c, q));
    let mut c = rig.host();
    let mut q = c.create(1, 16);
    assert!(c.run(&mut q, rw(true, 0, 8, DATA, 0)).status().is_success());
}

#[test]
fn the_subsystem_ends_its_controllers() {
    let rig = Rig::new("subsystem", Doorbells::Mapped);
    let subsystem = rig.handle().controller().subsystem().clone();
    let _c = rig.host();
    assert!(subsystem.close().wait(Duration::from_secs(10)));
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while !subsystem.controllers().is_empty() {
        assert!(std::time::Instant::now() < until);
        std::thread::yield_now();
    }
    let _: Arc<Subsystem> = subsystem;
}
