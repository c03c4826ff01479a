use std::sync::Arc;

use engine::Sim;
use nvme_proto::Nqn;
use nvme_proto::fabrics::CNTLID_MAX;

use nvme_proto::register::offset;

use super::{Config, Controller, Port, Shared};
use crate::subsystem::{Subsystem, SubsystemConfig, SubsystemError};

fn subsystem(sim: &Sim) -> Arc<Subsystem> {
    let config = SubsystemConfig {
        nqn: Nqn::new("nqn.2024-01.test:round").unwrap(),
        serial: "TEST0001".into(),
        model: "Test disk".into(),
        max_namespaces: 1,
        allowed_hosts: Vec::new(),
    };
    Subsystem::new(config, &sim.handles()).unwrap()
}

/// Identifiers of controllers over fabrics come once in a round, each when all others were; one in use is passed over, and
/// a subsystem is full long before they are.
#[test]
fn d46_identifiers_go_round() {
    let sim = Sim::new(1).unwrap();
    let handles = sim.handles();
    let subsystem = subsystem(&sim);
    let home = &handles[0];
    let admit = || {
        let make = |cntlid| {
            let (stats, way) = (Arc::default(), Arc::default());
            Arc::new(Shared::new(cntlid, subsystem.clone(), None, home.clone(), 1, stats, way))
        };
        subsystem.admit(None, true, make).map(|shared| shared.cntlid())
    };
    let first = admit().unwrap();
    let round: Vec<u16> = (first + 1..=CNTLID_MAX).collect();
    for _ in 0..2 {
        let given: Vec<u16> =
            round.iter().map(|_| admit().inspect(|id| subsystem.forget(*id)).unwrap()).collect();
        assert!(given == round);
    }
    let held = std::iter::from_fn(|| admit().ok()).count();
    assert_eq!(held, 1023);
    assert!(matches!(admit(), Err(SubsystemError::NoController)));
    subsystem.forget(first);
    assert!(admit().is_ok());
}

/// A port that is nobody's.
struct Alone;

impl Port for Alone {}

/// A host that shuts its controller down again and again, with nothing there to flush, leaves nothing behind.
#[test]
fn shutdowns_leave_nothing_behind() {
    let sim = Sim::new(1).unwrap();
    let subsystem = subsystem(&sim);
    sim.on(0, |shard| {
        let config = Config {
            fabrics: false,
            cntlid: None,
            discovery: false,
            max_queue_entries: 2,
            max_io_queues: 1,
            ioccsz: 0,
            kato: 0,
        };
        let controller = Controller::new(&subsystem, shard, config, None, Box::new(Alone)).unwrap();
        for _ in 0..3 {
            for cc in [0x46_0001u32, 0x46_4001, 0] {
                controller.write(offset::CC, &cc.to_le_bytes());
            }
        }
        assert_eq!(controller.local.others(), 0);
    });
}
