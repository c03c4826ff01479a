//! What an idle bridge costs: the processor time and memory of servers whose guest does nothing, one with mapped and one
//! with trapped doorbells, each with four queues to its remote; and how long the first I/O after that takes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod guest;

use std::time::Duration;

use common::chain::{Chain, Disk};
use guest::Builder;

const SCRIPT: &str = r#"
mapped=$(disk_of $MAPPED 1)
trapped=$(disk_of $TRAPPED 1)
verify $mapped 8m
verify $trapped 8m
ask idle >/dev/null
for disk in $mapped $trapped; do
    fio --name=first --filename=$disk --rw=read --bs=4k --size=4k --direct=1 --eta=never | grep -E ' lat .*avg'
done
no_complaint
"#;

const DISK: Disk = Disk {
    cipher: "ENCRYPTION_TYPE_AES_XTS_128",
    key: "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    block: 4096,
};

/// How long a host must have been away from its doorbells to count as idle.
const SETTLING: Duration = Duration::from_secs(5);

/// How long idleness is watched. The figure is printed: half a percent of a core (150 ms) is what it should stay under.
const WATCHED: Duration = Duration::from_secs(30);
/// What no server that sleeps comes near, however noisy the machine: a fiftieth of what polling costs.
const ALLOWED: Duration = Duration::from_millis(600);

#[test]
fn idleness_costs_next_to_nothing() {
    if cfg!(debug_assertions) && std::env::var_os("ISTHMUS_BIN").is_none() {
        return common::skip("it measures the release program: run `cargo xtask test`");
    }
    let Some(guest) = Builder::new("idle", SCRIPT) else { return };
    let Some(mapped) = Chain::build(&[DISK], &["--doorbells", "mapped", "--shards", "4"]) else { return };
    let Some(trapped) = Chain::build(&[DISK], &["--doorbells", "trapped", "--shards", "4"]) else { return };
    let bridges = [("mapped", &mapped.bridge), ("trapped", &trapped.bridge)];
    let guest = guest.script(&format!("MAPPED={}\nTRAPPED={}\n{SCRIPT}", mapped.nqn, trapped.nqn));
    let guest = guest.vfio_user(&mapped.socket()).vfio_user(&trapped.socket());
    let printed = guest.run_with(|guest| {
        guest.wait_for_mark("idle")?;
        std::thread::sleep(SETTLING);
        let before = bridges.map(|(_, bridge)| bridge.cpu_time());
        std::thread::sleep(WATCHED);
        let costs: Vec<_> = bridges
            .iter()
            .zip(before)
            .map(|((_, bridge), before)| (bridge.cpu_time() - before, bridge.anonymous_memory()))
            .collect();
        for ((doorbells, _), (used, memory)) in bridges.iter().zip(&costs) {
            println!(
                "{doorbells}: {used:?} of processor time in {WATCHED:?}, {} KiB of memory",
                memory >> 10
            );
        }
        assert!(costs.iter().all(|(used, memory)| *used <= ALLOWED && *memory < 64 << 20), "{costs:?}");
        guest.answer("");
        Ok(())
    });
    println!("the first I/O after idleness:\n{}", common::tail(&printed, 6));
}
