//! Volumes on media of this machine, and the volumes that stand on others.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use backend::file::{FileVolume, Options};
use backend::null::NullVolume;
use backend::ram::RamVolume;
use engine::Volume;
use middleend::{CryptVolume, QosVolume};

use super::convert::{named, refuse};
use crate::control::plane::{Failure, Maxima, PlaneError, PlaneResult};

pub(super) fn malloc(block_size: u32, blocks: u64) -> PlaneResult<Arc<dyn Volume>> {
    Ok(RamVolume::new(block_size, blocks).map_err(named)?)
}

pub(super) fn null(block_size: u32, blocks: u64) -> PlaneResult<Arc<dyn Volume>> {
    Ok(NullVolume::new(block_size, blocks).map_err(named)?)
}

pub(super) fn aio(
    dir: Option<&Path>,
    file: &Path,
    block_size: u32,
    blocks: u64,
) -> PlaneResult<Arc<dyn Volume>> {
    let Some(dir) = dir else {
        let what =
            format!("{}: aio volumes may open no files: serve was started without --aio-dir", file.display());
        return refuse(Failure::Precondition, what);
    };
    let options = Options { block_size, blocks, ..Options::default() };
    Ok(FileVolume::open(Some(dir), file, options).map_err(named)?)
}

pub(super) fn crypt(below: Arc<dyn Volume>, key: &[u8]) -> PlaneResult<Arc<dyn Volume>> {
    let volume = CryptVolume::new(below, key).map_err(|e| PlaneError::new(Failure::Invalid, e))?;
    Ok(Arc::new(volume))
}

/// The volumes that are more than volumes to the control plane, by their addresses.
#[derive(Default)]
pub(super) struct Typed {
    qos: HashMap<usize, Arc<QosVolume>>,
}

fn address(volume: &Arc<dyn Volume>) -> usize {
    Arc::as_ptr(volume).cast::<()>() as usize
}

impl Typed {
    pub(super) fn qos(&mut self, below: Arc<dyn Volume>, maxima: &Maxima) -> Arc<dyn Volume> {
        let typed = Arc::new(QosVolume::new(below, of(maxima)));
        let volume: Arc<dyn Volume> = typed.clone();
        self.qos.insert(address(&volume), typed);
        volume
    }

    pub(super) fn set_maxima(&self, volume: &Arc<dyn Volume>, maxima: &Maxima) -> PlaneResult<()> {
        match self.qos.get(&address(volume)) {
            Some(typed) => typed.set_maxima(of(maxima)),
            None => return refuse(Failure::Precondition, "the volume has no maxima"),
        }
        Ok(())
    }

    pub(super) fn forget(&mut self, volume: &Arc<dyn Volume>) {
        self.qos.remove(&address(volume));
    }
}

fn of(maxima: &Maxima) -> middleend::Maxima {
    let Maxima {
        rd_iops_kiops,
        wr_iops_kiops,
        rw_iops_kiops,
        rd_bandwidth_mbs,
        wr_bandwidth_mbs,
        rw_bandwidth_mbs,
    } = *maxima;
    middleend::Maxima {
        rd_iops_kiops,
        wr_iops_kiops,
        rw_iops_kiops,
        rd_bandwidth_mbs,
        wr_bandwidth_mbs,
        rw_bandwidth_mbs,
    }
}
