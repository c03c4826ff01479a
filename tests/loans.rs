//! Stacks on a volume that lends its memory: what comes back through them is right, and nobody writes into it.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use backend::ram::RamVolume;
use engine::conformance::{Options, run};
use engine::mem::{Buf, Sgl};
use engine::{ChannelRef, Io, IoId, IoResult, Issuer, Op, Request, Sim, Volume};
use middleend::{CryptVolume, FaultVolume, Faults, Maxima, QosVolume};

#[derive(Clone, Copy, Debug)]
enum Layer {
    Crypt,
    Qos,
    Fault,
}

use Layer::{Crypt, Fault, Qos};

fn stack(block_size: u32, layers: &[Layer]) -> Arc<dyn Volume> {
    let key: Vec<u8> = (0..64).collect();
    let ram: Arc<dyn Volume> = RamVolume::new(block_size, 2048).unwrap();
    layers.iter().fold(ram, |below, layer| match layer {
        Crypt => Arc::new(CryptVolume::new(below, &key).unwrap()),
        Qos => Arc::new(QosVolume::new(below, Maxima::default())),
        Fault => Arc::new(FaultVolume::new(below, Faults { volatile_cache: true, ..Faults::default() })),
    })
}

#[test]
fn pass_the_conformance_kit() {
    for layers in [&[Qos][..], &[Crypt], &[Fault], &[Qos, Crypt], &[Fault, Qos], &[Qos, Fault, Crypt]] {
        for block_size in [512, 4096] {
            let make = |_: &Sim| stack(block_size, layers);
            run(&format!("{layers:?} of {block_size} on RAM"), make, Options::default());
        }
    }
}

/// Keeps what its reads come back with.
#[derive(Default)]
struct Borrower(RefCell<Vec<Sgl>>);

impl Issuer for Borrower {
    fn resume(self: Rc<Self>, mut io: Io, _cookie: u64, result: IoResult) {
        result.unwrap();
        self.0.borrow_mut().push(std::mem::take(&mut io.request_mut().sgl));
    }
}

#[test]
fn only_layers_that_look_at_no_data_pass_on_what_is_lent() {
    for (layers, lent) in
        [(&[][..], true), (&[Qos], true), (&[Crypt], false), (&[Fault], false), (&[Crypt, Qos], false)]
    {
        let volume = stack(4096, layers);
        let sim = Sim::new(1).unwrap();
        let channel = sim.on(0, |shard| ChannelRef::open(&volume, shard));
        let borrower = Rc::new(Borrower::default());
        sim.on(0, |_| {
            let mut io = Io::new(IoId::default());
            *io.request_mut() =
                Request { op: Op::Read, lba: 3, blocks: 1, sgl: Buf::new(4096).into_sgl(4096) };
            io.forward_to_borrow(&channel, borrower.clone(), 0);
        });
        assert!(sim.run_until(|| !borrower.0.borrow().is_empty()));
        assert_eq!(borrower.0.borrow()[0].is_lent(), lent, "{layers:?}");
        borrower.0.borrow_mut().clear();
        sim.on(0, |_| drop(channel));
    }
}
