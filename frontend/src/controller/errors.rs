//! The commands of a controller that failed, for the Error Information log page (Base 2.1, 5.1.12.1.2). Any of its
//! shards adds to it; it keeps the latest, so that no flood of errors makes it grow.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nvme_proto::log::ErrorEntry;
use nvme_proto::zerocopy::FromZeros;
use nvme_proto::{Sqe, Status};

use super::identify::ERRORS_Z;

/// No queue, no command, no parameter in particular.
const NONE: u16 = 0xffff;
/// LPVER of entries that tell CSI and OPC.
const VERSION: u8 = 1;

/// A command that failed.
pub(crate) struct Failure<'a> {
    pub sqid: u16,
    pub sqe: &'a Sqe,
    pub status: Status,
    /// The first block that went wrong; 0 where none did.
    pub lba: u64,
    /// PEL, where one parameter is wrong: its byte and its bit.
    pub location: Option<(u8, u8)>,
}

#[derive(Debug, Default)]
struct Log {
    /// Newest first.
    entries: VecDeque<ErrorEntry>,
    count: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct ErrorLog(Mutex<Log>);

impl ErrorLog {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a command.
    pub fn note(&self, failure: Failure<'_>) {
        let Failure { sqid, sqe, status, lba, location } = failure;
        let mut entry = ErrorEntry::new_zeroed();
        (entry.sqid, entry.cid, entry.nsid, entry.opc) = (sqid, sqe.cid, sqe.nsid, sqe.opc);
        entry.sts = status.with_phase(false);
        entry.lba = lba;
        entry.pel = location.map_or(NONE, |(byte, bit)| u16::from_le_bytes([byte, bit & 7]));
        self.add(entry);
    }

    /// Adds an error that is no command's: a doorbell that makes no sense.
    pub fn note_event(&self, status: Status) {
        let mut entry = ErrorEntry::new_zeroed();
        (entry.sqid, entry.cid, entry.pel) = (NONE, NONE, NONE);
        entry.sts = status.with_phase(false);
        self.add(entry);
    }

    fn add(&self, mut entry: ErrorEntry) {
        let mut log = self.log();
        log.count = log.count.saturating_add(1);
        entry.ecnt = log.count;
        entry.lpver = VERSION;
        log.entries.truncate(usize::from(ERRORS_Z));
        log.entries.push_front(entry);
    }

    /// The entries, newest first.
    pub fn entries(&self) -> Vec<ErrorEntry> {
        self.log().entries.iter().copied().collect()
    }

    /// Errors so far.
    pub fn count(&self) -> u64 {
        self.log().count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_the_latest() {
        let log = ErrorLog::default();
        for cid in 0..1000u16 {
            let sqe = Sqe { opc: 2, cid, nsid: 7, ..Sqe::default() };
            let status = Status::LBA_OUT_OF_RANGE.dnr();
            log.note(Failure { sqid: 3, sqe: &sqe, status, lba: 9, location: Some((40, 0)) });
        }
        let entries = log.entries();
        assert_eq!((entries.len(), log.count()), (64, 1000));
        let first = entries[0];
        assert_eq!((first.ecnt, first.sqid, first.cid, first.nsid, first.opc), (1000, 3, 999, 7, 2));
        assert_eq!((first.lba, first.pel, first.sts.status()), (9, 40, Status::LBA_OUT_OF_RANGE.dnr()));
        assert_eq!(entries[63].ecnt, 937);
    }
}
