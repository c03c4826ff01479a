//! Reservations that outlive the process: PTPL.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use frontend::{Kept, Persist, Stored, SubsystemError};
use nvme_proto::{Sqe, Status};

use crate::common::{BEYOND, namespace};
use crate::hosts::{Actor, Rig};
use crate::{CONFLICT, SUCCESS};

/// CPTPL of Reservation Register.
const CLEAR: u32 = 2 << 30;
const SET: u32 = 3 << 30;

/// What outlives a rig.
#[derive(Default)]
pub struct Disk {
    kept: Mutex<Option<Vec<u8>>>,
    fails: AtomicBool,
    stores: AtomicUsize,
}

impl Persist for Shared {
    fn load(&self, kept: Kept) -> Result<Option<Vec<u8>>, String> {
        if kept != Kept::Reservations {
            return Ok(None);
        }
        Ok(self.0.kept.lock().unwrap().clone())
    }

    fn store(&self, kept: Kept, state: Option<Vec<u8>>, done: Stored) {
        if kept != Kept::Reservations {
            return drop(std::thread::spawn(move || done.done(true)));
        }
        let me = self.0.clone();
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(1));
            me.stores.fetch_add(1, Ordering::SeqCst);
            if me.fails.load(Ordering::SeqCst) {
                // As a disk that is gone: nobody tells.
                return drop(done);
            }
            *me.kept.lock().unwrap() = state;
            done.done(true);
        });
    }
}

/// The disk that a rig has, and the test looks at too.
struct Shared(Arc<Disk>);

pub fn disk() -> Arc<Disk> {
    Arc::default()
}

pub fn rig(name: &str, disk: &Arc<Disk>) -> Rig {
    Rig::with(name, Some(Arc::new(Shared(disk.clone()))))
}

fn persistence(host: &mut Actor, nsid: u32, set: Option<u32>) -> (Status, u32) {
    let opc = if set.is_some() { 9 } else { 10 };
    let sqe = Sqe { opc, nsid, cdw10: 0x83, cdw11: set.unwrap_or(0), ..Sqe::default() };
    let (status, value, _) = host.admin(sqe, &[], 0);
    (status, value)
}

#[test]
fn what_persists_is_there_after_a_restart() {
    let disk = disk();
    {
        let rig = rig("resv-kept", &disk);
        let (mut a, mut b) = (rig.tcp(1), rig.pcie_as(2));
        let (_, _, id) = a.admin(Sqe { opc: 6, nsid: 1, ..Sqe::default() }, &[], 4096);
        assert_eq!(id[31], 0xff);
        assert_eq!(b.register(0, 0, 2), SUCCESS);
        assert_eq!(disk.stores.load(Ordering::SeqCst), 0);
        assert_eq!((a.register(SET, 0, 1), a.report().ptpls), (SUCCESS, 1));
        assert_eq!(persistence(&mut b, 1, None), (SUCCESS, 1));
        assert_eq!(a.acquire(0, 3, 1, 0), SUCCESS);
        assert_eq!(disk.stores.load(Ordering::SeqCst), 2, "stored when it completes");
        assert_eq!(a.acquire(0, 3, 1, 0), SUCCESS);
        assert_eq!(disk.stores.load(Ordering::SeqCst), 2, "nothing is another");
    }
    {
        let rig = rig("resv-kept", &disk);
        let (mut b, mut c) = (rig.pcie_as(2), rig.tcp(3));
        let report = b.report();
        assert_eq!((report.generation, report.rtype, report.ptpls), (2, 3, 1));
        assert_eq!(report.registrants, [(1, 0, 2, 2), (0xffff, 1, 1, 1)]);
        assert_eq!((b.write(), c.write(), c.read()), (SUCCESS, CONFLICT, SUCCESS));
        assert_eq!((b.acquire(1, 1, 2, 1), b.register(CLEAR, 0, 2)), (SUCCESS, SUCCESS));
        assert!(disk.kept.lock().unwrap().is_none());
        assert_eq!(b.report().registrants.len(), 1);
    }
    let rig = rig("resv-kept", &disk);
    let report = rig.tcp(1).report();
    assert_eq!((report.rtype, report.ptpls, report.registrants.len()), (0, 0, 0));
}

/// As many registrants as there may be, with keys of their own choice, are there again; one more is not.
#[test]
fn e58_as_many_registrants_as_fit_are_kept() {
    let disk = disk();
    let before = {
        let rig = rig("resv-kept-many", &disk);
        let mut host = rig.pcie();
        for id in 1..=128 {
            assert_eq!(host.identify_as(&[id; 16]), SUCCESS);
            assert_eq!(host.register(SET, 0, u64::MAX - u64::from(id)), SUCCESS);
        }
        host.report()
    };
    assert_eq!(before.registrants.len(), 128);
    let rig = rig("resv-kept-many", &disk);
    let mut host = rig.pcie();
    assert_eq!(host.identify_as(&[200; 16]), SUCCESS);
    assert_eq!(host.register(SET, 0, 1), Status::INTERNAL_ERROR);
    assert_eq!(host.report().registrants.len(), 128);
    assert_eq!((host.identify_as(&[128; 16]), host.register(1, u64::MAX - 128, 0)), (SUCCESS, SUCCESS));
}

#[test]
fn what_cannot_be_stored_did_not_happen() {
    let disk = disk();
    let rig = rig("resv-full", &disk);
    let (mut a, mut b) = (rig.tcp(1), rig.tcp(2));
    assert_eq!((a.register(SET, 0, 1), b.register(0, 0, 2)), (SUCCESS, SUCCESS));
    disk.fails.store(true, Ordering::SeqCst);
    let failed = Status::INTERNAL_ERROR;
    assert_eq!((a.acquire(0, 2, 1, 0), b.register(1, 2, 0)), (failed, failed));
    assert_eq!((persistence(&mut a, 1, Some(0)).0, persistence(&mut a, 1, None).1), (failed, 1));
    assert_eq!((b.write(), b.report().registrants.len()), (SUCCESS, 2));
    disk.fails.store(false, Ordering::SeqCst);
    assert_eq!((a.acquire(0, 2, 1, 0), b.write()), (SUCCESS, CONFLICT));
}

#[test]
fn the_feature_is_a_namespaces() {
    let disk = disk();
    let rig = rig("resv-feature", &disk);
    let mut a = rig.pcie_as(1);
    assert_eq!(persistence(&mut a, 1, Some(1)), (SUCCESS, 0));
    assert_eq!((persistence(&mut a, 1, None), a.report().ptpls), ((SUCCESS, 1), 1));
    assert_eq!(persistence(&mut a, u32::MAX, Some(0)), (SUCCESS, 0));
    assert_eq!(persistence(&mut a, 1, None), (SUCCESS, 0));
    assert_eq!(persistence(&mut a, u32::MAX, None).0, Status::INVALID_FIELD);
    assert_eq!(persistence(&mut a, BEYOND, Some(1)).0, Status::INVALID_NAMESPACE_OR_FORMAT);
    rig.subsystem.add_namespace(namespace(2, 512, 1 << 20)).unwrap();
    assert_eq!(persistence(&mut a, 2, Some(1)).0, Status::INVALID_FIELD, "nothing keeps it");
    assert_eq!(persistence(&mut a, u32::MAX, Some(1)).0, Status::INVALID_FIELD);
    let save = Sqe { opc: 9, nsid: 1, cdw10: 1 << 31 | 0x83, cdw11: 1, ..Sqe::default() };
    assert_eq!(a.admin(save, &[], 0).0, Status::FEATURE_NOT_SAVEABLE);
}

#[test]
fn what_is_damaged_is_not_taken_for_nothing() {
    let disk = disk();
    let rig = rig("resv-damaged", &disk);
    *disk.kept.lock().unwrap() = Some(vec![1, 2, 3]);
    let added =
        rig.subsystem.add_persistent_namespace(namespace(2, 512, 1 << 20), Arc::new(Shared(disk.clone())));
    assert!(matches!(added, Err(SubsystemError::Kept(_))));
}
