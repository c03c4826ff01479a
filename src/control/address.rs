//! Addresses in requests.

use std::net::{IpAddr, SocketAddr};

use proto::storage::{NvmeAddressFamily, NvmeTransportType};
use tonic::Status;

use super::volume::invalid;

/// A port number in decimal.
pub(super) fn port(field: &str, text: &str) -> Result<u16, Status> {
    let port = text.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| invalid(field, "not a port number"))
}

/// An IPv4 or IPv6 address.
pub(super) fn ip(field: &str, text: &str) -> Result<IpAddr, Status> {
    text.parse().map_err(|_| invalid(field, "not an IP address"))
}

/// The address in the fields `traddr` and `adrfam` of `message`, with a port.
pub(super) fn socket(
    message: &str,
    traddr: &str,
    port: u16,
    family: NvmeAddressFamily,
) -> Result<SocketAddr, Status> {
    let address = ip(&format!("{message}.traddr"), traddr)?;
    let expected = if address.is_ipv4() { NvmeAddressFamily::Ipv4 } else { NvmeAddressFamily::Ipv6 };
    if family != expected {
        let why = format!("not {}, the family of the address", expected.as_str_name());
        return Err(invalid(&format!("{message}.adrfam"), why));
    }
    Ok(SocketAddr::new(address, port))
}

/// The refusal of a transport.
pub(super) fn unsupported_transport(transport: NvmeTransportType) -> Status {
    Status::invalid_argument(format!("not supported transport type: {}", transport.as_str_name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_their_families_agree() {
        let socket =
            |traddr: &str, family| socket("m", traddr, 4420, family).map_err(|e| e.message().to_owned());
        assert_eq!(socket("127.0.0.1", NvmeAddressFamily::Ipv4).unwrap(), "127.0.0.1:4420".parse().unwrap());
        assert_eq!(socket("::1", NvmeAddressFamily::Ipv6).unwrap(), "[::1]:4420".parse().unwrap());
        assert!(socket("::1", NvmeAddressFamily::Ipv4).unwrap_err().starts_with("m.adrfam: not"));
        assert_eq!(socket("host", NvmeAddressFamily::Ipv4).unwrap_err(), "m.traddr: not an IP address");
    }

    #[test]
    fn ports_are_numbers() {
        assert_eq!(port("p", "4420").unwrap(), 4420);
        for wrong in ["", "0", "65536", "http", "-1"] {
            assert_eq!(port("p", wrong).unwrap_err().message(), "p: not a port number");
        }
    }
}
