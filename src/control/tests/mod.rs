//! The control plane over a data plane that only keeps a log.

mod access;
mod ana;
mod controller_model;
mod declared;
mod fault;
mod nvme;
mod over_grpc;
mod random;
mod remote;
mod restart;
mod volumes;

use std::sync::Arc;

use proto::storage::*;
use tempfile::TempDir;
use tonic::{Code, Request, Status};

use super::Control;
use super::double::Double;
use super::object::{Kind, Resource};

/// A control plane with a state directory of its own.
struct House {
    plane: Arc<Double>,
    control: Control,
    dir: TempDir,
}

impl House {
    fn new() -> Self {
        let (plane, dir) = (Arc::<Double>::default(), tempfile::tempdir().unwrap());
        let control = Control::open(plane.clone(), dir.path(), None).unwrap();
        House { plane, control, dir }
    }

    /// The next process on the same state directory, with a new data plane in which files and remotes have `sizes`.
    fn restart(self, sizes: &[(&str, u64)]) -> Self {
        let House { control, dir, .. } = self;
        drop(control);
        let plane = Arc::<Double>::default();
        sizes.iter().for_each(|(of, blocks)| plane.set_size(of, *blocks));
        let control = Control::open(plane.clone(), dir.path(), None).unwrap();
        House { plane, control, dir }
    }

    async fn malloc(&self, id: &str, blocks: i64) -> Result<MallocVolume, Status> {
        let volume = MallocVolume { block_size: 512, blocks_count: blocks, ..Default::default() };
        self.control.create("", Some(volume), id).await
    }

    async fn aio(&self, id: &str, file: &str) -> Result<AioVolume, Status> {
        let volume = AioVolume { filename: file.into(), ..Default::default() };
        self.control.create("", Some(volume), id).await
    }

    async fn encrypted(&self, id: &str, below: &str, key: &[u8]) -> Result<EncryptedVolume, Status> {
        let mut volume = EncryptedVolume::default();
        (volume.volume_name_ref, volume.key) = (below.into(), key.into());
        volume.set_cipher(if key.len() == 32 {
            EncryptionType::AesXts128
        } else {
            EncryptionType::AesXts256
        });
        self.control.create("", Some(volume), id).await
    }

    async fn qos(&self, id: &str, below: &str, kiops: i64) -> Result<QosVolume, Status> {
        self.control.create("", Some(rate_limited(below, kiops)), id).await
    }

    async fn subsystem(&self, id: &str) -> Result<NvmeSubsystem, Status> {
        let mut spec = NvmeSubsystemSpec::default();
        spec.nqn = format!("nqn.2024-01.com.example:{id}");
        self.control.create("", Some(NvmeSubsystem { spec: Some(spec), ..Default::default() }), id).await
    }

    async fn namespace(&self, subsystem: &str, id: &str, volume: &str) -> Result<NvmeNamespace, Status> {
        let spec = NvmeNamespaceSpec { volume_name_ref: volume.into(), ..Default::default() };
        self.namespace_of(subsystem, id, spec).await
    }

    async fn namespace_of(
        &self,
        subsystem: &str,
        id: &str,
        spec: NvmeNamespaceSpec,
    ) -> Result<NvmeNamespace, Status> {
        let namespace = NvmeNamespace { spec: Some(spec), ..Default::default() };
        self.control.create(&format!("nvmeSubsystems/{subsystem}"), Some(namespace), id).await
    }

    /// A remote controller with a path.
    async fn remote(&self, id: &str) {
        let remote = NvmeRemoteController { multipath: 1, ..Default::default() };
        self.control.create("", Some(remote), id).await.unwrap();
        self.path(id, "path").await.unwrap();
    }

    async fn path(&self, remote: &str, id: &str) -> Result<NvmePath, Status> {
        self.control.create(&format!("nvmeRemoteControllers/{remote}"), Some(path()), id).await
    }

    fn get<R: Resource>(&self, name: &str) -> Result<R, Status> {
        self.control.get(name).map(tonic::Response::into_inner)
    }

    async fn delete(&self, kind: Kind, name: &str) -> Result<(), Status> {
        self.control.delete(kind, name, false).await.map(drop)
    }

    fn log(&self) -> Vec<String> {
        self.plane.take_log()
    }
}

fn rate_limited(below: &str, kiops: i64) -> QosVolume {
    let max = QosLimit { rw_iops_kiops: kiops, ..Default::default() };
    let limits = Some(Limits { min: None, max: Some(max) });
    QosVolume { volume_name_ref: below.into(), limits, ..Default::default() }
}

fn path() -> NvmePath {
    let fabrics = FabricsPath {
        trsvcid: 4420,
        subnqn: "nqn.2024-01.com.example:remote".into(),
        adrfam: NvmeAddressFamily::Ipv4.into(),
        ..Default::default()
    };
    let trtype = NvmeTransportType::Tcp.into();
    NvmePath { trtype, traddr: "127.0.0.1".into(), fabrics: Some(fabrics), ..Default::default() }
}

/// Sees that a call was refused so.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, message: &str) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, message));
}
