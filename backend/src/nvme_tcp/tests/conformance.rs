//! The engine's kit over the initiator and an honest target.

use std::cell::RefCell;
use std::sync::atomic::Ordering::SeqCst;

use engine::Sim;
use engine::conformance::{Options, run};

use super::*;
use crate::nvme_tcp::State;

fn kit(manner: Manner, change: impl Fn(&mut Config)) {
    for target in kit_with(manner, change, Options { rounds: 2, ..Options::default() }, |_| {}) {
        assert_eq!(target.shared.associations.load(SeqCst), 1);
    }
}

/// Runs the kit; the targets that it ran over.
fn kit_with(
    manner: Manner,
    change: impl Fn(&mut Config),
    options: Options,
    begin: impl Fn(&Target),
) -> Vec<Target> {
    let targets = RefCell::new(Vec::new());
    let make = |sim: &Sim| -> Arc<dyn Volume> {
        let target = Target::start(manner.clone());
        let mut config = config(&target);
        // Virtual time passes while the target thinks.
        (config.kato, config.connect_timeout) = (Duration::ZERO, Duration::MAX);
        change(&mut config);
        let remote = Remote::start(config, Vec::new(), &sim.handles()).unwrap();
        assert!(sim.run_until(|| remote.state() == State::Live));
        begin(&target);
        targets.borrow_mut().push(target);
        remote.namespace(1).unwrap()
    };
    run("nvme_tcp", make, options);
    targets.into_inner()
}

#[test]
fn with_small_pieces() {
    kit(Manner { r2t: 3000, r2ts: 3, c2h: 5000, maxh2cdata: 4096, ..Manner::default() }, |_| {});
}

#[test]
fn with_digests_and_a_small_queue() {
    kit(Manner { success: false, ..Manner::default() }, |c| {
        (c.hdgst, c.ddgst, c.queue_size) = (true, true, 4)
    });
}

#[test]
fn with_one_queue_for_both_shards() {
    kit(Manner { queues: 1, ..Manner::default() }, |_| {});
}

/// The target fences: then a host that sends again at once keeps every promise.
#[test]
fn with_cut_connections() {
    let manner = Manner { r2t: 3000, r2ts: 2, c2h: 5000, ..Manner::default() };
    let cutting = |target: &Target| {
        let shared = Arc::downgrade(&target.shared);
        std::thread::spawn(move || {
            while let Some(shared) = shared.upgrade() {
                target::cut(&shared);
                drop(shared);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
    };
    let options = Options { rounds: 1, steps: 150, ..Options::default() };
    let targets = kit_with(manner, |_| {}, options, cutting);
    assert!(targets.iter().any(|t| t.shared.associations.load(SeqCst) > 3));
}
