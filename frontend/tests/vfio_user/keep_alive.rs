//! Keep Alive over PCIe: nobody is watched who did not ask for it, and a host that was silent finds its controller failed.

use std::time::Duration;

use frontend::Doorbells;
use nvme_proto::log::ErrorEntry;
use nvme_proto::zerocopy::FromBytes;
use nvme_proto::{Sqe, Status};

use crate::client::{Client, DATA};
use crate::rig::Rig;

const KATO: u32 = 0xf;

fn kato(c: &mut Client) -> u32 {
    let cqe = c.admin(Sqe { opc: 0xa, cdw10: KATO, ..Sqe::default() });
    assert!(cqe.status().is_success());
    cqe.dw0
}

fn set_kato(c: &mut Client, ms: u32) {
    assert!(c.admin(Sqe { opc: 9, cdw10: KATO, cdw11: ms, ..Sqe::default() }).status().is_success());
}

fn keep_alive(c: &mut Client) -> Status {
    c.admin(Sqe { opc: 0x18, ..Sqe::default() }).status()
}

#[test]
fn d44_a_silent_host_finds_its_controller_failed() {
    let rig = Rig::new("keep-alive", Doorbells::Mapped);
    let mut neighbour = rig.neighbour();
    let mut c = rig.host();
    c.admin(Sqe { opc: 6, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() });
    assert_eq!(c.get(DATA + 320, 2), [10, 0], "KAS: a second");
    assert_eq!((kato(&mut c), keep_alive(&mut c)), (0, Status::SUCCESS));

    set_kato(&mut c, 1);
    assert_eq!(kato(&mut c), 1000, "rounded up to KAS");
    for _ in 0..30 {
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(keep_alive(&mut c), Status::SUCCESS);
    }
    assert_eq!(c.register(0x1c), 1);
    // Registers are no commands.
    c.wait_csts(3, 3);

    c.enable();
    assert_eq!((kato(&mut c), c.register(0x1c)), (0, 1), "a reset helps, and forgets KATO");
    c.admin(Sqe { opc: 2, cdw10: 15 << 16 | 1, dptr: [DATA, 0], ..Sqe::default() });
    let latest = ErrorEntry::read_from_bytes(&c.get(DATA, 64)).unwrap();
    assert_eq!(latest.sts.status(), Status::KEEP_ALIVE_TIMER_EXPIRED);
    neighbour.is_well();
}

#[test]
fn d44_nobody_is_watched_after_a_reset_or_a_shutdown() {
    let rig = Rig::new("keep-alive-ends", Doorbells::Mapped);
    let mut c = rig.host();
    for shutdown in [false, true] {
        set_kato(&mut c, 1000);
        match shutdown {
            true => c.post(0x14, 4 << 20 | 6 << 16 | 1 << 14 | 1),
            false => c.enable(),
        }
        std::thread::sleep(Duration::from_millis(2500));
        assert_eq!(c.register(0x1c) & 3, 1, "ready, and not failed");
    }
}
