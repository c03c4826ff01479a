//! An I/O on its way to the remote, and the commands that it becomes (NVM Command Set 1.1, 3.2 and 3.3).

use std::ops::Range;
use std::rc::Rc;

use engine::mem::{Buf, Sgl};
use engine::{Io, Op};
use nvme_proto::Sqe;
use nvme_proto::nvm::{DsmCdw11, DsmRange, RwCdw12};
use nvme_proto::opcode::NvmOpcode;
use nvme_proto::zerocopy::IntoBytes;

use super::channel::NamespaceChannel;
use super::queue::Way;

/// Blocks that a command's NLB can name.
const MAX_NLB: u32 = 1 << 16;

/// How much one command may cover, where [`engine::Limits`] knows no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spans {
    /// Blocks of one Write Zeroes (WZSL or MDTS).
    pub write_zeroes: u32,
    /// Blocks of one Dataset Management range (DMRSL).
    pub deallocate: u32,
}

/// An I/O that a namespace's channel has taken.
pub(super) struct Issued {
    pub io: Io,
    pub channel: Rc<NamespaceChannel>,
    /// How often it was sent and answered with a status that allows another try.
    pub attempts: u16,
    /// Blocks that earlier commands of this I/O have covered.
    done: u32,
    /// Blocks of the command that is out.
    out: u32,
    /// The range list of Dataset Management.
    ranges: Sgl,
}

impl Issued {
    pub fn new(io: Io, channel: Rc<NamespaceChannel>) -> Self {
        Issued { io, channel, attempts: 0, done: 0, out: 0, ranges: Sgl::empty() }
    }

    /// The memory of the command that is out.
    pub fn data(&self) -> &Sgl {
        if self.io.op().has_data() { self.io.sgl() } else { &self.ranges }
    }

    /// The blocks that the command that is out may change.
    pub fn blocks_changed(&self) -> Option<Range<u64>> {
        let start = self.io.lba().saturating_add(u64::from(self.done));
        (self.io.op().modifies() && self.out > 0).then(|| start..start.saturating_add(u64::from(self.out)))
    }

    /// The command is not out: the connection ended before it was sent.
    pub fn not_sent(&mut self) {
        self.out = 0;
    }

    /// The blocks that the I/O touches; none for a flush.
    pub fn blocks(&self) -> Range<u64> {
        let start = self.io.lba();
        start..start.saturating_add(u64::from(self.io.blocks()))
    }

    /// The next command, on namespace `nsid`.
    pub fn command(&mut self, nsid: u32, spans: Spans) -> (Sqe, Way) {
        let lba = self.io.lba().saturating_add(u64::from(self.done));
        let left = self.io.blocks().saturating_sub(self.done);
        let (opcode, span) = match self.io.op() {
            Op::Read => (NvmOpcode::Read, MAX_NLB),
            Op::Write { .. } => (NvmOpcode::Write, MAX_NLB),
            Op::Compare => (NvmOpcode::Compare, MAX_NLB),
            Op::Flush => (NvmOpcode::Flush, MAX_NLB),
            Op::WriteZeroes { .. } => (NvmOpcode::WriteZeroes, spans.write_zeroes.clamp(1, MAX_NLB)),
            Op::Unmap => (NvmOpcode::DatasetManagement, spans.deallocate.max(1)),
        };
        let blocks = left.min(span);
        self.out = blocks;
        let mut sqe = Sqe { opc: opcode.0, nsid, ..Sqe::default() };
        let rw = RwCdw12::new().with_nlb_z(u16::try_from(blocks.saturating_sub(1)).unwrap_or(u16::MAX));
        match self.io.op() {
            Op::Flush => return (sqe, Way::Out),
            Op::Unmap => {
                // One range: NR is zero-based.
                sqe.cdw11 = DsmCdw11::new().with_ad(true).into_bits();
                let range = DsmRange { cattr: 0, llb: blocks, slba: lba };
                self.ranges = Buf::new(size_of::<DsmRange>()).into_sgl(size_of::<DsmRange>());
                self.ranges.copy_in(0, range.as_bytes());
                return (sqe, Way::Out);
            }
            Op::Read | Op::Compare => sqe.cdw12 = rw.into_bits(),
            Op::Write { fua } => sqe.cdw12 = rw.with_fua(fua).into_bits(),
            Op::WriteZeroes { deallocate, fua } => {
                sqe.cdw12 = rw.with_fua(fua).with_deac(deallocate).into_bits();
            }
        }
        sqe.set_slba(lba);
        (sqe, if self.io.op() == Op::Read { Way::In } else { Way::Out })
    }

    /// The command that was out succeeded. Whether the I/O needs another.
    pub fn advance(&mut self) -> bool {
        self.done = self.done.saturating_add(self.out);
        self.out = 0;
        self.done < self.io.blocks() && self.io.op() != Op::Flush
    }
}

/// What is left of an I/O that was taken back while the controller had its command.
pub(super) struct Ghost {
    /// A copy of the data that it may still ask for.
    pub data: Sgl,
    /// Where in the command's data that copy begins.
    pub base: usize,
    /// Whose it was.
    pub channel: Rc<NamespaceChannel>,
    /// Blocks that the command may still change.
    pub range: Option<Range<u64>>,
}
