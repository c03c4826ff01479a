//! D.41, D.42 and D.49: what hosts call themselves and others.

use std::io::Write;
use std::sync::{Arc, Mutex};

use frontend::tcp::Reason;
use nvme_proto::Status;
use nvme_proto::fabrics::{Connect, ConnectData, invalid_parameter};
use nvme_proto::register::offset;
use nvme_proto::zerocopy::IntoBytes;

use super::common::{HOSTNQN, Host, Rig, SUBNQN, connect_data};
use super::d_connect::{ADMIN, IO};
use super::others_live;

#[test]
fn d41_names_that_are_none() {
    let rig = Rig::new();
    let mut host = Host::open(rig.addr, 0);
    let field = |name: &[u8]| {
        let mut field = [0u8; 256];
        field[..name.len()].copy_from_slice(name);
        field
    };
    let of = |len: usize| field(&[&b"nqn.2024-01.test:"[..], &vec![b'x'; len - 17]].concat());
    let bad = [
        field(b""),
        of(224),
        of(227),
        of(255),
        of(256),
        field(b"nqn.2024-01.test:\x01\x1b[31m"),
        field(b"nqn.2024-01.test:\xc3\x28"),
        field(b"disk"),
        field(b"\0nqn.2024-01.test:disk"),
    ];
    let mut refused = 0;
    for name in bad {
        for (at, which) in [(256, 0), (512, 1)] {
            let mut data = connect_data(SUBNQN, HOSTNQN, 0xffff);
            *(if which == 0 { &mut data.subnqn } else { &mut data.hostnqn }) = name;
            let cqe = host.connect(ADMIN, &data);
            let status = Status::CONNECT_INVALID_PARAMETERS.dnr();
            assert_eq!((cqe.status(), cqe.dw0), (status, invalid_parameter(true, at)), "{name:?}");
            refused += 1;
        }
    }
    let counted = rig.target.rejections();
    let counted =
        [Reason::ConnectHostNqn, Reason::ConnectParameters, Reason::ConnectRefused].map(|r| counted.count(r));
    assert_eq!(counted.iter().sum::<u64>(), refused);
    // The longest, and names that a NUL ends, whatever is behind it.
    for (hostnqn, subnqn, there) in [
        (of(223), field(SUBNQN.as_bytes()), true),
        (field(b"nqn.2024-01.test:a\0\x1b\xff"), field(&[SUBNQN.as_bytes(), b"\0\n\xff"].concat()), true),
        (field(HOSTNQN.as_bytes()), field(b"nqn.2024-01.test:di\0sk"), false),
    ] {
        let data = ConnectData { hostnqn, subnqn, ..connect_data(SUBNQN, HOSTNQN, 0xffff) };
        assert_eq!(Host::open(rig.addr, 0).connect(ADMIN, &data).status().is_success(), there);
    }
    others_live(&rig);
}

/// What a peer calls itself and others is in no log, whole or in part.
#[test]
fn d41_no_name_is_in_a_log() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let writer = log.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || Log(writer.clone())).init();
    let rig = Rig::new();
    let mut host = Host::open(rig.addr, 0);
    for name in [
        &b"nqn.2024-01.test:\x1b[31mRED"[..],
        b"RED\n",
        b"nqn.RED",
        b"nqn.RED\xff\xfe",
        &[b'R', b'E', b'D'].repeat(85),
    ] {
        for at in [256, 512] {
            let mut data = connect_data(SUBNQN, HOSTNQN, 0);
            data.as_mut_bytes()[at..at + name.len()].copy_from_slice(name);
            assert!(!host.connect(ADMIN, &data).status().is_success());
        }
    }
    let log = String::from_utf8_lossy(&log.lock().unwrap()).into_owned();
    assert!(log.contains(Reason::ConnectHostNqn.text()) && log.contains(Reason::ConnectParameters.text()));
    assert!(!log.contains("RED") && !log.contains("[31m"), "{log}");
}

/// Where the logs of this process go while a test reads them.
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn d42_one_hostid_under_two_names() {
    let rig = Rig::new();
    let mut admin = Host::open(rig.addr, 0);
    let cntlid = admin.connect_admin(SUBNQN, 0);
    admin.enable();
    // Two hosts: each has its own controller, and neither gets at the other's.
    let mut other = Host::open(rig.addr, 0);
    let mut data = connect_data(SUBNQN, "nqn.2024-01.test:twin", 0xffff);
    data.reserved18.fill(0xff);
    data.reserved768.fill(0xff);
    let cqe = other.connect(ADMIN, &data);
    assert!(cqe.status().is_success() && cqe.dw0 != u32::from(cntlid));
    data.cntlid = cntlid;
    assert!(!Host::open(rig.addr, 0).connect(IO, &data).status().is_success());
    drop(other);
    assert_eq!(admin.property_get(offset::CSTS, 0) & 1, 1);
    others_live(&rig);
}

#[test]
fn d49_a_host_that_may_not_hears_what_nobody_hears() {
    let rig = Rig::new();
    rig.subsystem.set_allowed_hosts(vec![nvme_proto::Nqn::new("nqn.2024-01.test:friend").unwrap()]);
    let answers = |subnqn: &str| {
        let mut host = Host::open(rig.addr, 0);
        [
            (ADMIN, 0xffff),
            (ADMIN, 1),
            (IO, 1),
            (IO, 1024),
            (Connect { sqsize_z: 0, ..ADMIN }, 0xffff),
            (Connect { recfmt: 1, ..ADMIN }, 0xffff),
        ]
        .map(|(connect, cntlid)| {
            let cqe = host.connect(connect, &connect_data(subnqn, HOSTNQN, cntlid));
            (cqe.status(), cqe.dw0, cqe.dw1, cqe.sqhd)
        })
    };
    assert_eq!(answers(SUBNQN), answers("nqn.2024-01.test:nothing"));
}
