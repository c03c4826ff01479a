//! The controller that is loaded, and the process behind it.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, bail};
use host::{Queue, tcp, vfio_user};
use nvme_proto::Nqn;

use super::{HOSTID, HOSTNQN};
use crate::cli::Bench;

/// Connections that are each asked for what has come; of more, the kernel is asked which they are.
const FEW: usize = 4;

/// A controller and its I/O queues.
pub struct Target {
    /// They hold the Admin queues open; the I/O queues depend on them.
    _controllers: Vec<Controller>,
    pub queues: Vec<Box<dyn Queue>>,
    /// The process behind it, if it is on this machine and may be looked at.
    pub pid: Option<u32>,
}

enum Controller {
    VfioUser(#[expect(dead_code, reason = "held open")] Box<vfio_user::Controller>),
    Tcp(#[expect(dead_code, reason = "held open")] Box<tcp::Controller>),
}

impl Target {
    /// Connects to each controller, with one queue on it for each namespace in the list.
    pub fn open(args: &Bench, nsids: &[u32], depth: u16, max_transfer: usize) -> anyhow::Result<Self> {
        let count = u16::try_from(nsids.len()).context("too many queues")?;
        let (mut controllers, mut queues): (_, Vec<Box<dyn Queue>>) = (Vec::new(), Vec::new());
        let mut pid = args.target_pid;
        for path in &args.vfio_user {
            let options = vfio_user::Options { max_transfer, queues: count, depth };
            let mut controller = vfio_user::Controller::connect(path, options)
                .with_context(|| format!("vfio-user controller at {}", path.display()))?;
            for &nsid in nsids {
                queues.push(Box::new(controller.io_queue(nsid)?));
            }
            pid = pid.or_else(|| controller.server_pid());
            controllers.push(Controller::VfioUser(Box::new(controller)));
        }
        if !controllers.is_empty() {
            return Ok(Target { _controllers: controllers, queues, pid });
        }
        let (Some(addr), Some(nqn)) = (args.tcp, &args.nqn) else {
            bail!("name a target: --vfio-user or --tcp")
        };
        let many = nsids.len() * usize::from(args.controllers);
        let options = tcp::Options {
            subnqn: Nqn::new(nqn).with_context(|| format!("--nqn {nqn}"))?,
            hostnqn: Nqn::new(HOSTNQN)?,
            hostid: HOSTID,
            digests: tcp::Digests { header: args.hdgst, data: args.ddgst },
            max_transfer,
            queues: count,
            depth,
            kato: 0,
            flow_control: args.flow_control,
            among: if many > FEW { Some(tcp::Ready::new()?) } else { None },
        };
        for _ in 0..args.controllers {
            let mut controller = tcp::Controller::connect(addr, options.clone())
                .with_context(|| format!("target at {addr}"))?;
            for &nsid in nsids {
                queues.push(Box::new(controller.io_queue(nsid)?));
            }
            controllers.push(Controller::Tcp(Box::new(controller)));
        }
        let pid = pid.or_else(|| owner(listening(addr)?));
        Ok(Target { _controllers: controllers, queues, pid })
    }
}

/// The inode of the socket that listens at an address.
fn listening(addr: SocketAddr) -> Option<u64> {
    let (table, wanted, any) = match addr.ip() {
        IpAddr::V4(ip) => ("/proc/net/tcp", hex(&ip.octets()), hex(&[0; 4])),
        IpAddr::V6(ip) => ("/proc/net/tcp6", hex(&ip.octets()), hex(&[0; 16])),
    };
    let port = format!("{:04X}", addr.port());
    // proc_net_tcp(5): number, local address, remote address, state, ...; the inode is the tenth. 0A is TCP_LISTEN.
    std::fs::read_to_string(table).ok()?.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (ip, its_port) = fields.get(1)?.split_once(':')?;
        let here = its_port == port && (ip == wanted || ip == any) && *fields.get(3)? == "0A";
        fields.get(9)?.parse().ok().filter(|_| here)
    })
}

/// Words of an address as /proc shows them: in the machine's byte order.
fn hex(octets: &[u8]) -> String {
    let word = |w: &[u8]| w.try_into().map_or(0, u32::from_ne_bytes);
    octets.chunks(4).map(|w| format!("{:08X}", word(w))).collect()
}

/// The process that has a socket open.
fn owner(inode: u64) -> Option<u32> {
    let link = format!("socket:[{inode}]");
    let has = |dir: &Path| {
        let files = std::fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
        files.into_iter().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| *to == *link))
    };
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes.into_iter().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        has(&entry.path()).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_who_listens() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(addr) else { continue };
            let inode = listening(listener.local_addr().unwrap()).unwrap();
            assert_eq!(owner(inode), Some(std::process::id()));
        }
    }
}
