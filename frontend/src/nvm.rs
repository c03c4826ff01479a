//! The NVM command set: opcodes into operations, and errors into statuses (NVM Command Set 1.1, 3.2 and 3.3).

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use engine::{IoError, Limits, Op};
use nvme_proto::nvm::{DsmCdw10, DsmCdw11, DsmRange, RwCdw12};
use nvme_proto::opcode::NvmOpcode;
use nvme_proto::reservation::{AcquireData, RegisterData, ReleaseData};
use nvme_proto::zerocopy::FromBytes;
use nvme_proto::{Sqe, Status};

/// Bytes of one Dataset Management range.
pub(crate) const RANGE_LEN: usize = size_of::<DsmRange>();

/// Bytes that one Verify checks at most (VSL).
pub(crate) const VERIFY_MAX: u64 = 8 << 20;

/// An operation on a run of blocks, checked against the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub op: Op,
    pub lba: u64,
    pub blocks: u32,
}

/// What an NVM command asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// One operation, with as many bytes of data if [`Op::has_data`].
    Blocks(Blocks),
    /// Read the blocks, for nobody.
    Verify(Blocks),
    /// Deallocate the ranges that the data lists: that many.
    Deallocate(usize),
    /// Nothing needs to be done.
    Nothing,
    /// Change the reservation, as that many bytes of data tell.
    Reserve(usize),
    /// Reservation Report.
    Report,
}

impl Command {
    /// Whether it may change what blocks read as.
    pub fn modifies(&self) -> bool {
        match self {
            Command::Blocks(blocks) => blocks.op.modifies(),
            Command::Deallocate(_) => true,
            Command::Verify(_) | Command::Nothing | Command::Reserve(_) | Command::Report => false,
        }
    }
}

/// What `sqe` asks of a namespace with `limits`; a command moves at most `max_bytes`.
///
/// # Errors
/// The status that the command completes with.
pub(crate) fn parse(sqe: &Sqe, limits: &Limits, max_bytes: u64) -> Result<Command, Status> {
    let able = |ability: bool| ability.then_some(()).ok_or(Status::INVALID_OPCODE.dnr());
    if sqe.flags.fuse() != 0 {
        return Err(Status::INVALID_FIELD.dnr());
    }
    let cdw12 = RwCdw12::from_bits(sqe.cdw12);
    let (deallocate, fua) = (cdw12.deac(), cdw12.fua());
    match sqe.nvm() {
        NvmOpcode::Flush => Ok(Command::Blocks(Blocks { op: Op::Flush, lba: 0, blocks: 0 })),
        NvmOpcode::Read => run(sqe, limits, Op::Read, max_bytes),
        NvmOpcode::Write => run(sqe, limits, Op::Write { fua }, max_bytes),
        NvmOpcode::Compare => {
            able(limits.compare)?;
            run(sqe, limits, Op::Compare, max_bytes)
        }
        NvmOpcode::Verify => match run(sqe, limits, Op::Read, VERIFY_MAX)? {
            Command::Blocks(blocks) => Ok(Command::Verify(blocks)),
            other => Ok(other),
        },
        NvmOpcode::WriteZeroes => {
            able(limits.write_zeroes)?;
            run(sqe, limits, Op::WriteZeroes { deallocate, fua }, u64::MAX)
        }
        NvmOpcode::DatasetManagement => {
            if !DsmCdw11::from_bits(sqe.cdw11).ad() || !limits.unmap {
                // Hints may be ignored.
                return Ok(Command::Nothing);
            }
            let nr_z = DsmCdw10::from_bits(sqe.cdw10).nr_z();
            Ok(Command::Deallocate(usize::from(nr_z).saturating_add(1)))
        }
        NvmOpcode::ReservationRegister => Ok(Command::Reserve(size_of::<RegisterData>())),
        NvmOpcode::ReservationAcquire => Ok(Command::Reserve(size_of::<AcquireData>())),
        NvmOpcode::ReservationRelease => Ok(Command::Reserve(size_of::<ReleaseData>())),
        NvmOpcode::ReservationReport => Ok(Command::Report),
        _ => Err(Status::INVALID_OPCODE.dnr()),
    }
}

/// The bits of CDW12 that ask for what no namespace here has: directives of what is written, command extensions. PRINFO
/// and STC are ignored where there is no protection information (NVM Command Set 1.1, 3.3.2 to 3.3.8).
fn wrong_bits(sqe: &Sqe) -> u32 {
    let writes = matches!(sqe.nvm(), NvmOpcode::Write | NvmOpcode::WriteZeroes);
    let refused = RwCdw12::new().with_dtype(if writes { 0xf } else { 0 }).with_cetype(0xf);
    sqe.cdw12 & refused.into_bits()
}

/// Whether a command must find on the medium what it reads: FUA (NVM Command Set 1.1, 3.3.4).
pub(crate) fn commits_first(sqe: &Sqe) -> bool {
    let reads = matches!(sqe.nvm(), NvmOpcode::Read | NvmOpcode::Compare | NvmOpcode::Verify);
    reads && RwCdw12::from_bits(sqe.cdw12).fua()
}

fn run(sqe: &Sqe, limits: &Limits, op: Op, max_bytes: u64) -> Result<Command, Status> {
    if wrong_bits(sqe) != 0 {
        return Err(Status::INVALID_FIELD.dnr());
    }
    let (lba, blocks) = (sqe.slba(), sqe.nlb());
    if !limits.contains(lba, blocks) {
        return Err(Status::LBA_OUT_OF_RANGE.dnr());
    }
    if u64::from(blocks).saturating_mul(u64::from(limits.block_size)) > max_bytes {
        return Err(Status::INVALID_FIELD.dnr());
    }
    Ok(Command::Blocks(Blocks { op, lba, blocks }))
}

/// The ranges of a Dataset Management command, all checked against the namespace; empty ones are left out.
///
/// # Errors
/// The status that the command completes with; nothing is deallocated then.
pub(crate) fn ranges(data: &[u8], limits: &Limits) -> Result<Vec<Blocks>, Status> {
    let mut ranges = Vec::new();
    for range in data.chunks_exact(RANGE_LEN) {
        let Ok(DsmRange { llb: blocks, slba: lba, .. }) = DsmRange::read_from_bytes(range) else { break };
        if !limits.contains(lba, blocks) {
            return Err(Status::LBA_OUT_OF_RANGE.dnr());
        }
        if blocks > 0 {
            ranges.push(Blocks { op: Op::Unmap, lba, blocks });
        }
    }
    Ok(ranges)
}

/// The status of an operation that failed. Statuses without DNR make the host try again.
pub(crate) fn status(error: IoError, op: Op) -> Status {
    match error {
        // Writes are lost: a second flush that succeeds would tell the host otherwise.
        IoError::WriteFault if op == Op::Flush => Status::WRITE_FAULT.dnr(),
        IoError::OutOfRange => Status::LBA_OUT_OF_RANGE.dnr(),
        IoError::ReadFault => Status::UNRECOVERED_READ_ERROR,
        IoError::WriteFault => Status::WRITE_FAULT,
        IoError::Miscompare => Status::COMPARE_FAILURE.dnr(),
        IoError::Unsupported => Status::INVALID_OPCODE.dnr(),
        IoError::Aborted => Status::ABORT_REQUESTED,
        IoError::Transient => Status::COMMAND_INTERRUPTED,
        IoError::Transfer => Status::TRANSIENT_TRANSPORT_ERROR,
        IoError::NoSpace => Status::CAPACITY_EXCEEDED.dnr(),
        IoError::ReadOnly => Status::NAMESPACE_WRITE_PROTECTED.dnr(),
        IoError::Conflict => Status::RESERVATION_CONFLICT.dnr(),
        IoError::Failed => Status::INTERNAL_ERROR.dnr(),
    }
}

/// Whether a command is one that some namespace may do.
pub(crate) fn is_known(sqe: &Sqe) -> bool {
    matches!(
        sqe.nvm(),
        NvmOpcode::Flush
            | NvmOpcode::Read
            | NvmOpcode::Write
            | NvmOpcode::Compare
            | NvmOpcode::WriteZeroes
            | NvmOpcode::DatasetManagement
            | NvmOpcode::Verify
    ) || is_reservation(sqe)
}

fn is_reservation(sqe: &Sqe) -> bool {
    matches!(
        sqe.nvm(),
        NvmOpcode::ReservationRegister
            | NvmOpcode::ReservationReport
            | NvmOpcode::ReservationAcquire
            | NvmOpcode::ReservationRelease
    )
}

/// The first block that a command names; 0 if it names none.
pub(crate) fn lba(sqe: &Sqe) -> u64 {
    match sqe.nvm() {
        NvmOpcode::Read
        | NvmOpcode::Write
        | NvmOpcode::Compare
        | NvmOpcode::WriteZeroes
        | NvmOpcode::Verify => sqe.slba(),
        _ => 0,
    }
}

/// The byte and the bit of a command that `status` refused, where one parameter is to blame (PEL of the error log).
pub(crate) fn location(sqe: &Sqe, status: Status) -> Option<(u8, u8)> {
    const FUSE: u8 = 1;
    const NSID: u8 = 4;
    const SLBA: u8 = 40;
    const NLB: u8 = 48;
    match status.code() {
        Status::INVALID_OPCODE => Some((0, 0)),
        Status::INVALID_NAMESPACE_OR_FORMAT => Some((NSID, 0)),
        Status::LBA_OUT_OF_RANGE if sqe.nvm() != NvmOpcode::DatasetManagement => Some((SLBA, 0)),
        Status::INVALID_FIELD if sqe.flags.fuse() != 0 => Some((FUSE, 0)),
        Status::INVALID_FIELD if sqe.flags.psdt() == 3 => Some((FUSE, 6)),
        // The action, the type, a key: its data may be to blame.
        Status::INVALID_FIELD if is_reservation(sqe) => None,
        Status::INVALID_FIELD => match wrong_bits(sqe) {
            0 => Some((NLB, 0)),
            bits => {
                let bit = u8::try_from(bits.trailing_zeros()).unwrap_or(0);
                Some((NLB.saturating_add(bit / 8), bit % 8))
            }
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(opcode: NvmOpcode, slba: u64, nlb_z: u32) -> Sqe {
        let mut sqe = Sqe { opc: opcode.0, nsid: 1, cdw12: nlb_z, ..Sqe::default() };
        sqe.set_slba(slba);
        sqe
    }

    #[test]
    fn reads_and_writes() {
        let limits = Limits::full(512, 1000);
        let sqe = command(NvmOpcode::Read, 992, 7);
        let want = Command::Blocks(Blocks { op: Op::Read, lba: 992, blocks: 8 });
        assert_eq!(parse(&sqe, &limits, 1 << 20), Ok(want));
        let sqe = command(NvmOpcode::Write, 0, 1 << 30);
        let want = Command::Blocks(Blocks { op: Op::Write { fua: true }, lba: 0, blocks: 1 });
        assert_eq!(parse(&sqe, &limits, 1 << 20), Ok(want));
    }

    /// E.51
    #[test]
    fn ranges_are_checked_without_wrapping() {
        let limits = Limits::full(4096, 1 << 20);
        let end = Err(Status::LBA_OUT_OF_RANGE.dnr());
        assert_eq!(parse(&command(NvmOpcode::Read, u64::MAX, 0xffff), &limits, 1 << 20), end);
        assert_eq!(parse(&command(NvmOpcode::Read, 1 << 20, 0), &limits, 1 << 20), end);
        assert_eq!(parse(&command(NvmOpcode::Write, (1 << 20) - 1, 1), &limits, 1 << 20), end);
        let large = Err(Status::INVALID_FIELD.dnr());
        assert_eq!(parse(&command(NvmOpcode::Read, 0, 256), &limits, 1 << 20), large);
        assert_eq!(parse(&command(NvmOpcode::Read, 0, 0xffff), &limits, 1 << 20), large);
        assert!(parse(&command(NvmOpcode::WriteZeroes, 0, 0xffff), &limits, 1 << 20).is_ok());
    }

    #[test]
    fn what_the_namespace_cannot_do_is_refused() {
        let limits = Limits { compare: false, write_zeroes: false, unmap: false, ..Limits::full(512, 8) };
        let invalid = Err(Status::INVALID_OPCODE.dnr());
        assert_eq!(parse(&command(NvmOpcode::Compare, 0, 0), &limits, 1 << 20), invalid);
        assert_eq!(parse(&command(NvmOpcode::WriteZeroes, 0, 0), &limits, 1 << 20), invalid);
        let hint = Sqe { cdw11: 4, ..command(NvmOpcode::DatasetManagement, 0, 0) };
        assert_eq!(parse(&hint, &limits, 1 << 20), Ok(Command::Nothing));
    }

    #[test]
    fn e57_verify_has_a_limit_of_its_own() {
        let limits = Limits::full(4096, 1 << 20);
        let verify = |nlb_z| parse(&command(NvmOpcode::Verify, 8, nlb_z), &limits, 4096);
        let blocks = Blocks { op: Op::Read, lba: 8, blocks: 2048 };
        assert_eq!(verify(2047), Ok(Command::Verify(blocks)));
        assert_eq!(verify(2048), Err(Status::INVALID_FIELD.dnr()));
        let end = command(NvmOpcode::Verify, (1 << 20) - 1, 1);
        assert_eq!(parse(&end, &limits, 4096), Err(Status::LBA_OUT_OF_RANGE.dnr()));
    }

    /// E.62
    #[test]
    fn directives_and_extensions_are_refused_and_protection_information_is_ignored() {
        let limits = Limits::full(512, 8);
        for (opcode, refused) in [(NvmOpcode::Write, 16..24), (NvmOpcode::Read, 16..20)] {
            for bit in 16..30 {
                let got = parse(&command(opcode, 0, 1 << bit), &limits, 1 << 20);
                let refusal = refused.contains(&bit).then_some(Status::INVALID_FIELD.dnr());
                assert_eq!(got.err(), refusal, "{opcode:?} bit {bit}");
            }
        }
        let mut fused = command(NvmOpcode::Write, 0, 0);
        fused.flags = fused.flags.with_fuse(1);
        assert_eq!(parse(&fused, &limits, 1 << 20), Err(Status::INVALID_FIELD.dnr()));
    }

    #[test]
    fn a_flush_that_has_lost_writes_is_not_to_be_tried_again() {
        assert!(status(IoError::WriteFault, Op::Flush).is_dnr());
        assert!(!status(IoError::Aborted, Op::Flush).is_dnr());
        assert!(!status(IoError::WriteFault, Op::Write { fua: false }).is_dnr());
    }

    /// E.56
    #[test]
    fn deallocation_lists() {
        let limits = Limits::full(512, 100);
        let range = |lba: u64, blocks: u32| {
            let mut r = [0u8; RANGE_LEN];
            r[4..8].copy_from_slice(&blocks.to_le_bytes());
            r[8..].copy_from_slice(&lba.to_le_bytes());
            r
        };
        let data = [range(0, 8), range(50, 0), range(92, 8)].concat();
        let got = ranges(&data, &limits).unwrap();
        assert_eq!(got.iter().map(|b| (b.lba, b.blocks)).collect::<Vec<_>>(), [(0, 8), (92, 8)]);
        let data = [range(0, 8), range(93, 8)].concat();
        assert_eq!(ranges(&data, &limits), Err(Status::LBA_OUT_OF_RANGE.dnr()));
        assert!(ranges(&range(u64::MAX, u32::MAX), &limits).is_err());
        let all = Sqe { cdw10: 255, cdw11: 4, ..command(NvmOpcode::DatasetManagement, 0, 0) };
        assert_eq!(parse(&all, &limits, 0), Ok(Command::Deallocate(nvme_proto::nvm::DSM_RANGES_MAX)));
    }
}
