#[path = "../../frontend/tests/common/stall.rs"]
mod stall;

use super::*;
use std::path::PathBuf;

use crate::control::plane::Endpoint;
use engine::{Config, Shards};
use frontend::AccessState;
use host::{Kind, Queue, vfio_user};
use middleend::{FaultVolume, Faults};
use stall::Stall;

/// Time enough for whatever ends at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// A data plane on two shards, with directories of its own.
struct House {
    plane: Plane,
    shards: Shards,
    dir: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let shards = Shards::start(&Config { cpus: vec![None; 2], ..Config::default() }).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            remote_kato: Duration::from_secs(15),
            remote_resend: Resend::default(),
            aio_dir: Some(dir.path().join("aio")),
            ctrlr_dir: dir.path().join("ctrlr"),
            socket_mode: 0o600,
            socket_group: None,
            doorbells: vec![Doorbells::Trapped, Doorbells::Mapped],
            referrals: Vec::new(),
        };
        std::fs::create_dir(dir.path().join("aio")).unwrap();
        let plane = Plane::new(settings, shards.handles()).unwrap();
        House { plane, shards, dir }
    }

    fn socket(&self, directory: &str) -> PathBuf {
        self.dir.path().join("ctrlr").join(directory).join("cntrl")
    }

    fn subsystem(&self, name: &str) {
        self.plane.create_subsystem(name, &subsystem(name)).unwrap();
    }

    fn show(&self, name: &str, volume: Arc<dyn Volume>) {
        self.plane.add_namespace(name, &namespace(1, volume)).unwrap();
    }

    /// A subsystem with a controller, whose host has a write out that `stall` holds.
    fn stuck(&self, name: &str, stall: &Arc<Stall>) -> impl Sized + use<> {
        self.subsystem(name);
        self.show(name, stall.clone());
        self.plane.add_controller(name, "ctrl", &controller(pcie(0, false))).unwrap();
        let mut host = begin_write(&self.socket(name));
        host.1.poll(&mut Vec::new()).unwrap();
        until(|| stall.held() == 1);
        host
    }

    fn end(self) {
        assert!(self.plane.shut_down(PATIENCE, PATIENCE));
        self.shards.stop();
    }
}

fn subsystem(name: &str) -> SubsystemConfig {
    SubsystemConfig {
        nqn: format!("nqn.2024-01.com.example:{name}"),
        serial: "1".into(),
        model: "Isthmus".into(),
        max_namespaces: None,
        hostnqn: None,
        starts: 1,
        kills: 0,
    }
}

fn namespace(nsid: u32, volume: Arc<dyn Volume>) -> NamespaceConfig {
    NamespaceConfig {
        nsid,
        uuid: [nsid as u8; 16],
        nguid: [0; 16],
        eui64: [0; 8],
        volume,
        persist: None,
        hidden: false,
    }
}

fn pcie(port: u32, further: bool) -> Endpoint {
    Endpoint::Pcie { port, further }
}

fn tcp(address: SocketAddr) -> Endpoint {
    Endpoint::Tcp { address, fixed: false }
}

fn controller(endpoint: Endpoint) -> ControllerConfig {
    ControllerConfig { endpoint, cntlid: None, io_queues: None, ana: AccessState::default() }
}

/// A host that writes a block when it polls.
fn begin_write(socket: &Path) -> (vfio_user::Controller, impl Queue + use<>) {
    let options = vfio_user::Options { max_transfer: 4096, queues: 1, depth: 1 };
    let mut host = vfio_user::Controller::connect(socket, options).unwrap();
    let mut queue = host.io_queue(1).unwrap();
    queue.submit(0, host::Command { kind: Kind::Write { fua: false }, lba: 3, blocks: 1 }).unwrap();
    (host, queue)
}

/// Writes a block as a host does.
fn write(socket: &Path) {
    let (_host, mut queue) = begin_write(socket);
    let mut done = Vec::new();
    while done.is_empty() {
        queue.poll(&mut done).unwrap();
    }
    assert!(done[0].status.is_success());
}

fn until(mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + 2 * PATIENCE;
    while !done() {
        assert!(Instant::now() < limit, "it does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn failure<T: std::fmt::Debug>(result: PlaneResult<T>) -> Failure {
    result.unwrap_err().failure
}

#[test]
fn what_hosts_wrote_is_flushed_before_the_end() {
    let house = House::new();
    let below = house.plane.malloc(512, 64).unwrap();
    let cached = Arc::new(FaultVolume::new(below, Faults { volatile_cache: true, ..Faults::default() }));
    house.subsystem("subsys");
    house.show("subsys", cached.clone());
    house.plane.add_controller("subsys", "ctrl", &controller(pcie(0, false))).unwrap();
    write(&house.socket("subsys"));
    assert_eq!(cached.unflushed(), 1);
    let socket = house.socket("subsys");
    let dir = house.dir.path().join("ctrlr");
    house.plane.shut_down(PATIENCE, PATIENCE);
    assert_eq!(cached.unflushed(), 0);
    assert!(!socket.exists() && std::fs::read_dir(dir).unwrap().next().is_none());
    house.shards.stop();
}

#[test]
fn a_controller_whose_io_did_not_end_is_deleted_when_it_has() {
    let house = House::new();
    let plane = &house.plane;
    let stall = Stall::new(false);
    let _host = house.stuck("subsys", &stall);
    let close = |patience| plane.close_controller("subsys", "ctrl", patience);
    for _ in 0..2 {
        assert_eq!(failure(close(Duration::from_millis(50))), Failure::Unavailable);
    }
    plane.controller_counters("subsys", "ctrl").unwrap();
    assert_eq!(failure(plane.delete_subsystem("subsys")), Failure::Precondition);
    stall.release(Ok(()));
    close(PATIENCE).unwrap();
    assert_eq!(failure(close(PATIENCE)), Failure::Precondition);
    plane.remove_namespace("subsys", 1).unwrap();
    plane.delete_subsystem("subsys").unwrap();
    house.end();
}

#[test]
fn a_namespace_whose_io_does_not_end_holds_up_nobody() {
    let house = House::new();
    let plane = &house.plane;
    let stall = Stall::new(false);
    let _host = house.stuck("subsys", &stall);
    let entry = plane.subsystem("subsys").unwrap();
    assert_eq!(failure(entry.remove_namespace(1, Duration::from_millis(50))), Failure::Unavailable);
    std::thread::scope(|scope| {
        let removed = scope.spawn(|| entry.remove_namespace(1, PATIENCE));
        // It has begun to wait.
        std::thread::sleep(Duration::from_millis(50));
        plane.namespace_counters("subsys", 1).unwrap();
        assert_eq!(entry.volumes().len(), 1, "it is flushed as long as it has I/O");
        assert!(!removed.is_finished());
        stall.release(Ok(()));
        removed.join().unwrap().unwrap();
    });
    assert_eq!(failure(plane.namespace_counters("subsys", 1)), Failure::Precondition);
    house.end();
}

#[test]
fn the_end_begins_everywhere_at_once() {
    let house = House::new();
    let stall = Stall::new(false);
    let _host = house.stuck("first", &stall);
    house.subsystem("second");
    house.plane.add_controller("second", "ctrl", &controller(pcie(0, false))).unwrap();
    let second = house.socket("second");
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| house.plane.shut_down(PATIENCE, PATIENCE));
        let begin = Instant::now();
        until(|| !second.exists());
        assert!(begin.elapsed() < PATIENCE / 2, "it waits for the first to end");
        // The write, and then the flush.
        until(|| {
            stall.release(Ok(()));
            ended.is_finished()
        });
        assert!(ended.join().unwrap());
    });
    house.shards.stop();
}

#[test]
fn flushes_have_time_although_hosts_io_takes_all_of_its_own() {
    let house = House::new();
    let stall = Stall::new(false);
    let _host = house.stuck("subsys", &stall);
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| house.plane.shut_down(Duration::from_millis(50), PATIENCE));
        // The write and the flush.
        until(|| stall.held() == 2);
        assert_eq!(stall.revoked(), 1);
        std::thread::sleep(Duration::from_millis(20));
        stall.release(Ok(()));
        assert!(ended.join().unwrap());
    });
    house.shards.stop();
}

#[test]
fn what_is_in_use_stays() {
    let house = House::new();
    let plane = &house.plane;
    house.subsystem("subsys");
    assert_eq!(failure(plane.create_subsystem("subsys", &subsystem("other"))), Failure::Exists);
    assert_eq!(failure(plane.create_subsystem("other", &subsystem("subsys"))), Failure::Exists);
    let volume = plane.null(512, 8).unwrap();
    house.show("subsys", volume.clone());
    assert_eq!(failure(plane.add_namespace("subsys", &namespace(1, volume))), Failure::Exists);
    assert_eq!(failure(plane.delete_subsystem("subsys")), Failure::Precondition);
    plane.remove_namespace("subsys", 1).unwrap();
    assert_eq!(failure(plane.remove_namespace("subsys", 1)), Failure::Precondition);
    plane.delete_subsystem("subsys").unwrap();
    assert_eq!(failure(plane.delete_subsystem("subsys")), Failure::Precondition);
    house.end();
}

#[test]
fn controllers_have_sockets_of_their_own() {
    let house = House::new();
    let plane = &house.plane;
    house.subsystem("subsys");
    let open = |name: &str, cntlid| {
        plane.add_controller(
            "subsys",
            name,
            &ControllerConfig { cntlid, ..controller(pcie(0, name != "first")) },
        )
    };
    assert_eq!(open("first", None).unwrap(), Some(1));
    assert_eq!(open("second", Some(9)).unwrap(), Some(9));
    assert_eq!(failure(open("third", Some(9))), Failure::Exists);
    assert_eq!(failure(open("second", None)), Failure::Exists);
    assert!(house.socket("subsys").exists() && house.socket("subsys.second").exists());
    assert!(!house.socket("subsys.third").exists());
    assert_eq!(failure(open(&"x".repeat(99), None).map(drop)), Failure::Invalid);
    plane.remove_controller("subsys", "first").unwrap();
    assert!(!house.socket("subsys").exists());
    assert_eq!(open("first", None).unwrap(), Some(1));
    house.end();
}

#[test]
fn a_controller_s_doorbells_are_those_of_its_port() {
    let house = House::new();
    let plane = &house.plane;
    house.subsystem("subsys");
    for (port, directory) in [(0, "subsys"), (1, "subsys.one")] {
        let name = if port == 0 { "zero" } else { "one" };
        plane.add_controller("subsys", name, &controller(pcie(port, port == 1))).unwrap();
        let socket = house.socket(directory);
        let page = vfio_user::Client::connect(&socket).unwrap().map_region(0, 0x1000, 0x1000).unwrap();
        assert_eq!(page.is_some(), port == 1, "{directory}");
    }
    let refusal = plane.add_controller("subsys", "two", &controller(pcie(2, true))).unwrap_err();
    assert_eq!(refusal.reason, "only ports 0 to 1 are supported for vfiouser");
    house.end();
}

#[test]
fn a_volume_s_faults_are_its_own() {
    let house = House::new();
    let plane = &house.plane;
    let plain = plane.malloc(512, 8).unwrap();
    let cached = Faults { volatile_cache: true, ..Faults::default() };
    let faulty = plane.fault(plain.clone(), cached.clone(), false).unwrap();
    plane.set_faults(&faulty, cached).unwrap();
    assert_eq!(failure(plane.set_faults(&faulty, Faults::default())), Failure::Invalid);
    assert_eq!(failure(plane.cut_power(&plain, 0)), Failure::Precondition);
    house.subsystem("subsys");
    house.show("subsys", faulty.clone());
    plane.add_controller("subsys", "ctrl", &controller(pcie(0, false))).unwrap();
    write(&house.socket("subsys"));
    assert_eq!(plane.unflushed(&faulty).unwrap(), 1);
    plane.cut_power(&faulty, 0).unwrap();
    assert_eq!(plane.unflushed(&faulty).unwrap(), 0);
    assert!(!house.plane.shut_down(PATIENCE, PATIENCE), "the last flush tells of the loss");
    house.shards.stop();
}

#[test]
fn a_hidden_namespace_is_seen_by_whom_its_mask_names() {
    let house = House::new();
    let plane = &house.plane;
    house.subsystem("subsys");
    let hidden = NamespaceConfig { hidden: true, ..namespace(1, plane.malloc(512, 8).unwrap()) };
    plane.add_namespace("subsys", &hidden).unwrap();
    plane.add_controller("subsys", "one", &controller(pcie(0, false))).unwrap();
    plane.add_controller("subsys", "two", &controller(pcie(0, true))).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    plane.add_controller("subsys", "tcp", &controller(tcp(port))).unwrap();
    let options = || vfio_user::Options { max_transfer: 4096, queues: 1, depth: 8 };
    let connect = |socket| vfio_user::Controller::connect(&house.socket(socket), options()).unwrap();
    let (mut one, mut two) = (connect("subsys"), connect("subsys.two"));
    let mut see = || [&mut one, &mut two].map(|controller| controller.namespaces().unwrap().len());
    assert_eq!(see(), [0, 0]);
    let of = |name: &str| Viewers { hosts: Vec::new(), controllers: vec![name.into()] };
    let mask = |viewers: Option<&Viewers>| plane.mask_namespace("subsys", 1, viewers);
    mask(Some(&of("two"))).unwrap();
    assert_eq!(see(), [0, 1]);
    assert_eq!(failure(mask(Some(&of("tcp")))), Failure::Invalid);
    assert_eq!(failure(mask(Some(&of("none")))), Failure::Precondition);
    assert_eq!(failure(mask(Some(&Viewers { hosts: vec!["x".into()], ..of("one") }))), Failure::Invalid);
    assert_eq!(see(), [0, 1], "what is refused changes nothing");
    assert_eq!(failure(plane.mask_namespace("subsys", 2, None)), Failure::Precondition);
    mask(None).unwrap();
    assert_eq!(see(), [1, 1]);
    drop((one, two));
    house.end();
}

#[test]
fn static_controllers_share_an_address_and_no_identifier() {
    let house = House::new();
    let plane = &house.plane;
    house.subsystem("subsys");
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let add = |name: &str, cntlid, endpoint| {
        plane.add_controller("subsys", name, &ControllerConfig { cntlid, ..controller(endpoint) })
    };
    let fixed = Endpoint::Tcp { address, fixed: true };
    assert_eq!(add("seven", Some(7), fixed).unwrap(), Some(7));
    assert_eq!(add("any", None, fixed).unwrap(), Some(1));
    assert_eq!(add("pcie", None, pcie(0, false)).unwrap(), Some(2));
    assert_eq!(add("next", None, fixed).unwrap(), Some(3));
    assert_eq!(failure(add("again", Some(7), fixed)), Failure::Exists);
    assert_eq!(failure(add("again", Some(2), fixed)), Failure::Exists, "a vfio-user controller has it");
    assert_eq!(failure(add("other", Some(7), pcie(0, true))), Failure::Exists);
    assert_eq!(failure(add("again", Some(0xfff0), fixed)), Failure::Exists);
    plane.set_ana("subsys", "seven", AccessState::NonOptimized).unwrap();
    plane.controller_counters("subsys", "seven").unwrap();
    plane.remove_controller("subsys", "seven").unwrap();
    assert_eq!(failure(plane.controller_counters("subsys", "seven")), Failure::Precondition);
    assert_eq!(add("again", Some(7), fixed).unwrap(), Some(7));
    house.end();
}

#[test]
fn a_volume_s_maxima_are_its_own() {
    let house = House::new();
    let plane = &house.plane;
    let plain = plane.malloc(512, 8).unwrap();
    let maxima = Maxima { rw_iops_kiops: 1, ..Maxima::default() };
    let limited = plane.qos(plain.clone(), &maxima).unwrap();
    plane.set_maxima(&limited, &Maxima::default()).unwrap();
    assert_eq!(failure(plane.set_maxima(&plain, &maxima)), Failure::Precondition);
    plane.close_volume(limited.clone()).unwrap();
    assert_eq!(failure(plane.set_maxima(&limited, &maxima)), Failure::Precondition);
    house.end();
}

#[test]
fn files_lie_beneath_one_directory() {
    let house = House::new();
    let aio = house.dir.path().join("aio");
    std::fs::write(house.dir.path().join("outside"), [0; 4096]).unwrap();
    std::fs::write(aio.join("inside"), [0; 4096]).unwrap();
    let open = |path: &Path| house.plane.aio(path, 512, 0).map(|volume| volume.limits().blocks);
    assert_eq!(open(&aio.join("inside")).unwrap(), 8);
    assert_eq!(failure(open(&house.dir.path().join("outside"))), Failure::Invalid);
    assert_eq!(failure(open(&aio.join("../outside"))), Failure::Invalid);
    assert_eq!(failure(open(&aio.join("nothing"))), Failure::Precondition);
    let error = volumes::aio(None, &aio.join("inside"), 512, 0).map(drop).unwrap_err();
    assert!(error.failure == Failure::Precondition && error.reason.contains("--aio-dir"), "{error}");
    house.end();
}

#[test]
fn a_remote_controller_has_one_path_and_then_its_namespaces() {
    let house = House::new();
    let plane = &house.plane;
    house.subsystem("far");
    house.show("far", plane.malloc(4096, 16).unwrap());
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let few = ControllerConfig { io_queues: Some(1), ..controller(tcp(port)) };
    plane.add_controller("far", "tcp", &few).unwrap();

    plane
        .create_remote("remote", &RemoteConfig { hdgst: true, ddgst: true, ..RemoteConfig::default() })
        .unwrap();
    assert_eq!(failure(plane.create_remote("remote", &RemoteConfig::default())), Failure::Exists);
    assert_eq!(failure(plane.remote_namespaces("remote")), Failure::Unavailable);
    let path = PathConfig {
        address: port,
        subnqn: "nqn.2024-01.com.example:far".into(),
        hostnqn: "nqn.2024-01.com.example:near".into(),
        hostid: [4; 16],
        source: Some([127, 0, 0, 9].into()),
        source_port: None,
    };
    let one_port = PathConfig { source_port: Some(4421), ..path.clone() };
    assert_eq!(failure(plane.add_path("remote", "path", &one_port)), Failure::Unsupported);
    plane.add_path("remote", "path", &path).unwrap();
    assert_eq!(failure(plane.add_path("remote", "path", &path)), Failure::Exists);
    assert_eq!(failure(plane.add_path("remote", "path2", &path)), Failure::Unsupported);
    assert_eq!(failure(plane.delete_remote("remote")), Failure::Precondition);
    plane.await_connection("remote");
    assert!(plane.remote_connected("remote"));
    let namespaces = plane.remote_namespaces("remote").unwrap();
    assert_eq!((namespaces[0].nsid, namespaces[0].uuid), (1, [1; 16]));
    let volume = plane.remote_volume("remote", 1, None).unwrap();
    assert_eq!(volume.limits().blocks, 16);
    assert_eq!(failure(plane.remote_volume("remote", 2, None).map(drop)), Failure::Precondition);
    let promised = Promised { identity: namespaces[0], limits: volume.limits() };
    assert!(Arc::ptr_eq(&volume, &plane.remote_volume("remote", 1, Some(&promised)).unwrap()));
    drop(volume);
    plane.set_host("far", Some("nqn.2024-01.com.example:other")).unwrap();
    while plane.remote_connected("remote") {
        std::thread::sleep(Duration::from_millis(1));
    }
    plane.set_host("far", None).unwrap();
    while !plane.remote_connected("remote") {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(failure(plane.set_host("nowhere", None)), Failure::Precondition);
    plane.remove_path("remote", "path").unwrap();
    assert!(!plane.remote_connected("remote"));
    plane.delete_remote("remote").unwrap();
    house.end();
}

/// A volume that says how large it is.
struct Grows(Arc<dyn Volume>, std::sync::atomic::AtomicU64);

impl Volume for Grows {
    fn limits(&self) -> engine::Limits {
        engine::Limits { blocks: self.1.load(Ordering::SeqCst), ..self.0.limits() }
    }

    fn stats(&self) -> &engine::VolumeStats {
        self.0.stats()
    }

    fn open(self: Arc<Self>, shard: &engine::Shard) -> std::rc::Rc<dyn engine::Channel> {
        self.0.clone().open(shard)
    }
}

/// A remote namespace that grows does so under the hosts that see it, through what is stacked on it.
#[test]
fn hosts_are_told_that_a_remote_namespace_grew() {
    let house = House::new();
    let plane = &house.plane;
    let volume = Arc::new(Grows(plane.malloc(512, 64).unwrap(), 32.into()));
    house.subsystem("far");
    house.show("far", volume.clone());
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    plane.add_controller("far", "tcp", &controller(tcp(port))).unwrap();
    plane.create_remote("remote", &RemoteConfig::default()).unwrap();
    let path = PathConfig {
        address: port,
        subnqn: "nqn.2024-01.com.example:far".into(),
        hostnqn: "nqn.2024-01.com.example:near".into(),
        hostid: [4; 16],
        source: None,
        source_port: None,
    };
    plane.add_path("remote", "path", &path).unwrap();
    plane.await_connection("remote");
    let key: Vec<u8> = (0..64).collect();
    let crypt = plane.crypt(plane.remote_volume("remote", 1, None).unwrap(), &key).unwrap();
    house.subsystem("near");
    house.show("near", crypt);
    plane.add_controller("near", "pcie", &controller(pcie(0, false))).unwrap();
    let options = vfio_user::Options { max_transfer: 4096, queues: 1, depth: 2 };
    let mut host = vfio_user::Controller::connect(&house.socket("near"), options).unwrap();
    assert_eq!(host.namespace(1).unwrap().blocks, 32);
    // It is kept before hosts hear of it.
    let kept = Arc::<AtomicUsize>::default();
    let theirs = kept.clone();
    plane.keep_limits(Box::new(move || theirs.fetch_add(1, Ordering::SeqCst) > 0));
    volume.1.store(64, Ordering::SeqCst);
    plane.subsystem("far").unwrap().tell_limits();
    let until = Instant::now() + Duration::from_secs(20);
    while host.namespace(1).unwrap().blocks != 64 {
        assert!(Instant::now() < until, "hosts are not told");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(kept.load(Ordering::SeqCst) > 0);
    drop(host);
    // The remote ends with this process, and before what is on it.
    plane.remove_namespace("near", 1).unwrap();
    house.end();
}

/// A limited file that is taken away with I/O waiting can be opened again at once.
#[test]
fn a_limit_keeps_no_file() {
    let house = House::new();
    let plane = &house.plane;
    let file = house.dir.path().join("aio/disk");
    std::fs::write(&file, [0; 1 << 20]).unwrap();
    house.subsystem("s");
    plane.add_controller("s", "pcie", &controller(pcie(0, false))).unwrap();
    for _ in 0..5 {
        let aio = plane.aio(&file, 512, 0).unwrap();
        let slow = Maxima { rw_iops_kiops: 1, ..Maxima::default() };
        let limited = plane.qos(aio.clone(), &slow).unwrap();
        house.show("s", limited.clone());
        let options = vfio_user::Options { max_transfer: 4096, queues: 1, depth: 64 };
        let mut host = vfio_user::Controller::connect(&house.socket("s"), options).unwrap();
        let mut queue = host.io_queue(1).unwrap();
        for tag in 0..64 {
            queue.submit(tag, host::Command { kind: Kind::Read, lba: 0, blocks: 1 }).unwrap();
        }
        let mut done = Vec::new();
        while done.is_empty() {
            queue.poll(&mut done).unwrap();
        }
        plane.remove_namespace("s", 1).unwrap();
        drop((queue, host));
        plane.close_volume(limited).unwrap();
        plane.close_volume(aio).unwrap();
    }
    house.end();
}
