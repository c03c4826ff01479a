//! What happens to blocks between the host and the medium: volumes that stand on another volume.
//!
//! Each of them takes any volume below it and is one to whatever is above, so they stack in any order. None keeps
//! anything of its own on the medium.
#![forbid(unsafe_code)]

pub mod crypt;
pub mod fault;
pub mod qos;

#[cfg(test)]
mod stacks;
#[cfg(test)]
mod testing;

pub use crypt::{CryptVolume, KeyError};
pub use fault::{FaultVolume, Faults};
pub use qos::{Maxima, QosVolume};
