//! Checks that volumes have in common.

use tonic::Status;
use uuid::Uuid;

use super::object::Claim;

/// Most bytes of a volume: an exbibyte.
const MAX_BYTES: u64 = 1 << 60;

/// The refusal of a field.
pub(super) fn invalid(field: &str, why: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {why}"))
}

/// The block size in bytes.
pub(super) fn block_size(field: &str, value: i64) -> Result<u32, Status> {
    match value {
        512 => Ok(512),
        4096 => Ok(4096),
        _ => Err(invalid(field, "must be 512 or 4096")),
    }
}

/// Block size in bytes and count of a volume that has at least one block.
pub(super) fn geometry(message: &str, size: i64, count: i64) -> Result<(u32, u64), Status> {
    let size = block_size(&format!("{message}.block_size"), size)?;
    let field = format!("{message}.blocks_count");
    let count = u64::try_from(count).ok().filter(|count| *count > 0);
    let count = count.ok_or_else(|| invalid(&field, "must be positive"))?;
    match count.checked_mul(u64::from(size)) {
        Some(bytes) if bytes <= MAX_BYTES => Ok((size, count)),
        _ => Err(invalid(&field, "the volume would be larger than an exbibyte")),
    }
}

/// The UUID in a field; `None` if it is empty.
pub(super) fn uuid(field: &str, text: &str) -> Result<Option<Uuid>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    match Uuid::try_parse(text) {
        Ok(uuid) if !uuid.is_nil() => Ok(Some(uuid)),
        _ => Err(invalid(field, "not a UUID")),
    }
}

/// The claim on a UUID.
pub(super) fn uuid_claim(text: &str) -> Option<Claim> {
    Uuid::try_parse(text).ok().map(|uuid| Claim { what: "UUID", value: uuid.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_cannot_be_are_refused_by_field() {
        assert_eq!(geometry("v", 512, 64).unwrap(), (512, 64));
        assert_eq!(geometry("v", 4096, 1 << 48).unwrap(), (4096, 1 << 48));
        for (size, count, why) in [
            (0, 1, "v.block_size: must be 512 or 4096"),
            (-512, 1, "v.block_size: must be 512 or 4096"),
            (i64::MAX, 1, "v.block_size: must be 512 or 4096"),
            (512, 0, "v.blocks_count: must be positive"),
            (512, -1, "v.blocks_count: must be positive"),
            (512, i64::MAX, "v.blocks_count: the volume would be larger than an exbibyte"),
            (4096, (1 << 48) + 1, "v.blocks_count: the volume would be larger than an exbibyte"),
        ] {
            assert_eq!(geometry("v", size, count).unwrap_err().message(), why);
        }
    }

    #[test]
    fn uuids_are_checked() {
        assert_eq!(uuid("v.uuid", "").unwrap(), None);
        assert!(uuid("v.uuid", "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb").unwrap().is_some());
        for wrong in ["x", "00000000-0000-0000-0000-000000000000"] {
            assert_eq!(uuid("v.uuid", wrong).unwrap_err().message(), "v.uuid: not a UUID");
        }
    }
}
