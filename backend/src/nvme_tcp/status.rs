//! What an answer means for the I/O: the one place where an NVMe status becomes an [`IoError`].

use std::time::Duration;

use engine::{IoError, IoResult, Op};
use nvme_proto::Status;
use nvme_proto::status::sct;

use super::queue::Answer;

/// Tries after a status that says "not now" (as many as Linux makes).
const RETRIES: u16 = 5;
/// Tries while the path changes its state: with the pauses below, some two minutes.
const PATH_RETRIES: u16 = 120;
/// The longest pause before another try.
const LONGEST: Duration = Duration::from_secs(1);

/// What becomes of the I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It ends.
    End(IoResult),
    /// It is sent again after a pause.
    Again(Duration),
}

/// Judges an answer to `op`, which was tried `attempts` times before. `crdt` are the controller's command retry delays,
/// in 100 ms (Base 2.1, figure 101 and CRDT1 to CRDT3).
pub(super) fn judge(answer: &Answer, op: Op, attempts: u16, crdt: [u16; 3]) -> Verdict {
    let status = answer.status;
    let pause = pause(status, attempts, crdt);
    if status.is_success() {
        return match answer.damaged {
            false => Verdict::End(Ok(())),
            true if attempts < RETRIES => Verdict::Again(pause),
            true => Verdict::End(Err(IoError::Transfer)),
        };
    }
    let tries = match status.sct() {
        _ if status.is_dnr() => 0,
        sct::PATH if status.code() != Status::ASYMMETRIC_ACCESS_PERSISTENT_LOSS => PATH_RETRIES,
        // Whatever failed inside may have been a write-back: a second flush that succeeds would be a lie.
        _ if op == Op::Flush && status.code() == Status::INTERNAL_ERROR => 0,
        _ if may_pass(status) => RETRIES,
        _ => 0,
    };
    if attempts < tries { Verdict::Again(pause) } else { Verdict::End(Err(error(status, op))) }
}

fn pause(status: Status, attempts: u16, crdt: [u16; 3]) -> Duration {
    let told = usize::from(status.crd()).checked_sub(1).and_then(|i| crdt.get(i)).map_or(0, |&n| n);
    let own = Duration::from_millis(10 << attempts.min(7));
    own.max(Duration::from_millis(u64::from(told) * 100)).min(LONGEST)
}

/// Whether the same command may succeed a moment later.
fn may_pass(status: Status) -> bool {
    matches!(
        status.code(),
        Status::NAMESPACE_NOT_READY
            | Status::COMMAND_INTERRUPTED
            | Status::TRANSIENT_TRANSPORT_ERROR
            | Status::DATA_TRANSFER_ERROR
            | Status::INTERNAL_ERROR
            | Status::ABORT_REQUESTED
            | Status::ABORTED_SQ_DELETION
            | Status::ABORTED_PREEMPT_AND_ABORT
            | Status::FORMAT_IN_PROGRESS
            | Status::SANITIZE_IN_PROGRESS
    )
}

fn error(status: Status, op: Op) -> IoError {
    let fault = if op.modifies() || op == Op::Flush { IoError::WriteFault } else { IoError::ReadFault };
    match status.code() {
        Status::LBA_OUT_OF_RANGE => IoError::OutOfRange,
        Status::CAPACITY_EXCEEDED => IoError::NoSpace,
        Status::NAMESPACE_WRITE_PROTECTED | Status::WRITE_TO_READ_ONLY_RANGE => IoError::ReadOnly,
        Status::RESERVATION_CONFLICT | Status::ACCESS_DENIED => IoError::Conflict,
        Status::COMPARE_FAILURE => IoError::Miscompare,
        Status::UNRECOVERED_READ_ERROR
        | Status::DEALLOCATED_OR_UNWRITTEN
        | Status::GUARD_CHECK_ERROR
        | Status::APPLICATION_TAG_CHECK_ERROR
        | Status::REFERENCE_TAG_CHECK_ERROR
        | Status::STORAGE_TAG_CHECK_ERROR => IoError::ReadFault,
        Status::WRITE_FAULT => IoError::WriteFault,
        // Every namespace does these: the field that is invalid is the NSID of one that was taken away.
        Status::INVALID_FIELD if matches!(op, Op::Read | Op::Write { .. } | Op::Flush) => IoError::Failed,
        Status::INVALID_OPCODE | Status::INVALID_FIELD => IoError::Unsupported,
        Status::INVALID_NAMESPACE_OR_FORMAT | Status::ASYMMETRIC_ACCESS_PERSISTENT_LOSS => IoError::Failed,
        Status::DATA_TRANSFER_ERROR | Status::TRANSIENT_TRANSPORT_ERROR => IoError::Transfer,
        Status::ABORT_REQUESTED | Status::ABORTED_SQ_DELETION | Status::ABORTED_PREEMPT_AND_ABORT => {
            IoError::Aborted
        }
        code if may_pass(code) || code.is_path_error() => IoError::Transient,
        _ => fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: Status, attempts: u16) -> Verdict {
        judge(&Answer { status, result: 0, damaged: false }, Op::Read, attempts, [20, 0, 0])
    }

    #[test]
    fn each_status_has_its_meaning() {
        let write = Op::Write { fua: false };
        for (status, op, meaning) in [
            (Status::LBA_OUT_OF_RANGE, Op::Read, IoError::OutOfRange),
            (Status::COMPARE_FAILURE, Op::Compare, IoError::Miscompare),
            (Status::NAMESPACE_WRITE_PROTECTED, write, IoError::ReadOnly),
            (Status::RESERVATION_CONFLICT, write, IoError::Conflict),
            (Status::CAPACITY_EXCEEDED, write, IoError::NoSpace),
            (Status::INVALID_OPCODE, Op::Unmap, IoError::Unsupported),
            (Status::INVALID_FIELD, Op::Compare, IoError::Unsupported),
            (Status::INVALID_FIELD, Op::Read, IoError::Failed),
            (Status::new(7, 0x42), write, IoError::WriteFault),
            (Status::new(7, 0x42), Op::Read, IoError::ReadFault),
        ] {
            let answer = Answer { status: status.dnr(), result: 0, damaged: false };
            assert_eq!(judge(&answer, op, 0, [0; 3]), Verdict::End(Err(meaning)), "{status}");
        }
    }

    #[test]
    fn only_what_may_pass_is_tried_again_and_not_for_ever() {
        assert_eq!(judged(Status::SUCCESS, 0), Verdict::End(Ok(())));
        assert!(matches!(judged(Status::NAMESPACE_NOT_READY, 0), Verdict::Again(_)));
        assert_eq!(judged(Status::NAMESPACE_NOT_READY.dnr(), 0), Verdict::End(Err(IoError::Transient)));
        assert_eq!(judged(Status::NAMESPACE_NOT_READY, RETRIES), Verdict::End(Err(IoError::Transient)));
        assert!(matches!(judged(Status::ASYMMETRIC_ACCESS_TRANSITION, RETRIES), Verdict::Again(_)));
        assert_eq!(
            judged(Status::ASYMMETRIC_ACCESS_TRANSITION, PATH_RETRIES),
            Verdict::End(Err(IoError::Transient))
        );
        assert_eq!(judged(Status::ASYMMETRIC_ACCESS_PERSISTENT_LOSS, 0), Verdict::End(Err(IoError::Failed)));
        assert_eq!(judged(Status::UNRECOVERED_READ_ERROR, 0), Verdict::End(Err(IoError::ReadFault)));
    }

    #[test]
    fn a_flush_that_failed_inside_is_not_tried_again() {
        let answer = Answer { status: Status::INTERNAL_ERROR, result: 0, damaged: false };
        assert!(matches!(judge(&answer, Op::Flush, 0, [0; 3]), Verdict::End(Err(_))));
        assert!(matches!(judge(&answer, Op::Read, 0, [0; 3]), Verdict::Again(_)));
    }

    #[test]
    fn the_controllers_retry_delay_counts_up_to_a_bound() {
        assert_eq!(judged(Status::COMMAND_INTERRUPTED.with_crd(1), 0), Verdict::Again(LONGEST));
        assert_eq!(judged(Status::COMMAND_INTERRUPTED, 0), Verdict::Again(Duration::from_millis(10)));
        assert_eq!(judged(Status::ASYMMETRIC_ACCESS_TRANSITION, 100), Verdict::Again(LONGEST));
    }

    #[test]
    fn damaged_data_is_asked_for_again() {
        let answer = Answer { status: Status::SUCCESS, result: 0, damaged: true };
        assert!(matches!(judge(&answer, Op::Read, 0, [0; 3]), Verdict::Again(_)));
        assert_eq!(judge(&answer, Op::Read, RETRIES, [0; 3]), Verdict::End(Err(IoError::Transfer)));
    }
}
