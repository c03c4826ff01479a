//! What outlives the process: reservations whose PTPL is set.
//!
//! Layout, little-endian: a format (1 byte), GEN (4), RTYPE (1), the index of the holder among the registrants or FFFFh
//! (2), how many registrants there are (2), and for each: 1 if its identifier has 16 bytes (1), the identifier (16), its
//! key (8).

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use nvme_proto::reservation::ReservationType;

use super::HostId;
use super::state::{MAX_REGISTRANTS, Registrant, State, is_for_all};

const FORMAT: u8 = 1;
const NOBODY: u16 = 0xffff;
const REGISTRANT_LEN: usize = 25;

pub(super) fn encode(state: &State) -> Vec<u8> {
    let index = |host| state.registrants.iter().position(|r| r.host == host);
    let short = |n: usize| u16::try_from(n).unwrap_or(NOBODY);
    let holder = state.holder.and_then(index).map_or(NOBODY, short);
    let mut bytes = vec![FORMAT];
    bytes.extend(state.generation.to_le_bytes());
    bytes.push(state.rtype.0);
    bytes.extend(holder.to_le_bytes());
    bytes.extend(short(state.registrants.len()).to_le_bytes());
    for Registrant { host, key } in &state.registrants {
        bytes.push(host.is_extended().into());
        bytes.extend(host.bytes());
        bytes.extend(key.to_le_bytes());
    }
    bytes
}

/// The state that was kept; `None` if it is damaged.
pub(super) fn decode(bytes: &[u8]) -> Option<State> {
    let (header, list) = bytes.split_first_chunk::<10>()?;
    let [format, g0, g1, g2, g3, rtype, h0, h1, n0, n1] = *header;
    let (rtype, holder) = (ReservationType(rtype), u16::from_le_bytes([h0, h1]));
    let count = usize::from(u16::from_le_bytes([n0, n1]));
    let (list, rest) = list.as_chunks::<REGISTRANT_LEN>();
    if format != FORMAT || count != list.len() || !rest.is_empty() || count > MAX_REGISTRANTS || rtype.0 > 6 {
        return None;
    }
    let registrants: Option<Vec<Registrant>> = list
        .iter()
        .map(|entry| {
            let (extended, rest) = entry.split_first()?;
            let (host, key) = rest.split_first_chunk::<16>()?;
            let host = HostId::new(*host, *extended != 0)?;
            Some(Registrant { host, key: u64::from_le_bytes(key.try_into().ok()?) })
        })
        .collect();
    let registrants = registrants?;
    let holder = match holder {
        NOBODY => None,
        index => Some(registrants.get(usize::from(index))?.host),
    };
    let held = rtype != ReservationType::None;
    let sound = match held && is_for_all(rtype) {
        true => holder.is_none() && !registrants.is_empty(),
        false => holder.is_some() == held,
    };
    let generation = u32::from_le_bytes([g0, g1, g2, g3]);
    sound.then_some(State { generation, ptpl: true, rtype, holder, registrants })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_and_what_is_damaged_does_not() {
        let host = |n: u8| HostId::new([n; 16], true).unwrap();
        let state = State {
            generation: 0x0102_0304,
            ptpl: true,
            rtype: ReservationType::WriteExclusive,
            holder: Some(host(2)),
            registrants: (1..4).map(|n| Registrant { host: host(n), key: n.into() }).collect(),
        };
        let bytes = encode(&state);
        assert_eq!(decode(&bytes), Some(state.clone()));
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), None);
        }
        let damaged = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            decode(&bytes)
        };
        assert_eq!(damaged(0, 2), None, "format");
        assert_eq!(damaged(5, 7), None, "type");
        assert_eq!(damaged(5, 0), None, "a holder of nothing");
        assert_eq!(damaged(5, 5), None, "a holder where all hold");
        assert_eq!(damaged(6, 3), None, "a holder that is none");
        let none = State { rtype: ReservationType::None, holder: None, registrants: Vec::new(), ..state };
        assert_eq!(decode(&encode(&none)), Some(none));
    }
}
