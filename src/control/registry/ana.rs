//! How well controllers reach their namespaces, kept beside what is declared of them.

use std::sync::Arc;

use frontend::AccessState;
use tonic::Status;

use super::{Entry, Registry, internal};
use crate::control::ana;
use crate::control::names;
use crate::control::object::Kind;
use crate::control::store::Record;

impl Entry {
    /// How well a controller reaches its namespaces.
    pub fn ana(&self) -> AccessState {
        ana::of_record(self.record.ana)
    }
}

impl Registry {
    /// Sets how well a controller reaches its namespaces, in the data plane and for good.
    pub fn set_ana(&self, name: &str, state: AccessState) -> Result<(), Status> {
        let _held = self.locks.hold([name.to_owned()]);
        let entry = self.find(Kind::Controller, name)?;
        if let Err(why) = &entry.built {
            return Err(Status::failed_precondition(format!("{name} is not available: {why}")));
        }
        let (subsystem, controller) = (names::id(names::parent(name)), names::id(name));
        self.plane.set_ana(subsystem, controller, state)?;
        let record = Record { ana: Some(ana::kept(state)), ..entry.record.clone() };
        if let Err(e) = self.store.put(name, &record) {
            self.plane.set_ana(subsystem, controller, entry.ana())?;
            return Err(internal(e));
        }
        let (object, built) = (entry.object.clone(), entry.built.clone());
        let changed = Entry { name: name.to_owned(), object, uuid: entry.uuid, record, built };
        self.write().insert(Arc::new(changed));
        tracing::info!(object = name, ?state, "ana");
        Ok(())
    }
}
