//! Isthmus, a storage virtualization target: hosts see local NVMe disks, blocks live on remote NVMe/TCP targets.
#![forbid(unsafe_code)]

pub mod control;
pub mod plane;
