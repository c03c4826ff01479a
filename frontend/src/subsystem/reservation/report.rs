//! Reservation Report (Base 2.1, 7.8).

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use std::collections::BTreeMap;

use nvme_proto::Status;
use nvme_proto::fabrics::CNTLID_DYNAMIC;
use nvme_proto::reservation::{
    EXTENDED_HEADER_LEN, ExtendedRegistrant, RCSTS_HOLDER, Registrant, ReportHeader,
};
use nvme_proto::zerocopy::{FromZeros, IntoBytes};

use super::HostId;
use super::state::State;

/// The data structure; `controllers` has the CNTLID of each host that a static controller serves.
///
/// # Errors
/// The identifiers that are registered, or `asks`' own, do not have the format that `extended` asks for.
pub(super) fn report(
    state: &State,
    asks: HostId,
    extended: bool,
    controllers: &BTreeMap<HostId, u16>,
) -> Result<Vec<u8>, Status> {
    let format = state.registrants.first().map_or(asks, |r| r.host);
    if format.is_extended() != extended {
        return Err(Status::HOST_ID_INCONSISTENT_FORMAT);
    }
    let mut header = ReportHeader::new_zeroed();
    header.generation = state.generation;
    header.rtype = state.rtype;
    header.regstrnt.set(u16::try_from(state.registrants.len()).unwrap_or(u16::MAX));
    header.ptpls = state.ptpl.into();
    let mut bytes = header.as_bytes().to_vec();
    if extended {
        bytes.resize(EXTENDED_HEADER_LEN, 0);
    }
    for registrant in &state.registrants {
        let cntlid = controllers.get(&registrant.host).copied().unwrap_or(CNTLID_DYNAMIC);
        let rcsts = if state.holds(registrant.host) { RCSTS_HOLDER } else { 0 };
        let hostid = registrant.host.bytes();
        match hostid.first_chunk() {
            Some(short) if !extended => {
                let hostid = u64::from_le_bytes(*short);
                let entry = Registrant { cntlid, rcsts, reserved3: [0; 5], hostid, rkey: registrant.key };
                bytes.extend(entry.as_bytes());
            }
            _ => {
                let mut entry = ExtendedRegistrant::new_zeroed();
                (entry.cntlid, entry.rcsts, entry.rkey) = (cntlid, rcsts, registrant.key);
                entry.hostid = hostid;
                bytes.extend(entry.as_bytes());
            }
        }
    }
    Ok(bytes)
}
