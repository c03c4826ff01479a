//! Makes a disk that UEFI firmware boots from: a GUID partition table and one EFI system partition, a FAT16 file system
//! (UEFI Specification 2.10, 5.3 and 13.3; Microsoft's "FAT: General Overview of On-Disk Format" 1.03).

/// Bytes in a block of the disk.
pub const BLOCK: usize = 512;

/// Where the partition begins, and what the backup of the table takes at the end, in blocks.
const FIRST: u64 = 2048;
const TABLE: u64 = 33;

const CLUSTER: usize = 4096;
const ROOT_ENTRIES: usize = 512;
const DIRECTORY: u8 = 0x10;
const FILE: u8 = 0x20;

/// C12A7328-F81F-11D2-BA4B-00A0C93EC93B, an EFI system partition.
const ESP: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];

/// A disk of so many blocks whose partition holds `files` in its root and `loader` as `\EFI\BOOT\BOOTX64.EFI`, where
/// firmware looks for it. What is not named holds anything: the pieces are at these offsets in bytes. A file's name is
/// in capitals, and no longer than 8 and 3.
pub fn disk(blocks: u64, loader: &[u8], files: &[(&str, &[u8])]) -> Vec<(u64, Vec<u8>)> {
    let last = blocks - TABLE - 1;
    let mut entries = vec![0; 128 * 128];
    entries[..16].copy_from_slice(&ESP);
    entries[16..32].copy_from_slice(b"isthmus-esp-0001");
    entries[32..40].copy_from_slice(&FIRST.to_le_bytes());
    entries[40..48].copy_from_slice(&last.to_le_bytes());
    let header = |own: u64, other: u64, table: u64| {
        let mut header = vec![0; BLOCK];
        header[..8].copy_from_slice(b"EFI PART");
        header[8..12].copy_from_slice(&0x0001_0000_u32.to_le_bytes());
        header[12..16].copy_from_slice(&92_u32.to_le_bytes());
        for (at, number) in [(24, own), (32, other), (40, TABLE + 1), (48, last), (72, table)] {
            header[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        header[56..72].copy_from_slice(b"isthmus-disk-001");
        for (at, number) in [(80, 128), (84, 128), (88, crc32(&entries))] {
            header[at..at + 4].copy_from_slice(&u32::to_le_bytes(number));
        }
        let check = crc32(&header[..92]);
        header[16..20].copy_from_slice(&check.to_le_bytes());
        header
    };
    // The protective MBR: one partition of type EEh over all.
    let mut front = vec![0; BLOCK];
    front[446..462].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0]);
    front[458..462].copy_from_slice(&(blocks as u32 - 1).to_le_bytes());
    front[510..].copy_from_slice(&[0x55, 0xaa]);
    front.extend(header(1, blocks - 1, 2));
    front.extend_from_slice(&entries);
    let mut back = entries.clone();
    back.extend(header(blocks - 1, 1, blocks - TABLE));
    let partition = partition((last - FIRST + 1) as usize, loader, files);
    vec![(0, front), (FIRST * BLOCK as u64, partition), ((blocks - TABLE) * BLOCK as u64, back)]
}

/// The file system, as far as it is used.
fn partition(blocks: usize, loader: &[u8], files: &[(&str, &[u8])]) -> Vec<u8> {
    let table = (blocks / (CLUSTER / BLOCK) * 2).next_multiple_of(BLOCK);
    let clusters = (blocks * BLOCK - BLOCK - 2 * table - ROOT_ENTRIES * 32) / CLUSTER;
    assert!((4085..65525).contains(&clusters), "{clusters} clusters are not FAT16");
    let mut boot = vec![0; BLOCK];
    boot[..11].copy_from_slice(b"\xeb\x3c\x90ISTHMUS ");
    boot[13] = (CLUSTER / BLOCK) as u8;
    boot[16] = 2;
    boot[21] = 0xf8;
    for (at, number) in [(11, BLOCK), (14, 1), (17, ROOT_ENTRIES), (22, table / BLOCK), (24, 63), (26, 255)] {
        boot[at..at + 2].copy_from_slice(&(number as u16).to_le_bytes());
    }
    boot[28..32].copy_from_slice(&(FIRST as u32).to_le_bytes());
    boot[32..36].copy_from_slice(&(blocks as u32).to_le_bytes());
    boot[36..39].copy_from_slice(&[0x80, 0, 0x29]);
    boot[43..62].copy_from_slice(b"ISTHMUS    FAT16   ");
    boot[510..].copy_from_slice(&[0x55, 0xaa]);

    let mut fat = Fat { chains: vec![0xfff8, 0xffff], data: Vec::new() };
    // A directory's own cluster and its parent's are known before there are any: these two are the first.
    let (efi, inner) = (2, 3);
    let dots =
        |own: u16, parent: u16| [entry(".", DIRECTORY, own, 0), entry("..", DIRECTORY, parent, 0)].concat();
    let loader_at = inner + 1;
    fat.add(&[dots(efi, 0), entry("BOOT", DIRECTORY, inner, 0)].concat());
    fat.add(&[dots(inner, efi), entry("BOOTX64.EFI", FILE, loader_at, loader.len())].concat());
    assert_eq!(fat.add(loader), loader_at);
    let mut root = entry("EFI", DIRECTORY, efi, 0);
    for (name, content) in files {
        root.extend(entry(name, FILE, fat.add(content), content.len()));
    }
    root.resize(ROOT_ENTRIES * 32, 0);
    assert!(fat.chains.len() <= clusters + 2, "the files do not fit");
    let mut chains: Vec<u8> = fat.chains.iter().flat_map(|next| next.to_le_bytes()).collect();
    chains.resize(table, 0);
    [boot, chains.clone(), chains, root, fat.data].concat()
}

/// The clusters in use: where each goes on, and what they hold.
struct Fat {
    chains: Vec<u16>,
    data: Vec<u8>,
}

impl Fat {
    /// Adds a file or a directory; its first cluster.
    fn add(&mut self, content: &[u8]) -> u16 {
        let first = self.chains.len();
        let clusters = content.len().div_ceil(CLUSTER);
        self.chains.extend((1..clusters).map(|next| (first + next) as u16));
        self.chains.push(0xffff);
        self.data.extend_from_slice(content);
        self.data.resize(self.data.len().next_multiple_of(CLUSTER), 0);
        first as u16
    }
}

/// A directory entry.
fn entry(name: &str, attributes: u8, cluster: u16, length: usize) -> Vec<u8> {
    let mut entry = vec![0; 32];
    entry[..11].fill(b' ');
    let (stem, extension) =
        if name.starts_with('.') { (name, "") } else { name.split_once('.').unwrap_or((name, "")) };
    entry[..stem.len()].copy_from_slice(stem.as_bytes());
    entry[8..8 + extension.len()].copy_from_slice(extension.as_bytes());
    entry[11] = attributes;
    // 1 January 2025.
    entry[24..26].copy_from_slice(&0x5a21_u16.to_le_bytes());
    entry[26..28].copy_from_slice(&cluster.to_le_bytes());
    entry[28..].copy_from_slice(&(length as u32).to_le_bytes());
    entry
}

/// The checksum of partition tables (ISO 3309).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| sum >> 1 ^ 0xedb8_8320 & (sum & 1).wrapping_neg())
    })
}
