//! Controllers: vfio-user devices, and listeners for hosts over TCP.

use std::sync::Arc;

use engine::Volume;
use frontend::AccessState;
use proto::storage::nvme_controller_spec::Endpoint as Asked;
use proto::storage::{
    NvmeController, NvmeControllerSpec, NvmeControllerStatus, NvmeSubsystem, NvmeTransportType, PciEndpoint,
};
use tonic::Status;

use crate::control::address;
use crate::control::names;
use crate::control::object::{Declared, Kind, Resource, Site};
use crate::control::plane::{ControllerConfig, Counters, Endpoint};
use crate::control::registry::{Entry, Registry};
use crate::control::secret::Secret;
use crate::control::volume::invalid;

/// Largest CNTLID (NVM Express Base Specification, section 3.1.2).
const CNTLID_MAX: u16 = 0xffef;
/// CNTLID as clients get it where each connection has its own.
const DYNAMIC: i32 = -1;
/// Sizes of queue entries as powers of two (Identify Controller, SQES and CQES): the smallest that a controller may
/// be allowed.
const ENTRIES: [(&str, i32); 2] = [("sqes", 6), ("cqes", 4)];

impl Resource for NvmeController {
    fn validate(&mut self, _secret: &Secret) -> Result<(), Status> {
        self.status = None;
        config(self.spec.get_or_insert_default()).map(drop)
    }

    fn build(&mut self, site: &Site<'_>) -> Result<Option<Arc<dyn Volume>>, Status> {
        let spec = self.spec.get_or_insert_default();
        let mut config = ControllerConfig { ana: site.ana, ..config(spec)? };
        let parent = site.registry.find(Kind::Subsystem, names::parent(site.name))?;
        let one_host = NvmeSubsystem::of(&parent.object)
            .and_then(|subsystem| subsystem.spec.as_ref())
            .is_some_and(|spec| !spec.hostnqn.is_empty());
        if one_host && matches!(config.endpoint, Endpoint::Pcie { .. }) {
            return Err(Status::invalid_argument("hostnqn for subsystem is not supported for vfiouser"));
        }
        match &mut config.endpoint {
            Endpoint::Pcie { further, .. } => {
                *further =
                    site.further.get().unwrap_or_else(|| others(site).any(|other| other.has_first_socket()));
                site.further.set(Some(*further));
            }
            // OPI's clients send identifiers over TCP too, and mean nothing by them.
            Endpoint::Tcp { fixed, .. } if parent.has_static_controllers() => {
                *fixed = true;
                config.cntlid = cntlid(spec.nvme_controller_id)?;
            }
            Endpoint::Tcp { .. } => {}
        }
        let (subsystem, controller) = ids(site.name);
        let cntlid = site.registry.plane().add_controller(subsystem, controller, &config)?;
        spec.nvme_controller_id = Some(cntlid.map_or(DYNAMIC, i32::from));
        self.status = Some(NvmeControllerStatus { active: true });
        Ok(None)
    }

    fn dismantle(&self, registry: &Registry, name: &str) -> Result<(), Status> {
        let (subsystem, controller) = ids(name);
        Ok(registry.plane().remove_controller(subsystem, controller)?)
    }

    fn observe(&mut self, _registry: &Registry, entry: &Entry) {
        self.status = Some(NvmeControllerStatus { active: entry.is_built() });
    }

    fn counters(&self, registry: &Registry, entry: &Entry) -> Result<Counters, Status> {
        if !entry.is_built() {
            return Ok(Counters::default());
        }
        let (subsystem, controller) = ids(&entry.name);
        Ok(registry.plane().controller_counters(subsystem, controller)?)
    }
}

/// The other controllers of the subsystem.
fn others<'a>(site: &'a Site<'_>) -> impl Iterator<Item = Arc<Entry>> + 'a {
    let siblings = format!("{}/{}/", names::parent(site.name), Kind::Controller.collection());
    let siblings = site.registry.all(Kind::Controller, &siblings);
    siblings.into_iter().filter(|entry| entry.name != site.name)
}

/// The identifiers of the subsystem and the controller in a controller's name.
fn ids(name: &str) -> (&str, &str) {
    (names::id(names::parent(name)), names::id(name))
}

fn config(spec: &NvmeControllerSpec) -> Result<ControllerConfig, Status> {
    let endpoint = match (spec.trtype(), &spec.endpoint) {
        (NvmeTransportType::Pcie, Some(Asked::PcieId(function))) => pcie(function)?,
        (NvmeTransportType::Tcp, Some(Asked::FabricsId(asked))) => {
            let field = "nvme_controller.spec.fabrics_id";
            let port = address::port(&format!("{field}.trsvcid"), &asked.trsvcid)?;
            let address = address::socket(field, &asked.traddr, port, asked.adrfam())?;
            Endpoint::Tcp { address, fixed: false }
        }
        (NvmeTransportType::Pcie | NvmeTransportType::Tcp, _) => {
            return Err(Status::invalid_argument("invalid endpoint type passed for transport"));
        }
        (other, _) => return Err(address::unsupported_transport(other)),
    };
    for ((field, least), value) in ENTRIES.into_iter().zip([spec.sqes, spec.cqes]) {
        if value != 0 && !(least..16).contains(&value) {
            return Err(invalid(&format!("nvme_controller.spec.{field}"), format!("must be {least} to 15")));
        }
    }
    let unsupported = [
        ("max_namespaces", spec.max_namespaces != 0),
        ("min_limit", spec.min_limit.is_some()),
        ("max_limit", spec.max_limit.is_some()),
    ];
    if let Some((field, _)) = unsupported.into_iter().find(|(_, set)| *set) {
        return Err(Status::unimplemented(format!("nvme_controller.spec.{field} is not supported")));
    }
    let queues = [queues("max_nsq", spec.max_nsq)?, queues("max_ncq", spec.max_ncq)?];
    Ok(ControllerConfig {
        cntlid: cntlid(spec.nvme_controller_id.filter(|_| matches!(endpoint, Endpoint::Pcie { .. })))?,
        endpoint,
        io_queues: queues.into_iter().flatten().min(),
        ana: AccessState::default(),
    })
}

fn pcie(function: &PciEndpoint) -> Result<Endpoint, Status> {
    let port = u32::try_from(function.port_id.unwrap_or_default());
    let port = port.map_err(|_| invalid("nvme_controller.spec.pcie_id.port_id", "must not be negative"))?;
    if function.virtual_function.is_some_and(|function| function != 0) {
        return Err(Status::invalid_argument("virtual functions are not supported for vfiouser"));
    }
    if function.physical_function.is_some_and(|function| function < 0) {
        let field = "nvme_controller.spec.pcie_id.physical_function";
        return Err(invalid(field, "must not be negative"));
    }
    Ok(Endpoint::Pcie { port, further: false })
}

fn cntlid(asked: Option<i32>) -> Result<Option<u16>, Status> {
    let Some(asked) = asked.filter(|asked| *asked != DYNAMIC) else { return Ok(None) };
    let cntlid = u16::try_from(asked).ok().filter(|cntlid| *cntlid <= CNTLID_MAX);
    let wrong = || invalid("nvme_controller.spec.nvme_controller_id", format!("must be 0 to {CNTLID_MAX}"));
    cntlid.map(Some).ok_or_else(wrong)
}

fn queues(field: &str, asked: i32) -> Result<Option<u16>, Status> {
    let wrong = |_| invalid(&format!("nvme_controller.spec.{field}"), "must be 0 to 65535");
    let asked = u16::try_from(asked).map_err(wrong)?;
    Ok((asked > 0).then_some(asked))
}
