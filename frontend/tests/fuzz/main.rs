//! Hosts that say and do anything, thousands of times a second: see `engine::testing::fuzz`. Shards are simulated, time
//! is virtual, sockets are real. A second host next to the hostile one must keep its data and get its answers.
//!
//! What failed once is in `corpus/`, with what shows the most.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod pcie;
mod remote;
mod tcp;
mod world;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use engine::testing::fuzz::fuzz;

/// Descriptors are counted: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn corpus(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/fuzz/corpus", name].iter().collect()
}

#[test]
fn tcp_streams() {
    let _alone = alone();
    fuzz::<tcp::Streams>("tcp", &corpus("tcp"));
}

#[test]
fn vfio_user_streams() {
    let _alone = alone();
    fuzz::<pcie::Streams>("vfio_user", &corpus("vfio_user"));
}

#[test]
fn guests() {
    let _alone = alone();
    fuzz::<pcie::Guest>("guest", &corpus("guest"));
}

#[test]
fn racing_guests() {
    let _alone = alone();
    fuzz::<pcie::Race>("race", &corpus("race"));
}

#[test]
fn hostile_targets() {
    let _alone = alone();
    fuzz::<remote::Initiator>("remote", &corpus("remote"));
}
