//! The NVMe/TCP target as a host sees it, over a real socket, on two shards.

mod common;

use common::{Host, Rig, SUBNQN, pattern};
use nvme_proto::register::offset;
use nvme_proto::tcp::dgst;

const BOTH: u8 = dgst::HDGST_ENABLE | dgst::DDGST_ENABLE;

#[test]
fn writes_are_read_back_in_capsule_and_by_r2t() {
    let rig = Rig::new();
    for digests in [0, dgst::HDGST_ENABLE, dgst::DDGST_ENABLE, BOTH] {
        let (_admin, mut io) = rig.connect(digests);
        for (i, len) in [512, 4096, 8192, 8704, 65536, 128 << 10, 1 << 20].into_iter().enumerate() {
            let data = pattern(i as u64 + 100 * u64::from(digests), len);
            let slba = 4096 * i as u64;
            assert!(io.write(slba, &data).status().is_success(), "{len} bytes, digests {digests}");
            let (cqe, back) = io.read(slba, len);
            assert!(cqe.status().is_success());
            assert!(back == data, "{len} bytes, digests {digests}");
        }
    }
}

#[test]
fn a_controller_is_enabled_reset_and_shut_down() {
    let rig = Rig::new();
    let mut admin = Host::open(rig.addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 0);
    assert_eq!(admin.property_get(offset::CSTS, 0), 0);
    assert_eq!(admin.property_get(offset::VS, 0), 0x2_0100);
    assert_eq!(admin.property_get(offset::CAP, 1) & 0xffff, 1023);
    let mut early = Host::open(rig.addr, 0);
    assert!(!early.connect_queue(SUBNQN, 1, cntlid).status().is_success(), "not enabled yet");
    admin.enable();
    let mut io = Host::open(rig.addr, 0);
    assert!(io.connect_queue(SUBNQN, 1, cntlid).status().is_success());
    let mut twice = Host::open(rig.addr, 0);
    assert!(!twice.connect_queue(SUBNQN, 1, cntlid).status().is_success(), "QID 1 is taken");
    // A reset ends the I/O queue, and the admin queue goes on.
    admin.property_set(offset::CC, 0x46_0000);
    admin.wait_csts(1, 0);
    assert!(io.is_closed());
    admin.enable();
    let mut io = Host::open(rig.addr, 0);
    assert!(io.connect_queue(SUBNQN, 1, cntlid).status().is_success());
    admin.property_set(offset::CC, 0x46_4001);
    admin.wait_csts(0xc, 0x8);
}
