#![allow(unsafe_code)] // mapped and shared memory: each block says why it is sound
//! Memory that I/O moves through: pool buffers, guest maps, and scatter-gather lists over both.
//!
//! Nothing here hands out a `&[u8]` to memory that another party (a guest, the kernel, another shard) may write.
//! Such memory is reached by copy-in, copy-out, iovecs and `&[AtomicU8]` alone; what is lent nobody writes ([`Sgl::lent`]), and
//! what a [`Chunk`] has not handed on nobody else has.

mod buf;
mod chunk;
mod guest;
mod loan;
mod mapping;
mod sgl;
mod share;
mod sigbus;
mod stream;

pub use buf::Buf;
pub use chunk::{Chunk, Room};
pub use guest::{Access, GuestMemory, MemError, Region, RegionId};
pub use loan::{Holder, Lender, Writing};
pub use mapping::Mapping;
pub use sgl::{PREFETCH, Seg, Sgl};
pub use share::MapShare;
pub use sigbus::condemnations;
