//! What stands between the initiator and an honest target, and makes it a hostile one.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nvme_proto::Sqe;
use nvme_proto::tcp::{CommonHdr, DIGEST_LEN, PduType, dgst, flags};
use nvme_proto::zerocopy::FromBytes;
use socket2::{Domain, SockRef, Socket, Type};

use crate::world::keeps_secrets;

/// What is done to the next PDU of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lie {
    /// A byte of the header is another one; the digest is right.
    Header(u8, u8),
    /// Bytes of the data are others; the digest is right.
    Data(u16, u8),
    /// A byte anywhere is another one, and no digest fits.
    Damage(u16, u8),
    Drop,
    Twice,
    /// Data comes in two PDUs, as it may; or the second before the first, as it may not.
    Split(u16, bool),
    /// Data has so many bytes more behind it; lengths and digests are right.
    Longer(u8),
    /// It comes after the next one.
    Later,
    /// Only so many bytes come, and then what follows.
    Short(u8),
    /// The connection ends after so many bytes.
    End(u8),
}

/// A connection, from the initiator to the target.
struct Link {
    down: TcpStream,
    up: TcpStream,
    from_target: Vec<u8>,
    from_host: Vec<u8>,
    kept: Vec<u8>,
    begun: bool,
    digests: u8,
    admin: bool,
}

/// All connections.
pub struct Proxy {
    listener: TcpListener,
    target: SocketAddr,
    links: Vec<Link>,
    /// Lies about PDUs of the admin queue, and of I/O queues, oldest first.
    pub admin: Vec<Lie>,
    pub io: Vec<Lie>,
    /// Nothing of the target comes any more.
    pub mute: bool,
    /// Nobody is let in.
    pub shut: bool,
    /// Identifiers of the last commands.
    pub cids: Vec<u16>,
    serial: u64,
}

fn lingerless(stream: &TcpStream) {
    stream.set_nonblocking(true).unwrap();
    stream.set_nodelay(true).unwrap();
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Takes what there is. Whether the stream goes on.
fn take(from: &mut TcpStream, to: &mut Vec<u8>, any: &mut bool) -> bool {
    let mut chunk = [0; 16 << 10];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return false,
            Ok(n) => to.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
            Err(_) => return false,
        }
        *any = true;
    }
}

/// The first PDU of a stream.
fn next(stream: &mut Vec<u8>) -> Option<Vec<u8>> {
    let (ch, _) = CommonHdr::read_from_prefix(stream).ok()?;
    let len = ch.plen as usize;
    assert!((24..4 << 20).contains(&len), "{ch:?}");
    if stream.len() < len {
        return None;
    }
    let rest = stream.split_off(len);
    Some(std::mem::replace(stream, rest))
}

impl Proxy {
    pub fn new(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Proxy {
            listener,
            target,
            links: Vec::new(),
            admin: Vec::new(),
            io: Vec::new(),
            mute: false,
            shut: false,
            cids: Vec::new(),
            serial: 0,
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Honest from now on, to those who come anew.
    pub fn heal(&mut self) {
        (self.admin, self.io) = Default::default();
        (self.mute, self.shut) = (false, false);
        self.links.clear();
    }

    pub fn cut(&mut self, at: usize) {
        if !self.links.is_empty() {
            self.links.remove(at % self.links.len());
        }
    }

    /// Says something to the initiator that the target never said.
    pub fn say(&mut self, at: usize, bytes: &[u8]) {
        let n = self.links.len().max(1);
        if let Some(link) = self.links.get_mut(at % n) {
            let mut bytes = bytes.to_vec();
            let header = usize::from(bytes.get(2).copied().unwrap_or(0));
            if link.digests & dgst::HDGST_ENABLE != 0
                && bytes.len() == header
                && bytes[0] != PduType::C2hTermReq.0
            {
                bytes[1] |= flags::HDGSTF;
                bytes[4] = bytes[4].wrapping_add(4);
                bytes.extend([0; DIGEST_LEN]);
                seal(&mut bytes, link.digests);
            }
            let _ = link.down.write(&bytes);
        }
    }

    /// Moves what has come. Whether there was anything.
    pub fn shuttle(&mut self) -> bool {
        let mut any = false;
        while let Ok((down, _)) = self.listener.accept() {
            any = true;
            if self.shut {
                lingerless(&down);
                continue;
            }
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            self.serial += 1;
            let [a, b, ..] = self.serial.to_le_bytes();
            socket.bind(&SocketAddr::from(([127, 3, a, b.max(1)], 0)).into()).unwrap();
            socket.connect(&self.target.into()).unwrap();
            let up = TcpStream::from(socket);
            lingerless(&down);
            lingerless(&up);
            let (from_target, from_host, kept) = Default::default();
            self.links.push(Link {
                down,
                up,
                from_target,
                from_host,
                kept,
                begun: false,
                digests: 0,
                admin: true,
            });
        }
        let mut links = std::mem::take(&mut self.links);
        links.retain_mut(|link| self.link(link, &mut any));
        self.links.append(&mut links);
        any
    }

    fn link(&mut self, link: &mut Link, any: &mut bool) -> bool {
        let mut raw = Vec::new();
        let host_lives = take(&mut link.down, &mut raw, any);
        // Nothing that anybody else wrote may ever leave by here.
        keeps_secrets(&raw);
        let sent = link.up.write(&raw).unwrap_or(0);
        if sent < raw.len() || !host_lives {
            return false;
        }
        link.from_host.extend(raw);
        while let Some(pdu) = next(&mut link.from_host) {
            if pdu[0] == PduType::CapsuleCmd.0 {
                let sqe = Sqe::read_from_bytes(&pdu[8..72]).unwrap();
                self.cids.push(sqe.cid);
                if sqe.opc == 0x7f && sqe.nsid == 1 {
                    link.admin = sqe.cdw10 >> 16 == 0;
                }
            }
        }
        let target_lives = take(&mut link.up, &mut link.from_target, any);
        while let Some(pdu) = next(&mut link.from_target) {
            if !self.forward(link, pdu) {
                return false;
            }
        }
        target_lives
    }

    /// Passes a PDU of the target on, or what is made of it. Whether the connection goes on.
    fn forward(&mut self, link: &mut Link, mut pdu: Vec<u8>) -> bool {
        if !link.begun {
            (link.begun, link.digests) = (true, pdu[11]);
        }
        let lies = if link.admin { &mut self.admin } else { &mut self.io };
        // Those about data wait for data.
        let fits =
            |lie: &Lie| !matches!(lie, Lie::Split(..) | Lie::Longer(_)) || pdu[0] == PduType::C2hData.0;
        let lie = lies.iter().position(fits).map(|at| lies.remove(at));
        if self.mute {
            return true;
        }
        let header = usize::from(pdu[2]);
        let (mut more, mut lives) = (Vec::new(), true);
        match lie {
            None => {}
            Some(Lie::Header(at, value)) => {
                pdu[usize::from(at) % header] = value;
                seal(&mut pdu, link.digests);
            }
            Some(Lie::Data(at, value)) => {
                let (from, to) = data(&pdu, link.digests);
                if to > from {
                    let at = from + usize::from(at) % (to - from);
                    pdu[at] = value;
                    seal(&mut pdu, link.digests);
                }
            }
            Some(Lie::Damage(at, value)) => {
                let at = usize::from(at) % pdu.len();
                pdu[at] ^= value.max(1);
            }
            Some(Lie::Split(at, swapped)) => {
                let (from, to) = data(&pdu, link.digests);
                let at = from + usize::from(at) % (to - from).max(1) / 4 * 4;
                if pdu[0] == PduType::C2hData.0 && at > from {
                    more = rebuilt(&pdu, &pdu[at..to], at - from, link.digests);
                    let mut first = rebuilt(&pdu, &pdu[from..at], 0, link.digests);
                    // The last one alone is the last, and tells of success.
                    first[1] &= !(flags::LAST_PDU | flags::SUCCESS);
                    if swapped {
                        let told = pdu[1] & (flags::LAST_PDU | flags::SUCCESS);
                        (first[1], more[1]) = (first[1] | told, more[1] & !told);
                        std::mem::swap(&mut first, &mut more);
                    }
                    seal(&mut first, link.digests);
                    seal(&mut more, link.digests);
                    pdu = first;
                }
            }
            Some(Lie::Longer(n)) => {
                let (from, to) = data(&pdu, link.digests);
                if pdu[0] == PduType::C2hData.0 && to > from {
                    let longer = [&pdu[from..to], &vec![0x3c; usize::from(n) * 16]].concat();
                    pdu = rebuilt(&pdu, &longer, 0, link.digests);
                    if n % 2 == 0 {
                        pdu[1] &= !flags::SUCCESS;
                        seal(&mut pdu, link.digests);
                    }
                }
            }
            Some(Lie::Drop) => pdu.clear(),
            Some(Lie::Twice) => more = pdu.clone(),
            Some(Lie::Later) => {
                link.kept.append(&mut pdu);
                return true;
            }
            Some(Lie::Short(n)) => pdu.truncate(usize::from(n)),
            Some(Lie::End(n)) => {
                pdu.truncate(usize::from(n));
                lives = false;
            }
        }
        pdu.append(&mut more);
        pdu.append(&mut link.kept);
        let sent = link.down.write(&pdu).unwrap_or(0);
        lives && sent == pdu.len()
    }
}

/// A C2HData PDU as this one, with other data, which begins so much later.
fn rebuilt(pdu: &[u8], data: &[u8], later: usize, digests: u8) -> Vec<u8> {
    let pdo = usize::from(pdu[3]);
    let mut new = [&pdu[..pdo], data].concat();
    if digests & dgst::DDGST_ENABLE != 0 {
        new.extend([0; DIGEST_LEN]);
    }
    let offset = u32::from_le_bytes(pdu[12..16].try_into().unwrap()) + later as u32;
    for (at, word) in [(4, new.len() as u32), (12, offset), (16, data.len() as u32)] {
        new[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    seal(&mut new, digests);
    new
}

/// Where the data of a PDU lies.
fn data(pdu: &[u8], digests: u8) -> (usize, usize) {
    let ddgst = if digests & dgst::DDGST_ENABLE != 0 { DIGEST_LEN } else { 0 };
    match pdu[3] {
        0 => (0, 0),
        pdo => (usize::from(pdo), pdu.len().saturating_sub(ddgst)),
    }
}

/// Makes digests right again.
fn seal(pdu: &mut [u8], digests: u8) {
    let header = match pdu[0] {
        1 | 3 => return,
        _ => 24,
    };
    if digests & dgst::HDGST_ENABLE != 0 && pdu.len() >= header + DIGEST_LEN {
        let crc = crc32c::crc32c(&pdu[..header]).to_le_bytes();
        pdu[header..header + DIGEST_LEN].copy_from_slice(&crc);
    }
    let (from, to) = data(pdu, digests);
    if digests & dgst::DDGST_ENABLE != 0 && from < to && to + DIGEST_LEN == pdu.len() {
        let crc = crc32c::crc32c(&pdu[from..to]).to_le_bytes();
        pdu[to..].copy_from_slice(&crc);
    }
}
