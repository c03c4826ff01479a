//! E.50 to E.53, E.56, E.59, E.61, E.62: what a controller answers to commands that are almost right.

use nvme_proto::log::{CommandsEffects, GetLogPage, LogId};
use nvme_proto::zerocopy::FromBytes;
use nvme_proto::{Sqe, Status};

use super::common::{BEYOND, Host, Rig, namespace, pattern, rw};
use super::others_live;

const NO_NAMESPACE: Status = Status::INVALID_NAMESPACE_OR_FORMAT;

fn identify(cns: u32, nsid: u32) -> Sqe {
    Sqe { opc: 6, nsid, cdw10: cns, ..Sqe::default() }
}

fn log(lid: LogId, offset: u64, len: u32) -> Sqe {
    let mut sqe = Sqe { opc: 2, ..Sqe::default() };
    GetLogPage::new(lid, offset, len).put(&mut sqe);
    sqe
}

fn status(host: &mut Host, sqe: Sqe) -> Status {
    host.run(sqe, &[], 4096).0.status()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).take_while(|w| *w != 0).collect()
}

#[test]
fn e50_namespaces_that_are_not_there() {
    let rig = Rig::new();
    let (mut admin, mut io) = rig.connect(0);
    for opc in [0u8, 1, 2, 5, 8, 9, 0xc, 0xd, 0xe, 0x11, 0x15] {
        let mut on = |nsid| io.run(Sqe { opc, nsid, ..rw(2, 0, 512) }, &[0; 512], 0).0.status();
        assert_eq!(on(2), Status::INVALID_FIELD.dnr(), "inactive: {opc:#x}");
        for nsid in [0, BEYOND, 0xffff_fffe] {
            assert_eq!(on(nsid), NO_NAMESPACE.dnr(), "{opc:#x} on {nsid:#x}");
        }
        let all = if opc == 0 { Status::SUCCESS } else { NO_NAMESPACE.dnr() };
        assert_eq!(on(u32::MAX), all, "{opc:#x} on all");
    }
    for cns in [0, 3, 5, 8, 0x11, 0x1b] {
        for nsid in [0, BEYOND, 0xffff_fffe, u32::MAX] {
            assert_eq!(status(&mut admin, identify(cns, nsid)), NO_NAMESPACE.dnr(), "{cns:#x} {nsid:#x}");
        }
    }
    for cns in [0, 5, 0x11, 0x12] {
        assert_eq!(admin.run(identify(cns, 2), &[], 4096).1, [0; 4096], "inactive: {cns:#x}");
    }
    for cns in [2, 7, 0x10, 0x1a] {
        for nsid in [0xffff_fffe, u32::MAX] {
            assert_eq!(status(&mut admin, identify(cns, nsid)), NO_NAMESPACE.dnr(), "{cns:#x}");
        }
    }
}

#[test]
fn e51_ranges_at_every_edge() {
    let rig = Rig::new();
    let (_admin, mut io) = rig.connect(0);
    let blocks = (64u64 << 20) / 512;
    for opc in [1u8, 2, 5, 8, 0xc] {
        for (slba, nlb) in
            [(blocks, 1), (blocks - 1, 2), (u64::MAX, 1), (u64::MAX, 0x10000), (u64::MAX - 7, 8)]
        {
            let mut sqe = Sqe { opc, nsid: 1, cdw12: nlb - 1, ..Sqe::default() };
            sqe.set_slba(slba);
            let got = io.run(sqe, &[0; 512], 0).0.status();
            assert_eq!(got, Status::LBA_OUT_OF_RANGE.dnr(), "{opc:#x} {slba:#x} {nlb:#x}");
        }
        // 32 MiB at once: beyond MDTS, and beyond VSL; Write Zeroes has no limit.
        let most = io.run(Sqe { opc, nsid: 1, cdw12: 0xffff, ..Sqe::default() }, &[0; 512], 0).0.status();
        let want = if opc == 8 { Status::SUCCESS } else { Status::INVALID_FIELD.dnr() };
        assert_eq!(most, want, "{opc:#x} of 65536 blocks");
    }
    others_live(&rig);
}

#[test]
fn e52_every_structure() {
    let rig = Rig::new();
    rig.subsystem.add_namespace(namespace(9, 4096, 1 << 20)).unwrap();
    let (mut admin, _io) = rig.connect(0);
    let admin = &mut admin;
    // Those that are there.
    let known = [0u32, 1, 2, 3, 5, 6, 7, 8, 0x10, 0x11, 0x12, 0x13, 0x1a, 0x1b, 0x1c];
    for cns in 0..=255 {
        let cntid = if cns == 0x1c { 0xffff << 16 } else { 0 };
        let nsid = if [2, 7, 0x10, 0x1a].contains(&cns) { 0 } else { 1 };
        let got = status(admin, identify(cns | cntid, nsid));
        let want = if known.contains(&cns) { Status::SUCCESS } else { Status::INVALID_FIELD.dnr() };
        assert_eq!(got, want, "CNS {cns:#x}");
        // No UUID list, and the NVM command set alone.
        let uuid = Sqe { cdw14: 1, ..identify(cns | cntid, nsid) };
        assert_eq!(status(admin, uuid), Status::INVALID_FIELD.dnr(), "CNS {cns:#x} with a UUID index");
        if [5, 6, 7, 0x1a, 0x1b].contains(&cns) {
            for csi in 1..=255 {
                let other = Sqe { cdw11: csi << 24, ..identify(cns, nsid) };
                assert_eq!(status(admin, other), Status::INVALID_FIELD.dnr(), "CNS {cns:#x}, CSI {csi:#x}");
            }
        }
    }
    let mut data = |sqe| admin.run(sqe, &[], 4096).1;
    for cns in [2, 7, 0x10, 0x1a] {
        assert_eq!(words(&data(identify(cns, 0))), [1, 9]);
        assert_eq!(words(&data(identify(cns, 1))), [9]);
        assert_eq!(words(&data(identify(cns, 9))), [0; 0]);
    }
    assert_eq!(data(identify(0, 9)), data(identify(0x11, 9)));
    // Controllers from CNTID on.
    let cntlid = rig.subsystem.controllers()[0].cntlid();
    for cns in [0x12, 0x13] {
        let list = |cntid: u16| identify(cns | u32::from(cntid) << 16, 1);
        let one = data(list(cntlid));
        assert_eq!((&one[..2], &one[2..4]), (&[1, 0][..], &cntlid.to_le_bytes()[..]));
        assert_eq!(data(list(cntlid + 1)), [0; 4096]);
    }
    for cntid in [0xffff, cntlid] {
        assert_eq!(words(&data(identify(0x1c | u32::from(cntid) << 16, 0))), [1], "NVM");
    }
    assert_eq!(status(admin, identify(0x1c | 5 << 16, 0)), Status::INVALID_FIELD.dnr(), "nobody's");
    assert_eq!(status(admin, identify(0x12, u32::MAX)), Status::INVALID_FIELD.dnr());
}

#[test]
fn e53_every_log_page() {
    let rig = Rig::new();
    let (mut admin, mut io) = rig.connect(0);
    let admin = &mut admin;
    let listed = admin.run(log(LogId::SupportedLogPages, 0, 1024), &[], 1024).1;
    for lid in 0..=255u8 {
        let got = status(admin, log(LogId(lid), 0, 4));
        let there = listed[usize::from(lid) * 4] & 1 == 1;
        assert_eq!(got, if there { Status::SUCCESS } else { Status::INVALID_LOG_PAGE.dnr() }, "{lid:#x}");
        if !there {
            continue;
        }
        let invalid = Status::INVALID_FIELD.dnr();
        let sqe = log(LogId(lid), 0, 512);
        for wrong in [
            Sqe { cdw10: sqe.cdw10 | 0xffff << 16, cdw11: 0xffff, ..sqe },
            Sqe { cdw12: 2, ..sqe },
            Sqe { cdw12: 1 << 20, ..sqe },
            Sqe { cdw12: !3, cdw13: u32::MAX, ..sqe },
            Sqe { cdw14: 1 << 23, ..sqe },
            Sqe { cdw14: 1, ..sqe },
            Sqe { nsid: 1, ..sqe },
        ] {
            assert_eq!(status(admin, wrong), invalid, "{lid:#x}: {wrong:?}");
        }
        // LSP and LSI mean something to some, and are no reason to fail.
        for lsp in 0..0x80u32 {
            for lsi in [0, lsp, 0xffff] {
                let got =
                    status(admin, Sqe { cdw10: sqe.cdw10 | lsp << 8, cdw11: sqe.cdw11 | lsi << 16, ..sqe });
                assert!([Status::SUCCESS, invalid].contains(&got), "{lid:#x} {lsp:#x} {lsi:#x}: {got:?}");
            }
        }
        // RAE is harmless, again and again.
        for _ in 0..3 {
            let sqe = Sqe { cdw10: sqe.cdw10 | 0x80 << 8, nsid: u32::MAX, ..sqe };
            assert_eq!(status(admin, sqe), Status::SUCCESS);
        }
    }
    // Parts of a page are as the whole.
    let whole = admin.run(log(LogId::CommandsEffects, 0, 4096), &[], 4096).1;
    let part = admin.run(log(LogId::CommandsEffects, 1024, 64), &[], 64).1;
    assert_eq!(part, whole[1024..1088]);
    assert_eq!(admin.run(log(LogId::CommandsEffects, 4096, 64), &[], 64).1, [0; 64], "at its end");
    let other = Sqe { cdw14: 2 << 24, ..log(LogId::CommandsEffects, 0, 4096) };
    assert_eq!(status(admin, other), Status::INVALID_FIELD.dnr(), "of another command set");
    // What it says is supported is not an invalid opcode, and all else is (E.61).
    let effects = CommandsEffects::read_from_bytes(&whole).unwrap();
    for opc in (0..=255u8).filter(|opc| ![0x7f, 0xc, 8].contains(opc)) {
        let refused = status(admin, Sqe { opc, nsid: 1, ..Sqe::default() }).code() == Status::INVALID_OPCODE;
        assert_eq!(effects.acs[usize::from(opc)].csupp(), !refused, "admin {opc:#x}");
    }
    for opc in (0..=255u8).filter(|opc| *opc != 0x7f) {
        let sqe = Sqe { opc, nsid: 1, ..Sqe::default() };
        let refused = io.run(sqe, &[0; 512], 0).0.status() == Status::INVALID_OPCODE.dnr();
        assert_eq!(effects.iocs[usize::from(opc)].csupp(), !refused, "I/O {opc:#x}");
    }
    let features = admin.run(log(LogId::FeaturesEffects, 0, 1024), &[], 1024).1;
    for fid in 0..=255u32 {
        let sqe = Sqe { opc: 0xa, nsid: 1, cdw10: 3 << 8 | fid, ..Sqe::default() };
        let known = admin.run(sqe, &[], 4096).0.status().is_success();
        assert_eq!(features[fid as usize * 4] & 1 == 1, known, "feature {fid:#x}");
    }
}

#[test]
fn e53_every_namespace_is_reached_as_well_as_any_other() {
    let rig = Rig::new();
    rig.subsystem.add_namespace(namespace(9, 4096, 1 << 20)).unwrap();
    let (mut admin, _io) = rig.connect(0);
    let id = admin.run(identify(1, 0), &[], 4096).1;
    assert_eq!((id[76] & 8, id[92 + 1] & 8, id[343] & 1), (8, 8, 1), "CMIC, OAES and ANACAP");
    assert_eq!((&id[344..348], &id[348..352]), (&[1, 0, 0, 0][..], &[1, 0, 0, 0][..]));
    assert_eq!(admin.run(identify(0, 9), &[], 4096).1[92..96], [1, 0, 0, 0], "its group");
    assert_eq!(admin.run(identify(8, 9), &[], 4096).1[4..8], [1, 0, 0, 0]);
    let group = |nnv: u8| {
        let mut group = [0; 48];
        (group[8], group[16], group[20], group[32]) = (1, 1, nnv, 1);
        group
    };
    let page = admin.run(log(LogId::Ana, 0, 64), &[], 64).1;
    assert_eq!((&page[..48], words(&page[48..])), (&group(2)[..], vec![1, 9]));
    // RGO: groups only.
    let sqe = log(LogId::Ana, 0, 64);
    let page = admin.run(Sqe { cdw10: sqe.cdw10 | 1 << 8, ..sqe }, &[], 64).1;
    assert_eq!((&page[..48], &page[48..]), (&group(0)[..], &[0; 16][..]));
    for nsid in [1, 9] {
        rig.subsystem.remove_namespace(nsid).unwrap();
    }
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while admin.run(log(LogId::Ana, 0, 64), &[], 64).1 != [0; 64] {
        assert!(std::time::Instant::now() < until, "a group without namespaces is not told");
    }
}

#[test]
fn e53_changed_namespaces_are_listed_until_they_are_read() {
    let rig = Rig::new();
    let (mut admin, _io) = rig.connect(0);
    let changed = |rae: u32| {
        let sqe = log(LogId::ChangedNamespaces, 0, 4096);
        Sqe { cdw10: sqe.cdw10 | rae << 15, ..sqe }
    };
    for _ in 0..2 {
        for nsid in [30, 7] {
            rig.subsystem.add_namespace(namespace(nsid, 512, 1 << 20)).unwrap();
        }
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while words(&admin.run(changed(1), &[], 4096).1) != [7, 30] {
            assert!(std::time::Instant::now() < until);
        }
        assert_eq!(words(&admin.run(changed(0), &[], 4096).1), [7, 30], "retained until then");
        assert_eq!(admin.run(changed(0), &[], 4096).1, [0; 4096]);
        for nsid in [30, 7] {
            rig.subsystem.remove_namespace(nsid).unwrap();
        }
        while words(&admin.run(changed(1), &[], 4096).1) != [7, 30] {
            assert!(std::time::Instant::now() < until);
        }
        admin.run(changed(0), &[], 4096);
    }
}

#[test]
fn e56_deallocation_lists() {
    let rig = Rig::new();
    let (_admin, mut io) = rig.connect(0);
    let data = pattern(1, 65536);
    assert!(io.write(0, &data).status().is_success());
    let blocks = (64u64 << 20) / 512;
    let dsm = |ranges: usize| Sqe { opc: 9, nsid: 1, cdw10: ranges as u32 - 1, cdw11: 4, ..Sqe::default() };
    let list = |ranges: &[(u64, u32)]| -> Vec<u8> {
        let of =
            |(lba, blocks): &(u64, u32)| [&[0; 4], &blocks.to_le_bytes()[..], &lba.to_le_bytes()].concat();
        ranges.iter().flat_map(of).collect()
    };
    let mut run = |sqe, data: &[u8]| io.run(sqe, data, 0).0.status();
    // Short data.
    assert_eq!(run(dsm(256), &list(&[(0, 1)])), Status::DATA_SGL_LENGTH_INVALID.dnr());
    // 255 good ranges and one past the end: nothing is deallocated.
    for last in [(blocks, 1), (blocks - 1, 2), (u64::MAX, u32::MAX), (0, u32::MAX)] {
        let mut ranges = vec![(0, 128); 255];
        ranges.push(last);
        assert_eq!(run(dsm(256), &list(&ranges)), Status::LBA_OUT_OF_RANGE.dnr(), "{last:?}");
    }
    // Nothing at all, and hints.
    assert_eq!(run(dsm(256), &list(&[(0, 0); 256])), Status::SUCCESS);
    assert_eq!(run(Sqe { cdw11: 3, ..dsm(1) }, &list(&[(0, 128)])), Status::SUCCESS);
    assert!(io.read(0, 65536).1 == data);
    // Ranges that lie on each other.
    let mut run = |sqe, data: &[u8]| io.run(sqe, data, 0).0.status();
    assert_eq!(run(dsm(256), &list(&[(0, 64); 256])), Status::SUCCESS);
    assert_eq!(run(Sqe { cdw12: 1 << 25 | 15, ..rw(8, 64, 512) }, &[]), Status::SUCCESS, "DEAC");
    let read = io.read(0, 65536).1;
    assert!(read[..80 * 512].iter().all(|b| *b == 0) && read[80 * 512..] == data[80 * 512..]);
}

#[test]
fn e59_e61_e62_what_is_not_supported() {
    let rig = Rig::new();
    let (mut admin, mut io) = rig.connect(0);
    // Namespace Management and Attachment, Format, Sanitize, firmware, directives, virtualization, migration.
    for opc in
        [0x0d, 0x10, 0x11, 0x14, 0x15, 0x19, 0x1a, 0x1c, 0x1d, 0x1e, 0x41, 0x7c, 0x80, 0x81, 0x82, 0x84]
    {
        let got = admin.run(Sqe { opc, nsid: 1, ..Sqe::default() }, &[0xff; 4096], 0).0.status();
        assert_eq!(got, Status::INVALID_OPCODE.dnr(), "{opc:#x}");
    }
    // Zone Management and Append, Key Value, Copy, Write Uncorrectable, I/O management: also where no namespace is.
    for opc in [4u8, 0x12, 0x18, 0x19, 0x1d, 0x79, 0x7a, 0x7d, 0x90] {
        for nsid in [1, 2, 0] {
            let got = io.run(Sqe { opc, nsid, ..rw(1, 0, 512) }, &[0; 512], 0).0.status();
            assert_eq!(got, Status::INVALID_OPCODE.dnr(), "{opc:#x} on {nsid}");
        }
    }
    for opc in [1u8, 2, 5, 8, 0xc] {
        for bit in 16..30 {
            let (write, read): (&[u8], _) = if matches!(opc, 1 | 5) { (&[0; 512], 0) } else { (&[], 512) };
            let got = io.run(Sqe { cdw12: 1 << bit, opc, ..rw(1, 0, 512) }, write, read).0.status();
            // CETYPE, and of what writes DTYPE; PRINFO and STC say nothing to a namespace like this.
            let refused = bit < 20 || bit < 24 && matches!(opc, 1 | 8);
            let expected = if refused { Status::INVALID_FIELD.dnr() } else { Status::SUCCESS };
            assert_eq!(got, expected, "{opc:#x} bit {bit}");
        }
        // Tags that nobody checks, and a metadata pointer without metadata, mean nothing.
        let sqe = Sqe { mptr: 0xdead_beef, cdw14: u32::MAX, cdw15: u32::MAX, ..rw(1, 0, 512) };
        let got = io.run(sqe, &[0; 512], 0).0.status();
        assert_eq!(got, Status::SUCCESS, "{opc:#x}");
    }
    others_live(&rig);
}
