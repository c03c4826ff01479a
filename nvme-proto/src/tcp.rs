//! NVMe/TCP PDUs (NVMe/TCP Transport 1.1, 3.6).

use crc_fast::{CrcAlgorithm, Digest};
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::command::{Cqe, Sqe};

/// PDU types.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum PduType {
    /// Initialize Connection Request.
    IcReq = 0x00,
    /// Initialize Connection Response.
    IcResp = 0x01,
    /// Host to Controller Terminate Connection Request.
    H2cTermReq = 0x02,
    /// Controller to Host Terminate Connection Request.
    C2hTermReq = 0x03,
    /// Command Capsule.
    CapsuleCmd = 0x04,
    /// Response Capsule.
    CapsuleResp = 0x05,
    /// Host to Controller Data Transfer.
    H2cData = 0x06,
    /// Controller to Host Data Transfer.
    C2hData = 0x07,
    /// Ready to Transfer.
    R2t = 0x09,
}

/// The digest of a header, or of the data of a PDU: CRC32C (NVMe/TCP 1.1, "PDU Header and Data Digests").
pub fn digest(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// The digest of what has the digest `of`, and `bytes` after it.
pub fn digest_append(of: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!of));
    digest.update(bytes);
    let [a, b, c, d, ..] = digest.finalize().to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Bits of the common header's FLAGS.
pub mod flags {
    /// A header digest follows the header.
    pub const HDGSTF: u8 = 1 << 0;
    /// A data digest follows the data.
    pub const DDGSTF: u8 = 1 << 1;
    /// The last data PDU of its R2T, or of its command.
    pub const LAST_PDU: u8 = 1 << 2;
    /// The command succeeded: no response capsule follows (C2HData).
    pub const SUCCESS: u8 = 1 << 3;
}

/// Bytes of a digest.
pub const DIGEST_LEN: usize = 4;
/// Bytes of a TermReq PDU at most: its header and 128 bytes of the PDU that was wrong.
pub const TERM_REQ_MAX: u32 = 152;
/// The least MAXH2CDATA.
pub const MAXH2CDATA_MIN: u32 = 4096;
/// The largest HPDA or CPDA, zero-based dwords.
pub const PDA_MAX_Z: u8 = 31;
/// The only PDU format version.
pub const PFV: u16 = 0;

/// The header that every PDU begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CommonHdr {
    /// PDU-Type.
    pub pdu_type: PduType,
    /// FLAGS.
    pub flags: u8,
    /// HLEN: bytes of the header, without digest.
    pub hlen: u8,
    /// PDO: where the data begins; 0 for none.
    pub pdo: u8,
    /// PLEN: bytes of the PDU, all told.
    pub plen: u32,
}

/// Digests that a side asks for or grants: DGST.
pub mod dgst {
    /// Header digest.
    pub const HDGST_ENABLE: u8 = 1 << 0;
    /// Data digest.
    pub const DDGST_ENABLE: u8 = 1 << 1;
}

/// ICReq.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IcReq {
    /// Common header.
    pub ch: CommonHdr,
    /// PFV.
    pub pfv: u16,
    /// HPDA: alignment of data that the host wants, zero-based dwords.
    pub hpda_z: u8,
    /// DGST.
    pub dgst: u8,
    /// MAXR2T: outstanding R2Ts of a command, zero-based.
    pub maxr2t_z: u32,
    /// Reserved.
    pub reserved: [u8; 112],
}

/// ICResp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IcResp {
    /// Common header.
    pub ch: CommonHdr,
    /// PFV.
    pub pfv: u16,
    /// CPDA: alignment of data that the controller wants, zero-based dwords.
    pub cpda_z: u8,
    /// DGST.
    pub dgst: u8,
    /// MAXH2CDATA: bytes of data in one H2CData PDU at most.
    pub maxh2cdata: u32,
    /// Reserved.
    pub reserved: [u8; 112],
}

/// Fatal Error Status.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u16)]
pub enum Fes {
    /// Invalid PDU Header Field; FEI is the field's offset.
    InvalidHeaderField = 1,
    /// PDU Sequence Error.
    PduSequenceError = 2,
    /// Header Digest Error; FEI is the digest received.
    HeaderDigestError = 3,
    /// Data Transfer Out of Range.
    DataOutOfRange = 4,
    /// Data Transfer Limit Exceeded (controller), R2T Limit Exceeded (host).
    LimitExceeded = 5,
    /// Unsupported Parameter.
    UnsupportedParameter = 6,
}

/// H2CTermReq and C2HTermReq: the header; up to 128 bytes of the offending PDU's header follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TermReq {
    /// Common header.
    pub ch: CommonHdr,
    /// FES.
    pub fes: Fes,
    /// FEI, a dword that is not aligned: low half.
    pub fei_lo: u16,
    /// FEI: high half.
    pub fei_hi: u16,
    /// Reserved.
    pub reserved: [u8; 10],
}

/// CapsuleCmd: the header; in-capsule data may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CapsuleCmd {
    /// Common header.
    pub ch: CommonHdr,
    /// CCSQE.
    pub sqe: Sqe,
}

/// CapsuleResp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CapsuleResp {
    /// Common header.
    pub ch: CommonHdr,
    /// RCCQE.
    pub cqe: Cqe,
}

/// H2CData and C2HData: the header; data follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DataHdr {
    /// Common header.
    pub ch: CommonHdr,
    /// CCCID: the command.
    pub cccid: u16,
    /// TTAG (H2CData): the R2T's tag.
    pub ttag: u16,
    /// DATAO: where in the command's data this lies.
    pub datao: u32,
    /// DATAL: bytes.
    pub datal: u32,
    /// Reserved.
    pub reserved: u32,
}

/// R2T.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct R2t {
    /// Common header.
    pub ch: CommonHdr,
    /// CCCID: the command.
    pub cccid: u16,
    /// TTAG: what the H2CData PDUs of this transfer carry.
    pub ttag: u16,
    /// R2TO: where in the command's data it begins.
    pub r2to: u32,
    /// R2TL: bytes.
    pub r2tl: u32,
    /// Reserved.
    pub reserved: u32,
}

sizes!(
    CommonHdr = 8,
    IcReq = 128,
    IcResp = 128,
    TermReq = 24,
    CapsuleCmd = 72,
    CapsuleResp = 24,
    DataHdr = 24,
    R2t = 24,
);

impl PduType {
    /// HLEN that a PDU of this type has; `None` for types that do not exist.
    pub const fn hlen(self) -> Option<u8> {
        Some(match self {
            PduType::IcReq | PduType::IcResp => 128,
            PduType::CapsuleCmd => 72,
            PduType::H2cTermReq
            | PduType::C2hTermReq
            | PduType::CapsuleResp
            | PduType::H2cData
            | PduType::C2hData
            | PduType::R2t => 24,
            _ => return None,
        })
    }

    /// Whether PDUs of this type may carry data, and so a data digest.
    pub const fn has_data(self) -> bool {
        matches!(self, PduType::CapsuleCmd | PduType::H2cData | PduType::C2hData)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_icreq_as_linux_sends_it() {
        let mut bytes = [0u8; 128];
        bytes[2] = 128;
        bytes[4] = 128;
        bytes[11] = 3;
        let req = IcReq::read_from_bytes(&bytes).unwrap();
        assert_eq!(req.ch, CommonHdr { pdu_type: PduType::IcReq, flags: 0, hlen: 128, pdo: 0, plen: 128 });
        assert_eq!(
            (req.pfv, req.hpda_z, req.dgst, req.maxr2t_z),
            (0, 0, dgst::HDGST_ENABLE | dgst::DDGST_ENABLE, 0)
        );
        assert_eq!(req.as_bytes(), bytes);
    }

    /// An implementation of its own says the same, of all lengths and in two parts.
    #[test]
    fn digests_are_crc32c() {
        assert_eq!(digest(b"123456789"), 0xe306_9283, "the check value of CRC-32/ISCSI");
        let bytes: [u8; 9000] = core::array::from_fn(|i| (i * i + i / 7) as u8);
        for len in (0..600).chain([4096, 4100, 8191, 9000]) {
            let (whole, at) = (&bytes[9000 - len..], len / 3);
            assert_eq!(digest(whole), crc32c::crc32c(whole), "{len} bytes");
            assert_eq!(
                digest_append(digest(&whole[..at]), &whole[at..]),
                digest(whole),
                "{at} of {len} bytes"
            );
        }
    }

    #[test]
    fn header_lengths_are_the_structures() {
        assert_eq!(PduType::CapsuleCmd.hlen(), Some(size_of::<CapsuleCmd>() as u8));
        assert_eq!(PduType::R2t.hlen(), Some(size_of::<R2t>() as u8));
        assert_eq!(PduType(8).hlen(), None);
        assert_eq!(core::mem::offset_of!(TermReq, fei_lo), 10);
        assert_eq!(core::mem::offset_of!(DataHdr, datal), 16);
    }
}
