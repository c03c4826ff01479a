//! NVM commands as a load asks for them.

use nvme_proto::Sqe;
use nvme_proto::opcode::NvmOpcode;

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read.
    Read,
    /// Write; with FUA if set.
    Write {
        /// Force Unit Access.
        fua: bool,
    },
    /// Flush.
    Flush,
    /// Write Zeroes; deallocating if set.
    WriteZeroes {
        /// DEAC.
        deallocate: bool,
    },
    /// Dataset Management, one range, deallocate.
    Deallocate,
    /// Compare.
    Compare,
}

/// One NVM command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// What it does.
    pub kind: Kind,
    /// First block.
    pub lba: u64,
    /// Blocks, 1 to 65536; ignored by Flush.
    pub blocks: u32,
}

impl Command {
    /// Whether data goes from the host to the controller.
    pub fn sends(&self) -> bool {
        matches!(self.kind, Kind::Write { .. } | Kind::Compare | Kind::Deallocate)
    }

    /// Bytes of data, either way.
    pub fn data_len(&self, block_size: u32) -> usize {
        match self.kind {
            Kind::Read | Kind::Write { .. } | Kind::Compare => self.blocks as usize * block_size as usize,
            Kind::Deallocate => 16,
            Kind::Flush | Kind::WriteZeroes { .. } => 0,
        }
    }

    /// The range of a Dataset Management command.
    pub fn dsm_range(&self) -> [u8; 16] {
        let mut range = [0; 16];
        range[4..8].copy_from_slice(&self.blocks.to_le_bytes());
        range[8..].copy_from_slice(&self.lba.to_le_bytes());
        range
    }

    /// The entry, without its data pointer.
    pub fn sqe(&self, cid: u16, nsid: u32) -> Sqe {
        let nlb_z = self.blocks.wrapping_sub(1) & 0xffff;
        let (opcode, cdw12) = match self.kind {
            Kind::Read => (NvmOpcode::Read, nlb_z),
            Kind::Write { fua } => (NvmOpcode::Write, nlb_z | u32::from(fua) << 30),
            Kind::Flush => (NvmOpcode::Flush, 0),
            Kind::WriteZeroes { deallocate } => (NvmOpcode::WriteZeroes, nlb_z | u32::from(deallocate) << 25),
            Kind::Deallocate => (NvmOpcode::DatasetManagement, 0),
            Kind::Compare => (NvmOpcode::Compare, nlb_z),
        };
        let mut sqe = Sqe { opc: opcode.0, cid, nsid, cdw12, ..Sqe::default() };
        match self.kind {
            Kind::Flush => {}
            // One range (NR is zero-based), AD set.
            Kind::Deallocate => sqe.cdw11 = 1 << 2,
            _ => sqe.set_slba(self.lba),
        }
        sqe
    }
}
