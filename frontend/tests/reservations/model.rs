//! Random reservation commands of three hosts, one of them on vfio-user, and restarts, against a plain model.

use nvme_proto::Status;

use crate::kept::{disk, rig};

const CONFLICT: Status = Status::RESERVATION_CONFLICT;

/// What each role may do under each type: the holder everything, then (reads, writes) of a registrant and of others.
const ACCESS: [[(bool, bool); 2]; 7] = [
    [(true, true), (true, true)],
    [(true, false), (true, false)],
    [(false, false), (false, false)],
    [(true, true), (true, false)],
    [(true, true), (false, false)],
    [(true, true), (true, false)],
    [(true, true), (false, false)],
];

/// A namespace's reservations, as a person would write them down.
#[derive(Default)]
pub struct Model {
    generation: u32,
    pub rtype: usize,
    holder: usize,
    /// By host, with when each came.
    keys: [Option<(u64, u64)>; 3],
    clock: u64,
    persists: bool,
}

impl Model {
    pub fn key(&self, host: usize) -> Option<u64> {
        self.keys[host].map(|(key, _)| key)
    }

    fn for_all(&self) -> bool {
        self.rtype >= 5
    }

    fn holds(&self, host: usize) -> bool {
        self.rtype != 0 && self.keys[host].is_some() && (self.for_all() || self.holder == host)
    }

    pub fn access(&self, host: usize) -> (bool, bool) {
        if self.holds(host) {
            return (true, true);
        }
        ACCESS[self.rtype][usize::from(self.keys[host].is_none())]
    }

    fn come(&mut self, host: usize, key: u64) {
        self.clock += 1;
        self.keys[host] = Some((key, self.clock));
    }

    fn go(&mut self, host: usize) {
        let held = self.holds(host);
        self.keys[host] = None;
        if held && (!self.for_all() || self.keys.iter().all(Option::is_none)) {
            self.rtype = 0;
        }
    }

    /// The process ends, and another begins.
    fn restart(&mut self) {
        if !self.persists {
            *self = Model::default();
        }
    }

    /// `cdw10` has the action, IEKEY in bit 3 and CPTPL in bits 31 and 30.
    pub fn register(&mut self, host: usize, cdw10: u32, old: u64, new: u64) -> Status {
        let (action, ignore, change) = (cdw10 & 7, cdw10 & 8 != 0, cdw10 >> 30);
        if change == 1 {
            return Status::INVALID_FIELD;
        }
        let matches = self.keys[host].is_some() && (ignore || self.key(host) == Some(old));
        match (action, self.key(host)) {
            (0 | 2, _) if new == 0 => return Status::INVALID_FIELD,
            (0, None) => self.come(host, new),
            (0, Some(key)) if key == new => {}
            (1, _) if matches => self.go(host),
            (2, _) if matches => self.keys[host].as_mut().unwrap().0 = new,
            (2, None) if ignore => self.come(host, new),
            (0..=2, _) => return CONFLICT,
            _ => return Status::INVALID_FIELD,
        }
        self.generation += 1;
        self.persists = change == 3 || change == 0 && self.persists;
        Status::SUCCESS
    }

    pub fn acquire(&mut self, host: usize, action: u32, rtype: usize, old: u64, prey: u64) -> Status {
        if !(1..=6).contains(&rtype) || action > 2 {
            return Status::INVALID_FIELD;
        }
        if self.key(host) != Some(old) {
            return CONFLICT;
        }
        if action == 0 {
            if self.rtype == 0 {
                (self.rtype, self.holder) = (rtype, host);
            }
            return if self.holds(host) && self.rtype == rtype { Status::SUCCESS } else { CONFLICT };
        }
        if prey == 0 && !self.for_all() {
            return Status::INVALID_FIELD;
        }
        let wins = match self.for_all() {
            true => prey == 0,
            false => self.rtype != 0 && self.key(self.holder) == Some(prey),
        };
        let hit = |other: &usize| (prey == 0 || self.key(*other) == Some(prey)) && !(wins && *other == host);
        let hits: Vec<_> = (0..3).filter(|other| self.keys[*other].is_some()).filter(hit).collect();
        if hits.is_empty() && !wins {
            return CONFLICT;
        }
        hits.into_iter().for_each(|other| self.go(other));
        if wins {
            (self.rtype, self.holder) = (rtype, host);
        }
        self.generation += 1;
        Status::SUCCESS
    }

    pub fn release(&mut self, host: usize, action: u32, rtype: usize, old: u64) -> Status {
        if action > 1 {
            return Status::INVALID_FIELD;
        }
        if self.key(host) != Some(old) {
            return CONFLICT;
        }
        if action == 1 {
            (self.rtype, self.keys) = (0, [None; 3]);
            self.generation += 1;
        } else if self.holds(host) {
            if rtype != self.rtype {
                return Status::INVALID_FIELD;
            }
            self.rtype = 0;
        }
        Status::SUCCESS
    }
}

#[test]
fn random_commands_of_three_hosts_do_what_a_plain_model_does() {
    let disk = disk();
    let mut house = rig("resv-model", &disk);
    let mut hosts = [house.tcp(1), house.tcp(2), house.pcie_as(3)];
    let mut model = Model::default();
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u64| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x % below
    };
    let mut reached = [0; 7];
    let mut kept = 0;
    for step in 0..1200 {
        if step % 40 == 39 {
            kept += usize::from(model.persists && model.rtype != 0);
            model.restart();
            drop((hosts, house));
            house = rig("resv-model", &disk);
            hosts = [house.tcp(1), house.tcp(2), house.pcie_as(3)];
        }
        let host = random(3) as usize;
        // The right key, more often than not.
        let old = if random(4) == 0 { random(4) } else { model.key(host).unwrap_or(1) };
        let (rtype, other) = (random(8), random(4));
        let (got, want) = match random(14) {
            0..=3 => {
                let action = [0, 0, 0, 2, 2, 1, 3][random(7) as usize];
                let ignore = u32::from(random(4) == 0);
                let cdw10 = action | ignore << 3 | (random(4) as u32) << 30;
                (hosts[host].register(cdw10, old, other), model.register(host, cdw10, old, other))
            }
            4..=12 => {
                let action = random(4) as u32;
                let got = hosts[host].acquire(action, rtype as u32, old, other);
                (got, model.acquire(host, action, rtype as usize, old, other))
            }
            _ => {
                let action = if random(4) == 0 { 1 + random(2) as u32 } else { 0 };
                let rtype = if random(2) == 0 { model.rtype as u64 } else { rtype };
                let got = hosts[host].release(action, rtype as u32, old);
                (got, model.release(host, action, rtype as usize, old))
            }
        };
        assert_eq!(got, want, "step {step}");
        reached[model.rtype] += 1;
        for (host, actor) in hosts.iter_mut().enumerate() {
            let status = |able| if able { Status::SUCCESS } else { CONFLICT };
            let (reads, writes) = model.access(host);
            assert_eq!(actor.read(), status(reads), "step {step}, host {host} reads under {}", model.rtype);
            assert_eq!(
                actor.write(),
                status(writes),
                "step {step}, host {host} writes under {}",
                model.rtype
            );
        }
        let report = hosts[host].report();
        let mut want: Vec<_> = (0..3).filter_map(|host| Some((model.keys[host]?, host))).collect();
        want.sort_by_key(|((_, when), _)| *when);
        let want: Vec<_> = want
            .into_iter()
            .map(|((key, _), host)| {
                let cntlid = if host == 2 { 1 } else { 0xffff };
                (cntlid, u8::from(model.holds(host)), key, host as u8 + 1)
            })
            .collect();
        assert_eq!((report.generation, report.rtype), (model.generation, model.rtype as u8), "step {step}");
        assert_eq!(report.ptpls, u8::from(model.persists), "step {step}");
        assert_eq!(report.registrants, want, "step {step}");
    }
    assert!(reached.iter().all(|n| *n > 10) && kept > 3, "{reached:?}, {kept}");
}
