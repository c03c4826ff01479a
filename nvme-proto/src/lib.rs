//! The NVMe specifications as types.
//!
//! Layouts, codes and bit fields of the NVM Express Base Specification 2.1, the NVM Command Set Specification 1.1, the
//! NVMe over PCIe Transport 1.1 and the NVMe/TCP Transport 1.1. Names are the specification's; a field whose name ends in
//! `_z` is zero-based (it holds the count minus one). What a peer may fill with garbage is an open enum, so that every bit
//! pattern is a value. There is no behaviour here and no I/O.
//!
//! Every structure is [`zerocopy`]'s `FromBytes` and `IntoBytes`: read one with `T::read_from_bytes` (any alignment) or
//! `T::ref_from_bytes` (aligned), make an empty one with `T::new_zeroed`. Integers are little-endian as on the wire, so
//! the crate builds for little-endian machines only.

#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation))]

#[cfg(target_endian = "big")]
compile_error!("nvme-proto maps the specification's little-endian fields to plain integers");

#[cfg(test)]
extern crate std;

pub use zerocopy;

/// Asserts at compile time that each type has the specification's size in bytes.
macro_rules! sizes {
    ($($t:ty = $n:expr),+ $(,)?) => { $(const _: () = assert!(core::mem::size_of::<$t>() == $n);)+ };
}

/// Lets an open enum be a field of a bit field.
macro_rules! bits {
    ($($t:ident: $r:ty),+ $(,)?) => { $(
        impl $t {
            /// The code as it lies in a bit field.
            pub const fn into_bits(self) -> $r {
                self.0
            }
            /// The value of a code, known or not.
            pub const fn from_bits(bits: $r) -> Self {
                Self(bits)
            }
        }
    )+ };
}

/// Asserts that fields begin at the specification's byte numbers.
#[cfg(test)]
macro_rules! offsets {
    ($t:ty: $($field:ident = $n:expr),+ $(,)?) => {
        $(assert_eq!(core::mem::offset_of!($t, $field), $n, stringify!($field));)+
    };
}

pub mod admin;
pub mod aen;
pub mod command;
pub mod dptr;
pub mod fabrics;
pub mod feature;
pub mod identify;
pub mod log;
pub mod nqn;
pub mod nvm;
pub mod opcode;
pub mod pci;
pub mod register;
pub mod reservation;
pub mod status;
pub mod tcp;

pub use command::{Cqe, Sqe};
pub use nqn::Nqn;
pub use status::Status;
