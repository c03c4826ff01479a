//! The PCIe transport of a controller: a PCI function with its configuration space, BARs, doorbells, queues in guest
//! memory and interrupts (NVMe over PCIe Transport 1.1). Who carries its accesses is not its matter: see
//! [`crate::vfio_user`].

mod admin;
pub(crate) mod coalesce;
mod config;
mod cq;
pub(crate) mod doorbell;
pub(crate) mod function;
pub(crate) mod irq;
mod memory;
mod prp;
mod runs;
mod sgl;
mod sq;
pub(crate) mod staged;

pub use doorbell::Doorbells;
