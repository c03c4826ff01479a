//! A blocking gRPC client of a server, for tests that need no foreign stubs.

use std::net::SocketAddr;
use std::path::Path;

use proto::isthmus::ana_service_client::AnaServiceClient;
use proto::isthmus::fault_volume_service_client::FaultVolumeServiceClient;
use proto::isthmus::namespace_mask_service_client::NamespaceMaskServiceClient;
use proto::isthmus::{
    Ana, AnaState, CreateFaultVolumeRequest, CreateNamespaceMaskRequest, CutPowerRequest,
    DeleteNamespaceMaskRequest, FaultVolume, GetAnaStateRequest, NamespaceMask, SetAnaStateRequest,
    StatsFaultVolumeRequest, StatsFaultVolumeResponse, UpdateFaultVolumeRequest, UpdateNamespaceMaskRequest,
};
use proto::storage as opi;
use proto::storage::aio_volume_service_client::AioVolumeServiceClient;
use proto::storage::frontend_nvme_service_client::FrontendNvmeServiceClient;
use proto::storage::malloc_volume_service_client::MallocVolumeServiceClient;
use proto::storage::middleend_encryption_service_client::MiddleendEncryptionServiceClient;
use proto::storage::middleend_qos_volume_service_client::MiddleendQosVolumeServiceClient;
use proto::storage::null_volume_service_client::NullVolumeServiceClient;
use proto::storage::nvme_remote_controller_service_client::NvmeRemoteControllerServiceClient;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Response, Status};

/// A channel to a server.
pub struct Grpc {
    runtime: Runtime,
    channel: Channel,
}

impl Grpc {
    /// Connects.
    pub fn connect(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        let channel = runtime.block_on(endpoint.connect()).unwrap();
        Grpc { runtime, channel }
    }

    fn wait<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
        self.runtime.block_on(call).map(Response::into_inner)
    }

    /// A volume on a file.
    pub fn aio_volume(&self, id: &str, file: &Path, block_size: i64) -> Result<opi::AioVolume, Status> {
        let filename = file.to_str().unwrap().to_owned();
        let aio_volume = Some(opi::AioVolume { filename, block_size, ..Default::default() });
        let request = opi::CreateAioVolumeRequest { aio_volume, aio_volume_id: id.into() };
        self.wait(AioVolumeServiceClient::new(self.channel.clone()).create_aio_volume(request))
    }

    /// Takes a volume on a file away.
    pub fn delete_aio_volume(&self, id: &str) -> Result<(), Status> {
        let request = opi::DeleteAioVolumeRequest { name: format!("volumes/{id}"), ..Default::default() };
        self.wait(AioVolumeServiceClient::new(self.channel.clone()).delete_aio_volume(request))
    }

    /// An AES-XTS-256 volume.
    pub fn encrypted_volume(&self, id: &str, below: &str) -> Result<opi::EncryptedVolume, Status> {
        let mut volume = opi::EncryptedVolume::default();
        (volume.volume_name_ref, volume.key) = (below.into(), (0..64).collect());
        volume.cipher = opi::EncryptionType::AesXts256.into();
        let request = opi::CreateEncryptedVolumeRequest {
            encrypted_volume: Some(volume),
            encrypted_volume_id: id.into(),
        };
        self.wait(
            MiddleendEncryptionServiceClient::new(self.channel.clone()).create_encrypted_volume(request),
        )
    }

    /// A rate-limited volume.
    pub fn qos_volume(&self, id: &str, below: &str, rw_iops_kiops: i64) -> Result<opi::QosVolume, Status> {
        let max = Some(opi::QosLimit { rw_iops_kiops, ..Default::default() });
        let limits = Some(opi::Limits { max, min: None });
        let qos_volume = Some(opi::QosVolume { volume_name_ref: below.into(), limits, ..Default::default() });
        let request = opi::CreateQosVolumeRequest { qos_volume, qos_volume_id: id.into() };
        self.wait(MiddleendQosVolumeServiceClient::new(self.channel.clone()).create_qos_volume(request))
    }

    /// A volume in memory.
    pub fn malloc_volume(
        &self,
        id: &str,
        block_size: i64,
        blocks_count: i64,
    ) -> Result<opi::MallocVolume, Status> {
        let malloc_volume = Some(opi::MallocVolume { block_size, blocks_count, ..Default::default() });
        let request = opi::CreateMallocVolumeRequest { malloc_volume, malloc_volume_id: id.into() };
        self.wait(MallocVolumeServiceClient::new(self.channel.clone()).create_malloc_volume(request))
    }

    /// A volume of zeroes.
    pub fn null_volume(
        &self,
        id: &str,
        block_size: i64,
        blocks_count: i64,
    ) -> Result<opi::NullVolume, Status> {
        let null_volume = Some(opi::NullVolume { block_size, blocks_count, ..Default::default() });
        let request = opi::CreateNullVolumeRequest { null_volume, null_volume_id: id.into() };
        self.wait(NullVolumeServiceClient::new(self.channel.clone()).create_null_volume(request))
    }

    fn fault(&self) -> FaultVolumeServiceClient<Channel> {
        FaultVolumeServiceClient::new(self.channel.clone())
    }

    /// A volume with faults.
    pub fn fault_volume(&self, id: &str, below: &str, faults: FaultVolume) -> Result<FaultVolume, Status> {
        let fault_volume = Some(FaultVolume { volume_name_ref: below.into(), ..faults });
        let request = CreateFaultVolumeRequest { fault_volume, fault_volume_id: id.into() };
        self.wait(self.fault().create_fault_volume(request))
    }

    /// Other rules for a volume with faults.
    pub fn set_faults(&self, id: &str, below: &str, faults: FaultVolume) -> Result<FaultVolume, Status> {
        let name = format!("volumes/{id}");
        let fault_volume = Some(FaultVolume { name, volume_name_ref: below.into(), ..faults });
        let request = UpdateFaultVolumeRequest { fault_volume, ..Default::default() };
        self.wait(self.fault().update_fault_volume(request))
    }

    /// Counters of a volume with faults.
    pub fn fault_stats(&self, id: &str) -> Result<StatsFaultVolumeResponse, Status> {
        let request = StatsFaultVolumeRequest { name: format!("volumes/{id}") };
        self.wait(self.fault().stats_fault_volume(request))
    }

    /// Cuts the power of a volume with faults.
    pub fn cut_power(&self, id: &str, seed: u64) -> Result<(), Status> {
        self.wait(self.fault().cut_power(CutPowerRequest { name: format!("volumes/{id}"), seed }))
    }

    fn masks(&self) -> NamespaceMaskServiceClient<Channel> {
        NamespaceMaskServiceClient::new(self.channel.clone())
    }

    /// Shows a namespace to some alone.
    pub fn mask(&self, id: &str, mask: NamespaceMask) -> Result<NamespaceMask, Status> {
        let (namespace_mask, namespace_mask_id) = (Some(mask), id.into());
        let request = CreateNamespaceMaskRequest { namespace_mask, namespace_mask_id };
        self.wait(self.masks().create_namespace_mask(request))
    }

    /// Shows a namespace to others.
    pub fn set_mask(&self, id: &str, mask: NamespaceMask) -> Result<NamespaceMask, Status> {
        let namespace_mask = Some(NamespaceMask { name: format!("namespaceMasks/{id}"), ..mask });
        let request = UpdateNamespaceMaskRequest { namespace_mask, ..Default::default() };
        self.wait(self.masks().update_namespace_mask(request))
    }

    /// Shows a namespace to all again.
    pub fn delete_mask(&self, id: &str) -> Result<(), Status> {
        let name = format!("namespaceMasks/{id}");
        let request = DeleteNamespaceMaskRequest { name, ..Default::default() };
        self.wait(self.masks().delete_namespace_mask(request))
    }

    fn frontend(&self) -> FrontendNvmeServiceClient<Channel> {
        FrontendNvmeServiceClient::new(self.channel.clone())
    }

    /// A subsystem.
    pub fn subsystem(&self, id: &str, nqn: &str) -> Result<opi::NvmeSubsystem, Status> {
        self.subsystem_of(id, nqn, 32)
    }

    /// A subsystem of so many namespaces at most.
    pub fn subsystem_of(
        &self,
        id: &str,
        nqn: &str,
        max_namespaces: i64,
    ) -> Result<opi::NvmeSubsystem, Status> {
        let mut spec = opi::NvmeSubsystemSpec::default();
        (spec.nqn, spec.serial_number, spec.model_number) = (nqn.into(), "TEST".into(), "Isthmus".into());
        spec.max_namespaces = max_namespaces;
        let nvme_subsystem = Some(opi::NvmeSubsystem { spec: Some(spec), ..Default::default() });
        let request = opi::CreateNvmeSubsystemRequest { nvme_subsystem, nvme_subsystem_id: id.into() };
        self.wait(self.frontend().create_nvme_subsystem(request))
    }

    /// A namespace with NSID 1.
    pub fn namespace(&self, subsystem: &str, id: &str, volume: &str) -> Result<opi::NvmeNamespace, Status> {
        self.namespace_at(subsystem, id, volume, 1)
    }

    /// A namespace.
    pub fn namespace_at(
        &self,
        subsystem: &str,
        id: &str,
        volume: &str,
        host_nsid: i32,
    ) -> Result<opi::NvmeNamespace, Status> {
        let spec = opi::NvmeNamespaceSpec { host_nsid, volume_name_ref: volume.into(), ..Default::default() };
        let request = opi::CreateNvmeNamespaceRequest {
            parent: format!("nvmeSubsystems/{subsystem}"),
            nvme_namespace: Some(opi::NvmeNamespace { spec: Some(spec), ..Default::default() }),
            nvme_namespace_id: id.into(),
        };
        self.wait(self.frontend().create_nvme_namespace(request))
    }

    /// Takes a namespace away.
    pub fn delete_namespace(&self, subsystem: &str, id: &str) -> Result<(), Status> {
        let name = format!("nvmeSubsystems/{subsystem}/nvmeNamespaces/{id}");
        let request = opi::DeleteNvmeNamespaceRequest { name, ..Default::default() };
        self.wait(self.frontend().delete_nvme_namespace(request))
    }

    /// Counters of a namespace.
    pub fn namespace_stats(&self, subsystem: &str, id: &str) -> Result<opi::VolumeStats, Status> {
        let name = format!("nvmeSubsystems/{subsystem}/nvmeNamespaces/{id}");
        let stats = self.wait(self.frontend().stats_nvme_namespace(opi::StatsNvmeNamespaceRequest { name }));
        Ok(stats?.stats.unwrap())
    }

    /// Counters of a controller.
    pub fn controller_stats(&self, subsystem: &str, id: &str) -> Result<opi::VolumeStats, Status> {
        let name = format!("nvmeSubsystems/{subsystem}/nvmeControllers/{id}");
        let stats =
            self.wait(self.frontend().stats_nvme_controller(opi::StatsNvmeControllerRequest { name }));
        Ok(stats?.stats.unwrap())
    }

    /// Sets how well hosts reach the namespaces through a controller.
    pub fn set_ana(&self, subsystem: &str, id: &str, state: AnaState) -> Result<Ana, Status> {
        let name = format!("nvmeSubsystems/{subsystem}/nvmeControllers/{id}");
        let request = SetAnaStateRequest { name, state: state.into() };
        self.wait(AnaServiceClient::new(self.channel.clone()).set_ana_state(request))
    }

    /// How well hosts reach the namespaces through a controller.
    pub fn ana(&self, subsystem: &str, id: &str) -> Result<AnaState, Status> {
        let name = format!("nvmeSubsystems/{subsystem}/nvmeControllers/{id}");
        let request = GetAnaStateRequest { name };
        let ana = self.wait(AnaServiceClient::new(self.channel.clone()).get_ana_state(request));
        ana.map(|ana| ana.state())
    }

    /// A controller on a vfio-user socket.
    pub fn pcie_controller(&self, subsystem: &str, id: &str) -> Result<opi::NvmeController, Status> {
        let place =
            opi::PciEndpoint { port_id: Some(0), physical_function: Some(0), virtual_function: Some(0) };
        self.controller(
            subsystem,
            id,
            opi::NvmeControllerSpec {
                trtype: opi::NvmeTransportType::Pcie.into(),
                endpoint: Some(opi::nvme_controller_spec::Endpoint::PcieId(place)),
                ..Default::default()
            },
        )
    }

    /// A listener on loopback TCP.
    pub fn tcp_controller(
        &self,
        subsystem: &str,
        id: &str,
        port: u16,
    ) -> Result<opi::NvmeController, Status> {
        let place = opi::FabricsEndpoint {
            traddr: "127.0.0.1".into(),
            trsvcid: port.to_string(),
            adrfam: opi::NvmeAddressFamily::Ipv4.into(),
        };
        self.controller(
            subsystem,
            id,
            opi::NvmeControllerSpec {
                trtype: opi::NvmeTransportType::Tcp.into(),
                endpoint: Some(opi::nvme_controller_spec::Endpoint::FabricsId(place)),
                ..Default::default()
            },
        )
    }

    fn controller(
        &self,
        subsystem: &str,
        id: &str,
        spec: opi::NvmeControllerSpec,
    ) -> Result<opi::NvmeController, Status> {
        let request = opi::CreateNvmeControllerRequest {
            parent: format!("nvmeSubsystems/{subsystem}"),
            nvme_controller: Some(opi::NvmeController { spec: Some(spec), ..Default::default() }),
            nvme_controller_id: id.into(),
        };
        self.wait(self.frontend().create_nvme_controller(request))
    }

    /// Takes a controller away.
    pub fn delete_controller(&self, subsystem: &str, id: &str) -> Result<(), Status> {
        let name = format!("nvmeSubsystems/{subsystem}/nvmeControllers/{id}");
        let request = opi::DeleteNvmeControllerRequest { name, ..Default::default() };
        self.wait(self.frontend().delete_nvme_controller(request))
    }

    /// A remote controller with a path to a subsystem on loopback TCP.
    pub fn remote(&self, id: &str, port: u16, subnqn: &str) -> Result<opi::NvmePath, Status> {
        let mut remotes = NvmeRemoteControllerServiceClient::new(self.channel.clone());
        let multipath = opi::NvmeMultipath::Disable.into();
        let request = opi::CreateNvmeRemoteControllerRequest {
            nvme_remote_controller: Some(opi::NvmeRemoteController { multipath, ..Default::default() }),
            nvme_remote_controller_id: id.into(),
        };
        self.wait(remotes.create_nvme_remote_controller(request))?;
        let fabrics = opi::FabricsPath {
            trsvcid: port.into(),
            subnqn: subnqn.into(),
            adrfam: opi::NvmeAddressFamily::Ipv4.into(),
            ..Default::default()
        };
        let path = opi::NvmePath {
            trtype: opi::NvmeTransportType::Tcp.into(),
            traddr: "127.0.0.1".into(),
            fabrics: Some(fabrics),
            ..Default::default()
        };
        let parent = format!("nvmeRemoteControllers/{id}");
        let nvme_path_id = format!("{id}-path");
        let request = opi::CreateNvmePathRequest { parent, nvme_path: Some(path), nvme_path_id };
        self.wait(remotes.create_nvme_path(request))
    }
}
