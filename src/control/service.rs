//! What the services have in common: create, get, list, delete and stats of any kind of object.

use std::sync::Arc;

use engine::Volume;
use prost_types::FieldMask;
use proto::storage::VolumeStats;
use tonic::{Response, Status};

use super::names;
use super::object::{Kind, Object, Resource, with_message};
use super::page::page;
use super::plane::Counters;
use super::registry::{Entry, Registry, internal};
use super::schema::missing_field;
use super::secret::Secret;

/// The control plane: what all services work on. Clones are the same one.
#[derive(Clone)]
pub struct Control(pub(super) Arc<Registry>);

impl Control {
    /// All objects.
    pub(crate) fn registry(&self) -> &Registry {
        &self.0
    }

    /// Runs a call that may block, or that changes something, to its end: on a thread of its own, where a client that
    /// goes away does not stop it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Registry) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let registry = self.0.clone();
        let done = tokio::task::spawn_blocking(move || call(&registry)).await;
        done.unwrap_or_else(|_| Err(internal("the call failed; see the server's log")))
    }

    /// Declares an object; `parent` for a kind that has one.
    pub(crate) async fn create<R: Resource>(
        &self,
        parent: &str,
        message: Option<R>,
        id: &str,
    ) -> Result<R, Status> {
        let mut declared = message.ok_or_else(|| missing_field(R::KIND.field()))?;
        let secret = take_secret(&mut declared, self.registry())?;
        declared.validate(&secret)?;
        declared.name_mut().clear();
        let id = names::new_id(id)?;
        let collection = if R::KIND.is_volume() { "volumes" } else { R::KIND.collection() };
        let name = match R::KIND.parent() {
            None => format!("{collection}/{id}"),
            Some(_) if parent.is_empty() => return Err(missing_field("parent")),
            Some(_) => {
                names::check(parent)?;
                format!("{parent}/{collection}/{id}")
            }
        };
        let created = self.run(move |registry| registry.create(&name, declared.into(), &secret)).await?;
        R::of(&created).cloned().ok_or_else(|| internal("an object of another kind"))
    }

    /// Declares an object of any kind.
    pub(crate) async fn create_any(&self, parent: &str, object: Object, id: &str) -> Result<(), Status> {
        with_message!(object, message => self.create(parent, Some(message), id).await.map(drop))
    }

    /// The object of this name.
    pub(crate) fn get<R: Resource>(&self, name: &str) -> Result<Response<R>, Status> {
        let entry = self.registry().find(R::KIND, &names::canonical(R::KIND, name)?)?;
        Ok(Response::new(self.observed(&entry)?))
    }

    /// A page of the objects of a kind, and the token of the next.
    pub(crate) fn list<R: Resource>(
        &self,
        parent: Option<&str>,
        page_size: i32,
        page_token: &str,
    ) -> Result<(Vec<R>, String), Status> {
        if parent == Some("") {
            return Err(missing_field("parent"));
        }
        let prefix = match (R::KIND.parent(), parent) {
            (Some(kind), Some(parent)) => {
                names::check(parent)?;
                let all = format!("{}/-", kind.collection());
                if parent == all {
                    format!("{}/", kind.collection())
                } else {
                    self.registry().find(kind, parent)?;
                    format!("{parent}/{}/", R::KIND.collection())
                }
            }
            _ => String::new(),
        };
        let sorted = self.registry().all(R::KIND, &prefix);
        let list = format!("{}:{prefix}", R::KIND.collection());
        let (entries, next) =
            page(&list, sorted.into_iter().map(|e| (e.name.clone(), e)), page_size, page_token)?;
        let objects: Result<Vec<R>, Status> = entries.iter().map(|entry| self.observed(entry)).collect();
        Ok((objects?, next))
    }

    /// Changes a volume in place. `apply` carries the new words out on it, and is called with the old ones if the new
    /// cannot be kept.
    pub(crate) async fn update<R: Resource>(
        &self,
        update: Option<R>,
        mask: Option<FieldMask>,
        allow_missing: bool,
        apply: impl Fn(&Registry, &R, &Arc<dyn Volume>) -> Result<(), Status> + Send + 'static,
    ) -> Result<Response<R>, Status> {
        let apply = move |registry: &Registry, new: &R, entry: &Entry| apply(registry, new, &entry.volume()?);
        self.update_entry(update, mask, allow_missing, apply).await.map(Response::new)
    }

    /// Changes any object in place; otherwise as [`Control::update`].
    pub(crate) async fn update_entry<R: Resource>(
        &self,
        update: Option<R>,
        mask: Option<FieldMask>,
        allow_missing: bool,
        apply: impl Fn(&Registry, &R, &Entry) -> Result<(), Status> + Send + 'static,
    ) -> Result<R, Status> {
        let mut update = update.ok_or_else(|| missing_field(R::KIND.field()))?;
        let name = names::canonical(R::KIND, update.name_mut())?;
        if allow_missing && self.registry().entry(&name).is_none() {
            return self.create("", Some(update), names::id(&name)).await;
        }
        let mask = mask.unwrap_or_default().paths;
        let updated = self.run(move |registry| {
            let change = |old: &R| changed(registry, old, &update, &mask);
            registry.update(&name, change, |new, entry| apply(registry, new, entry))
        });
        updated.await
    }

    /// Takes an object away.
    pub(crate) async fn delete(
        &self,
        kind: Kind,
        name: &str,
        allow_missing: bool,
    ) -> Result<Response<()>, Status> {
        let name = names::canonical(kind, name)?;
        self.run(move |registry| registry.delete(kind, &name, allow_missing)).await.map(Response::new)
    }

    /// Counters of an object.
    pub(crate) async fn stats<R: Resource>(&self, name: &str) -> Result<Option<VolumeStats>, Status> {
        let entry = self.registry().find(R::KIND, &names::canonical(R::KIND, name)?)?;
        let counters = self.run(move |registry| counters::<R>(registry, &entry)).await?;
        Ok(Some(volume_stats(&counters)))
    }

    fn observed<R: Resource>(&self, entry: &Entry) -> Result<R, Status> {
        let mut object =
            R::of(&entry.object).cloned().ok_or_else(|| internal("an object of another kind"))?;
        object.observe(self.registry(), entry);
        Ok(object)
    }
}

/// An object with what an update changes.
fn changed<R: Resource>(registry: &Registry, old: &R, update: &R, mask: &[String]) -> Result<R, Status> {
    let mut new = registry.schema().apply_mask(old, update, mask)?;
    if new.volume_ref() != old.volume_ref() {
        let [from, to] = [old, &new].map(|object| names::shown(object.volume_ref().unwrap_or_default()));
        return Err(Status::invalid_argument(format!(
            "Change of underlying volume {from} to a new one {to} is forbidden"
        )));
    }
    registry.schema().check_required(&new, R::KIND.field())?;
    new.validate(&Secret::default())?;
    Ok(new)
}

/// Counters of an entry that is an `R`.
pub(crate) fn counters<R: Resource>(registry: &Registry, entry: &Entry) -> Result<Counters, Status> {
    let object = R::of(&entry.object).ok_or_else(|| internal("an object of another kind"))?;
    object.counters(registry, entry)
}

/// Counters of a volume.
pub(crate) fn volume_counters(entry: &Entry) -> Result<Counters, Status> {
    Ok(Counters::from(&entry.volume()?.stats().snapshot()))
}

/// The refusal of an update that is not done.
pub(crate) fn no_update(method: &str) -> Status {
    Status::unimplemented(format!("{method} method is not implemented"))
}

/// Takes the key out of a message, and refuses the message if a required field is missing.
fn take_secret<R: Resource>(declared: &mut R, registry: &Registry) -> Result<Secret, Status> {
    let mut secret = Secret::default();
    if let Some(field) = declared.secret_field() {
        secret = Secret::take(field);
        // Stands for the key where only its presence matters: the descriptors' copy of the message is not wiped.
        field.extend((!secret.is_empty()).then_some(0));
    }
    registry.schema().check_required(declared, R::KIND.field())?;
    if let Some(field) = declared.secret_field() {
        field.clear();
    }
    Ok(secret)
}

/// Counters as clients get them: none exceeds the largest int32.
fn volume_stats(counters: &Counters) -> VolumeStats {
    let count = |value: u64| i32::try_from(value).unwrap_or(i32::MAX);
    let Counters { read, write, unmap } = counters;
    VolumeStats {
        read_bytes_count: count(read.bytes),
        read_ops_count: count(read.ops),
        write_bytes_count: count(write.bytes),
        write_ops_count: count(write.ops),
        unmap_bytes_count: count(unmap.bytes),
        unmap_ops_count: count(unmap.ops),
        read_latency_ticks: count(read.latency_ns / 1000),
        write_latency_ticks: count(write.latency_ns / 1000),
        unmap_latency_ticks: count(unmap.latency_ns / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::stats::Sums;

    #[test]
    fn counters_saturate() {
        let sums = Sums { ops: 7, bytes: 3_000_000_000, latency_ns: 5_000, errors: 0 };
        let stats = volume_stats(&Counters { read: sums, ..Counters::default() });
        assert_eq!((stats.read_ops_count, stats.read_bytes_count), (7, i32::MAX));
        assert_eq!(stats.read_latency_ticks, 5);
    }
}
