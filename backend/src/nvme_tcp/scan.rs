//! What a controller says of itself and its namespaces (Base 2.1, 5.1.13).

use engine::Limits;
use nvme_proto::Nqn;
use nvme_proto::identify::{
    Cns, ControllerType, IdentifyController, IdentifyNamespace, NamespaceList, NvmIdentifyController,
};
use nvme_proto::zerocopy::FromBytes;

use super::admin;
use super::controller::Controller;
use super::identity::{ControllerFacts, Identity};
use super::issued::Spans;
use super::reason::Reason;

/// A namespace as it is now.
pub(super) struct Seen {
    pub identity: Identity,
    pub limits: Limits,
    pub spans: Spans,
}

fn read<T: FromBytes>(bytes: &[u8]) -> Result<Box<T>, Reason> {
    T::read_from_bytes(bytes).map(Box::new).map_err(|_| Reason::Unfit("a data structure of another size"))
}

/// Identify Controller.
pub(super) async fn identify(controller: &Controller) -> Result<Box<IdentifyController>, Reason> {
    let id: Box<IdentifyController> = read(&admin::identify(&controller.conn, Cns::Controller, 0).await?)?;
    if id.cntlid != controller.cntlid {
        return Err(Reason::Unfit("Identify names another controller than Connect"));
    }
    Ok(id)
}

/// Identify Controller of a controller that is to serve I/O, with what bears on its namespaces.
pub(super) async fn controller(controller: &Controller) -> Result<ControllerFacts, Reason> {
    let identify = identify(controller).await?;
    if !matches!(identify.cntrltype, ControllerType::Io | ControllerType::NotReported) {
        return Err(Reason::Unfit("it is no I/O controller"));
    }
    if Nqn::from_field(&identify.subnqn).is_err() {
        return Err(Reason::Unfit("its SUBNQN is no name"));
    }
    if identify.sgls.support() == 0 {
        return Err(Reason::Unfit("its controller takes no SGLs"));
    }
    // Controllers before 2.0 do not have it.
    let nvm = admin::identify(&controller.conn, Cns::CommandSetController, 0).await;
    let nvm = match nvm {
        Ok(bytes) => Some(read::<NvmIdentifyController>(&bytes)?),
        Err(Reason::Command { .. }) => None,
        Err(reason) => return Err(reason),
    };
    Ok(ControllerFacts { identify, nvm, cap: controller.cap })
}

/// Active namespaces: the first 1024, which is also as many as are served.
pub(super) async fn active(controller: &Controller) -> Result<Vec<u32>, Reason> {
    let list: Box<NamespaceList> = read(&admin::identify(&controller.conn, Cns::ActiveNamespaces, 0).await?)?;
    let active: Vec<u32> = list.nsids.iter().copied().take_while(|&n| n != 0).collect();
    if !active.is_sorted_by(|a, b| a < b) {
        return Err(Reason::Violation("a namespace list that is not in order"));
    }
    Ok(active)
}

/// Identify Namespace, and the namespace's identification descriptors if the controller has such a list.
pub(super) async fn structures(
    controller: &Controller,
    nsid: u32,
) -> Result<(Box<IdentifyNamespace>, Vec<u8>), Reason> {
    let conn = &controller.conn;
    let namespace = read(&admin::identify(conn, Cns::Namespace, nsid).await?)?;
    match admin::identify(conn, Cns::NamespaceIdDescriptors, nsid).await {
        Ok(descriptors) => Ok((namespace, descriptors)),
        Err(Reason::Command { .. }) => Ok((namespace, Vec::new())),
        Err(reason) => Err(reason),
    }
}

/// One namespace of a controller that serves I/O.
pub(super) async fn namespace(
    controller: &Controller,
    facts: &ControllerFacts,
    nsid: u32,
) -> Result<Seen, Reason> {
    let (namespace, descriptors) = structures(controller, nsid).await?;
    let (limits, spans) = facts.limits(&namespace)?;
    Ok(Seen { identity: Identity::of(&namespace, &descriptors), limits, spans })
}
