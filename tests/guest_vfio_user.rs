//! The bridge, whole: a guest's local NVMe disk over vfio-user, then QoS, encryption and NVMe/TCP to a standalone target
//! on files, all declared with OPI's own stubs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod guest;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::chain::{Chain, Disk};
use guest::Builder;

/// The bytes 0 to 31 and 0 to 63.
const KEY_128: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const KEY_256: &str =
    "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw==";

const DISKS: [Disk; 4] = [
    Disk { cipher: "ENCRYPTION_TYPE_AES_XTS_256", key: KEY_256, block: 4096 },
    Disk { cipher: "ENCRYPTION_TYPE_AES_XTS_256", key: KEY_256, block: 512 },
    Disk { cipher: "ENCRYPTION_TYPE_AES_XTS_128", key: KEY_128, block: 4096 },
    Disk { cipher: "ENCRYPTION_TYPE_AES_XTS_128", key: KEY_128, block: 512 },
];

const WHOLE: &str = r#"
disk=$(disk_of $NQN 1)
if [ "$(ask boot)" = first ]; then
    for number in 1 2 3 4; do
        coded=$(disk_of $NQN $number)
        verify $coded 16m
        yes plain-for-isthmus-$number | head -c 1048576 >/tmp/pattern
        dd if=/tmp/pattern of=$coded bs=64k seek=2016 oflag=direct conv=fsync 2>/dev/null
    done
    mark files
    mkfs.ext4 -q $disk 65536k
    mount $disk /mnt
    for number in 1 2 3 4 5 6 7 8; do
        dd if=/dev/urandom of=/mnt/file$number bs=1M count=4 2>/dev/null
    done
    (cd /mnt && sha256sum file* >sums)
    umount /mnt
    no_complaint
    mark reboot
    reboot -f
fi
fsck.ext4 -fn $disk
mount -o ro $disk /mnt
(cd /mnt && sha256sum -c sums)
umount /mnt
no_complaint
"#;

/// Where the script writes its pattern, and how much.
const PATTERN_AT: u64 = 2016 * 65536;
const PATTERN_SIZE: u64 = 1 << 20;

#[test]
fn a_file_system_outlives_a_reboot_and_the_remote_holds_ciphertext_alone() {
    let Some(guest) = Builder::new("vfio-user", WHOLE) else { return };
    let Some(chain) = Chain::build(&DISKS, &["--shards", "2"]) else { return };
    let guest = guest.script(&format!("NQN={}\n{WHOLE}", chain.nqn));
    let printed = guest.vfio_user(&chain.socket()).reboots().run_with(|guest| {
        guest.wait_for_mark("boot")?;
        guest.answer("first");
        guest.wait_for_mark("reboot")?;
        guest.wait_for_mark("boot")?;
        guest.answer("second");
        Ok(())
    });
    assert_eq!(printed.matches(": OK").count(), 8, "{printed}");

    for ((disk, file), number) in DISKS.iter().zip(&chain.files).zip(1..) {
        let line = format!("plain-for-isthmus-{number}\n");
        let plain = decrypt(file, disk, PATTERN_AT, PATTERN_SIZE);
        assert!(
            plain.iter().eq(line.as_bytes().iter().cycle().take(plain.len())),
            "disk {number} decrypts to other bytes"
        );
        let medium = std::fs::read(file).unwrap();
        let found = medium.windows(18).any(|bytes| bytes == b"plain-for-isthmus-");
        assert!(!found, "disk {number} has plaintext on its medium");
    }
}

/// A part of a medium as the `cryptography` package decrypts it.
fn decrypt(file: &Path, disk: &Disk, offset: u64, size: u64) -> Vec<u8> {
    let output = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/xts.py"))
        .arg(file)
        .arg(disk.key)
        .args([disk.block, offset / disk.block, size / disk.block].map(|number| number.to_string()))
        .env("PYTHONPATH", common::peer("python").unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

const STALL: &str = r#"
fio --name=stall --filename=/dev/nvme0n1 --size=64m --rw=randwrite --bs=4k --iodepth=16 --ioengine=libaio --direct=1 \
    --rate_iops=600 --verify=crc32c --verify_backlog=256 --verify_fatal=1 --time_based --runtime=25 --eta=never \
    --output=/tmp/fio.log &
fio=$!
sleep 3
mark writing
wait $fio || { cat /tmp/fio.log; exit 1; }
grep -E 'IOPS=|clat .*max' /tmp/fio.log
no_complaint
"#;

#[test]
fn a_remote_that_dies_and_returns_is_a_stall_and_no_error() {
    let Some(guest) = Builder::new("stall", STALL) else { return };
    let Some(mut chain) = Chain::build(&DISKS[..1], &["--doorbells", "trapped"]) else { return };
    let socket = chain.socket();
    guest.vfio_user(&socket).run_with(|guest| {
        guest.wait_for_mark("writing")?;
        chain.target.kill();
        std::thread::sleep(Duration::from_secs(10));
        chain.target.launch();
        Ok(())
    });
}
