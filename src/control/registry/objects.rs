//! The declared objects by name, and what is looked up in them otherwise: with ten thousand of them, nothing goes through
//! all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Deref;
use std::sync::Arc;

use uuid::Uuid;

use super::Entry;
use crate::control::object::Claim;

/// All declared objects. Reading, it is the map from their names.
#[derive(Default)]
pub(super) struct Objects {
    all: BTreeMap<String, Arc<Entry>>,
    /// Who needs what.
    users: HashMap<String, BTreeSet<String>>,
    claims: HashMap<Claim, String>,
    volumes: HashMap<Uuid, String>,
}

impl Deref for Objects {
    type Target = BTreeMap<String, Arc<Entry>>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl Objects {
    /// Adds an object, in the place of one with its name.
    pub fn insert(&mut self, entry: Arc<Entry>) {
        let name = entry.name.clone();
        self.remove(&name);
        for used in entry.uses() {
            self.users.entry(used.clone()).or_default().insert(name.clone());
        }
        self.claims.extend(entry.object.claim().map(|claim| (claim, name.clone())));
        if entry.object.kind().is_volume() {
            self.volumes.insert(entry.uuid, name.clone());
        }
        self.all.insert(name, entry);
    }

    pub fn remove(&mut self, name: &str) {
        let Some(entry) = self.all.remove(name) else { return };
        for used in entry.uses() {
            if let Some(users) = self.users.get_mut(used) {
                users.remove(name);
                if users.is_empty() {
                    self.users.remove(used);
                }
            }
        }
        if let Some(claim) =
            entry.object.claim().filter(|claim| self.claims.get(claim).is_some_and(|of| of == name))
        {
            self.claims.remove(&claim);
        }
        if self.volumes.get(&entry.uuid).is_some_and(|volume| volume == name) {
            self.volumes.remove(&entry.uuid);
        }
    }

    /// Those that need the one of this name.
    pub fn users(&self, name: &str) -> impl Iterator<Item = &Arc<Entry>> {
        self.users.get(name).into_iter().flatten().filter_map(|user| self.all.get(user))
    }

    /// The one that has what no two may have.
    pub fn claimant(&self, claim: &Claim) -> Option<&Arc<Entry>> {
        self.all.get(self.claims.get(claim)?)
    }

    /// The volume with that identity.
    pub fn volume(&self, uuid: Uuid) -> Option<&Arc<Entry>> {
        self.all.get(self.volumes.get(&uuid)?)
    }
}
