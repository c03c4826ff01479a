use std::sync::Arc;

use engine::Sim;
use nvme_proto::Nqn;
use nvme_proto::fabrics::CNTLID_MAX;

use super::Shared;
use crate::subsystem::{Subsystem, SubsystemConfig, SubsystemError};

/// Identifiers of controllers over fabrics come once in a round, each when all others were; one in use is passed over, and
/// a subsystem is full long before they are.
#[test]
fn d46_identifiers_go_round() {
    let sim = Sim::new(1).unwrap();
    let handles = sim.handles();
    let config = SubsystemConfig {
        nqn: Nqn::new("nqn.2024-01.test:round").unwrap(),
        serial: "TEST0001".into(),
        model: "Test disk".into(),
        max_namespaces: 1,
        allowed_hosts: Vec::new(),
    };
    let subsystem = Subsystem::new(config, &handles).unwrap();
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
