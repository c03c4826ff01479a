#![forbid(unsafe_code)]
//! Where blocks live. Each volume here passes the engine's conformance kit.

pub mod file;
pub mod null;
pub mod nvme_tcp;
pub mod ram;

use std::io;

/// Bytes in a volume of `blocks` blocks of `block_size` bytes.
///
/// # Errors
/// `InvalidInput`, in words for a person: no blocks, a block size that is no power of two from 512 to 65536, or more
/// bytes than a file offset can say.
fn bytes_of(block_size: u32, blocks: u64) -> io::Result<u64> {
    let invalid = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    if !block_size.is_power_of_two() || !(512..=65536).contains(&block_size) {
        return invalid(format!("block size {block_size} is not a power of two from 512 to 65536"));
    }
    match blocks.checked_mul(u64::from(block_size)).filter(|&bytes| i64::try_from(bytes).is_ok()) {
        Some(0) => invalid("a volume needs at least one block".into()),
        Some(bytes) => Ok(bytes),
        None => invalid(format!("{blocks} blocks of {block_size} bytes are more than a volume can have")),
    }
}

#[cfg(test)]
mod tests {
    use super::bytes_of;

    #[test]
    fn impossible_volumes_are_refused_with_the_reason() {
        assert_eq!(bytes_of(4096, 3).unwrap(), 12288);
        for (block_size, blocks, why) in [
            (0, 1, "power"),
            (513, 1, "power"),
            (1 << 17, 1, "power"),
            (512, 0, "one block"),
            (512, 1 << 54, "more"),
        ] {
            let e = bytes_of(block_size, blocks).unwrap_err();
            assert!(e.kind() == std::io::ErrorKind::InvalidInput && e.to_string().contains(why), "{e}");
        }
    }
}
