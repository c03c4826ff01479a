//! Two controllers of one subsystem, one over TCP and one over vfio-user: random commands on either, against a model of
//! the namespace: what its blocks hold, who has reserved it, and whether it is write protected. `ISTHMUS_SOAK` runs a
//! hundred thousand sequences, `ISTHMUS_SEED` chooses them.

use std::collections::VecDeque;

use nvme_proto::{Sqe, Status};

use crate::common::rw;
use crate::hosts::{Actor, Rig};
use crate::model::Model as Reserved;
use crate::{CONFLICT, SUCCESS};

const BLOCK: usize = 512;
/// Blocks that commands go to: few, so that they meet.
const BLOCKS: u64 = 24;
/// Most blocks of a command.
const MOST: u64 = 8;
/// Commands of a sequence.
const STEPS: usize = 12;
/// The last kind of command on blocks.
const FUSED: u64 = 13;
const PROTECTED: Status = Status::NAMESPACE_WRITE_PROTECTED;
const FAILED: Status = Status::ABORTED_FAILED_FUSED;

/// Numbers from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn chance(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
}

struct Model {
    bytes: Vec<u8>,
    reserved: Reserved,
    protected: bool,
    history: VecDeque<String>,
    /// How often the model said so.
    reached: [u32; 6],
}

/// A host of both models: the reservations' calls that over vfio-user its third.
#[derive(Clone, Copy)]
struct Who {
    name: &'static str,
    index: usize,
}

const WHO: [Who; 2] = [Who { name: "tcp", index: 0 }, Who { name: "vfio-user", index: 2 }];

impl Model {
    /// What a command that reads, or one that writes, completes with before it is at work.
    fn admits(&self, who: Who, writes: bool, modifies: bool) -> Status {
        let (may_read, may_write) = self.reserved.access(who.index);
        match if writes { may_write } else { may_read } {
            false => CONFLICT,
            true if modifies && self.protected => PROTECTED,
            true => SUCCESS,
        }
    }

    fn note(&mut self, who: Who, what: &str) {
        self.history.push_back(format!("{} {what}", who.name));
        if self.history.len() > 2 * STEPS {
            self.history.pop_front();
        }
    }

    /// Open to all, as a sequence begins.
    fn open(&mut self, hosts: &mut [Actor; 2]) {
        let set = Sqe { opc: 9, nsid: 1, cdw10: 0x84, ..Sqe::default() };
        assert_eq!(hosts[0].admin(set, &[], 0).0, SUCCESS);
        self.protected = false;
        for (actor, who) in hosts.iter_mut().zip(WHO) {
            let Some(key) = self.reserved.key(who.index) else { continue };
            assert_eq!(actor.release(1, 0, key), self.reserved.release(who.index, 1, 0, key));
        }
        assert_eq!(self.reserved.rtype, 0);
    }

    /// Does one random command as `who` and in the model, and compares.
    fn step(&mut self, random: &mut Random, who: Who, actor: &mut Actor) {
        match random.below(24) {
            0..17 => self.blocks(random, who, actor),
            17..19 => self.protect(random, who, actor),
            _ => self.reserve(random, who, actor),
        }
    }

    fn blocks(&mut self, random: &mut Random, who: Who, actor: &mut Actor) {
        let kind = random.below(14);
        // A RAM volume writes one block whole, which is what a fused pair may have.
        let blocks = if kind == FUSED && !random.chance(4) { 1 } else { 1 + random.below(MOST) };
        let lba = random.below(BLOCKS - blocks + 1);
        let at = lba as usize * BLOCK..(lba + blocks) as usize * BLOCK;
        let len = at.len();
        let fresh = vec![random.below(256) as u8; len];
        // Compared bytes are the right ones, or differ in one place.
        let mut compared = self.bytes[at.clone()].to_vec();
        let same = random.chance(2);
        if !same {
            compared[random.below(len as u64) as usize] ^= 1 << random.below(8);
        }
        let on = |opc| rw(opc, lba, len);
        let name = ["read", "read", "read", "write", "write", "write with FUA", "zeroes", "zeroes with DEAC"]
            .into_iter()
            .chain(["deallocate", "compare", "compare", "flush", "verify", "compare and write"])
            .nth(kind as usize)
            .unwrap();
        self.note(who, &format!("{name} {lba}+{blocks}"));
        let (status, expected) = match kind {
            0..3 => {
                let (status, data) = actor.io(on(2), &[], len);
                let expected = self.admits(who, false, false);
                let bytes = if expected == SUCCESS { &self.bytes[at] } else { &[][..] };
                assert!(expected != SUCCESS || data == bytes, "other bytes\n{:#?}", self.history);
                (status, expected)
            }
            3..9 => {
                let mut range = [0; 16];
                range[4..8].copy_from_slice(&(blocks as u32).to_le_bytes());
                range[8..].copy_from_slice(&lba.to_le_bytes());
                let mut sqe = on([1, 1, 1, 8, 8, 9][kind as usize - 3]);
                let (data, after) = match kind {
                    3..6 => (fresh.as_slice(), fresh.as_slice()),
                    6 | 7 => (&[][..], &[0; MOST as usize * BLOCK][..len]),
                    // A RAM volume's deallocated blocks read as zeroes, and its Identify says so.
                    _ => (&range[..], &[0; MOST as usize * BLOCK][..len]),
                };
                match kind {
                    5 => sqe.cdw12 |= 1 << 30,
                    7 => sqe.cdw12 |= 1 << 25,
                    8 => sqe = Sqe { opc: 9, nsid: 1, cdw11: 1 << 2, ..Sqe::default() },
                    _ => {}
                }
                let expected = self.admits(who, true, true);
                if expected == SUCCESS {
                    self.bytes[at].copy_from_slice(after);
                }
                (actor.io(sqe, data, 0).0, expected)
            }
            9 | 10 => {
                let admits = self.admits(who, false, false);
                let found = if same { SUCCESS } else { Status::COMPARE_FAILURE };
                (actor.io(on(5), &compared, 0).0, if admits == SUCCESS { found } else { admits })
            }
            11 => (actor.io(Sqe { opc: 0, ..Sqe::default() }, &[], 0).0, self.admits(who, true, false)),
            12 => (actor.io(on(0xc), &[], 0).0, self.admits(who, false, false)),
            _ => {
                let (reads, writes) = (self.admits(who, false, false), self.admits(who, true, true));
                let expected = match () {
                    () if blocks > 1 => [Status::ATOMIC_WRITE_UNIT_EXCEEDED, FAILED],
                    () if reads != SUCCESS => [reads, FAILED],
                    () if writes != SUCCESS => [FAILED, writes],
                    () if !same => [Status::COMPARE_FAILURE, FAILED],
                    () => [SUCCESS; 2],
                };
                if expected == [SUCCESS; 2] {
                    self.bytes[at].copy_from_slice(&fresh);
                    self.reached[5] += 1;
                }
                let got = actor.fused([on(5), on(1)], [&compared, &fresh]);
                assert_eq!(got, expected, "\n{:#?}", self.history);
                return;
            }
        };
        assert_eq!(status, expected, "\n{:#?}", self.history);
        for (n, reached) in [CONFLICT, PROTECTED, Status::COMPARE_FAILURE].into_iter().enumerate() {
            self.reached[n] += u32::from(expected == reached);
        }
        self.reached[3] += u32::from(kind == 12 && expected == SUCCESS);
    }

    fn protect(&mut self, random: &mut Random, who: Who, actor: &mut Actor) {
        let get = Sqe { opc: 10, nsid: 1, cdw10: 0x84, ..Sqe::default() };
        if random.chance(2) {
            self.protected = random.chance(2);
            self.note(who, &format!("protected: {}", self.protected));
            let set = Sqe { opc: 9, cdw11: self.protected.into(), ..get };
            assert_eq!(actor.admin(set, &[], 0).0, SUCCESS, "\n{:#?}", self.history);
        }
        let (status, value, _) = actor.admin(get, &[], 0);
        assert_eq!((status, value), (SUCCESS, self.protected.into()), "\n{:#?}", self.history);
    }

    fn reserve(&mut self, random: &mut Random, who: Who, actor: &mut Actor) {
        let host = who.index;
        // The right key and a type that is one, more often than not.
        let old = if random.chance(6) { random.below(4) } else { self.reserved.key(host).unwrap_or(1) };
        let other = 1 + random.below(3);
        let rtype = 1 + random.below(6);
        let (got, expected) = match (random.below(6), self.reserved.key(host)) {
            (0, _) | (1..6, None) => {
                let action = if random.chance(6) { 1 } else { 0 };
                self.note(who, &format!("registers {action} {old} {other}"));
                (actor.register(action, old, other), self.reserved.register(host, action, old, other))
            }
            (1..5, _) => {
                let action = [0, 0, 1, 2][random.below(4) as usize];
                self.note(who, &format!("acquires {action} {rtype} {old} {other}"));
                let expected = self.reserved.acquire(host, action, rtype as usize, old, other);
                (actor.acquire(action, rtype as u32, old, other), expected)
            }
            _ => {
                let rtype = self.reserved.rtype.max(1);
                self.note(who, &format!("releases {rtype} {old}"));
                (actor.release(0, rtype as u32, old), self.reserved.release(host, 0, rtype, old))
            }
        };
        assert_eq!(got, expected, "\n{:#?}", self.history);
        self.reached[4] += u32::from(got == SUCCESS && self.reserved.rtype != 0);
    }
}

#[test]
fn two_controllers_agree_with_one_model_of_the_namespace() {
    let soak = std::env::var_os("ISTHMUS_SOAK").is_some();
    let given = std::env::var("ISTHMUS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    println!("ISTHMUS_SEED={seed}");
    let rig = Rig::new("two-controllers");
    let mut hosts = [rig.tcp(1), rig.pcie_as(3)];
    let mut model = Model {
        bytes: vec![0; BLOCKS as usize * BLOCK],
        reserved: Reserved::default(),
        protected: false,
        history: VecDeque::new(),
        reached: [0; 6],
    };
    for sequence in 0..if soak { 100_000 } else { 500 } {
        let mut random = Random(seed.wrapping_add(sequence));
        model.open(&mut hosts);
        for _ in 0..STEPS {
            let who = random.below(2) as usize;
            model.step(&mut random, WHO[who], &mut hosts[who]);
        }
    }
    assert!(model.reached.iter().all(|n| *n > 10), "{:?}", model.reached);
}
