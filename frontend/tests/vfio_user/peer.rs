//! A client that is not ours: the one of rust-vmm, which cloud-hypervisor uses. It looks at no error flag and waits for
//! ever where an answer is shorter than it expects.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use engine::mem::Mapping;
use frontend::Doorbells;
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Sqe, Status};

use crate::client::{await_event, event};
use crate::rig::Rig;

const SQ: u64 = 0x10000;
const CQ: u64 = 0x20000;
const DATA: u64 = 0x30000;

#[test]
fn rust_vmm_drives_a_controller() {
    for doorbells in [Doorbells::Mapped, Doorbells::Trapped] {
        let rig = Rig::new(&format!("peer-{doorbells:?}"), doorbells);
        let mut c = vfio_user::Client::new(rig.handle().path()).unwrap();
        let (ram, fd) = Mapping::memfd("peer", 1 << 20).unwrap();
        let ram = Arc::new(ram);
        c.dma_map(0, 0, 1 << 20, fd.as_raw_fd()).unwrap();

        let bar0 = c.region(0).unwrap();
        assert_eq!(
            (bar0.size, bar0.sparse_areas.len()),
            (16384, usize::from(doorbells == Doorbells::Mapped))
        );
        assert_eq!(bar0.file_offset.is_some(), doorbells == Doorbells::Mapped);
        let mut class = [0; 4];
        c.region_read(7, 8, &mut class).unwrap();
        assert_eq!(class[1..], [0x02, 0x08, 0x01]);
        // What is not there is answered too.
        let mut ones = [0; 8];
        c.region_read(1, 0, &mut ones).unwrap();
        c.region_read(0, u64::MAX - 3, &mut ones).unwrap();
        assert_eq!(ones, [0xff; 8]);

        // As many vectors as it puts into one message.
        let vectors = c.get_irq_info(2).unwrap().count;
        let events: Vec<_> = (0..16).map(|_| event()).collect();
        let fds: Vec<_> = events.iter().map(AsRawFd::as_raw_fd).collect();
        assert!(vectors >= 16);
        c.set_irqs(2, 4 | 32, 0, 16, &fds).unwrap();

        for round in 0..2 {
            ram.sgl(0, 1 << 20).unwrap().zero(0, 1 << 20);
            c.region_write(7, 4, &[6, 0]).unwrap();
            c.region_write(0, 0x24, &(15u32 << 16 | 15).to_le_bytes()).unwrap();
            c.region_write(0, 0x28, &SQ.to_le_bytes()).unwrap();
            c.region_write(0, 0x30, &CQ.to_le_bytes()).unwrap();
            c.region_write(0, 0x14, &(4u32 << 20 | 6 << 16 | 1).to_le_bytes()).unwrap();
            let until = Instant::now() + Duration::from_secs(10);
            let mut csts = [0; 4];
            while csts[0] & 1 == 0 {
                assert!(Instant::now() < until, "never ready");
                c.region_read(0, 0x1c, &mut csts).unwrap();
            }
            let identify = Sqe { opc: 6, cid: 7, cdw10: 1, dptr: [DATA, 0], ..Sqe::default() };
            ram.sgl(SQ as usize, 64).unwrap().copy_in(0, identify.as_bytes());
            c.region_write(0, 0x1000, &1u32.to_le_bytes()).unwrap();
            await_event(&events[0]);
            let last = ram.word(CQ as usize + 12).unwrap().load(Ordering::Acquire);
            assert_eq!(last, 1 << 16 | 7, "{:?}, round {round}", Status((last >> 17) as u16));
            let mut serial = [0; 8];
            ram.sgl(DATA as usize + 4, 8).unwrap().copy_out(0, &mut serial);
            assert_eq!(&serial, b"TEST0001");
            c.reset().unwrap();
        }
        c.dma_unmap(0, 1 << 20).unwrap();
        c.shutdown().unwrap();
    }
}
