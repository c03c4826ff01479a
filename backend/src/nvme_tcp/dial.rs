//! From nothing to a connection that may carry PDUs (NVMe/TCP Transport 1.1, 3.2.1).

use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use engine::Shard;
use engine::mem::Buf;
use engine::ring::{Fd, RingOp};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, send,
    setsockopt, shutdown, socket, sockopt,
};
use nvme_proto::tcp::{CommonHdr, PduType, TermReq};
use nvme_proto::zerocopy::{FromZeros, IntoBytes};

use super::config::Config;
use super::reason::Reason;
use super::wire::{self, Agreed, Violation};

/// Opens a socket and agrees on digests (NVMe/TCP 1.1, 3.2.1: ICReq and ICResp).
pub(super) async fn dial(shard: &Shard, config: &Config) -> Result<(Fd, Agreed), Reason> {
    let (addr, hdgst, ddgst) = (config.address, config.hdgst, config.ddgst);
    let patience = Some(config.kato).filter(|kato| !kato.is_zero());
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)
        .map_err(|e| Reason::socket("socket", &e.into()))?;
    let _ = setsockopt(&fd, sockopt::TcpNoDelay, &true);
    if let Some(patience) = patience {
        // Keep Alive watches the admin queue alone: the kernel watches every connection.
        let seconds = u32::try_from(patience.as_secs()).unwrap_or(u32::MAX).max(1);
        let _ = setsockopt(&fd, sockopt::TcpUserTimeout, &seconds.saturating_mul(1000));
        let _ = setsockopt(&fd, sockopt::KeepAlive, &true);
        let _ = setsockopt(&fd, sockopt::TcpKeepIdle, &seconds);
        let _ = setsockopt(&fd, sockopt::TcpKeepInterval, &1);
    }
    if let Some(source) = config.source {
        let local = SockaddrStorage::from(SocketAddr::new(source, 0));
        bind(fd.as_raw_fd(), &local).map_err(|e| Reason::socket("bind", &e.into()))?;
    }
    let fd = Fd::new(fd);
    let mut hang = Hang(Some(fd.clone()));
    let done = shard.ring().run(RingOp::Connect { fd: fd.clone(), addr }).await;
    done.result.map_err(|e| Reason::socket("connect", &e))?;
    let req = Buf::new(128).into_sgl(128);
    req.copy_in(0, wire::ic_req(hdgst, ddgst).as_bytes());
    let mut skip = 0;
    while skip < 128 {
        let op = RingOp::Send { fd: fd.clone(), sgls: vec![req.clone()], skip, now: false };
        skip += shard.ring().run(op).await.result.map_err(|e| Reason::socket("send", &e))? as usize;
    }
    let resp = Buf::zeroed(128).into_sgl(128);
    let mut bytes = [0; 128];
    let mut have = 0;
    while have < 128 {
        let op = RingOp::Receive { fd: fd.clone(), sgl: resp.clone(), skip: have };
        let n = shard.ring().run(op).await.result.map_err(|e| Reason::socket("receive", &e))? as usize;
        have += n;
        resp.copy_out(0, &mut bytes);
        if n == 0 || (have > 0 && bytes[0] == PduType::C2hTermReq.0) {
            return Err(Reason::Hung);
        }
    }
    let agreed = wire::ic_resp(&bytes, hdgst, ddgst).map_err(|v| {
        terminate(&fd, &v);
        Reason::Violation(v.what)
    })?;
    hang.0 = None;
    Ok((fd, agreed))
}

/// Shuts a socket when a task that was connecting it ends early, so that the kernel lets go of it.
struct Hang(Option<Fd>);

impl Drop for Hang {
    fn drop(&mut self) {
        if let Some(fd) = &self.0 {
            let _ = shutdown(fd.as_raw_fd(), Shutdown::Both);
        }
    }
}

/// Tells the controller what it did wrong, if the socket takes it at once.
pub(super) fn terminate(fd: &Fd, violation: &Violation) {
    let mut pdu = TermReq::new_zeroed();
    pdu.ch = CommonHdr { pdu_type: PduType::H2cTermReq, flags: 0, hlen: 24, pdo: 0, plen: 24 };
    pdu.fes = violation.fes;
    let fei = violation.fei.to_le_bytes();
    pdu.fei_lo = u16::from_le_bytes([fei[0], fei[1]]);
    pdu.fei_hi = u16::from_le_bytes([fei[2], fei[3]]);
    let _ = send(fd.as_raw_fd(), pdu.as_bytes(), MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::{Arc, mpsc};

    use engine::{Config as ShardConfig, Shards};

    use nix::sys::socket::{SockaddrStorage, getsockname};

    use super::super::config::Config;
    use super::super::tests::{Manner, Target, config};
    use super::*;

    fn dialled(config: Config) -> Result<(Fd, Agreed), Reason> {
        let shards = Shards::start(&ShardConfig::default()).unwrap();
        let (tx, rx) = mpsc::channel();
        shards.handles()[0].run(move |shard| {
            let here = shard.clone();
            shard.spawn(async move { drop(tx.send(dial(&here, &config).await)) }).detach();
        });
        let dialled = rx.recv().unwrap();
        shards.stop();
        dialled
    }

    #[test]
    fn a_socket_has_one_owner() {
        let target = Target::start(Manner::default());
        let (fd, agreed) = dialled(config(&target)).unwrap();
        assert_eq!(agreed.max_h2c_data, 128 << 10);
        assert_eq!(Arc::strong_count(&fd), 1);
    }

    #[test]
    fn connections_come_from_the_address_that_is_asked_for() {
        let target = Target::start(Manner::default());
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 77));
        let (fd, _) = dialled(Config { source: Some(source), ..config(&target) }).unwrap();
        let local: SockaddrStorage = getsockname(fd.as_raw_fd()).unwrap();
        assert_eq!(local.as_sockaddr_in().map(|local| IpAddr::V4(local.ip())), Some(source));
        // One that this machine does not have.
        let elsewhere = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        assert!(dialled(Config { source: Some(elsewhere), ..config(&target) }).is_err());
    }
}
