//! All declared objects, and who uses whom.
//!
//! A call that changes something runs on a thread of its own, so that a client that goes away cannot stop it half-way.
//! It holds the names of all objects that it touches, and either happens whole or is rolled back: an object is built in
//! the data plane, then kept in the store, then shown to others; it goes the other way round. Reading never waits.

mod ana;
mod building;
mod meaning;
mod model;
mod objects;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use engine::Volume;
use tonic::{Code, Status};
use uuid::Uuid;

use super::keeper::Keeper;
use super::locks::{Held, NameLocks};
use super::names;
use super::object::{Declared, Kind, Object};
use super::plane::{DataPlane, Failure, PlaneError};
use super::schema::Schema;
use super::secret::Secret;
use super::store::{Promise, Record, Store, StoreError};
use objects::Objects;

/// How long all that is built again waits for addresses, sockets and files of a process that was killed: the kernel
/// lets go of what the process's rings held in its own time.
const CLEARING: Duration = Duration::from_secs(10);

/// Most objects that may be declared.
const MOST: usize = 1 << 16;

/// A declared object.
pub(crate) struct Entry {
    /// The resource name.
    pub name: String,
    /// The message as clients get it.
    pub object: Object,
    /// Its identity for life.
    pub uuid: Uuid,
    record: Record,
    /// Its volume, if it is one; or why it could not be built again when the process began.
    built: Result<Option<Arc<dyn Volume>>, String>,
}

impl Entry {
    /// The volume that it is.
    pub fn volume(&self) -> Result<Arc<dyn Volume>, Status> {
        match &self.built {
            Ok(Some(volume)) => Ok(volume.clone()),
            Ok(None) => Err(Status::invalid_argument(format!("{} is not a volume", self.name))),
            Err(why) => Err(Status::failed_precondition(format!("{} is not available: {why}", self.name))),
        }
    }

    /// Names of the objects that it needs: its parent, the volume below, what it refers to otherwise.
    pub fn uses(&self) -> &[String] {
        &self.record.uses
    }

    /// Whether it has its subsystem's own socket.
    pub fn has_first_socket(&self) -> bool {
        self.record.further == Some(false)
    }

    /// Whether it stands in the data plane.
    pub fn is_built(&self) -> bool {
        self.built.is_ok()
    }
}

/// All declared objects.
pub(crate) struct Registry {
    plane: Arc<dyn DataPlane>,
    store: Arc<Store>,
    keeper: Keeper,
    objects: RwLock<Objects>,
    locks: NameLocks,
    sequence: AtomicU64,
    schema: Schema,
    /// While all is built again: the namespaces of which the masks are still to come.
    unmasked: HashSet<String>,
    /// Held by who carries masks out again.
    masking: Mutex<()>,
}

impl Registry {
    /// Builds again what the store keeps, in the order of creation. What cannot be built stays declared, and says why
    /// to those who would use it.
    ///
    /// # Errors
    /// Those of the store.
    pub fn open(plane: Arc<dyn DataPlane>, store: Store, schema: Schema) -> Result<Self, StoreError> {
        let records = store.load()?;
        let last = records.last().map_or(0, |(_, record)| record.sequence);
        store.retain_kept(|uuid| records.iter().any(|(_, r)| r.uuid == uuid.as_bytes()))?;
        let store = Arc::new(store);
        let masks = records.iter().filter(|(_, r)| r.kind == Kind::Mask.collection());
        let unmasked = masks.filter_map(|(_, r)| r.uses.first().cloned()).collect();
        let mut registry = Registry {
            plane,
            keeper: Keeper::new(&store)?,
            store,
            objects: RwLock::default(),
            locks: NameLocks::default(),
            sequence: AtomicU64::new(last + 1),
            schema,
            unmasked,
            masking: Mutex::default(),
        };
        let cleared = Instant::now() + if registry.was_killed() { CLEARING } else { Duration::ZERO };
        for (name, record) in records {
            let entry = registry.restore(&name, record, cleared)?;
            if let Err(why) = &entry.built {
                tracing::error!(object = name, "cannot be built again: {why}");
            }
            registry.write().insert(Arc::new(entry));
            // One whose mask came before it.
            registry.mask_again(&name);
        }
        registry.unmasked.clear();
        let all: Vec<String> = registry.read().keys().cloned().collect();
        registry.release_unused(&all);
        Ok(registry)
    }

    /// The data plane.
    pub fn plane(&self) -> &dyn DataPlane {
        &*self.plane
    }

    /// Keeps what hosts set of a namespace with that identity.
    pub fn persist(&self, uuid: Uuid) -> Arc<dyn frontend::Persist> {
        self.keeper.of(uuid)
    }

    /// The API's descriptors.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Waits until no other call holds the name, and holds it.
    pub fn hold_name(&self, name: &str) -> impl Drop + use<'_> {
        self.locks.hold([name.to_owned()])
    }

    /// The identifier of this installation as an NVMe host.
    pub fn host_id(&self) -> Uuid {
        self.store.host_id()
    }

    /// Whether the process before this one was killed.
    pub fn was_killed(&self) -> bool {
        self.store.was_killed()
    }

    /// How many processes there were before this one and with it, and how many of them were killed.
    pub fn lives(&self) -> (u64, u64) {
        (self.store.starts(), self.store.kills())
    }

    /// Notes that this process ends in order.
    pub fn end(&self) -> Result<(), StoreError> {
        self.store.end()
    }

    /// The object of this name.
    pub fn entry(&self, name: &str) -> Option<Arc<Entry>> {
        self.read().get(name).cloned()
    }

    /// The object of this name if it is of this kind.
    pub fn find(&self, kind: Kind, name: &str) -> Result<Arc<Entry>, Status> {
        let entry = self.entry(name).filter(|entry| entry.object.kind() == kind);
        entry.ok_or_else(|| Status::not_found(format!("unable to find key {name}")))
    }

    /// Every object of a kind whose name begins with `prefix`, by name.
    pub fn all(&self, kind: Kind, prefix: &str) -> Vec<Arc<Entry>> {
        let objects = self.read();
        let matching = objects.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix));
        matching.map(|(_, entry)| entry).filter(|entry| entry.object.kind() == kind).cloned().collect()
    }

    /// Every object that needs the one of this name.
    pub fn users(&self, name: &str) -> Vec<Arc<Entry>> {
        self.read().users(name).cloned().collect()
    }

    /// Whether only some may see the namespace of this name, or nobody yet.
    pub fn is_masked(&self, name: &str) -> bool {
        let masks = |user: &Arc<Entry>| user.object.kind() == Kind::Mask;
        self.unmasked.contains(name) || self.read().users(name).any(masks)
    }

    /// Declares an object that was validated. Declared again in the same words, it is returned as it is.
    pub fn create(&self, name: &str, declared: Object, secret: &Secret) -> Result<Object, Status> {
        let mut uses = Vec::new();
        let _held = self.hold(|| {
            if self.entry(name).is_none() {
                uses = self.uses(name, &declared)?;
            }
            let mut touched = self.foundations(name, &uses);
            touched.extend(declared.claim().map(|claim| format!("{} {}", claim.what, claim.value)));
            Ok(touched)
        })?;
        if let Some(existing) = self.entry(name) {
            return self.create_again(&existing, &declared, secret);
        }
        if self.read().len() >= MOST {
            return Err(Status::resource_exhausted(format!("{MOST} objects are declared already")));
        }
        if let Some(claim) = declared.claim() {
            self.check_claim(&claim)?;
        }
        self.check_volume_free(&declared, &uses)?;
        let created = self.create_new(name, declared, secret, &uses);
        if created.is_err() {
            self.release_unused(&uses);
        }
        created
    }

    /// Takes an object away that nothing uses.
    pub fn delete(&self, kind: Kind, name: &str, allow_missing: bool) -> Result<(), Status> {
        let _held = self.hold(|| Ok(self.foundations(name, &[])))?;
        let entry = match self.find(kind, name) {
            Err(_) if allow_missing => return Ok(()),
            entry => entry?,
        };
        if let Some(user) = self.users(name).first() {
            let message = match user.object.kind() {
                Kind::Path => "NvmePaths exist for controller".into(),
                _ => format!("{name} is in use by {}", user.name),
            };
            return Err(Status::failed_precondition(message));
        }
        entry.object.check_delete(self, name)?;
        self.store.remove(name).map_err(internal)?;
        if let Err(status) = self.dismantle(&entry) {
            self.store.put(name, &entry.record).map_err(internal)?;
            return Err(status);
        }
        self.write().remove(name);
        if kind == Kind::Namespace {
            // What stays all the same is forgotten at the next start.
            if !self.keeper.forget(entry.uuid) {
                tracing::warn!(object = name, "what its hosts set is still kept");
            }
        }
        tracing::info!(object = name, "deleted");
        self.release_unused(entry.uses());
        Ok(())
    }

    /// Declares an existing object otherwise: `change` makes the new words from the old, `apply` carries them out on
    /// what stands there, and is called with the old ones if the new cannot be kept.
    pub fn update<R: Declared>(
        &self,
        name: &str,
        change: impl Fn(&R) -> Result<R, Status>,
        apply: impl Fn(&R, &Entry) -> Result<(), Status>,
    ) -> Result<R, Status> {
        let changed = |entry: &Entry| {
            let old = R::of(&entry.object).ok_or_else(|| internal("an object of another kind"))?;
            let mut new = change(old)?;
            name.clone_into(new.name_mut());
            Ok::<_, Status>((old.clone(), new))
        };
        // A reference to a volume keeps its meaning; others may be to other objects now.
        let mut referred = None;
        let _held = self.hold(|| {
            let new: Object = changed(&*self.find(R::KIND, name)?)?.1.into();
            if new.references().is_empty() {
                return Ok(vec![name.to_owned()]);
            }
            let uses = self.uses(name, &new)?;
            let touched = self.foundations(name, &uses);
            referred = Some(uses);
            Ok(touched)
        })?;
        for used in referred.iter().flatten().filter_map(|used| self.entry(used)) {
            self.revive(&used)?;
        }
        let entry = self.find(R::KIND, name)?;
        let (old, new) = changed(&entry)?;
        apply(&new, &entry)?;
        let mut declared = new.clone();
        declared.name_mut().clear();
        let mut record = entry.record.clone();
        if let Some(uses) = referred {
            record.uses = uses;
            // Built again after what it needs now.
            record.sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        }
        (record.declared, record.object) = (declared.into().encode(), new.clone().into().encode());
        if let Err(e) = self.store.put(name, &record) {
            apply(&old, &entry)?;
            return Err(internal(e));
        }
        let changed = Entry {
            name: name.to_owned(),
            object: new.clone().into(),
            uuid: entry.uuid,
            record,
            built: entry.built.clone(),
        };
        self.write().insert(Arc::new(changed));
        tracing::info!(object = name, "changed");
        Ok(new)
    }

    /// Keeps what hosts will be told of remote namespaces that have become larger: the next process promises no less.
    /// Whether all of it is kept.
    pub fn keep_promises(&self) -> bool {
        let mut all_kept = true;
        let promise = |entry: &Entry| match &entry.built {
            Ok(Some(volume)) => {
                Some(Promise::from(&volume.limits())).filter(|p| entry.record.promise.as_ref() != Some(p))
            }
            _ => None,
        };
        for entry in self.all(Kind::RemoteNamespace, "") {
            if promise(&entry).is_none() {
                continue;
            }
            let _held = self.hold_name(&entry.name);
            let Some(entry) = self.entry(&entry.name) else { continue };
            let Some(new) = promise(&entry) else { continue };
            let record = Record { promise: Some(new), ..entry.record.clone() };
            if let Err(error) = self.store.put(&entry.name, &record) {
                tracing::error!(
                    object = entry.name,
                    "its new size cannot be kept, and hosts are not told: {error}"
                );
                all_kept = false;
                continue;
            }
            let (name, object) = (entry.name.clone(), entry.object.clone());
            let changed = Entry { name, object, uuid: entry.uuid, record, built: entry.built.clone() };
            self.write().insert(Arc::new(changed));
        }
        all_kept
    }

    /// Lets the store fail.
    #[cfg(test)]
    pub fn fail_store(&self, fails: bool) {
        self.store.fails.store(fails, std::sync::atomic::Ordering::Relaxed);
    }

    fn read(&self) -> RwLockReadGuard<'_, Objects> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Objects> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds what `names` says, once it says the same before and after.
    fn hold(&self, mut names: impl FnMut() -> Result<Vec<String>, Status>) -> Result<Held<'_>, Status> {
        loop {
            let before = names()?;
            let held = self.locks.hold(before.clone());
            if names()? == before {
                return Ok(held);
            }
        }
    }

    /// The name with those of `uses`, and of all that these stand on.
    fn foundations(&self, name: &str, uses: &[String]) -> Vec<String> {
        let mut all = vec![name.to_owned()];
        all.extend_from_slice(uses);
        let mut next = 0;
        while let Some(name) = all.get(next) {
            let below = match self.entry(name) {
                Some(entry) => entry.uses().to_vec(),
                None if is_remote_namespace(name) => vec![names::parent(name).to_owned()],
                None => Vec::new(),
            };
            all.extend(below);
            next += 1;
        }
        all
    }
}

fn is_remote_namespace(name: &str) -> bool {
    name.contains("/nvmeRemoteNamespaces/")
}

/// The answer to a failure that is not the client's.
pub(crate) fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

impl From<PlaneError> for Status {
    fn from(error: PlaneError) -> Self {
        let code = match error.failure {
            Failure::Invalid => Code::InvalidArgument,
            Failure::Precondition | Failure::Busy => Code::FailedPrecondition,
            Failure::Exists => Code::AlreadyExists,
            Failure::Exhausted => Code::ResourceExhausted,
            Failure::Unavailable => Code::Unavailable,
            Failure::Unsupported => Code::Unimplemented,
            Failure::Internal => Code::Internal,
        };
        let mut status = Status::new(code, &error.reason);
        status.set_source(Arc::new(error));
        status
    }
}

/// Whether another process holds what was to be opened.
fn is_busy(status: &Status) -> bool {
    let source = std::error::Error::source(status).and_then(|source| source.downcast_ref());
    matches!(source, Some(PlaneError { failure: Failure::Busy, .. }))
}
