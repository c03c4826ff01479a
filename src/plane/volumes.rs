//! Volumes on media of this machine, and the volumes that stand on others.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use backend::file::{FileVolume, Options};
use backend::null::NullVolume;
use backend::ram::RamVolume;
use engine::Volume;
use middleend::{CryptVolume, FaultVolume, QosVolume};

use super::convert::{named, refuse};
use crate::control::plane::fault::Faults;
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
    fault: HashMap<usize, Arc<FaultVolume>>,
}

fn address(volume: &Arc<dyn Volume>) -> usize {
    Arc::as_ptr(volume).cast::<()>() as usize
}

/// Keeps a volume under its address.
fn keep<V: Volume>(all: &mut HashMap<usize, Arc<V>>, typed: V) -> Arc<dyn Volume> {
    let typed = Arc::new(typed);
    let volume: Arc<dyn Volume> = typed.clone();
    all.insert(address(&volume), typed);
    volume
}

/// The volume that was kept.
fn kept<'a, V>(
    all: &'a HashMap<usize, Arc<V>>,
    volume: &Arc<dyn Volume>,
    otherwise: &str,
) -> PlaneResult<&'a V> {
    match all.get(&address(volume)) {
        Some(typed) => Ok(typed),
        None => refuse(Failure::Precondition, otherwise),
    }
}

impl Typed {
    pub(super) fn qos(&mut self, below: Arc<dyn Volume>, maxima: &Maxima) -> Arc<dyn Volume> {
        keep(&mut self.qos, QosVolume::new(below, *maxima))
    }

    pub(super) fn set_maxima(&self, volume: &Arc<dyn Volume>, maxima: &Maxima) -> PlaneResult<()> {
        kept(&self.qos, volume, "the volume has no maxima")?.set_maxima(*maxima);
        Ok(())
    }

    pub(super) fn fault(&mut self, below: Arc<dyn Volume>, faults: Faults, lost: bool) -> Arc<dyn Volume> {
        let volume = FaultVolume::new(below, faults);
        if lost {
            volume.note_loss();
        }
        keep(&mut self.fault, volume)
    }

    pub(super) fn set_faults(&self, volume: &Arc<dyn Volume>, faults: Faults) -> PlaneResult<()> {
        let fault = self.faulty(volume)?;
        if faults.volatile_cache != fault.has_cache() {
            return refuse(Failure::Invalid, "volatile_cache: cannot be changed while the volume exists");
        }
        fault.set_rules(faults.rules, faults.seed);
        Ok(())
    }

    pub(super) fn cut_power(&self, volume: &Arc<dyn Volume>, seed: u64) -> PlaneResult<()> {
        self.faulty(volume)?.power_cut(seed);
        Ok(())
    }

    pub(super) fn unflushed(&self, volume: &Arc<dyn Volume>) -> PlaneResult<u64> {
        Ok(self.faulty(volume)?.unflushed() as u64)
    }

    fn faulty(&self, volume: &Arc<dyn Volume>) -> PlaneResult<&FaultVolume> {
        kept(&self.fault, volume, "the volume has no faults")
    }

    pub(super) fn forget(&mut self, volume: &Arc<dyn Volume>) {
        self.qos.remove(&address(volume));
        self.fault.remove(&address(volume));
    }
}
