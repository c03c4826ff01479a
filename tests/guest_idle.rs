//! What an idle bridge costs: the processor time and memory of servers whose guest does nothing, one with mapped and one
//! with trapped doorbells, each with four queues to its remote; and how long the first I/O after that takes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod guest;

use std::time::Duration;

use common::chain::{Chain, Disk};
use guest::Builder;

const SCRIPT: &str = r#"
for disk in /dev/nvme0n1 /dev/nvme1n1; do
    verify $disk 8m
done
ask idle >/dev/null
for disk in /dev/nvme0 /dev/nvme1; do
    nvme id-ctrl $disk | grep '^sn'
    fio --name=first --filename=${disk}n1 --rw=read --bs=4k --size=4k --direct=1 --eta=never | grep -E ' lat .*avg'
done
no_complaint
"#;

const DISK: Disk = Disk {
    cipher: "ENCRYPTION_TYPE_AES_XTS_128",
    key: "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    block: 4096,
};

/// How long idleness is watched, and what it may cost: half a percent of one core.
const WATCHED: Duration = Duration::from_secs(30);
const ALLOWED: Duration = Duration::from_millis(150);

#[test]
fn idleness_costs_next_to_nothing() {
    let Some(guest) = Builder::new("idle", SCRIPT) else { return };
    let Some(mapped) = Chain::build(&[DISK], &["--doorbells", "mapped"]) else { return };
    let Some(trapped) = Chain::build(&[DISK], &["--doorbells", "trapped"]) else { return };
    let bridges = [("mapped", &mapped.bridge), ("trapped", &trapped.bridge)];
    let guest = guest.vfio_user(&mapped.socket()).vfio_user(&trapped.socket());
    let printed = guest.run_with(|guest| {
        guest.wait_for_mark("idle")?;
        std::thread::sleep(Duration::from_secs(2));
        let before = bridges.map(|(_, bridge)| bridge.cpu_time());
        std::thread::sleep(WATCHED);
        for ((doorbells, bridge), before) in bridges.iter().zip(before) {
            let (used, memory) = (bridge.cpu_time() - before, bridge.anonymous_memory());
            println!(
                "{doorbells}: {used:?} of processor time in {WATCHED:?}, {} KiB of memory",
                memory >> 10
            );
            assert!(used <= ALLOWED, "{doorbells}: {used:?} in {WATCHED:?}");
            assert!(memory < 64 << 20, "{doorbells}: {memory} bytes");
        }
        guest.answer("");
        Ok(())
    });
    println!("the first I/O after idleness:\n{}", common::tail(&printed, 6));
}
