//! The chain, declared as any OPI client would.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use proto::storage as opi;
use proto::storage::aio_volume_service_client::AioVolumeServiceClient;
use proto::storage::frontend_nvme_service_client::FrontendNvmeServiceClient;
use proto::storage::middleend_encryption_service_client::MiddleendEncryptionServiceClient;
use proto::storage::middleend_qos_volume_service_client::MiddleendQosVolumeServiceClient;
use proto::storage::nvme_remote_controller_service_client::NvmeRemoteControllerServiceClient;
use tonic::transport::Channel;

use super::processes::{Server, free_port};

/// A call that was made.
pub struct Call {
    /// Of which server.
    pub server: &'static str,
    /// The call and the object it made.
    pub what: String,
    /// How long it took.
    pub took: Duration,
}

struct Calls<'a> {
    made: Vec<Call>,
    stop: &'a AtomicBool,
}

impl Calls<'_> {
    async fn make<T>(
        &mut self,
        server: &Server,
        what: &str,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> anyhow::Result<T> {
        ensure!(!self.stop.load(Ordering::Relaxed), "interrupted");
        let begin = Instant::now();
        let response = call.await.map_err(|s| anyhow::anyhow!("{what}: {:?}: {}", s.code(), s.message()))?;
        self.made.push(Call { server: server.name(), what: what.to_owned(), took: begin.elapsed() });
        Ok(response.into_inner())
    }
}

async fn connect(server: &Server) -> anyhow::Result<Channel> {
    let at = format!("http://{}", server.grpc());
    Channel::from_shared(at)?.connect().await.with_context(|| format!("connect to the {}", server.name()))
}

const REMOTE_NQN: &str = "nqn.2024-01.org.isthmus:demo-remote";
const NEAR_NQN: &str = "nqn.2024-01.org.isthmus:demo-disk";

fn subsystem(id: &str, nqn: &str) -> opi::CreateNvmeSubsystemRequest {
    let mut spec = opi::NvmeSubsystemSpec::default();
    (spec.nqn, spec.serial_number, spec.model_number) = (nqn.into(), "DEMO".into(), "Isthmus".into());
    spec.max_namespaces = 16;
    let nvme_subsystem = Some(opi::NvmeSubsystem { spec: Some(spec), ..Default::default() });
    opi::CreateNvmeSubsystemRequest { nvme_subsystem, nvme_subsystem_id: id.into() }
}

fn namespace(parent: &str, volume: &str) -> opi::CreateNvmeNamespaceRequest {
    let spec = opi::NvmeNamespaceSpec { host_nsid: 1, volume_name_ref: volume.into(), ..Default::default() };
    opi::CreateNvmeNamespaceRequest {
        parent: format!("nvmeSubsystems/{parent}"),
        nvme_namespace: Some(opi::NvmeNamespace { spec: Some(spec), ..Default::default() }),
        nvme_namespace_id: "disk".into(),
    }
}

fn controller(parent: &str, spec: opi::NvmeControllerSpec) -> opi::CreateNvmeControllerRequest {
    opi::CreateNvmeControllerRequest {
        parent: format!("nvmeSubsystems/{parent}"),
        nvme_controller: Some(opi::NvmeController { spec: Some(spec), ..Default::default() }),
        nvme_controller_id: "ctrlr0".into(),
    }
}

/// Declares everything, on both servers; the calls in their order.
///
/// # Errors
/// The first call that was refused.
pub async fn whole_chain(
    remote: &Server,
    bridge: &Server,
    media: &Path,
    stop: &AtomicBool,
) -> anyhow::Result<Vec<Call>> {
    let mut calls = Calls { made: Vec::new(), stop };
    let port = free_port()?;

    let channel = connect(remote).await?;
    let aio_volume = opi::AioVolume {
        filename: media.to_string_lossy().into_owned(),
        block_size: i64::from(super::BLOCK),
        ..Default::default()
    };
    let request = opi::CreateAioVolumeRequest { aio_volume: Some(aio_volume), aio_volume_id: "disk".into() };
    let mut aio = AioVolumeServiceClient::new(channel.clone());
    calls.make(remote, "CreateAioVolume disk (a file)", aio.create_aio_volume(request)).await?;
    let mut frontend = FrontendNvmeServiceClient::new(channel);
    let request = subsystem("away", REMOTE_NQN);
    calls.make(remote, "CreateNvmeSubsystem away", frontend.create_nvme_subsystem(request)).await?;
    let request = namespace("away", "disk");
    calls.make(remote, "CreateNvmeNamespace away/disk", frontend.create_nvme_namespace(request)).await?;
    let fabrics = opi::FabricsEndpoint {
        traddr: "127.0.0.1".into(),
        trsvcid: port.to_string(),
        adrfam: opi::NvmeAddressFamily::Ipv4.into(),
    };
    let spec = opi::NvmeControllerSpec {
        trtype: opi::NvmeTransportType::Tcp.into(),
        endpoint: Some(opi::nvme_controller_spec::Endpoint::FabricsId(fabrics)),
        ..Default::default()
    };
    let what = format!("CreateNvmeController away/ctrlr0 (NVMe/TCP, port {port})");
    calls.make(remote, &what, frontend.create_nvme_controller(controller("away", spec))).await?;

    let channel = connect(bridge).await?;
    let mut remotes = NvmeRemoteControllerServiceClient::new(channel.clone());
    let request = opi::CreateNvmeRemoteControllerRequest {
        nvme_remote_controller: Some(opi::NvmeRemoteController {
            multipath: opi::NvmeMultipath::Disable.into(),
            ..Default::default()
        }),
        nvme_remote_controller_id: "remote".into(),
    };
    calls
        .make(bridge, "CreateNvmeRemoteController remote", remotes.create_nvme_remote_controller(request))
        .await?;
    let fabrics = opi::FabricsPath {
        trsvcid: i64::from(port),
        subnqn: REMOTE_NQN.into(),
        adrfam: opi::NvmeAddressFamily::Ipv4.into(),
        ..Default::default()
    };
    let request = opi::CreateNvmePathRequest {
        parent: "nvmeRemoteControllers/remote".into(),
        nvme_path: Some(opi::NvmePath {
            trtype: opi::NvmeTransportType::Tcp.into(),
            traddr: "127.0.0.1".into(),
            fabrics: Some(fabrics),
            ..Default::default()
        }),
        nvme_path_id: "path0".into(),
    };
    calls.make(bridge, "CreateNvmePath remote/path0", remotes.create_nvme_path(request)).await?;
    let mut key = vec![0u8; 64];
    getrandom::fill(&mut key).map_err(|e| anyhow::anyhow!("draw a key: {e}"))?;
    let mut encrypted_volume = opi::EncryptedVolume::default();
    encrypted_volume.volume_name_ref = "remoten1".into();
    encrypted_volume.cipher = opi::EncryptionType::AesXts256.into();
    encrypted_volume.key = key;
    let request = opi::CreateEncryptedVolumeRequest {
        encrypted_volume: Some(encrypted_volume),
        encrypted_volume_id: "secret".into(),
    };
    let mut crypt = MiddleendEncryptionServiceClient::new(channel.clone());
    let what = "CreateEncryptedVolume secret (AES-XTS-256)";
    calls.make(bridge, what, crypt.create_encrypted_volume(request)).await?;
    let max = opi::QosLimit { rw_iops_kiops: 1000, rw_bandwidth_mbs: 8192, ..Default::default() };
    let request = opi::CreateQosVolumeRequest {
        qos_volume: Some(opi::QosVolume {
            volume_name_ref: "secret".into(),
            limits: Some(opi::Limits { max: Some(max), min: None }),
            ..Default::default()
        }),
        qos_volume_id: "calm".into(),
    };
    let mut qos = MiddleendQosVolumeServiceClient::new(channel.clone());
    calls.make(bridge, "CreateQosVolume calm (1000 kIOPS, 8 GiB/s)", qos.create_qos_volume(request)).await?;
    let mut frontend = FrontendNvmeServiceClient::new(channel);
    let request = subsystem("near", NEAR_NQN);
    calls.make(bridge, "CreateNvmeSubsystem near", frontend.create_nvme_subsystem(request)).await?;
    let request = namespace("near", "calm");
    calls.make(bridge, "CreateNvmeNamespace near/disk", frontend.create_nvme_namespace(request)).await?;
    let place = opi::PciEndpoint { port_id: Some(0), physical_function: Some(0), virtual_function: Some(0) };
    let spec = opi::NvmeControllerSpec {
        trtype: opi::NvmeTransportType::Pcie.into(),
        endpoint: Some(opi::nvme_controller_spec::Endpoint::PcieId(place)),
        ..Default::default()
    };
    let what = "CreateNvmeController near/ctrlr0 (vfio-user)";
    calls.make(bridge, what, frontend.create_nvme_controller(controller("near", spec))).await?;
    Ok(calls.made)
}
