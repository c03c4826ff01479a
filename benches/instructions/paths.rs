//! The paths.

use std::sync::Arc;

use anyhow::{Context, Result};
use backend::null::NullVolume;
use backend::ram::RamVolume;
use engine::{Op, Volume};
use host::Kind;
use middleend::CryptVolume;

use crate::load::{self, Count, Direct};
use crate::world::{self, World};

const READ: Kind = Kind::Read;
const WRITE: Kind = Kind::Write { fua: false };
const IN: Op = Op::Write { fua: false };

/// A path from where commands come to where they end.
#[derive(Clone, Copy)]
pub struct Path {
    pub name: &'static str,
    way: Way,
    bytes: usize,
    depth: u16,
}

#[derive(Clone, Copy)]
enum Way {
    /// vfio-user, mapped doorbells → RAM.
    Pcie(Kind),
    /// The same → null.
    PcieNull(Kind),
    /// NVMe/TCP → RAM over so many connections, with digests or without.
    Tcp(Kind, u16, bool),
    /// The initiator alone; its target is not counted.
    Initiator(Op, bool),
    /// AES-XTS-256 → RAM.
    Crypt(Op),
    /// vfio-user → AES-XTS-256 → initiator → target → RAM, all on one shard.
    Chain(Kind),
}

const fn path(name: &'static str, way: Way, bytes: usize, depth: u16) -> Path {
    Path { name, way, bytes, depth }
}

/// All of them; the names say size and depth where these are not 4 KiB and 32.
pub const PATHS: [Path; 20] = [
    path("pcie-read", Way::Pcie(READ), 4096, 32),
    path("pcie-write", Way::Pcie(WRITE), 4096, 32),
    path("pcie-read-depth1", Way::Pcie(READ), 4096, 1),
    path("pcie-null-read", Way::PcieNull(READ), 4096, 32),
    path("pcie-read-128k", Way::Pcie(READ), 128 << 10, 8),
    path("tcp-read", Way::Tcp(READ, 1, false), 4096, 32),
    path("tcp-write", Way::Tcp(WRITE, 1, false), 4096, 32),
    path("tcp-read-depth1", Way::Tcp(READ, 1, false), 4096, 1),
    path("tcp-read-64-connections", Way::Tcp(READ, 64, false), 4096, 1),
    path("tcp-read-digests", Way::Tcp(READ, 1, true), 4096, 32),
    path("tcp-write-digests", Way::Tcp(WRITE, 1, true), 4096, 32),
    path("tcp-read-128k", Way::Tcp(READ, 1, false), 128 << 10, 8),
    path("tcp-write-r2t-128k", Way::Tcp(WRITE, 1, false), 128 << 10, 8),
    path("initiator-read", Way::Initiator(Op::Read, false), 4096, 32),
    path("initiator-write", Way::Initiator(IN, false), 4096, 32),
    path("initiator-read-digests", Way::Initiator(Op::Read, true), 4096, 32),
    path("crypt-read", Way::Crypt(Op::Read), 4096, 32),
    path("crypt-write", Way::Crypt(IN), 4096, 32),
    path("chain-read", Way::Chain(READ), 4096, 32),
    path("chain-write", Way::Chain(WRITE), 4096, 32),
];

fn ram() -> Result<Arc<dyn Volume>> {
    Ok(RamVolume::new(4096, 8192)?)
}

fn encrypted(below: Arc<dyn Volume>) -> Result<Arc<dyn Volume>> {
    Ok(Arc::new(CryptVolume::new(below, &std::array::from_fn::<u8, 64, _>(|i| i as u8))?))
}

/// Runs a path: `warm` commands that do not count, and `n` that do.
pub fn run(name: &str, warm: usize, n: usize) -> Result<()> {
    let path = PATHS.into_iter().find(|path| path.name == name).context("there is no such path")?;
    let Path { bytes, depth, .. } = path;
    let world = World::new()?;
    let (near, far) = (world.near.handles(), world.far.handles());
    match path.way {
        Way::Pcie(kind) | Way::PcieNull(kind) => {
            let volume = match path.way {
                Way::PcieNull(_) => NullVolume::new(4096, 8192)?,
                _ => ram()?,
            };
            let (_keep, mut queues) = world.aside(move || world::pcie(&near[0], volume, depth, bytes))?;
            load::commands(&world, &mut queues, kind, bytes, warm, Count::No)?;
            load::commands(&world, &mut queues, kind, bytes, n, Count::Yes)
        }
        Way::Tcp(kind, connections, digests) => {
            let (_keep, mut queues) = world.aside(move || {
                let addr = world::listen(&near, ram()?)?;
                world::connect(addr, connections, depth, bytes, digests)
            })?;
            load::commands(&world, &mut queues, kind, bytes, warm, Count::No)?;
            load::commands(&world, &mut queues, kind, bytes, n, Count::Yes)
        }
        Way::Initiator(op, digests) => {
            let volume = world.aside(move || {
                let addr = world::listen(&far, ram()?)?;
                world::remote(addr, &near, digests)
            })?;
            let direct = Direct::new(&world.near, &volume, usize::from(depth), bytes);
            direct.run(&world, op, warm, Count::No)?;
            direct.run(&world, op, n, Count::Yes)
        }
        Way::Crypt(op) => {
            let volume = encrypted(ram()?)?;
            let direct = Direct::new(&world.near, &volume, usize::from(depth), bytes);
            direct.run(&world, op, warm, Count::No)?;
            direct.run(&world, op, n, Count::Yes)
        }
        Way::Chain(kind) => {
            let (_keep, mut queues) = world.aside(move || {
                let addr = world::listen(&near, ram()?)?;
                let volume = encrypted(world::remote(addr, &near, false)?)?;
                world::pcie(&near[0], volume, depth, bytes)
            })?;
            load::commands(&world, &mut queues, kind, bytes, warm, Count::No)?;
            load::commands(&world, &mut queues, kind, bytes, n, Count::Yes)
        }
    }
}
