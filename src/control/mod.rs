//! The control plane: OPI's storage API over gRPC and what Isthmus adds to it, the declared objects, and their persistence.
//!
//! A request is validated by its service, becomes an object in the [registry], is built in the [data plane](plane), and
//! is kept in the [state directory](store) so that the next process builds it again.

mod access;
mod address;
mod aio;
mod ana;
pub mod config;
mod controller_model;
#[cfg(test)]
mod double;
mod encryption;
mod fault;
mod frontend_nvme;
mod keeper;
mod locks;
mod malloc;
mod names;
mod nqn;
mod null;
mod nvme_remote;
mod object;
mod page;
pub mod plane;
mod qos;
mod registry;
mod schema;
mod secret;
mod server;
mod service;
mod store;
#[cfg(test)]
mod tests;
mod unimplemented;
mod vault;
mod volume;

use std::path::Path;
use std::sync::Arc;

use plane::DataPlane;
use registry::Registry;
use schema::Schema;
use store::Store;

pub use server::{ServeError, serve};
pub use service::Control;
pub use store::StoreError;
pub use vault::VaultError;

impl Control {
    /// Opens the state directory, made if there is none, and builds all that it keeps in the data plane. Keys are
    /// wrapped by the 32 bytes in `kek_file`, or by ones made in the directory. Blocks.
    ///
    /// # Errors
    /// The state directory is in use, damaged or not accessible, or its keys were wrapped by others: the error names
    /// the file.
    pub fn open(
        plane: Arc<dyn DataPlane>,
        state_dir: &Path,
        kek_file: Option<&Path>,
    ) -> Result<Self, StoreError> {
        let store = Store::open(state_dir, kek_file)?;
        let schema = Schema::new().map_err(|status| store.failed(status.message()))?;
        let registry = Arc::new(Registry::open(plane, store, schema)?);
        let weak = Arc::downgrade(&registry);
        let keep = move || weak.upgrade().is_none_or(|registry| registry.keep_promises());
        registry.plane().keep_limits(Box::new(keep));
        Ok(Control(registry))
    }

    /// Notes that this process ends in order and that everything is flushed: the next one need not take volatile caches
    /// for lost. Blocks.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub fn end(&self) -> Result<(), StoreError> {
        self.0.end()
    }
}
