//! What an object needs: what its references mean, and whether others leave that to it.

use tonic::Status;

use super::Registry;
use crate::control::names::{self, VolumeRef};
use crate::control::object::{Claim, Kind, Object};

impl Registry {
    /// What an object needs: its parent, the volume that it names, and what it refers to otherwise.
    pub(super) fn uses(&self, name: &str, declared: &Object) -> Result<Vec<String>, Status> {
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
        uses.extend(declared.awaits().map(str::to_owned));
        for (field, kind, name) in declared.references() {
            let missing = |status: Status| Status::not_found(format!("{field}: {}", status.message()));
            self.find(kind, name).map_err(missing)?;
            uses.push(name.to_owned());
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
            VolumeRef::Uuid(uuid) => self.read().volume(uuid).map(|entry| entry.name.clone()),
            VolumeRef::Remote { controller, nsid } => {
                self.find(Kind::Remote, &controller).ok()?;
                Some(format!("{controller}/{}/{nsid}", Kind::RemoteNamespace.collection()))
            }
        };
        let found = names::volume_refs(reference).into_iter().find_map(meaning);
        found.ok_or_else(|| Status::not_found(format!("unable to find volume {}", names::shown(reference))))
    }

    /// Refuses what another object has.
    pub(super) fn check_claim(&self, claim: &Claim) -> Result<(), Status> {
        let Claim { what, value } = claim;
        let objects = self.read();
        let Some(owner) = objects.claimant(claim) else {
            return Ok(());
        };
        Err(Status::already_exists(format!(
            "Could not create {what}: {value} since object {} with same {what} already exists",
            owner.name
        )))
    }

    /// An encrypted volume and one with faults have the volume below to themselves; a rate limit comes before other users, to hold for all.
    pub(super) fn check_volume_free(&self, declared: &Object, uses: &[String]) -> Result<(), Status> {
        let Some(volume) = uses.last().filter(|_| declared.volume_ref().is_some()) else { return Ok(()) };
        let keeps = |kind| matches!(kind, Kind::Encrypted | Kind::Fault);
        let alone = keeps(declared.kind()) || declared.kind() == Kind::Qos;
        let users = self.users(volume);
        let Some(user) = users.iter().find(|user| alone || keeps(user.object.kind())) else {
            return Ok(());
        };
        Err(Status::failed_precondition(format!("{volume} is in use by {}", user.name)))
    }
}
