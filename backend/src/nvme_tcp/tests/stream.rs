//! The protocol without a socket: streams cut anywhere, and streams that are garbage.

use engine::mem::Sgl;
use nvme_proto::opcode::NvmOpcode;
use nvme_proto::tcp::{CapsuleResp, CommonHdr, DataHdr, PduType, R2t, flags};
use nvme_proto::zerocopy::IntoBytes;
use nvme_proto::{Cqe, Sqe, Status};

use super::*;
use crate::nvme_tcp::batch::Batch;
use crate::nvme_tcp::promise::Promise;
use crate::nvme_tcp::queue::{Owner, Queue, Way};
use crate::nvme_tcp::wire::{Agreed, Violation};

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n
    }
}

fn agreed(digests: bool) -> Agreed {
    Agreed { header_digest: digests, data_digest: digests, align: 4, max_h2c_data: 4096 }
}

/// A queue with two reads, a write of 16 KiB and a flush, all sent; and the memory of the reads.
fn queue(digests: bool) -> (Queue, Batch, [Sgl; 2]) {
    let mut queue = Queue::new(agreed(digests), 32, 4096);
    let reads = [1000, 90_000].map(|len| memory(&vec![0; len]));
    for (opcode, way, sgl) in [
        (NvmOpcode::Read, Way::In, reads[0].clone()),
        (NvmOpcode::Read, Way::In, reads[1].clone()),
        (NvmOpcode::Write, Way::Out, memory(&pattern(16 << 10, 3))),
        (NvmOpcode::Flush, Way::Out, Sgl::empty()),
    ] {
        let place = queue.place().unwrap();
        queue.submit(place, Sqe { opc: opcode.0, ..Sqe::default() }, way, Owner::Task(Promise::new(), sgl));
    }
    let mut batch = Batch::new();
    send(&mut queue, &mut batch);
    (queue, batch, reads)
}

/// What the queue has to send.
fn send(queue: &mut Queue, batch: &mut Batch) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        batch.fill(queue);
        if batch.is_sent() {
            return all;
        }
        let bytes: Vec<u8> = batch.sgls.iter().flat_map(engine::testing::bytes).collect();
        batch.sent(bytes.len(), queue);
        all.extend(bytes);
    }
}

fn pdu(digests: bool, mut header: Vec<u8>, data: &[u8]) -> Vec<u8> {
    let head = header.len() + if digests { 4 } else { 0 };
    let with_data = !data.is_empty();
    header[1] |= if digests { flags::HDGSTF | if with_data { flags::DDGSTF } else { 0 } } else { 0 };
    header[3] = if with_data { head as u8 } else { 0 };
    let plen = head + data.len() + if digests && with_data { 4 } else { 0 };
    header[4..8].copy_from_slice(&(plen as u32).to_le_bytes());
    let digest =
        |bytes: &[u8]| if digests { crc32c::crc32c(bytes).to_le_bytes().to_vec() } else { Vec::new() };
    let head_digest = digest(&header);
    header.extend(head_digest);
    header.extend(data);
    if with_data {
        header.extend(digest(data));
    }
    header
}

fn ch(pdu_type: PduType, flags: u8) -> CommonHdr {
    CommonHdr { pdu_type, flags, hlen: 24, pdo: 0, plen: 0 }
}

/// What an honest controller sends for those commands.
fn stream(digests: bool) -> Vec<Vec<u8>> {
    let data = |cid, at: usize, bytes: &[u8], more| {
        let (datao, datal) = (at as u32, bytes.len() as u32);
        let h = DataHdr { ch: ch(PduType::C2hData, more), cccid: cid, ttag: 0, datao, datal, reserved: 0 };
        pdu(digests, h.as_bytes().to_vec(), bytes)
    };
    let response = |cid| {
        let cqe = Cqe::new(cid, Status::SUCCESS);
        pdu(digests, CapsuleResp { ch: ch(PduType::CapsuleResp, 0), cqe }.as_bytes().to_vec(), &[])
    };
    let r2t = |at, len| {
        let h = R2t { ch: ch(PduType::R2t, 0), cccid: 2, ttag: 77, r2to: at, r2tl: len, reserved: 0 };
        pdu(digests, h.as_bytes().to_vec(), &[])
    };
    let (a, b) = (pattern(1000, 1), pattern(90_000, 2));
    vec![
        data(1, 0, &b[..80_000], 0),
        r2t(0, 10_000),
        data(0, 0, &a, flags::LAST_PDU | flags::SUCCESS),
        r2t(10_000, 6384),
        data(1, 80_000, &b[80_000..], flags::LAST_PDU),
        response(3),
        response(1),
    ]
}

/// Feeds bytes in pieces as `cut` says, through the direct way where the queue offers it.
fn feed(queue: &mut Queue, mut bytes: &[u8], mut cut: impl FnMut(usize) -> usize) -> Result<(), Violation> {
    while !bytes.is_empty() {
        let n = cut(bytes.len());
        match queue.direct() {
            Some((_, to)) => {
                let n = n.min(to.len());
                to.copy_in(0, &bytes[..n]);
                queue.received(&to, n)?;
                bytes = &bytes[n..];
            }
            None => {
                queue.receive(&bytes[..n])?;
                bytes = &bytes[n..];
            }
        }
    }
    Ok(())
}

#[test]
fn a_stream_may_be_cut_anywhere() {
    for digests in [false, true] {
        let all = stream(digests).concat();
        let mut random = Random(5);
        for way in 0..12 {
            let (mut queue, mut batch, reads) = queue(digests);
            let cut = |left: usize| match way {
                0 => left,
                1 => 1,
                n => random.below(n * n * 100) % left + 1,
            };
            feed(&mut queue, &all, cut).unwrap();
            let sent = send(&mut queue, &mut batch);
            assert!(sent.len() > 16 << 10 && sent[0] == PduType::H2cData.0);
            let ended: Vec<_> = queue.ended.drain(..).collect();
            assert_eq!(ended.len(), 3);
            assert!(ended.iter().all(|(_, a)| a.status.is_success() && !a.damaged));
            assert!(engine::testing::bytes(&reads[0]) == pattern(1000, 1));
            assert!(engine::testing::bytes(&reads[1]) == pattern(90_000, 2));
        }
    }
}

#[test]
fn the_data_of_an_r2t_is_split_at_maxh2cdata() {
    let (mut queue, mut batch, _) = queue(false);
    queue.receive(&stream(false)[1]).unwrap();
    let sent = send(&mut queue, &mut batch);
    let mut at = &sent[..];
    let mut offset = 0;
    for (len, last) in [(4096, 0), (4096, 0), (1808, flags::LAST_PDU)] {
        let (h, rest) = nvme_proto::zerocopy::FromBytes::read_from_prefix(at).unwrap();
        let h: DataHdr = h;
        assert_eq!((h.cccid, h.ttag, h.datao, h.datal, h.ch.flags), (2, 77, offset, len, last));
        assert_eq!((h.ch.pdo, h.ch.plen), (24, 24 + len));
        assert!(rest[..len as usize] == pattern(16 << 10, 3)[offset as usize..][..len as usize]);
        (at, offset) = (&rest[len as usize..], offset + len);
    }
    assert!(at.is_empty());
}

#[test]
fn garbage_ends_the_connection_at_most() {
    let soak = std::env::var("ISTHMUS_SOAK").is_ok_and(|s| s == "1");
    let mut random = Random(std::env::var("ISTHMUS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1));
    let honest = stream(false);
    let (mut refused, mut taken) = (0, 0);
    for round in 0..if soak { 100_000 } else { 1000 } {
        let digests = round % 4 == 3;
        let (mut queue, mut batch, _) = queue(digests);
        let mut pdus = honest.clone();
        for _ in 0..1 + random.below(3) {
            let (i, j) = (random.below(pdus.len()), random.below(pdus.len()));
            match random.below(5) {
                0 => pdus.swap(i, j),
                1 => pdus[i] = pdus[j].clone(),
                2 => {
                    let at = random.below(pdus[i].len());
                    pdus[i].truncate(at.max(1));
                }
                // Headers are what is looked at: most changes go there.
                _ => {
                    let at = random.below(24.min(pdus[i].len()));
                    pdus[i][at] = [0, 1, 4, 0x7f, 0x80, 0xff, random.below(256) as u8][random.below(7)];
                }
            }
        }
        let pdus = if digests {
            // With true digests, so that what is behind them is reached.
            let split =
                |p: &Vec<u8>| pdu(true, p[..24.min(p.len())].to_vec(), p.get(24..).unwrap_or_default());
            pdus.iter().filter(|p| p.len() >= 24).map(split).collect()
        } else {
            pdus
        };
        let mut size = 1 + random.below(5000);
        let result = feed(&mut queue, &pdus.concat(), |left| {
            size = (size * 7 + 3) % 5000 + 1;
            size.min(left)
        });
        match result {
            Ok(()) => taken += 1,
            Err(_) => refused += 1,
        }
        assert!(queue.outbox.len() <= 8);
        assert!(send(&mut queue, &mut batch).len() <= 20 << 10, "no more is sent than the write has");
        assert!(queue.ended.len() <= 4);
    }
    assert!(refused > 100 && taken > 100, "{refused} refused, {taken} taken");
}

/// Commands that were taken back before they were sent leave a batch no emptier than it was: an empty one is sent nowhere, and
/// nobody asks again for what is behind them.
#[test]
fn commands_that_were_taken_back_fill_no_batch() {
    let mut queue = Queue::new(agreed(false), 128, 4096);
    let sqe = Sqe { opc: NvmOpcode::Flush.0, ..Sqe::default() };
    let submit = |queue: &mut Queue| {
        let place = queue.place().unwrap();
        queue.submit(place, sqe, Way::Out, Owner::Task(Promise::new(), Sgl::empty()));
    };
    (0..100).for_each(|_| submit(&mut queue));
    (0..100).for_each(|cid| drop(queue.take_back(cid)));
    submit(&mut queue);
    let mut batch = Batch::new();
    batch.fill(&mut queue);
    assert!(!batch.is_sent(), "the one that is left is sent");
}
