use super::*;
use proto::storage::UpdateNvmeSubsystemRequest;
use proto::storage::frontend_nvme_service_server::FrontendNvmeService as _;
use proto::storage::nvme_controller_spec::Endpoint;
use proto::storage::nvme_namespace_status::OperState;

pub(super) fn pcie() -> NvmeControllerSpec {
    let function = PciEndpoint { port_id: Some(0), physical_function: Some(1), virtual_function: Some(0) };
    NvmeControllerSpec {
        trtype: NvmeTransportType::Pcie.into(),
        endpoint: Some(Endpoint::PcieId(function)),
        ..Default::default()
    }
}

pub(super) fn tcp(traddr: &str) -> NvmeControllerSpec {
    let adrfam = NvmeAddressFamily::Ipv4.into();
    let address = FabricsEndpoint { traddr: traddr.into(), trsvcid: "4420".into(), adrfam };
    NvmeControllerSpec {
        trtype: NvmeTransportType::Tcp.into(),
        endpoint: Some(Endpoint::FabricsId(address)),
        ..Default::default()
    }
}

impl House {
    pub(super) async fn controller(
        &self,
        id: &str,
        spec: NvmeControllerSpec,
    ) -> Result<NvmeController, Status> {
        let controller = NvmeController { spec: Some(spec), ..Default::default() };
        self.control.create("nvmeSubsystems/subsys", Some(controller), id).await
    }
}

#[tokio::test]
async fn a_subsystem_with_all_that_belongs_to_it() {
    let house = House::new();
    house.malloc("disk", 64).await.unwrap();
    let subsystem = house.subsystem("subsys").await.unwrap();
    assert_eq!(subsystem.name, "nvmeSubsystems/subsys");
    assert_eq!(subsystem.status.unwrap().firmware_revision, "1.0");
    let namespace = house.namespace("subsys", "disk", "disk").await.unwrap();
    assert_eq!(namespace.name, "nvmeSubsystems/subsys/nvmeNamespaces/disk");
    assert_eq!(namespace.spec.unwrap().host_nsid, 1);
    assert_eq!(namespace.status.unwrap().oper_state(), OperState::Online);
    let controller = house.controller("ctrl", pcie()).await.unwrap();
    assert_eq!(controller.spec.unwrap().nvme_controller_id, Some(9));
    let controller = house.controller("tcp0", tcp("127.0.0.1")).await.unwrap();
    assert_eq!(controller.spec.unwrap().nvme_controller_id, Some(-1));
    let stats = house.control.stats::<NvmeSubsystem>("nvmeSubsystems/subsys").await.unwrap().unwrap();
    assert_eq!(stats.read_ops_count, 2);
    let log = house.log();
    assert!(log[1].starts_with("subsystem subsys nqn.2024-01.com.example:subsys "), "{log:?}");
    assert_eq!(log[1].rsplit(' ').next().unwrap().len(), 20, "a serial number of its own");
    assert_eq!(log[2..], ["namespace subsys 1 64", "controller subsys ctrl", "controller subsys tcp0"]);
    let used = "nvmeSubsystems/subsys is in use by nvmeSubsystems/subsys/nvmeControllers/ctrl";
    refused(house.delete(Kind::Subsystem, "nvmeSubsystems/subsys").await, Code::FailedPrecondition, used);
    for (kind, name) in [
        (Kind::Controller, "nvmeSubsystems/subsys/nvmeControllers/ctrl"),
        (Kind::Controller, "nvmeSubsystems/subsys/nvmeControllers/tcp0"),
        (Kind::Namespace, "nvmeSubsystems/subsys/nvmeNamespaces/disk"),
        (Kind::Subsystem, "nvmeSubsystems/subsys"),
        (Kind::Malloc, "volumes/disk"),
    ] {
        house.delete(kind, name).await.unwrap();
    }
    assert_eq!(
        house.log(),
        [
            "remove controller subsys ctrl",
            "remove controller subsys tcp0",
            "remove namespace subsys 1",
            "delete subsystem subsys",
            "close 64"
        ]
    );
}

#[tokio::test]
async fn identities_are_honoured_or_the_volume_s_own() {
    let house = House::new();
    let volume = house.malloc("disk", 64).await.unwrap();
    house.subsystem("subsys").await.unwrap();
    let plain = house.namespace("subsys", "plain", "disk").await.unwrap();
    assert_eq!(plain.spec.unwrap().uuid, volume.uuid);
    let id = "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb";
    let spec = NvmeNamespaceSpec {
        host_nsid: 7,
        nguid: id.into(),
        eui64: 1_967_554_867_335_598_546,
        uuid: id.into(),
        volume_name_ref: "volumes/disk".into(),
    };
    house.namespace_of("subsys", "full", spec.clone()).await.unwrap();
    let namespaces = house.plane.namespaces.lock().unwrap().clone();
    let full = &namespaces[1];
    assert_eq!((full.nsid, full.uuid[..2].to_vec(), full.nguid), (7, vec![0x1b, 0x4e], full.uuid));
    assert_eq!(full.eui64, 1_967_554_867_335_598_546_i64.to_be_bytes());
    assert_eq!(namespaces[0].nguid, [0; 16]);
    let taken = "nvme_namespace.spec.host_nsid: 7 is in use by nvmeSubsystems/subsys/nvmeNamespaces/full";
    refused(house.namespace_of("subsys", "again", spec).await, Code::AlreadyExists, taken);
    house.delete(Kind::Namespace, "nvmeSubsystems/subsys/nvmeNamespaces/plain").await.unwrap();
    let next = house.namespace("subsys", "next", "disk").await.unwrap();
    assert_eq!(next.spec.unwrap().host_nsid, 1);
}

#[tokio::test]
async fn subsystems_are_checked_in_the_words_clients_know() {
    let house = House::new();
    house.subsystem("subsys").await.unwrap();
    let create = |change: fn(&mut NvmeSubsystemSpec)| {
        let mut spec = NvmeSubsystemSpec::default();
        spec.nqn = "nqn.2024-01.com.example:other".into();
        change(&mut spec);
        house.control.create("", Some(NvmeSubsystem { spec: Some(spec), ..Default::default() }), "other")
    };
    let same = "Could not create NQN: nqn.2024-01.com.example:subsys since object nvmeSubsystems/subsys with same NQN already exists";
    let nqn = create(|spec| spec.nqn = "nqn.2024-01.com.example:subsys".into());
    refused(nqn.await, Code::AlreadyExists, same);
    let missing = "missing required field: nvme_subsystem.spec.nqn";
    refused(create(|spec| spec.nqn.clear()).await, Code::InvalidArgument, missing);
    let pattern = "NQN value (bad) does not match pattern";
    refused(create(|spec| spec.nqn = "bad".into()).await, Code::InvalidArgument, pattern);
    let serial = "SerialNumber value (aaaaaaaaaaaaaaaaaaaaa) is too long, have to be between 1 and 20";
    refused(create(|spec| spec.serial_number = "a".repeat(21)).await, Code::InvalidArgument, serial);
    let range = "nvme_subsystem.spec.max_namespaces: must be 0 to 4294967295";
    refused(create(|spec| spec.max_namespaces = -1).await, Code::InvalidArgument, range);
    let psk = "nvme_subsystem.spec.psk: TLS is not supported";
    refused(create(|spec| spec.psk = b"NVMeTLSkey-1:01:".to_vec()).await, Code::Unimplemented, psk);
}

#[tokio::test]
async fn controllers_are_refused_by_field() {
    let house = House::new();
    house.subsystem("subsys").await.unwrap();
    type Change = fn(&mut NvmeControllerSpec);
    let cases: [(NvmeControllerSpec, Change, Code, &str); 9] = [
        (
            pcie(),
            |spec| spec.set_trtype(NvmeTransportType::Tcp),
            Code::InvalidArgument,
            "invalid endpoint type passed for transport",
        ),
        (
            pcie(),
            |spec| spec.set_trtype(NvmeTransportType::Fc),
            Code::InvalidArgument,
            "not supported transport type: NVME_TRANSPORT_TYPE_FC",
        ),
        (
            pcie(),
            |spec| spec.trtype = 0,
            Code::InvalidArgument,
            "missing required field: nvme_controller.spec.trtype",
        ),
        (pcie(), |spec| spec.sqes = 5, Code::InvalidArgument, "nvme_controller.spec.sqes: must be 6 to 15"),
        (
            pcie(),
            |spec| spec.max_nsq = -1,
            Code::InvalidArgument,
            "nvme_controller.spec.max_nsq: must be 0 to 65535",
        ),
        (
            pcie(),
            |spec| spec.nvme_controller_id = Some(0xfff0),
            Code::InvalidArgument,
            "nvme_controller.spec.nvme_controller_id: must be 0 to 65519",
        ),
        (
            pcie(),
            |spec| spec.max_limit = Some(QosLimit::default()),
            Code::Unimplemented,
            "nvme_controller.spec.max_limit is not supported",
        ),
        (
            tcp("::1"),
            |_| {},
            Code::InvalidArgument,
            "nvme_controller.spec.fabrics_id.adrfam: not NVME_ADDRESS_FAMILY_IPV6, the family of the address",
        ),
        (
            tcp("localhost"),
            |_| {},
            Code::InvalidArgument,
            "nvme_controller.spec.fabrics_id.traddr: not an IP address",
        ),
    ];
    for (mut spec, change, code, message) in cases {
        change(&mut spec);
        refused(house.controller("ctrl", spec).await, code, message);
    }
    let mut elsewhere = pcie();
    elsewhere.endpoint = Some(Endpoint::PcieId(PciEndpoint {
        port_id: Some(1),
        physical_function: Some(0),
        virtual_function: Some(0),
    }));
    let port = "only port 0 is supported for vfiouser";
    refused(house.controller("ctrl", elsewhere).await, Code::InvalidArgument, port);
    // What OPI's Python library always sends.
    let spec = NvmeControllerSpec { sqes: 7, cqes: 8, nvme_controller_id: Some(1), max_nsq: 4, ..pcie() };
    let created = house.controller("ctrl", spec).await.unwrap();
    assert_eq!(created.spec.unwrap().nvme_controller_id, Some(1));
}

#[tokio::test]
async fn a_child_needs_its_parent_and_is_listed_with_it() {
    let house = House::new();
    house.malloc("disk", 64).await.unwrap();
    let missing = "unable to find subsystem nvmeSubsystems/none";
    refused(house.namespace("none", "disk", "disk").await, Code::NotFound, missing);
    for subsystem in ["sub0", "sub1"] {
        house.subsystem(subsystem).await.unwrap();
        house.namespace(subsystem, "disk", "disk").await.unwrap();
    }
    refused(house.namespace("sub0", "other", "none").await, Code::NotFound, "unable to find volume none");
    let list =
        |parent: &str| house.control.list::<NvmeNamespace>(Some(parent), 0, "").map(|(all, _)| all.len());
    assert_eq!(list("nvmeSubsystems/sub1").unwrap(), 1);
    assert_eq!(list("nvmeSubsystems/-").unwrap(), 2);
    refused(list("nvmeSubsystems/none"), Code::NotFound, "unable to find key nvmeSubsystems/none");
    let request = UpdateNvmeNamespaceRequest::default();
    let update = house.control.update_nvme_namespace(Request::new(request)).await;
    refused(update, Code::Unimplemented, "UpdateNvmeNamespace method is not implemented");
}

#[tokio::test]
async fn a_subsystem_for_one_host_has_no_local_controller() {
    let house = House::new();
    let mut spec = NvmeSubsystemSpec::default();
    spec.nqn = "nqn.2024-01.com.example:subsys".into();
    spec.hostnqn = "nqn.2024-01.com.example:host".into();
    let subsystem = NvmeSubsystem { spec: Some(spec), ..Default::default() };
    house.control.create("", Some(subsystem), "subsys").await.unwrap();
    let message = "hostnqn for subsystem is not supported for vfiouser";
    refused(house.controller("ctrl", pcie()).await, Code::InvalidArgument, message);
    house.controller("tcp0", tcp("127.0.0.1")).await.unwrap();
}

#[tokio::test]
async fn a_subsystem_s_host_is_changed_and_nothing_else() {
    let house = House::new();
    house.subsystem("subsys").await.unwrap();
    house.controller("tcp0", tcp("127.0.0.1")).await.unwrap();
    house.log();
    let name = "nvmeSubsystems/subsys";
    let old = house.get::<NvmeSubsystem>(name).unwrap();
    let host = "nqn.2024-01.com.example:host";
    let update = |path: &str, edit: &dyn Fn(&mut proto::storage::NvmeSubsystemSpec)| {
        let mut nvme_subsystem = old.clone();
        edit(nvme_subsystem.spec.as_mut().unwrap());
        let update_mask = Some(prost_types::FieldMask { paths: vec![path.to_owned()] });
        let nvme_subsystem = Some(nvme_subsystem);
        Request::new(UpdateNvmeSubsystemRequest { nvme_subsystem, update_mask, allow_missing: false })
    };
    let asked = update("spec.hostnqn", &|spec| spec.hostnqn = host.into());
    let new = house.control.update_nvme_subsystem(asked).await.unwrap().into_inner();
    assert_eq!(new.spec.as_ref().unwrap().hostnqn, host);
    assert_eq!((&new.name, &new.status), (&old.name, &old.status));
    assert_eq!(house.get::<NvmeSubsystem>(name).unwrap(), new);
    let back = house.control.update_nvme_subsystem(update("*", &|_| {})).await.unwrap().into_inner();
    assert_eq!(back, old);
    assert_eq!(house.log(), [format!("host of subsys {host}"), "host of subsys any".into()]);
    let model = update("spec.model_number", &|spec| spec.model_number = "other".into());
    let message = "nvme_subsystem.spec.model_number cannot be changed";
    refused(house.control.update_nvme_subsystem(model).await, Code::Unimplemented, message);
    let psk = update("spec.psk", &|spec| spec.psk = vec![1]);
    let message = "nvme_subsystem.spec.psk: TLS is not supported";
    refused(house.control.update_nvme_subsystem(psk).await, Code::Unimplemented, message);
    house.controller("ctrl", pcie()).await.unwrap();
    let asked = update("spec.hostnqn", &|spec| spec.hostnqn = host.into());
    let message = "hostnqn for subsystem is not supported for vfiouser";
    refused(house.control.update_nvme_subsystem(asked).await, Code::InvalidArgument, message);
    assert_eq!(house.get::<NvmeSubsystem>(name).unwrap(), old);
}
