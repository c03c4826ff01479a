//! The layers on one another, in every order, on two shards.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use engine::mem::Buf;
use engine::{
    ChannelRef, Config, Io, IoError, IoId, IoResult, Issuer, Limits, Op, Origin, Request, Shards, Sim,
    Volume, conformance,
};
use std::time::Duration;
use xts::Xts;

use crate::fault::{Effect, Rule};
use crate::testing::{BLOCK, Host, Ram, pattern};
use crate::{CryptVolume, FaultVolume, Faults, Maxima, QosVolume};

#[derive(Clone, Copy, Debug)]
enum Layer {
    Crypt,
    Qos,
    Fault,
}

use Layer::{Crypt, Fault, Qos};

fn stack(bottom: Arc<Ram>, layers: &[Layer]) -> Arc<dyn Volume> {
    layers.iter().fold(bottom, |below: Arc<dyn Volume>, layer| match layer {
        Crypt => Arc::new(CryptVolume::new(below, &pattern(7, 64)).unwrap()),
        Qos => Arc::new(QosVolume::new(below, Maxima { rw_iops_kiops: 1, ..Maxima::default() })),
        Fault => Arc::new(FaultVolume::new(below, Faults { volatile_cache: true, ..Faults::default() })),
    })
}

#[test]
fn every_order_keeps_data_and_brings_it_to_the_medium_on_flush() {
    for layers in [
        [Crypt, Qos, Fault],
        [Crypt, Fault, Qos],
        [Qos, Crypt, Fault],
        [Qos, Fault, Crypt],
        [Fault, Crypt, Qos],
        [Fault, Qos, Crypt],
    ] {
        let ram = Ram::new(1024);
        let host = Host::new(stack(ram.clone(), &layers));
        let mut plain = pattern(1, 600 * BLOCK);
        host.write(0, 100, &plain).unwrap();
        host.ask(1, Op::WriteZeroes { deallocate: true, fua: false }, 150, 400).unwrap();
        plain[50 * BLOCK..450 * BLOCK].fill(0);
        assert_eq!(host.read(1, 100, 600).unwrap(), plain, "{layers:?}");
        host.compare(0, 100, &plain).unwrap();
        assert_eq!(host.compare(1, 101, &plain), Err(IoError::Miscompare), "{layers:?}");
        host.ask(1, Op::Flush, 0, 0).unwrap();
        let mut medium = ram.bytes.lock().unwrap()[100 * BLOCK..700 * BLOCK].to_vec();
        Xts::new(&pattern(7, 64)).unwrap().decrypt_in_place(BLOCK, 100, &mut medium);
        assert_eq!(medium, plain, "{layers:?}");
    }
}

#[test]
fn what_is_flushed_through_a_stack_outlives_the_power() {
    for seed in 0..16 {
        let fault =
            Arc::new(FaultVolume::new(Ram::new(64), Faults { volatile_cache: true, ..Faults::default() }));
        let crypt = Arc::new(CryptVolume::new(fault.clone(), &pattern(7, 32)).unwrap());
        let host = Host::new(Arc::new(QosVolume::new(crypt, Maxima::default())));
        let (old, new) = (pattern(1, 8 * BLOCK), pattern(2, 8 * BLOCK));
        host.write(0, 0, &old).unwrap();
        host.ask(1, Op::Flush, 0, 0).unwrap();
        host.write(0, 0, &new[..4 * BLOCK]).unwrap();
        host.send_write(1, 6, &new[6 * BLOCK..], true).wait().unwrap();
        host.ask(0, Op::WriteZeroes { deallocate: false, fua: true }, 5, 1).unwrap();
        fault.power_cut(seed);
        let found = host.read(0, 0, 8).unwrap();
        for (i, block) in found.chunks(BLOCK).enumerate() {
            let range = i * BLOCK..(i + 1) * BLOCK;
            let (old, new) = (&old[range.clone()], &new[range]);
            match i {
                0..4 => assert!(block == old || block == new, "block {i}"),
                4 => assert_eq!(block, old),
                5 => assert_eq!(block, [0; BLOCK]),
                _ => assert_eq!(block, new),
            }
        }
    }
}

#[test]
fn each_layer_and_a_stack_of_them_pass_the_conformance_kit() {
    for layers in [&[Crypt][..], &[Qos], &[Fault], &[Fault, Crypt, Qos], &[Qos, Crypt, Fault]] {
        for block_size in [512, 4096] {
            let make = |_: &Sim| stack(Ram::with(Limits::full(block_size, 2048)), layers);
            conformance::run(&format!("{layers:?} of {block_size}"), make, conformance::Options::default());
        }
    }
}

#[test]
fn slow_volumes_pass_the_conformance_kit() {
    let make = |_: &Sim| -> Arc<dyn Volume> {
        let late = |ms, probability| Rule {
            probability,
            ..Rule::new(&[], Effect::Delay(Duration::from_millis(ms)))
        };
        let faults = Faults { volatile_cache: true, rules: vec![late(1, 0.5), late(900, 0.1)], seed: 1 };
        let slow = Arc::new(FaultVolume::new(Ram::new(2048), faults));
        Arc::new(CryptVolume::new(slow, &pattern(7, 32)).unwrap())
    };
    conformance::run("late fault under crypt", make, conformance::Options::default());
}

/// Writes a block, flushes now and then, reads it back, and goes on with the next; reports at the end.
struct Worker {
    volume: ChannelRef,
    first: u64,
    rounds: u64,
    report: Sender<Result<(), String>>,
}

impl Worker {
    fn step(self: Rc<Self>, mut io: Io, step: u64) {
        let (lba, plain) = (self.first + step / 3 % 50, pattern(step / 3, BLOCK));
        let (op, sgl) = match step % 3 {
            0 => (Op::Write { fua: step.is_multiple_of(4) }, Buf::new(BLOCK).into_sgl(BLOCK)),
            1 => (Op::Flush, Default::default()),
            _ => (Op::Compare, Buf::new(BLOCK).into_sgl(BLOCK)),
        };
        if op != Op::Flush {
            sgl.copy_in(0, &plain);
        }
        let blocks = u32::from(op != Op::Flush);
        *io.request_mut() = Request { op, lba: if op == Op::Flush { 0 } else { lba }, blocks, sgl };
        let volume = self.volume.clone();
        io.forward(&volume, self, step);
    }
}

impl Issuer for Worker {
    fn resume(self: Rc<Self>, io: Io, step: u64, result: IoResult) {
        match result {
            Ok(()) if step < 3 * self.rounds => self.step(io, step + 1),
            Ok(()) => drop(self.report.send(Ok(()))),
            Err(e) => drop(self.report.send(Err(format!("step {step}: {e}")))),
        }
    }
}

#[test]
fn a_stack_serves_two_threads_at_once() {
    let volume = stack(Ram::new(1024), &[Fault, Crypt]);
    let shards = Shards::start(&Config { cpus: vec![None, None], ..Config::default() }).unwrap();
    let (report, reports) = channel();
    for (first, shard) in (0..).zip(shards.handles()) {
        let (volume, report) = (volume.clone(), report.clone());
        for worker in 0..4 {
            let (volume, report) = (volume.clone(), report.clone());
            shard.run(move |shard| {
                let volume = ChannelRef::open(&volume, shard);
                let worker = Worker { volume, first: (first * 4 + worker) * 100, rounds: 300, report };
                let id = IoId { origin: Origin::new(), tag: 0 };
                Rc::new(worker).step(Io::new(id), 0);
            });
        }
    }
    drop(report);
    for _ in 0..8 {
        assert_eq!(reports.recv().unwrap(), Ok(()));
    }
    shards.stop();
}
