//! `NamespaceMaskService`: namespaces that are shown to some hosts alone.

use std::collections::HashSet;
use std::sync::Arc;

use engine::Volume;
use proto::isthmus::namespace_mask_service_server::NamespaceMaskService;
use proto::isthmus::{
    CreateNamespaceMaskRequest, DeleteNamespaceMaskRequest, GetNamespaceMaskRequest,
    ListNamespaceMasksRequest, ListNamespaceMasksResponse, NamespaceMask, UpdateNamespaceMaskRequest,
};
use proto::storage::{NvmeController, NvmeTransportType};
use tonic::{Request, Response, Status};

use super::frontend_nvme::place;
use super::names;
use super::nqn;
use super::object::{Claim, Declared, Kind, Resource, Site};
use super::plane::{Counters, Viewers};
use super::registry::{Entry, Registry, internal};
use super::secret::Secret;
use super::service::Control;
use super::volume::invalid;

/// Most hosts and controllers of a mask: each command is held against all of them.
const MOST: usize = 128;
const NAMESPACE: &str = "namespace_mask.namespace_name_ref";
const HOSTS: &str = "namespace_mask.hostnqns";
const CONTROLLERS: &str = "namespace_mask.controller_name_refs";

impl Resource for NamespaceMask {
    fn validate(&mut self, _secret: &Secret) -> Result<(), Status> {
        let wrong = |field: &str| {
            let field = field.to_owned();
            move |status: Status| invalid(&field, status.message())
        };
        if self.hostnqns.len() + self.controller_name_refs.len() > MOST {
            return Err(invalid("namespace_mask", format!("more than {MOST} hosts and controllers")));
        }
        names::check(&self.namespace_name_ref).map_err(wrong(NAMESPACE))?;
        if !is_namespace(&self.namespace_name_ref) {
            return Err(invalid(NAMESPACE, "not the name of a namespace"));
        }
        for (index, host) in self.hostnqns.iter().enumerate() {
            nqn::check(host).map_err(wrong(&format!("{HOSTS}[{index}]")))?;
        }
        let subsystem = names::parent(&self.namespace_name_ref);
        for (index, name) in self.controller_name_refs.iter().enumerate() {
            let field = format!("{CONTROLLERS}[{index}]");
            names::check(name).map_err(wrong(&field))?;
            if names::parent(name) != subsystem {
                return Err(invalid(&field, "not of the namespace's subsystem"));
            }
        }
        let mut seen = HashSet::new();
        for (field, names) in [(HOSTS, &self.hostnqns), (CONTROLLERS, &self.controller_name_refs)] {
            if let Some(index) = names.iter().position(|name| !seen.insert(name)) {
                return Err(invalid(&format!("{field}[{index}]"), "named before"));
            }
        }
        Ok(())
    }

    fn claim(&self) -> Option<Claim> {
        Some(Claim { what: NAMESPACE, value: self.namespace_name_ref.clone() })
    }

    fn awaits(&self) -> Option<&str> {
        Some(&self.namespace_name_ref)
    }

    fn references(&self) -> Vec<(String, Kind, &str)> {
        let subsystem = (NAMESPACE.to_owned(), Kind::Subsystem, names::parent(&self.namespace_name_ref));
        let controllers = self.controller_name_refs.iter().enumerate();
        let controllers = controllers
            .map(|(index, name)| (format!("{CONTROLLERS}[{index}]"), Kind::Controller, name.as_str()));
        std::iter::once(subsystem).chain(controllers).collect()
    }

    fn build(&mut self, site: &Site<'_>) -> Result<Option<Arc<dyn Volume>>, Status> {
        show(site.registry, self).map(|()| None)
    }

    fn dismantle(&self, registry: &Registry, _name: &str) -> Result<(), Status> {
        let namespace = registry.entry(&self.namespace_name_ref);
        let Some(namespace) = namespace.filter(|namespace| namespace.is_built()) else { return Ok(()) };
        let (subsystem, nsid) = place(&namespace)?;
        Ok(registry.plane().mask_namespace(subsystem, nsid, None)?)
    }

    fn counters(&self, _registry: &Registry, _entry: &Entry) -> Result<Counters, Status> {
        Ok(Counters::default())
    }
}

/// Whether a name is one that namespaces have.
fn is_namespace(name: &str) -> bool {
    let (above, collections) =
        (names::parent(name), [Kind::Subsystem, Kind::Namespace].map(Kind::collection));
    let [subsystems, namespaces] = collections;
    name == format!("{subsystems}/{}/{namespaces}/{}", names::id(above), names::id(name))
}

/// Shows the namespace to those whom the mask names, and to nobody else; one that is to come, when it does.
fn show(registry: &Registry, mask: &NamespaceMask) -> Result<(), Status> {
    let mut viewers = Viewers { hosts: mask.hostnqns.clone(), controllers: Vec::new() };
    for (index, name) in mask.controller_name_refs.iter().enumerate() {
        let entry = registry.find(Kind::Controller, name)?;
        let spec = NvmeController::of(&entry.object).and_then(|controller| controller.spec.as_ref());
        if spec.is_none_or(|spec| spec.trtype() != NvmeTransportType::Pcie) {
            let why = "not a vfio-user controller; hosts over TCP are named in hostnqns";
            return Err(invalid(&format!("{CONTROLLERS}[{index}]"), why));
        }
        // One that could not be built again shows nothing, and has no identifier that another could not have.
        if entry.is_built() {
            viewers.controllers.push(names::id(name).to_owned());
        }
    }
    let Some(namespace) = registry.entry(&mask.namespace_name_ref) else { return Ok(()) };
    if !namespace.is_built() {
        return Err(Status::failed_precondition(format!("{} is not available", namespace.name)));
    }
    let (subsystem, nsid) = place(&namespace)?;
    Ok(registry.plane().mask_namespace(subsystem, nsid, Some(&viewers))?)
}

/// Shows the namespace to others: the one thing that an update may change.
fn show_others(registry: &Registry, new: &NamespaceMask, entry: &Entry) -> Result<(), Status> {
    let old = NamespaceMask::of(&entry.object).ok_or_else(|| internal("an object of another kind"))?;
    if old.namespace_name_ref != new.namespace_name_ref {
        return Err(invalid(NAMESPACE, "cannot be changed"));
    }
    show(registry, new)
}

#[tonic::async_trait]
impl NamespaceMaskService for Control {
    async fn create_namespace_mask(
        &self,
        request: Request<CreateNamespaceMaskRequest>,
    ) -> Result<Response<NamespaceMask>, Status> {
        let CreateNamespaceMaskRequest { namespace_mask, namespace_mask_id } = request.into_inner();
        self.create("", namespace_mask, &namespace_mask_id).await.map(Response::new)
    }

    async fn delete_namespace_mask(
        &self,
        request: Request<DeleteNamespaceMaskRequest>,
    ) -> Result<Response<()>, Status> {
        let DeleteNamespaceMaskRequest { name, allow_missing } = request.into_inner();
        self.delete(Kind::Mask, &name, allow_missing).await
    }

    async fn update_namespace_mask(
        &self,
        request: Request<UpdateNamespaceMaskRequest>,
    ) -> Result<Response<NamespaceMask>, Status> {
        let UpdateNamespaceMaskRequest { namespace_mask, update_mask, allow_missing } = request.into_inner();
        self.update_entry(namespace_mask, update_mask, allow_missing, show_others).await.map(Response::new)
    }

    async fn list_namespace_masks(
        &self,
        request: Request<ListNamespaceMasksRequest>,
    ) -> Result<Response<ListNamespaceMasksResponse>, Status> {
        let ListNamespaceMasksRequest { page_size, page_token } = request.into_inner();
        let (namespace_masks, next_page_token) = self.list(None, page_size, &page_token)?;
        Ok(Response::new(ListNamespaceMasksResponse { namespace_masks, next_page_token }))
    }

    async fn get_namespace_mask(
        &self,
        request: Request<GetNamespaceMaskRequest>,
    ) -> Result<Response<NamespaceMask>, Status> {
        self.get(&request.into_inner().name)
    }
}
