//! A remote that is away for longer than a Linux guest waits for its commands: the guest aborts, resets its controller,
//! reports writes as failed, and reboots, and is answered at once each time. When the remote is back, what was written
//! is there, and no write that had failed comes over a newer one.
//!
//! The remote is first frozen, with what was sent to it in its sockets, and then killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod guest;

use std::time::{Duration, Instant};

use common::chain::{Chain, Disk};
use common::count;
use guest::Builder;

const DISK: Disk = Disk {
    cipher: "ENCRYPTION_TYPE_AES_XTS_128",
    key: "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    block: 4096,
};

const SCRIPT: &str = r#"
disk=$(disk_of $NQN 1)
WRITERS="0 1 2 3 4 5 6 7"

# put BLOCK STAMP, and get BLOCK: the stamp
put() { echo "block $1 stamp $2" | dd of=$disk bs=4096 seek=$1 count=1 conv=sync oflag=direct 2>/dev/null; }
get() { dd if=$disk bs=4096 skip=$1 count=1 iflag=direct 2>/dev/null | awk -v b=$1 '$2 == b { print $4; exit }'; }

# Writes newer and newer stamps to its block, and keeps which were acknowledged and which failed.
writer() {
    stamp=$2
    while [ ! -e /tmp/stop ]; do
        stamp=$((stamp + 1))
        if put $1 $stamp; then echo $stamp >/tmp/acked.$1; else echo $stamp >>/tmp/failed.$1; fi
    done
}
writers_start() {
    rm -f /tmp/stop /tmp/failed.* /tmp/acked.*
    for block in $WRITERS; do writer $block $1 & done
}
# Waits until every writer has added to its file: every acked|failed
every() {
    for block in $WRITERS; do
        [ ! -e /tmp/$1.$block ] || mv /tmp/$1.$block /tmp/$1-before.$block
    done
    for block in $WRITERS; do
        until [ -e /tmp/$1.$block ]; do sleep 0.1; done
    done
}
# Each block holds the newest stamp that was acknowledged, or one that failed after it; and then what is written last.
writers_check() {
    touch /tmp/stop
    wait
    for block in $WRITERS; do
        [ $(get $block) -ge $(cat /tmp/acked.$block) ] || { echo "block $block lost $(cat /tmp/acked.$block)"; return 1; }
        put $block 9$1$block
    done
    for seconds in 0 3; do
        sleep $seconds
        for block in $WRITERS; do
            [ $(get $block) = 9$1$block ] || { echo "block $block was overwritten by $(get $block)"; return 1; }
        done
    done
}
# Before it is away, and after it is back: kept write|verify
kept() {
    options=--verify_only=1
    [ $1 = verify ] || options=--do_verify=0
    fio --name=kept --filename=$disk --offset=64m --size=16m --rw=randwrite --bs=16k --iodepth=16 --ioengine=libaio \
        --direct=1 --verify=crc32c --verify_fatal=1 --randseed=7 $options --eta=never --output=/tmp/fio.log ||
        { cat /tmp/fio.log; return 1; }
}
# How long the kernel waits for a command, in milliseconds.
patience() { echo $1 >/sys/block/nvme0c0n1/queue/io_timeout; }
# The controller did all that its driver asked of it, and in time.
answered() {
    if dmesg | grep -iE "nvme.*(reset controller|disabl|not ready|remov|unable${1:-})|Abort status: 0x[1-9a-f]|BUG|WARNING|Call Trace"; then
        return 1
    fi
}

if [ "$(ask boot)" = first ]; then
    kept write
    writers_start 0
    every acked
    [ "$(ask freeze)" = frozen ]
    patience 3000
    every failed
    every failed
    dmesg | grep -E 'timeout, aborting' | tail -n 1 | grep .
    [ "$(ask thaw)" = thawed ]
    every acked
    kept verify
    writers_check 1
    kept verify
    answered
    dmesg -c >/dev/null

    patience 30000
    writers_start 0
    every acked
    [ "$(ask kill)" = killed ]
    # A reset in the middle: Linux gives the controller up when commands outlive their time before it has ended.
    nvme reset /dev/nvme0
    if [ $ROUNDS != 1 ]; then
        every failed
        echo 1 >/sys/class/nvme/nvme0/device/reset
        every failed
    fi
    answered "|timeout"
    mark reboot
    reboot -f
fi
writers_start 1000000
[ "$(ask launch)" = launched ]
every acked
kept verify
writers_check 2
verify $disk 8m
answered "|timeout"
"#;

#[test]
fn aborts_resets_and_reboots_are_answered_and_no_failed_write_comes_back() {
    // How often Linux tries a command again before it reports it as failed.
    let (retries, away) = (count(0, 1), Duration::from_secs(count(12, 120).into()));
    let Some(guest) = Builder::new("remote-away", "") else { return };
    let flags = ["--shards", "2", "--remote-kato", "5"];
    let Some(mut chain) = Chain::build(&[DISK], &flags) else { return };
    let guest = guest.script(&format!("NQN={}\n{SCRIPT}", chain.nqn)).reboots().vfio_user(&chain.socket());
    let guest = guest.kernel(&format!("nvme_core.admin_timeout=10 nvme_core.max_retries={retries}"));
    let wait = |since: Instant| std::thread::sleep(away.saturating_sub(since.elapsed()));
    let printed = guest.run_with(|guest| {
        guest.wait_for_mark("boot")?;
        guest.answer("first");
        guest.wait_for_mark("freeze")?;
        let frozen = Instant::now();
        chain.target.freeze();
        guest.answer("frozen");
        guest.wait_for_mark("thaw")?;
        wait(frozen);
        chain.target.thaw();
        guest.answer("thawed");

        guest.wait_for_mark("kill")?;
        let killed = Instant::now();
        chain.target.kill();
        guest.answer("killed");
        guest.wait_for_mark("reboot")?;
        guest.wait_for_mark("boot")?;
        guest.answer("second");
        guest.wait_for_mark("launch")?;
        wait(killed);
        chain.target.launch();
        guest.answer("launched");
        Ok(())
    });
    assert!(!printed.contains("vfio"), "QEMU has a complaint\n{printed}");
}
