//! The gRPC server: OPI's services, Isthmus's own, reflection and health.

use std::future::Future;
use std::time::Duration;

use proto::inventory::inventory_service_server::InventoryServiceServer;
use proto::isthmus::ana_service_server::AnaServiceServer;
use proto::isthmus::controller_model_service_server::ControllerModelServiceServer;
use proto::isthmus::fault_volume_service_server::FaultVolumeServiceServer;
use proto::isthmus::namespace_mask_service_server::NamespaceMaskServiceServer;
use proto::storage::aio_volume_service_server::AioVolumeServiceServer;
use proto::storage::frontend_nvme_service_server::FrontendNvmeServiceServer;
use proto::storage::frontend_virtio_blk_service_server::FrontendVirtioBlkServiceServer;
use proto::storage::frontend_virtio_scsi_service_server::FrontendVirtioScsiServiceServer;
use proto::storage::malloc_volume_service_server::MallocVolumeServiceServer;
use proto::storage::middleend_encryption_service_server::MiddleendEncryptionServiceServer;
use proto::storage::middleend_qos_volume_service_server::MiddleendQosVolumeServiceServer;
use proto::storage::null_volume_service_server::NullVolumeServiceServer;
use proto::storage::nvme_remote_controller_service_server::NvmeRemoteControllerServiceServer;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::service::Control;

/// Largest request in bytes; the largest meaningful one is a few kilobytes.
const LARGEST_REQUEST: usize = 1 << 20;
/// Calls under way on one connection; more wait.
const CALLS: usize = 64;
/// Streams that a client may have open on one connection.
const STREAMS: u32 = 128;
/// Streams that a client may reset before they were served: then its connection is closed.
const RESETS: usize = 32;
/// Bytes of a request's headers.
const HEADERS: u32 = 16 << 10;
/// How long calls under way may take after the server was asked to end.
const GRACE: Duration = Duration::from_secs(3);
/// A silent client is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The connection or protocol layer failed.
    #[error("gRPC server: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The API's descriptors do not fit together.
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Serves the API on `listener` until `shutdown` is done; calls under way then have three seconds to be answered. What
/// they changed is always whole.
///
/// # Errors
/// The listener fails.
pub async fn serve(
    control: Control,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    macro_rules! service {
        ($server:ident) => {
            $server::new(control.clone()).max_decoding_message_size(LARGEST_REQUEST)
        };
    }
    let router = Server::builder()
        .concurrency_limit_per_connection(CALLS)
        .max_concurrent_streams(STREAMS)
        .http2_max_pending_accept_reset_streams(Some(RESETS))
        .http2_max_local_error_reset_streams(Some(RESETS))
        .http2_max_header_list_size(HEADERS)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .add_service(service!(FrontendNvmeServiceServer))
        .add_service(service!(FrontendVirtioBlkServiceServer))
        .add_service(service!(FrontendVirtioScsiServiceServer))
        .add_service(service!(MiddleendEncryptionServiceServer))
        .add_service(service!(MiddleendQosVolumeServiceServer))
        .add_service(service!(NvmeRemoteControllerServiceServer))
        .add_service(service!(MallocVolumeServiceServer))
        .add_service(service!(NullVolumeServiceServer))
        .add_service(service!(AioVolumeServiceServer))
        .add_service(service!(InventoryServiceServer))
        .add_service(service!(FaultVolumeServiceServer))
        .add_service(service!(NamespaceMaskServiceServer))
        .add_service(service!(AnaServiceServer))
        .add_service(service!(ControllerModelServiceServer))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(health_service);
    let (stop, stopped) = oneshot::channel::<()>();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let mut server = std::pin::pin!(router.serve_with_incoming_shutdown(incoming, async {
        // An error says that the sender is gone, which means the same.
        let _ = stopped.await;
    }));
    tokio::select! {
        ended = &mut server => return Ok(ended?),
        () = shutdown => drop(stop),
    }
    match tokio::time::timeout(GRACE, server).await {
        Ok(ended) => Ok(ended?),
        Err(_) => Ok(()),
    }
}
