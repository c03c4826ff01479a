//! `isthmus discover` and `isthmus identify`: questions to an NVMe/TCP target.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use anyhow::{Context, anyhow};
use backend::nvme_tcp::{self, Config, Discovered, Identified, Reason};
use engine::{ShardHandle, Shards};
use nvme_proto::Nqn;
use nvme_proto::fabrics::{AddressFamily, SubsystemType, TransportType};
use nvme_proto::identify::IdentifyNamespace;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::bench::{HOSTID, HOSTNQN};
use crate::cli::{Discover, Identify};
use crate::process::say;

/// The port of NVMe/TCP controllers, and by custom of discovery services.
const PORT: u16 = 4420;

/// Runs `discover`.
///
/// # Errors
/// The service cannot be reached, or refuses.
pub fn discover(args: &Discover) -> anyhow::Result<()> {
    let host = host(args.hostnqn.as_deref())?;
    let found =
        ask(&args.addr, |shard, addr| nvme_tcp::discover(shard, Config::discovery(addr, host, HOSTID)))?;
    if args.json {
        say!("{}", Value::Array(found.iter().map(entry_json).collect()))?;
        return Ok(());
    }
    say!("{:9} {:6} {:9} {:5} {:24} subsystem", "transport", "family", "kind", "port", "address")?;
    for entry in &found {
        let [transport, family, kind] = words(entry);
        let (port, address) = (&entry.trsvcid, &entry.traddr);
        say!("{transport:9} {family:6} {kind:9} {port:5} {address:24} {}", subnqn(entry))?;
    }
    Ok(())
}

/// Runs `identify`.
///
/// # Errors
/// The controller cannot be reached, or refuses.
pub fn identify(args: &Identify) -> anyhow::Result<()> {
    let host = host(args.hostnqn.as_deref())?;
    let nqn = Nqn::new(&args.nqn).with_context(|| format!("subsystem {}", args.nqn))?;
    let found = ask(&args.addr, |shard, addr| {
        nvme_tcp::identify(shard, Config::new("identify", addr, nqn, host, HOSTID))
    })?;
    if args.json {
        say!("{}", controller_json(&found))?;
        return Ok(());
    }
    print_controller(&found)
}

fn host(hostnqn: Option<&str>) -> anyhow::Result<Nqn> {
    let text = hostnqn.unwrap_or(HOSTNQN);
    Nqn::new(text).with_context(|| format!("--hostnqn {text}"))
}

/// Asks the first of the addresses of `text` that answers.
fn ask<T>(text: &str, question: impl Fn(&ShardHandle, SocketAddr) -> Result<T, Reason>) -> anyhow::Result<T> {
    let addresses = resolve(text)?;
    let shards = Shards::start(&engine::Config::default()).context("start a shard")?;
    let mut answer = Err(anyhow!("{text} has no address"));
    for address in addresses {
        answer = question(&shards.handles()[0], address).with_context(|| format!("{address}"));
        if answer.is_ok() {
            break;
        }
    }
    shards.stop();
    answer
}

/// The addresses that `text` means: an address or a name, with a port or without.
fn resolve(text: &str) -> anyhow::Result<Vec<SocketAddr>> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, PORT)]);
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Some(ip) = bare.and_then(|ip| ip.parse::<Ipv6Addr>().ok()) {
        return Ok(vec![SocketAddr::new(ip.into(), PORT)]);
    }
    let found = match text.rsplit_once(':') {
        Some(_) => text.to_socket_addrs(),
        None => (text, PORT).to_socket_addrs(),
    };
    Ok(found.with_context(|| format!("find the address of {text}"))?.collect())
}

/// Transport, address family and kind of subsystem in words.
fn words(entry: &Discovered) -> [String; 3] {
    let transport = match entry.trtype {
        TransportType::Tcp => "tcp".into(),
        TransportType::Rdma => "rdma".into(),
        TransportType::Fc => "fc".into(),
        TransportType(other) => format!("{other:#x}"),
    };
    let family = match entry.adrfam {
        AddressFamily::Ipv4 => "ipv4".into(),
        AddressFamily::Ipv6 => "ipv6".into(),
        AddressFamily(other) => format!("{other:#x}"),
    };
    let kind = match entry.subtype {
        SubsystemType::Nvm => "nvm".into(),
        SubsystemType::Referral => "referral".into(),
        SubsystemType::CurrentDiscovery => "itself".into(),
        SubsystemType(other) => format!("{other:#x}"),
    };
    [transport, family, kind]
}

fn subnqn(entry: &Discovered) -> &str {
    entry.subnqn.as_ref().map_or("(no name)", Nqn::as_str)
}

fn entry_json(entry: &Discovered) -> Value {
    let [trtype, adrfam, subtype] = words(entry);
    json!({
        "trtype": trtype, "adrfam": adrfam, "subtype": subtype, "traddr": entry.traddr, "trsvcid": entry.trsvcid,
        "subnqn": subnqn(entry), "portid": entry.portid, "cntlid": entry.cntlid, "asqsz": entry.asqsz,
    })
}

/// A field of the controller's that holds text: what is not printable becomes `?`.
fn text(field: &[u8]) -> String {
    let field = field.trim_ascii();
    field.iter().map(|&b| if b.is_ascii_graphic() || b == b' ' { char::from(b) } else { '?' }).collect()
}

/// Bytes of a block, and of metadata with it.
fn format_of(namespace: &IdentifyNamespace) -> (u64, u16) {
    let format = namespace.lbaf.get(usize::from(namespace.flbas.index())).copied().unwrap_or_default();
    (1u64.checked_shl(format.lbads.into()).unwrap_or(0), format.ms)
}

/// The largest transfer in bytes; `None` for no limit.
fn mdts(found: &Identified) -> Option<u64> {
    let power = u32::from(found.controller.mdts);
    (power != 0).then(|| 4096u64.checked_shl(power).unwrap_or(u64::MAX))
}

fn version(found: &Identified) -> String {
    let ver = found.controller.ver;
    format!("{}.{}.{}", ver.mjr(), ver.mnr(), ver.ter())
}

fn controller_json(found: &Identified) -> Value {
    let id = &found.controller;
    let namespaces: Vec<Value> = found
        .namespaces
        .iter()
        .map(|(nsid, namespace, identity)| {
            let (block_size, metadata) = format_of(namespace);
            json!({
                "nsid": nsid, "blocks": namespace.nsze, "block_size": block_size, "metadata": metadata,
                "uuid": identity.uuid.map(|id| Uuid::from_bytes(id).to_string()),
                "nguid": identity.nguid.map(|id| hex(&id)), "eui64": identity.eui64.map(|id| hex(&id)),
            })
        })
        .collect();
    json!({
        "cntlid": found.cntlid, "sn": text(&id.sn), "mn": text(&id.mn), "fr": text(&id.fr), "ver": version(found),
        "mdts_bytes": mdts(found), "vwc": id.vwc.vwcp(), "namespaces": namespaces,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn print_controller(found: &Identified) -> anyhow::Result<()> {
    let id = &found.controller;
    say!("controller        {}", found.cntlid)?;
    say!("serial number     {}", text(&id.sn))?;
    say!("model number      {}", text(&id.mn))?;
    say!("firmware          {}", text(&id.fr))?;
    say!("NVMe version      {}", version(found))?;
    say!(
        "largest transfer  {}",
        mdts(found).map_or("no limit".into(), |bytes| format!("{} KiB", bytes >> 10))
    )?;
    say!("volatile cache    {}", if id.vwc.vwcp() { "yes" } else { "no" })?;
    say!("\n{:>5} {:>14} {:>6} {:>10}  identity", "nsid", "blocks", "bytes", "MiB")?;
    for (nsid, namespace, identity) in &found.namespaces {
        let (block_size, _) = format_of(namespace);
        let mib = (u128::from(namespace.nsze) * u128::from(block_size)) >> 20;
        let name = match (identity.uuid, identity.nguid, identity.eui64) {
            (Some(uuid), ..) => format!("uuid {}", Uuid::from_bytes(uuid)),
            (_, Some(nguid), _) => format!("nguid {}", hex(&nguid)),
            (_, _, Some(eui64)) => format!("eui64 {}", hex(&eui64)),
            _ => "none".into(),
        };
        say!("{nsid:>5} {:>14} {block_size:>6} {mib:>10}  {name}", namespace.nsze)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_default_port() {
        for (text, address) in [
            ("127.0.0.1", "127.0.0.1:4420"),
            ("127.0.0.1:8009", "127.0.0.1:8009"),
            ("::1", "[::1]:4420"),
            ("[::1]", "[::1]:4420"),
            ("[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(resolve(text).unwrap(), [address.parse().unwrap()], "{text}");
        }
        assert!(resolve("localhost").unwrap().iter().all(|a| a.port() == 4420 && a.ip().is_loopback()));
        assert!(resolve("127.0.0.1:x").is_err());
    }

    #[test]
    fn a_peer_s_text_is_printable() {
        assert_eq!(text(b"ab\x1b[2J  "), "ab?[2J");
    }
}
