//! What an idle bridge costs: the processor time and memory of a server with a controller of mapped and one of trapped
//! doorbells and four queues to its remote, while the guest does nothing; and how long the first I/O after that takes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod guest;

use std::time::Duration;

use common::chain::{Chain, Disk};
use common::opi::Opi;
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
    let flags = ["--doorbells", "mapped,trapped", "--shards", "4"];
    let Some(chain) = Chain::build(&[DISK, DISK], &flags) else { return };
    let trapped = format!("{}-trapped", chain.nqn);
    let Some(mut opi) = Opi::connect(chain.bridge.grpc()) else { return };
    // The second disk moves to a subsystem of its own: Linux takes a namespace of one identity once.
    opi.delete("FrontendNvmeService/DeleteNvmeNamespace", "nvmeSubsystems/here/nvmeNamespaces/name2");
    opi.subsystem("there", &trapped);
    opi.namespace("there", "name2", 1, "calm2");
    opi.pcie_controller_at("there", "pcie1", 1);
    let guest = guest.script(&format!("MAPPED={}\nTRAPPED={trapped}\n{SCRIPT}", chain.nqn));
    let guest = guest.vfio_user(&chain.socket()).vfio_user(&chain.bridge.path("ctrlr/there/cntrl"));
    let printed = guest.run_with(|guest| {
        guest.wait_for_mark("idle")?;
        std::thread::sleep(SETTLING);
        let before = chain.bridge.cpu_time();
        std::thread::sleep(WATCHED);
        let (used, memory) = (chain.bridge.cpu_time() - before, chain.bridge.anonymous_memory());
        println!("{used:?} of processor time in {WATCHED:?}, {} KiB of memory", memory >> 10);
        assert!(used <= ALLOWED && memory < 64 << 20, "{used:?}, {memory} bytes");
        guest.answer("");
        Ok(())
    });
    println!("the first I/O after idleness:\n{}", common::tail(&printed, 6));
}
