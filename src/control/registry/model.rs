//! Whether the controllers of a subsystem over fabrics are static, kept beside what is declared of it.

use std::sync::Arc;

use proto::storage::{NvmeController, NvmeTransportType};
use tonic::Status;

use super::{Entry, Registry, internal};
use crate::control::object::{Declared, Kind};
use crate::control::store::Record;

impl Entry {
    /// Whether the controllers of a subsystem over fabrics are static.
    pub fn has_static_controllers(&self) -> bool {
        self.record.fixed
    }
}

impl Registry {
    /// Sets whether the controllers of a subsystem over fabrics are static, for good: all are, or none. So it has none.
    pub fn set_static_controllers(&self, name: &str, fixed: bool) -> Result<(), Status> {
        // Who makes a controller holds it too.
        let _held = self.locks.hold([name.to_owned()]);
        let entry = self.find(Kind::Subsystem, name)?;
        if entry.record.fixed == fixed {
            return Ok(());
        }
        let over_fabrics = |user: &Arc<Entry>| {
            let spec = NvmeController::of(&user.object).and_then(|controller| controller.spec.as_ref());
            spec.is_some_and(|spec| spec.trtype() != NvmeTransportType::Pcie)
        };
        if let Some(controller) = self.users(name).iter().find(|user| over_fabrics(user)) {
            let (is, not) = if fixed { ("dynamic", "static") } else { ("static", "dynamic") };
            let message = format!("{name} cannot become {not}: {} is {is}", controller.name);
            return Err(Status::failed_precondition(message));
        }
        let record = Record { fixed, ..entry.record.clone() };
        self.store.put(name, &record).map_err(internal)?;
        let (object, built) = (entry.object.clone(), entry.built.clone());
        self.write().insert(Arc::new(Entry {
            name: name.to_owned(),
            object,
            uuid: entry.uuid,
            record,
            built,
        }));
        tracing::info!(object = name, fixed, "controller model");
        Ok(())
    }
}
