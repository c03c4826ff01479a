//! From Debian's kernel image to the ELF file that QEMU's `-kernel` enters directly (PVH), without a boot loader.

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};

/// The ELF kernel inside a bzImage (Linux documentation, "The Linux/x86 Boot Protocol").
///
/// # Errors
/// Fails on an image that is not a bzImage of protocol 2.08 or later, or is packed in a way other than xz or zstd.
pub fn vmlinux(image: &[u8]) -> Result<Vec<u8>> {
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "not a bzImage");
    let setup_sectors = match image.get(0x1f1) {
        Some(0) | None => 4,
        Some(&sectors) => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + field(image, 0x248)?;
    let payload =
        image.get(start..start + field(image, 0x24c)?).context("the payload lies outside the image")?;
    // The build appends the unpacked size, 4 bytes, to what the compressor wrote.
    let elf = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => unzstd(payload)?,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => unxz(payload.get(..payload.len() - 4).unwrap_or_default())?,
        _ => bail!("a payload that is neither zstd nor xz"),
    };
    ensure!(elf.starts_with(b"\x7fELF"), "the payload is not an ELF file");
    Ok(elf)
}

/// A 32-bit little-endian field of the setup header.
fn field(image: &[u8], offset: usize) -> Result<usize> {
    let bytes = image.get(offset..offset + 4).context("the setup header is cut short")?;
    Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
}

fn unzstd(packed: &[u8]) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(packed)?.read_to_end(&mut plain)?;
    Ok(plain)
}

/// Unpacks one xz stream; kernel modules are packed so.
pub fn unxz(packed: &[u8]) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    lzma_rust2::XzReader::new(packed, false).read_to_end(&mut plain)?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage with one setup sector and the given payload.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    /// A zstd frame (RFC 8878) of one raw block, with the size that the kernel's build appends.
    fn packed(plain: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, plain.len() as u8];
        frame.extend_from_slice(&(((plain.len() as u32) << 3) | 1).to_le_bytes()[..3]);
        frame.extend_from_slice(plain);
        frame.extend_from_slice(&(plain.len() as u32).to_le_bytes());
        frame
    }

    #[test]
    fn takes_the_elf_out_of_a_bzimage() {
        assert_eq!(vmlinux(&image(&packed(b"\x7fELF kernel"))).unwrap(), b"\x7fELF kernel");
    }

    #[test]
    fn refuses_what_is_no_kernel() {
        assert!(vmlinux(b"MZ").is_err());
        assert!(vmlinux(&image(b"\x1f\x8b gzip")).is_err());
        assert!(vmlinux(&image(&packed(b"script"))).is_err());
        let mut short = image(&packed(b"\x7fELF"));
        short.truncate(1026);
        assert!(vmlinux(&short).is_err());
    }
}
