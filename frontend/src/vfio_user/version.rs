//! Version negotiation: the JSON that VERSION carries both ways.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use serde_json::Value;

/// Major version of the protocol that this server speaks.
pub const MAJOR: u16 = 0;
/// Minor version.
pub const MINOR: u16 = 1;
/// Descriptors that one message may bring.
pub const MAX_FDS: usize = 16;
/// Guest regions that a client may have mapped at one time.
pub const MAX_DMA_MAPS: usize = 4096;
/// Bytes of data in one message.
pub const MAX_DATA: usize = 1 << 20;

/// What a client says it can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Descriptors in one message to it.
    pub max_msg_fds: usize,
    /// Bytes of data in one message, either way.
    pub max_data_xfer_size: usize,
}

impl Default for Capabilities {
    /// The specification's values where the client says nothing.
    fn default() -> Self {
        Capabilities { max_msg_fds: 1, max_data_xfer_size: MAX_DATA }
    }
}

impl Capabilities {
    /// Parses what follows the version numbers: nothing, or JSON, with or without a NUL at its end. `None` if it is
    /// neither. What is not known is passed over.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.split(|b| *b == 0).next().unwrap_or_default();
        let mut found = Self::default();
        if bytes.is_empty() {
            return Some(found);
        }
        let json: Value = serde_json::from_slice(bytes).ok()?;
        let number = |name: &str| {
            let value = json.get("capabilities")?.get(name)?.as_u64()?;
            Some(usize::try_from(value).unwrap_or(usize::MAX))
        };
        if let Some(fds) = number("max_msg_fds") {
            found.max_msg_fds = fds;
        }
        if let Some(bytes) = number("max_data_xfer_size") {
            // A client that takes less than a page at a time would have us send a message per few bytes.
            found.max_data_xfer_size = (bytes >= 4096).then_some(bytes.min(MAX_DATA))?;
        }
        Some(found)
    }

    /// What this server says: JSON with a NUL at its end. `write_multiple` is not offered, since a client's flag for
    /// it is known to collide with another; nor are migration and twin sockets.
    pub fn ours() -> Vec<u8> {
        let json = serde_json::json!({ "capabilities": {
            "max_msg_fds": MAX_FDS,
            "max_dma_maps": MAX_DMA_MAPS,
            "max_data_xfer_size": MAX_DATA,
            "pgsizes": 4096,
        }});
        let mut bytes = json.to_string().into_bytes();
        bytes.push(0);
        bytes
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
mod tests {
    use super::*;

    #[test]
    fn what_qemu_sends() {
        let json = br#"{"capabilities":{"pgsizes":4096,"max_msg_fds":16,"max_dma_maps":65535,"max_data_xfer_size":1048576,"migration":{"pgsize":4096},"write_multiple":true}}"#;
        let want = Capabilities { max_msg_fds: 16, max_data_xfer_size: 1 << 20 };
        assert_eq!(Capabilities::parse(json), Some(want));
        let mut with_nul = json.to_vec();
        with_nul.push(0);
        assert_eq!(Capabilities::parse(&with_nul), Some(want));
        assert_eq!(Capabilities::parse(b""), Some(Capabilities::default()));
        assert_eq!(Capabilities::parse(b"{}\0"), Some(Capabilities::default()));
    }

    #[test]
    fn f64_json_that_is_none() {
        assert_eq!(Capabilities::parse(b"{\"a\xff\":1}"), None);
        assert_eq!(Capabilities::parse(&b"[".repeat(100_000)), None, "nested deeply");
        assert_eq!(Capabilities::parse(b"{\"capabilities\":"), None);
        assert_eq!(Capabilities::parse(b"{\"capabilities\":{\"max_data_xfer_size\":1}}"), None);
        let none = Capabilities::parse(b"{\"capabilities\":{\"max_msg_fds\":0}}").unwrap();
        assert_eq!(none.max_msg_fds, 0);
        let odd = b"{\"capabilities\":{\"max_msg_fds\":-1,\"max_data_xfer_size\":1e300}}";
        assert_eq!(Capabilities::parse(odd), Some(Capabilities::default()));
    }

    #[test]
    fn our_own_is_json_without_write_multiple() {
        let ours = Capabilities::ours();
        let json: Value = serde_json::from_slice(&ours[..ours.len() - 1]).unwrap();
        assert!(json["capabilities"].get("write_multiple").is_none());
        assert_eq!(Capabilities::parse(&ours).unwrap().max_data_xfer_size, MAX_DATA);
    }
}
