//! What the end-to-end tests share: finding the real peers, running the server, declaring objects over OPI.
#![allow(dead_code, reason = "each test program uses a part")]

pub mod chain;
pub mod grpc;
pub mod host;
pub mod opi;
pub mod server;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use tokio::net::TcpSocket;

/// A file or directory of the real peers that `cargo xtask` fetched, or `None` after saying that this test is skipped.
pub fn peer(name: &str) -> Option<PathBuf> {
    let Some(peers) = std::env::var_os("ISTHMUS_PEERS") else {
        skip("ISTHMUS_PEERS is not set: run `cargo xtask test`");
        return None;
    };
    let path = PathBuf::from(peers).join(name);
    if !path.exists() {
        skip(&format!("peer {name} could not be had"));
        return None;
    }
    Some(path)
}

/// Says that the running test is skipped, and why: to the table of `cargo xtask test` where that runs us.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = format!("{}::{}", env!("CARGO_CRATE_NAME"), thread.name().unwrap_or("test"));
    eprintln!("{test} SKIPPED: {reason}");
    if let Some(path) = std::env::var_os("ISTHMUS_SKIPS") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(format!("{test}\t{reason}\n").as_bytes()).unwrap();
    }
}

/// The count of a repeated test: the first by default, the second under `cargo xtask soak`.
pub fn count(test: u32, soak: u32) -> u32 {
    if std::env::var_os("ISTHMUS_SOAK").is_some() { soak } else { test }
}

/// The seed of everything random in a test; it is printed, so that a failing run can be repeated.
pub fn seed() -> u64 {
    let given = std::env::var("ISTHMUS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    println!("ISTHMUS_SEED={seed}");
    seed
}

/// Random numbers that a seed repeats (xorshift64*).
pub struct Random(u64);

impl Random {
    /// The sequence of [`seed`].
    pub fn from_seed() -> Self {
        Self(seed() | 1)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit
    }
}

/// A loopback TCP port that nobody listens on now.
pub fn free_port() -> u16 {
    // It does not listen: a process that another test starts at this moment has a copy of the socket for a while, and
    // who connects to that is reset.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    socket.local_addr().unwrap().port()
}

/// The last lines of a log, for the message of a failed test.
pub fn tail(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
