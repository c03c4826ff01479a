use super::*;
use crate::control::double::REMOTE;
use proto::storage::nvme_namespace_status::OperState;
use proto::storage::nvme_remote_controller_service_server::NvmeRemoteControllerService as _;

const NAMESPACE: &str = "nvmeRemoteControllers/nvme/nvmeRemoteNamespaces/1";

async fn listed(house: &House) -> Vec<NvmeRemoteNamespace> {
    let parent = "nvmeRemoteControllers/nvme".into();
    let request = ListNvmeRemoteNamespacesRequest { parent, ..Default::default() };
    let response = house.control.list_nvme_remote_namespaces(Request::new(request)).await;
    response.unwrap().into_inner().nvme_remote_namespaces
}

#[tokio::test]
async fn a_remote_namespace_is_a_volume_while_something_uses_it() {
    let house = House::new();
    house.plane.set_size("nvme", 100);
    house.remote("nvme").await;
    let found = listed(&house).await;
    assert_eq!((found.len(), found[0].name.as_str(), found[0].nsid), (1, NAMESPACE, 1));
    assert_eq!(found[0].nguid, "06".repeat(16));
    house.subsystem("subsys").await.unwrap();
    for (id, reference) in [("short", "nvmen1"), ("long0", NAMESPACE)] {
        let namespace = house.namespace("subsys", id, reference).await.unwrap();
        assert_eq!(namespace.spec.unwrap().uuid, uuid::Uuid::from_bytes(REMOTE.uuid).to_string());
    }
    let path = "nvmeRemoteControllers/nvme/nvmePaths/path";
    let message = format!(
        "{path} is the last path to {NAMESPACE}, which nvmeSubsystems/subsys/nvmeNamespaces/long0 uses"
    );
    refused(house.delete(Kind::Path, path).await, Code::FailedPrecondition, &message);
    let log = house.log();
    assert_eq!(log.iter().filter(|line| line.starts_with("remote volume")).count(), 1, "{log:?}");
    for id in ["short", "long0"] {
        house.delete(Kind::Namespace, &format!("nvmeSubsystems/subsys/nvmeNamespaces/{id}")).await.unwrap();
    }
    assert_eq!(house.log(), ["remove namespace subsys 1", "remove namespace subsys 2", "close 100"]);
    let paths = "NvmePaths exist for controller";
    let controller = "nvmeRemoteControllers/nvme";
    refused(house.delete(Kind::Remote, controller).await, Code::FailedPrecondition, paths);
    house.delete(Kind::Path, path).await.unwrap();
    house.delete(Kind::Remote, controller).await.unwrap();
    assert_eq!(house.log(), ["remove path nvme path", "delete remote nvme"]);
}

/// What hosts are told of a remote namespace that grew is promised from then on: after a restart it is as large at once.
#[tokio::test]
async fn a_remote_namespace_that_grew_is_as_large_after_a_restart() {
    let house = House::new();
    house.plane.set_size("nvme", 100);
    house.remote("nvme").await;
    house.subsystem("subsys").await.unwrap();
    house.namespace("subsys", "ns00", "nvmen1").await.unwrap();
    let told = |house: &House| house.plane.namespaces.lock().unwrap()[0].volume.limits().blocks;
    let house = house.restart(&[]);
    assert_eq!(told(&house), 100);
    house.plane.grown.store(28, std::sync::atomic::Ordering::SeqCst);
    let keep = || (house.plane.keep.lock().unwrap().as_ref().unwrap())();
    house.control.0.fail_store(true);
    assert!(!keep(), "nobody is told of what is not kept");
    house.control.0.fail_store(false);
    assert!(keep());
    let house = house.restart(&[]);
    assert_eq!(told(&house), 128);
}

#[tokio::test]
async fn a_remote_that_never_answered_is_no_volume_yet() {
    let house = House::new();
    house.remote("nvme").await;
    refused(house.encrypted("crypt", "nvmen1", &[1; 32]).await, Code::Unavailable, "nvme does not answer");
    assert!(listed(&house).await.is_empty());
    house.plane.set_size("nvme", 100);
    refused(
        house.encrypted("crypt", "nvmen2", &[1; 32]).await,
        Code::NotFound,
        "unable to find volume nvmeRemoteControllers/nvme/nvmeRemoteNamespaces/2",
    );
    house.encrypted("crypt", "nvmen1", &[1; 32]).await.unwrap();
}

#[tokio::test]
async fn a_refused_user_does_not_keep_the_remote_volume() {
    let house = House::new();
    house.plane.set_size("nvme", 100);
    house.remote("nvme").await;
    house.plane.refuse.lock().unwrap().insert("crypt".into());
    house.encrypted("crypt", "nvmen1", &[1; 32]).await.unwrap_err();
    assert_eq!(house.log()[2..], ["remote volume nvme 1 false", "close 100"]);
    house.delete(Kind::Path, "nvmeRemoteControllers/nvme/nvmePaths/path").await.unwrap();
}

#[tokio::test]
async fn after_a_restart_the_remote_may_come_later() {
    let house = House::new();
    house.plane.set_size("nvme", 100);
    house.remote("nvme").await;
    house.encrypted("crypt", "nvmen1", &[1; 32]).await.unwrap();
    house.subsystem("subsys").await.unwrap();
    let before = house.namespace("subsys", "disk", "crypt").await.unwrap();
    let house = house.restart(&[]);
    let log = house.log();
    assert!(log.contains(&"remote volume nvme 1 true".to_owned()), "{log:?}");
    assert_eq!(log.last().unwrap(), "namespace subsys 1 100");
    let after: NvmeNamespace = house.get("nvmeSubsystems/subsys/nvmeNamespaces/disk").unwrap();
    assert_eq!(after.spec, before.spec);
    assert_eq!(after.status.unwrap().oper_state(), OperState::Offline);
    assert_eq!(listed(&house).await.len(), 1);
    house.plane.set_size("nvme", 100);
    let after: NvmeNamespace = house.get("nvmeSubsystems/subsys/nvmeNamespaces/disk").unwrap();
    assert_eq!(after.status.unwrap().oper_state(), OperState::Online);
}

#[tokio::test]
async fn paths_are_refused_by_field() {
    let house = House::new();
    let unknown = "unable to find NvmeRemoteController by key nvmeRemoteControllers/nvme";
    refused(house.path("nvme", "path").await, Code::NotFound, unknown);
    let remote =
        NvmeRemoteController { multipath: 1, tcp: Some(TcpController::default()), ..Default::default() };
    house.control.create("", Some(remote), "nvme").await.unwrap();
    let create = |change: fn(&mut NvmePath)| {
        let mut path = path();
        change(&mut path);
        house.control.create("nvmeRemoteControllers/nvme", Some(path), "path")
    };
    let fabrics = "missing required field for fabrics transports: fabrics";
    refused(create(|path| path.fabrics = None).await, Code::InvalidArgument, fabrics);
    let transport = "not supported transport type: NVME_TRANSPORT_TYPE_CUSTOM";
    refused(create(|path| path.trtype = 5).await, Code::InvalidArgument, transport);
    let pcie = "fabrics field is not allowed for pcie transport";
    refused(create(|path| path.trtype = 2).await, Code::InvalidArgument, pcie);
    let on_tcp = create(|path| (path.trtype, path.fabrics) = (2, None));
    let pcie = "pcie transport on tcp controller is not allowed";
    refused(on_tcp.await, Code::FailedPrecondition, pcie);
    let port = create(|path| path.fabrics.as_mut().unwrap().trsvcid = 65536);
    refused(port.await, Code::InvalidArgument, "nvme_path.fabrics.trsvcid: not a port number");
    let source = create(|path| path.fabrics.as_mut().unwrap().source_traddr = "::1".into());
    let family = "nvme_path.fabrics.source_traddr: of another family than the address";
    refused(source.await, Code::InvalidArgument, family);
    create(|_| {}).await.unwrap();
    let message = "nvmeRemoteControllers/nvme has the path nvmeRemoteControllers/nvme/nvmePaths/path, and several paths are not supported";
    refused(house.path("nvme", "second").await, Code::Unimplemented, message);
}

#[tokio::test]
async fn this_host_keeps_its_name() {
    let house = House::new();
    house.remote("nvme").await;
    let first = house.plane.paths.lock().unwrap()[0].clone();
    assert!(first.hostnqn.starts_with("nqn.2014-08.org.nvmexpress:uuid:"), "{}", first.hostnqn);
    let house = house.restart(&[]);
    assert_eq!(house.plane.paths.lock().unwrap()[0], first);
}

#[tokio::test]
async fn a_psk_is_refused_and_a_reset_is_done() {
    let house = House::new();
    let mut tcp = TcpController::default();
    tcp.psk = b"NVMeTLSkey-1:01:".to_vec();
    let remote = NvmeRemoteController { multipath: 1, tcp: Some(tcp), ..Default::default() };
    let psk = "nvme_remote_controller.tcp.psk: TLS is not supported";
    refused(house.control.create("", Some(remote), "nvme").await, Code::Unimplemented, psk);
    house.remote("nvme").await;
    let reset = |id: &str| {
        let request = ResetNvmeRemoteControllerRequest { name: format!("nvmeRemoteControllers/{id}") };
        house.control.reset_nvme_remote_controller(Request::new(request))
    };
    reset("nvme").await.unwrap();
    let missing = "unable to find key nvmeRemoteControllers/none";
    refused(reset("none").await, Code::NotFound, missing);
    assert_eq!(house.log().last().unwrap(), "reset nvme");
}
