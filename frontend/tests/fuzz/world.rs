//! What the fuzzers have in common: volumes, and bytes that tell whose they are.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use backend::ram::RamVolume;
use engine::{Sim, Volume};
use frontend::{Namespace, Subsystem, SubsystemConfig};
use middleend::fault::{Effect, FaultVolume, Faults, Kind, Rule};
use nvme_proto::{Nqn, Status};

/// Turns that one step may take: more, and something spins.
pub const TURNS: usize = 200_000;
/// Blocks of a namespace, of 512 bytes.
pub const BLOCKS: u64 = 4096;
/// What hostile hosts write.
pub const THEIRS: u8 = 0xa5;
/// What the neighbour's blocks and buffers are full of, and nobody else may ever see.
pub const SECRET: u8 = 0x5e;

/// Lets virtual time pass; the shards must come to rest.
pub fn settle(sim: &Sim, time: Duration) {
    assert!(sim.settle(time, TURNS), "the shards do not come to rest");
}

/// A subsystem that these hosts may use.
pub fn subsystem(sim: &Sim, nqn: &str, hosts: &[&str]) -> Arc<Subsystem> {
    let config = SubsystemConfig {
        nqn: Nqn::new(nqn).unwrap(),
        serial: "FUZZ0001".into(),
        model: "Fuzzed disk".into(),
        max_namespaces: 8,
        allowed_hosts: hosts.iter().map(|host| Nqn::new(host).unwrap()).collect(),
    };
    Subsystem::new(config, &sim.handles()).unwrap()
}

pub fn namespace(nsid: u32, volume: Arc<dyn Volume>) -> Namespace {
    Namespace { nsid, uuid: [nsid as u8; 16], nguid: [0; 16], eui64: [0; 8], volume }
}

pub fn ram() -> Arc<RamVolume> {
    RamVolume::new(512, BLOCKS).unwrap()
}

/// A volume where commands on some blocks take their time, and on one fail.
pub fn slow(below: Arc<dyn Volume>) -> Arc<dyn Volume> {
    let mut rules = Vec::new();
    for (lbas, effect) in [
        (8..16, Effect::Delay(Duration::from_millis(3))),
        (16..24, Effect::Delay(Duration::from_millis(1500))),
        (24..25, Effect::Fail(engine::IoError::WriteFault)),
    ] {
        rules
            .push(Rule { lbas, ..Rule::new(&[Kind::Read, Kind::Write, Kind::Compare, Kind::Unmap], effect) });
    }
    Arc::new(FaultVolume::new(below, Faults { volatile_cache: false, rules, seed: 1 }))
}

/// Room for what comes from a socket, made once.
pub fn with_chunk<R>(f: impl FnOnce(&mut [u8]) -> R) -> R {
    thread_local!(static CHUNK: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 << 10]));
    CHUNK.with_borrow_mut(|chunk| f(chunk))
}

/// Nothing of the neighbour's may be among bytes that a hostile host gets.
pub fn keeps_secrets(bytes: &[u8]) {
    // Every eighth byte is looked at first: eight in a row hold one of them.
    let mut places = (7..bytes.len()).step_by(8).filter(|at| bytes[*at] == SECRET);
    let found = places.any(|at| {
        let (before, after) = bytes.split_at(at);
        let same = |byte: &&u8| **byte == SECRET;
        before.iter().rev().take_while(same).count() + after.iter().take_while(same).count() >= 8
    });
    assert!(!found, "bytes of another host in {} bytes", bytes.len());
}

/// A status as the specifications have them.
pub fn is_valid(status: Status) {
    assert!(matches!(status.sct(), 0..=3), "status code type {}", status.sct());
}

/// Descriptors of this process.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Operations that the shards' kernels have.
pub fn in_flight(sim: &Sim, shards: usize) -> Vec<usize> {
    (0..shards).map(|id| sim.on(id, |shard| shard.ring().in_flight())).collect()
}
