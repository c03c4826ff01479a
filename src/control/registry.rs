//! All declared objects, and who uses whom.
//!
//! A call that changes something runs on a thread of its own, so that a client that goes away cannot stop it half-way.
//! It holds the names of all objects that it touches, and either happens whole or is rolled back: an object is built in
//! the data plane, then kept in the store, then shown to others; it goes the other way round. Reading never waits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use engine::{Limits, Volume};
use tonic::Status;
use uuid::Uuid;

use super::locks::{Held, NameLocks};
use super::names::{self, VolumeRef};
use super::object::{Claim, Declared, Kind, Object, Site};
use super::plane::{DataPlane, Failure, PlaneError};
use super::schema::Schema;
use super::secret::Secret;
use super::store::{Promise, Record, Store, StoreError};

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
    /// Names of the objects that it needs: its parent, the volume below.
    pub uses: Vec<String>,
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

    /// Whether it stands in the data plane.
    pub fn is_built(&self) -> bool {
        self.built.is_ok()
    }
}

/// All declared objects.
pub(crate) struct Registry {
    plane: Arc<dyn DataPlane>,
    store: Store,
    objects: RwLock<BTreeMap<String, Arc<Entry>>>,
    locks: NameLocks,
    sequence: AtomicU64,
    schema: Schema,
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
        let registry = Registry {
            plane,
            store,
            objects: RwLock::default(),
            locks: NameLocks::default(),
            sequence: AtomicU64::new(last + 1),
            schema,
        };
        for (name, record) in records {
            let entry = registry.restore(&name, record)?;
            if let Err(why) = &entry.built {
                tracing::error!(object = name, "cannot be built again: {why}");
            }
            registry.write().insert(name, Arc::new(entry));
        }
        Ok(registry)
    }

    /// The data plane.
    pub fn plane(&self) -> &dyn DataPlane {
        &*self.plane
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
        let uses = |entry: &&Arc<Entry>| entry.uses.iter().any(|used| used == name);
        self.read().values().filter(uses).cloned().collect()
    }

    /// Declares an object that was validated. Declared again in the same words, it is returned as it is.
    pub fn create(&self, name: &str, declared: Object, secret: &Secret) -> Result<Object, Status> {
        let (_held, uses) = self.hold(name, &declared)?;
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
        let created = self.ensure_remote_namespace(&uses).and_then(|()| {
            let random = super::vault::random().map_err(internal)?;
            let uuid = declared
                .chosen_uuid()
                .unwrap_or_else(|| uuid::Builder::from_random_bytes(random).into_uuid());
            self.build_new(name, declared, secret, uuid, uses.clone())
        });
        if created.is_err() {
            self.release_unused(&uses);
        }
        created
    }

    /// Takes an object away that nothing uses.
    pub fn delete(&self, kind: Kind, name: &str, allow_missing: bool) -> Result<(), Status> {
        let held_names = |registry: &Self| {
            let uses = registry.entry(name).map_or_else(Vec::new, |entry| entry.uses.clone());
            registry.with_parents(name, uses)
        };
        let _held = self.hold_steady(|| Ok(held_names(self)))?;
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
        tracing::info!(object = name, "deleted");
        self.release_unused(&entry.uses);
        Ok(())
    }

    /// Declares an existing object otherwise: `change` makes the new words from the old, `apply` carries them out on
    /// the volume, and is called with the old ones if the new cannot be kept.
    pub fn update<R: Declared>(
        &self,
        name: &str,
        change: impl FnOnce(&R) -> Result<R, Status>,
        apply: impl Fn(&R, &Arc<dyn Volume>) -> Result<(), Status>,
    ) -> Result<R, Status> {
        let _held = self.locks.hold([name.to_owned()]);
        let entry = self.find(R::KIND, name)?;
        let old = R::of(&entry.object).ok_or_else(|| internal("an object of another kind"))?;
        let mut new = change(old)?;
        name.clone_into(new.name_mut());
        let volume = entry.volume()?;
        apply(&new, &volume)?;
        let mut declared = new.clone();
        declared.name_mut().clear();
        let mut record = entry.record.clone();
        (record.declared, record.object) = (declared.into().encode(), new.clone().into().encode());
        if let Err(e) = self.store.put(name, &record) {
            apply(old, &volume)?;
            return Err(internal(e));
        }
        let changed = Entry {
            name: name.to_owned(),
            object: new.clone().into(),
            uuid: entry.uuid,
            uses: entry.uses.clone(),
            record,
            built: Ok(Some(volume)),
        };
        self.write().insert(name.to_owned(), Arc::new(changed));
        tracing::info!(object = name, "changed");
        Ok(new)
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Arc<Entry>>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Arc<Entry>>> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds the names that creating an object touches, and says what it uses.
    fn hold(&self, name: &str, declared: &Object) -> Result<(Held<'_>, Vec<String>), Status> {
        let mut uses = Vec::new();
        let held = self.hold_steady(|| {
            uses = match self.entry(name) {
                Some(existing) => existing.uses.clone(),
                None => self.uses(name, declared)?,
            };
            let mut touched = self.with_parents(name, uses.clone());
            touched.extend(declared.claim().map(|claim| format!("{} {}", claim.what, claim.value)));
            Ok(touched)
        })?;
        Ok((held, uses))
    }

    /// Holds what `names` says, once it says the same before and after.
    fn hold_steady(
        &self,
        mut names: impl FnMut() -> Result<Vec<String>, Status>,
    ) -> Result<Held<'_>, Status> {
        loop {
            let before = names()?;
            let held = self.locks.hold(before.clone());
            if names()? == before {
                return Ok(held);
            }
        }
    }

    /// The names with those of the remote controllers whose namespaces are among them.
    fn with_parents(&self, name: &str, uses: Vec<String>) -> Vec<String> {
        let remotes =
            uses.iter().filter(|used| is_remote_namespace(used)).map(|used| names::parent(used).to_owned());
        let mut all: Vec<String> = remotes.collect();
        all.extend(uses);
        all.push(name.to_owned());
        all
    }

    /// What an object needs: its parent, and the volume that it names.
    fn uses(&self, name: &str, declared: &Object) -> Result<Vec<String>, Status> {
        let mut uses = Vec::new();
        if let Some(parent_kind) = declared.kind().parent() {
            let parent = names::parent(name);
            self.find(parent_kind, parent).map_err(|_| match parent_kind {
                Kind::Remote => {
                    Status::not_found(format!("unable to find NvmeRemoteController by key {parent}"))
                }
                _ => Status::not_found(format!("unable to find subsystem {parent}")),
            })?;
            uses.push(parent.to_owned());
        }
        if let Some(reference) = declared.volume_ref() {
            let mut volume = self.resolve(reference)?;
            // A rate-limited volume limits all other users of the volume that it names: they go through it.
            while declared.kind() != Kind::Qos
                && let Some(limiter) = self.users(&volume).iter().find(|user| user.object.kind() == Kind::Qos)
            {
                volume = limiter.name.clone();
            }
            uses.push(volume);
        }
        Ok(uses)
    }

    /// The name of the volume that a reference means.
    fn resolve(&self, reference: &str) -> Result<String, Status> {
        let meaning = |wanted: VolumeRef| match wanted {
            VolumeRef::Declared(name, kind) => {
                let entry = self.entry(&name)?;
                kind.is_none_or(|kind| entry.object.kind() == kind).then_some(name)
            }
            VolumeRef::Uuid(uuid) => {
                let objects = self.read();
                let found =
                    objects.values().find(|entry| entry.object.kind().is_volume() && entry.uuid == uuid);
                found.map(|entry| entry.name.clone())
            }
            VolumeRef::Remote { controller, nsid } => {
                self.find(Kind::Remote, &controller).ok()?;
                Some(format!("{controller}/{}/{nsid}", Kind::RemoteNamespace.collection()))
            }
        };
        let found = names::volume_refs(reference).into_iter().find_map(meaning);
        found.ok_or_else(|| Status::not_found(format!("unable to find volume {}", names::shown(reference))))
    }

    fn check_claim(&self, claim: &Claim) -> Result<(), Status> {
        let Claim { what, value } = claim;
        let objects = self.read();
        let Some(owner) = objects.values().find(|entry| entry.object.claim().as_ref() == Some(claim)) else {
            return Ok(());
        };
        Err(Status::already_exists(format!(
            "Could not create {what}: {value} since object {} with same {what} already exists",
            owner.name
        )))
    }

    /// An encrypted volume has the volume below to itself; a rate limit comes before other users, to hold for all.
    fn check_volume_free(&self, declared: &Object, uses: &[String]) -> Result<(), Status> {
        let Some(volume) = uses.last().filter(|_| declared.volume_ref().is_some()) else { return Ok(()) };
        let alone = matches!(declared.kind(), Kind::Encrypted | Kind::Qos);
        let users = self.users(volume);
        let Some(user) = users.iter().find(|user| alone || user.object.kind() == Kind::Encrypted) else {
            return Ok(());
        };
        Err(Status::failed_precondition(format!("{volume} is in use by {}", user.name)))
    }

    /// Answers a create of what exists.
    fn create_again(&self, existing: &Entry, declared: &Object, secret: &Secret) -> Result<Object, Status> {
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
        if existing.is_built() {
            return Ok(existing.object.clone());
        }
        let entry = self.restore(&existing.name, existing.record.clone()).map_err(internal)?;
        if let Err(why) = &entry.built {
            return Err(Status::failed_precondition(format!("{} is not available: {why}", existing.name)));
        }
        let object = entry.object.clone();
        self.write().insert(existing.name.clone(), Arc::new(entry));
        Ok(object)
    }

    fn build_new(
        &self,
        name: &str,
        declared: Object,
        secret: &Secret,
        uuid: Uuid,
        uses: Vec<String>,
    ) -> Result<Object, Status> {
        let sealed = self.store.vault().seal(secret, name).map_err(internal)?;
        let mut object = declared.clone();
        let volume = object.build(&self.site(name, uuid, None, secret, &declared, &uses))?;
        let record = Record {
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
            kind: object.kind().collection().into(),
            declared: declared.encode(),
            object: object.encode(),
            sealed,
            uuid: uuid.as_bytes().to_vec(),
            promise: volume.as_ref().map(|volume| Promise::from(&volume.limits())),
        };
        let built = Ok(volume);
        let entry = Entry { name: name.to_owned(), object: object.clone(), uuid, uses, record, built };
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
        self.write().insert(name.to_owned(), Arc::new(entry));
        tracing::info!(object = name, "created");
        Ok(object)
    }

    /// Builds an object again from its record.
    fn restore(&self, name: &str, record: Record) -> Result<Entry, StoreError> {
        let damaged = |why: &dyn std::fmt::Display| self.store.failed(format!("{name} is damaged: {why}"));
        let kind = Kind::of_collection(&record.kind).ok_or_else(|| damaged(&"its kind is unknown"))?;
        let declared = kind.decode(&record.declared).map_err(|e| damaged(&e))?;
        let mut object = kind.decode(&record.object).map_err(|e| damaged(&e))?;
        let uuid = Uuid::from_slice(&record.uuid).map_err(|e| damaged(&e))?;
        let promise = record.promise.as_ref().map(Limits::from);
        let mut uses = Vec::new();
        let mut rebuild = || {
            uses = self.uses(name, &declared)?;
            let secret = self.store.vault().unseal(&record.sealed, name).map_err(internal)?;
            let volume = object.build(&self.site(name, uuid, promise.as_ref(), &secret, &declared, &uses))?;
            let (Some(volume), Some(promise)) = (&volume, &promise) else { return Ok(volume) };
            if let Err(limit) = volume.limits().covers(promise) {
                self.plane.close_volume(volume.clone())?;
                return Err(Status::failed_precondition(format!(
                    "its {limit} is less than what hosts were told"
                )));
            }
            Ok(Some(volume.clone()))
        };
        let built = rebuild().map_err(|status: Status| status.message().to_owned());
        Ok(Entry { name: name.to_owned(), object, uuid, uses, record, built })
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
        Site { registry: self, name, uuid, promise, secret, below }
    }

    fn dismantle(&self, entry: &Entry) -> Result<(), Status> {
        match &entry.built {
            Ok(Some(volume)) => {
                entry.object.dismantle(self, &entry.name)?;
                self.plane.close_volume(volume.clone()).map_err(Status::from)
            }
            Ok(None) => entry.object.dismantle(self, &entry.name),
            Err(_) => Ok(()),
        }
    }

    /// Makes the namespace of a remote controller that is used for the first time an object of its own.
    fn ensure_remote_namespace(&self, uses: &[String]) -> Result<(), Status> {
        let Some(name) = uses.iter().find(|used| is_remote_namespace(used)) else { return Ok(()) };
        if self.entry(name).is_some() {
            return Ok(());
        }
        let nsid = names::id(name).parse().map_err(|_| internal("a namespace without a number"))?;
        let declared = proto::storage::NvmeRemoteNamespace { nsid, ..Default::default() };
        let uuid = uuid::Builder::from_random_bytes(super::vault::random().map_err(internal)?).into_uuid();
        let uses = vec![names::parent(name).to_owned()];
        self.build_new(name, declared.into(), &Secret::default(), uuid, uses).map(drop)
    }

    /// Lets namespaces of remote controllers go that nothing uses any more.
    fn release_unused(&self, uses: &[String]) {
        for name in uses.iter().filter(|used| is_remote_namespace(used)) {
            let Some(entry) = self.entry(name).filter(|_| self.users(name).is_empty()) else { continue };
            let released = self.store.remove(name).map_err(internal).and_then(|()| self.dismantle(&entry));
            if let Err(status) = released {
                tracing::error!(object = name, "cannot be let go: {}", status.message());
            }
            self.write().remove(name);
        }
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
        match error.failure {
            Failure::Invalid => Status::invalid_argument(error.reason),
            Failure::Precondition => Status::failed_precondition(error.reason),
            Failure::Exists => Status::already_exists(error.reason),
            Failure::Exhausted => Status::resource_exhausted(error.reason),
            Failure::Unavailable => Status::unavailable(error.reason),
            Failure::Unsupported => Status::unimplemented(error.reason),
            Failure::Internal => Status::internal(error.reason),
        }
    }
}
