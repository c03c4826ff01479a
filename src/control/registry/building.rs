//! How objects come to be in the data plane, come to be again, and go.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use engine::Limits;
use frontend::AccessState;
use tonic::Status;
use uuid::Uuid;

use super::{Entry, Registry, internal, is_busy, is_remote_namespace};
use crate::control::ana;
use crate::control::names;
use crate::control::object::{Kind, Object, Site};
use crate::control::secret::Secret;
use crate::control::store::{Promise, Record, StoreError};
use crate::control::vault;

/// Between two looks at what another process holds.
const CLEARING_STEP: Duration = Duration::from_millis(10);

impl Registry {
    /// Answers a create of what exists.
    pub(super) fn create_again(
        &self,
        existing: &Arc<Entry>,
        declared: &Object,
        secret: &Secret,
    ) -> Result<Object, Status> {
        let kind = existing.object.kind();
        let exists =
            |what: String| Err(Status::already_exists(format!("{} already exists {what}", existing.name)));
        if kind != declared.kind() {
            return exists(format!("among the {}", kind.collection()));
        }
        let before = kind.decode(&existing.record.declared).map_err(internal)?;
        if let Some(field) = declared.difference(&before, &self.schema)? {
            return exists(format!("with another {}.{field}", kind.field()));
        }
        let kept = self.store.vault().unseal(&existing.record.sealed, &existing.name).map_err(internal)?;
        if kept != *secret {
            return exists(format!("with another {}.key", kind.field()));
        }
        self.revive(existing).map(|entry| entry.object.clone())
    }

    /// Builds an object that is new, on others that are there or come to be.
    pub(super) fn create_new(
        &self,
        name: &str,
        declared: Object,
        secret: &Secret,
        uses: &[String],
    ) -> Result<Object, Status> {
        for used in uses {
            match self.entry(used) {
                Some(entry) => self.revive(&entry).map(drop)?,
                None if is_remote_namespace(used) => self.create_remote_namespace(used)?,
                // What it is about comes later.
                None => {}
            }
        }
        let random = || vault::random().map(|bytes| uuid::Builder::from_random_bytes(bytes).into_uuid());
        let uuid = declared.chosen_uuid().map_or_else(random, Ok).map_err(internal)?;
        let sealed = self.store.vault().seal(secret, name).map_err(internal)?;
        let mut object = declared.clone();
        let site = self.site(name, uuid, None, secret, &declared, uses);
        let volume = object.build(&site)?;
        let further = site.further.get();
        let record = Record {
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
            kind: object.kind().collection().into(),
            declared: declared.encode(),
            object: object.encode(),
            sealed,
            uuid: uuid.as_bytes().to_vec(),
            uses: uses.to_vec(),
            promise: volume.as_ref().map(|volume| Promise::from(&volume.limits())),
            further,
            ana: None,
            fixed: false,
        };
        let built = Ok(volume);
        let entry = Entry { name: name.to_owned(), object: object.clone(), uuid, record, built };
        if let Err(e) = self.store.put(name, &entry.record) {
            if let Err(status) = self.dismantle(&entry) {
                tracing::error!(
                    object = name,
                    "what could not be kept cannot be taken back: {}",
                    status.message()
                );
            }
            return Err(internal(e));
        }
        self.write().insert(Arc::new(entry));
        tracing::info!(object = name, "created");
        self.mask_again(name);
        Ok(object)
    }

    /// Builds an object again that could not be built when the process began, with all that it stands on.
    pub(super) fn revive(&self, entry: &Arc<Entry>) -> Result<Arc<Entry>, Status> {
        if entry.is_built() {
            return Ok(entry.clone());
        }
        for used in entry.uses() {
            if let Some(below) = self.entry(used) {
                self.revive(&below)?;
            }
        }
        let revived =
            Arc::new(self.restore(&entry.name, entry.record.clone(), Instant::now()).map_err(internal)?);
        if let Err(why) = &revived.built {
            return Err(Status::failed_precondition(format!("{} is not available: {why}", entry.name)));
        }
        tracing::info!(object = entry.name, "is available again");
        self.write().insert(revived.clone());
        self.mask_again(&entry.name);
        Ok(revived)
    }

    /// Carries out the masks of a namespace that is there now, or again, or of such a controller: until then the one is
    /// hidden from all, and the other sees nothing that only some see.
    pub(super) fn mask_again(&self, name: &str) {
        let _one_after_the_other = self.masking.lock().unwrap_or_else(PoisonError::into_inner);
        for mask in self.users(name).into_iter().filter(|user| user.object.kind() == Kind::Mask) {
            let again = self.restore(&mask.name, mask.record.clone(), Instant::now()).map_err(internal);
            match again {
                Ok(entry) => {
                    if let Err(why) = &entry.built {
                        tracing::error!(object = mask.name, "cannot be built again: {why}");
                    }
                    self.write().insert(Arc::new(entry));
                }
                Err(status) => {
                    tracing::error!(object = mask.name, "cannot be built again: {}", status.message());
                }
            }
        }
    }

    /// Builds an object again from its record; what another process holds is waited for until `cleared`.
    pub(super) fn restore(&self, name: &str, record: Record, cleared: Instant) -> Result<Entry, StoreError> {
        let damaged = |why: &dyn std::fmt::Display| self.store.failed(format!("{name} is damaged: {why}"));
        let kind = Kind::of_collection(&record.kind).ok_or_else(|| damaged(&"its kind is unknown"))?;
        let declared = kind.decode(&record.declared).map_err(|e| damaged(&e))?;
        let mut object = kind.decode(&record.object).map_err(|e| damaged(&e))?;
        let uuid = Uuid::from_slice(&record.uuid).map_err(|e| damaged(&e))?;
        let promise = record.promise.as_ref().map(Limits::from);
        let mut rebuild = || {
            let secret = self.store.vault().unseal(&record.sealed, name).map_err(internal)?;
            let mut site = self.site(name, uuid, promise.as_ref(), &secret, &declared, &record.uses);
            site.ana = ana::of_record(record.ana);
            site.further.set(record.further);
            let volume = object.build(&site)?;
            let (Some(volume), Some(promise)) = (&volume, &promise) else { return Ok(volume) };
            if let Err(limit) = volume.limits().covers(promise) {
                self.plane.close_volume(volume.clone())?;
                let message = format!("its {limit} is less than what hosts were told");
                return Err(Status::failed_precondition(message));
            }
            Ok(Some(volume.clone()))
        };
        let built = loop {
            match rebuild() {
                Err(status) if is_busy(&status) && Instant::now() < cleared => thread::sleep(CLEARING_STEP),
                built => break built.map_err(|status: Status| status.message().to_owned()),
            }
        };
        Ok(Entry { name: name.to_owned(), object, uuid, record, built })
    }

    fn site<'a>(
        &'a self,
        name: &'a str,
        uuid: Uuid,
        promise: Option<&'a Limits>,
        secret: &'a Secret,
        declared: &Object,
        uses: &[String],
    ) -> Site<'a> {
        let below =
            uses.last().filter(|_| declared.volume_ref().is_some()).and_then(|below| self.entry(below));
        let (further, ana) = (Cell::new(None), AccessState::default());
        Site { registry: self, name, uuid, promise, secret, below, further, ana }
    }

    /// Takes an object out of the data plane.
    pub(super) fn dismantle(&self, entry: &Entry) -> Result<(), Status> {
        match &entry.built {
            Ok(Some(volume)) => {
                entry.object.dismantle(self, &entry.name)?;
                self.plane.close_volume(volume.clone()).map_err(Status::from)
            }
            Ok(None) => entry.object.dismantle(self, &entry.name),
            // One that is there all the same would be hidden for ever.
            Err(_) if entry.object.kind() == Kind::Mask => entry.object.dismantle(self, &entry.name),
            Err(_) => Ok(()),
        }
    }

    /// Makes the namespace of a remote controller that is used for the first time an object of its own.
    fn create_remote_namespace(&self, name: &str) -> Result<(), Status> {
        let nsid = names::id(name).parse().map_err(|_| internal("a namespace without a number"))?;
        let declared = proto::storage::NvmeRemoteNamespace { nsid, ..Default::default() };
        let uses = [names::parent(name).to_owned()];
        self.create_new(name, declared.into(), &Secret::default(), &uses).map(drop)
    }

    /// Lets namespaces of remote controllers go that nothing uses any more.
    pub(super) fn release_unused<'a>(&self, names: impl IntoIterator<Item = &'a String>) {
        for name in names.into_iter().filter(|name| is_remote_namespace(name)) {
            let Some(entry) = self.entry(name).filter(|_| self.users(name).is_empty()) else { continue };
            let released = self.dismantle(&entry).and_then(|()| {
                self.write().remove(name);
                self.store.remove(name).map_err(internal)
            });
            if let Err(status) = released {
                tracing::error!(object = name, "cannot be let go: {}", status.message());
            }
        }
    }
}
