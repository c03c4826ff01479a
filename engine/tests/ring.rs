//! The ring: what moves into it lives there until the kernel lets go, and everything ends.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;

use engine::Sim;
use engine::mem::{Access, Buf, GuestMemory, Mapping, Region, Sgl};
use engine::ring::{Completion, Fd, RingClient, RingOp, direct_alignment};
use engine::testing::{bytes, filled};

/// Keeps what ended.
#[derive(Default)]
struct Ended(RefCell<Vec<(u64, std::io::Result<u32>)>>);

impl RingClient for Ended {
    fn done(self: Rc<Self>, completion: Completion, cookie: u64) {
        let accepted = matches!(completion.op, RingOp::Accept { .. });
        let result = if accepted { completion.accepted().map(|_| 0) } else { completion.result };
        self.0.borrow_mut().push((cookie, result));
    }
}

impl Ended {
    fn count(&self) -> usize {
        self.0.borrow().len()
    }

    fn result(&self, cookie: u64) -> u32 {
        let ended = self.0.borrow();
        let (_, result) = ended.iter().find(|(c, _)| *c == cookie).unwrap();
        *result.as_ref().unwrap()
    }
}

fn zeroes() -> Fd {
    Arc::new(std::fs::File::open("/dev/zero").unwrap().into())
}

#[test]
fn more_operations_than_the_ring_has_entries_all_end() {
    let sim = Sim::new(1).unwrap();
    let (ended, fd) = (Rc::new(Ended::default()), zeroes());
    let memory = filled(4096, 1);
    sim.on(0, |shard| {
        for cookie in 0..5000 {
            let op = RingOp::Read { fd: fd.clone(), offset: 0, sgl: memory.slice(0, 512), skip: 0 };
            shard.ring().start(op, ended.clone(), cookie);
        }
        assert_eq!(shard.ring().in_flight(), 5000);
    });
    assert!(sim.run_until(|| ended.count() == 5000));
    let mut cookies: Vec<u64> = ended.0.borrow().iter().map(|(cookie, _)| *cookie).collect();
    cookies.sort_unstable();
    assert!(cookies.into_iter().eq(0..5000), "each once");
    assert_eq!(sim.on(0, |shard| shard.ring().in_flight()), 0);
    assert_eq!(bytes(&memory)[..513].iter().position(|b| *b != 0), Some(512));
}

#[test]
fn what_the_kernel_does_not_take_at_once_is_a_short_result() {
    let map = Mapping::anonymous(1 << 20).unwrap();
    let region = Region::new(0, 1 << 20, true, true, Some(map)).unwrap();
    let guest = GuestMemory::default().with(region).unwrap();
    let mut sgl = Sgl::empty();
    for run in 0..1500 {
        sgl.push_guest(&guest, run * 16, 4, Access::Write).unwrap();
    }
    sgl.copy_in(0, &[1; 6000]);
    let sim = Sim::new(1).unwrap();
    let (ended, fd) = (Rc::new(Ended::default()), zeroes());
    let read = |cookie, skip| {
        let op = RingOp::Read { fd: fd.clone(), offset: 0, sgl: sgl.clone(), skip };
        sim.on(0, |shard| shard.ring().start(op, ended.clone(), cookie));
        assert!(sim.run_until(|| ended.count() == cookie as usize));
        ended.result(cookie) as usize
    };
    let first = read(1, 0);
    assert_eq!(first, 4096, "1024 runs");
    assert!(bytes(&sgl).iter().position(|b| *b == 1) == Some(first));
    assert_eq!(read(2, first), 6000 - first);
    assert_eq!(bytes(&sgl), [0; 6000]);
}

#[test]
fn memory_in_flight_lives_until_the_ring_is_drained() {
    let (_quiet, b) = UnixStream::pair().unwrap();
    let mut buf = Buf::new(4096);
    let ended = Rc::new(Ended::default());
    {
        let sim = Sim::new(1).unwrap();
        let op = RingOp::Receive { fd: Arc::new(b.into()), sgl: buf.sgl(0, 4096), skip: 0 };
        sim.on(0, |shard| shard.ring().start(op, ended.clone(), 0));
        sim.run_until(|| true);
        assert!(!buf.is_unique() && buf.get_mut().is_none(), "the kernel may write it");
    }
    assert!(buf.is_unique() && ended.count() == 1 && ended.0.borrow()[0].1.is_err());
}

#[test]
fn a_cancel_of_what_has_ended_touches_nothing_new() {
    let sim = Sim::new(1).unwrap();
    let (ended, fd) = (Rc::new(Ended::default()), zeroes());
    let read = |cookie| {
        let op = RingOp::Read { fd: fd.clone(), offset: 0, sgl: filled(512, 1), skip: 0 };
        sim.on(0, |shard| shard.ring().start(op, ended.clone(), cookie))
    };
    let old = read(1);
    assert!(sim.run_until(|| ended.count() == 1));
    // The new operation has the slot of the old one.
    let _new = read(2);
    sim.on(0, |shard| shard.ring().cancel(old));
    assert!(sim.run_until(|| ended.count() == 2));
    assert_eq!(ended.result(2), 512);
}

#[test]
fn sockets_connect_are_accepted_and_polled() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let sim = Sim::new(1).unwrap();
    let ended = Rc::new(Ended::default());
    let tcp = |tcp: socket2::Socket| -> Fd { Arc::new(tcp.into()) };
    let client = tcp(socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap());
    let listener: Fd = Arc::new(listener.into());
    sim.on(0, |shard| {
        let poll = RingOp::Poll { fd: listener.clone(), events: libc::POLLIN as u32 };
        shard.ring().start(poll, ended.clone(), 1);
        shard.ring().start(RingOp::Accept { fd: listener.clone() }, ended.clone(), 2);
        shard.ring().start(RingOp::Connect { fd: client.clone(), addr }, ended.clone(), 3);
    });
    assert!(sim.run_until(|| ended.count() == 3));
    assert_eq!(ended.result(1), libc::POLLIN as u32);
    assert_eq!((ended.result(2), ended.result(3)), (0, 0));
}

#[test]
fn what_a_dropped_future_waited_for_is_cancelled_and_a_connection_that_came_is_closed() {
    let sim = Sim::new(1).unwrap();
    for connected in [false, true] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let task = sim.on(0, |shard| {
            let accept = shard.ring().run(RingOp::Accept { fd: Arc::new(listener.into()) });
            shard.spawn(async move { drop(accept.await) })
        });
        let mut turns = 2;
        sim.run_until(|| {
            turns -= 1;
            turns == 0
        });
        let client = connected.then(|| std::net::TcpStream::connect(addr).unwrap());
        drop(task);
        assert!(sim.run_until(|| sim.on(0, |shard| shard.ring().in_flight()) == 0));
        if let Some(mut client) = client {
            client.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
            assert_eq!(std::io::Read::read(&mut client, &mut [0]).unwrap(), 0);
        }
        assert!(std::net::TcpStream::connect(addr).is_err(), "nothing keeps the listening socket");
    }
}

#[test]
fn a_file_says_what_direct_io_asks() {
    let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
    if let Some(asked) = direct_alignment(std::os::fd::AsFd::as_fd(&file)) {
        assert!(asked.memory.is_power_of_two() && asked.offset.is_power_of_two());
    }
    let (end, _) = UnixStream::pair().unwrap();
    assert_eq!(
        direct_alignment(std::os::fd::AsFd::as_fd(&end)).map(|a| a.offset),
        Some(4096),
        "it cannot say"
    );
}
