//! The rehearsal itself: that the fetched guest boots, has what the other tests need of it, and that its kernel is an
//! NVMe/TCP target which the host reaches. No part of Isthmus takes part, so a failure here is not its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod guest;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use guest::{Builder, Trouble};

const SCRIPT: &str = "
nvme version
fio --version
modprobe nvme_tcp
modprobe brd rd_nr=1 rd_size=65536
verify /dev/ram0 8m
mkfs.ext4 -q /dev/ram0
fsck.ext4 -fn /dev/ram0
export_nvmet nqn.2025-01.test.isthmus:guest /dev/ram0
[ \"$(ask exported)\" = answered ]
no_complaint
";

/// NVMe/TCP ICReq (NVMe TCP Transport 1.1, 3.6.2.2): type 0, header and PDU of 128 bytes, format 0, no digest, one R2T.
fn initialize_connection_request() -> [u8; 128] {
    let mut pdu = [0; 128];
    pdu[2] = 128;
    pdu[4] = 128;
    pdu
}

#[test]
fn the_guest_boots_and_its_kernel_answers_as_a_target() {
    let port = common::free_port();
    let Some(guest) = Builder::new("peers", SCRIPT) else { return };
    let printed = guest.forward(port, 4420).run_with(|guest| {
        guest.wait_for_mark("exported")?;
        let reply =
            exchange(port).map_err(|error| Trouble::Failed(format!("ICReq to the guest: {error}")))?;
        assert_eq!(reply[..8], [1, 0, 128, 0, 128, 0, 0, 0], "the common header of an ICResp");
        guest.answer("answered");
        Ok(())
    });
    assert!(printed.contains("nvme version 2.") && printed.contains("fio-3."), "{printed}");
}

fn exchange(port: u16) -> std::io::Result<[u8; 128]> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(&initialize_connection_request())?;
    let mut reply = [0; 128];
    stream.read_exact(&mut reply)?;
    Ok(reply)
}

#[test]
fn a_failed_script_fails_its_test_with_what_it_said() {
    let Some(guest) = Builder::new("peers-fails", "echo before; false; echo after") else { return };
    let outcome = std::panic::catch_unwind(|| guest.run());
    let message = *outcome.expect_err("a script that fails").downcast::<String>().unwrap();
    assert!(message.contains("ISTHMUS-FAIL 1") && message.contains("before"), "{message}");
    assert!(!message.contains("after\n"), "{message}");
}
