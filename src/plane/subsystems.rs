//! Subsystems, their namespaces and their controllers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::{Limits, Volume};
use frontend::tcp::{MAX_IO_QUEUES, Target};
use frontend::vfio_user::{Handle, Options, Server, socket_path};
use frontend::{AccessState, Drain, MAX_NAMESPACES, Namespace, Power, Subsystem, Viewer};
use nvme_proto::nqn::DISCOVERY_NQN;

use super::convert::{nqn, refuse, subsystem, system};
use super::{Doorbells, Plane, lock};
use crate::control::plane::{
    ControllerConfig, Counters, Endpoint, Failure, NamespaceConfig, PlaneError, PlaneResult, SubsystemConfig,
    Viewers,
};

/// How long I/O may take to end when what it goes through is taken away.
pub(super) const ENDING: Duration = Duration::from_secs(30);

/// A subsystem, and what the control plane made in it.
pub(super) struct SubsystemEntry {
    name: String,
    subsystem: Arc<Subsystem>,
    namespaces: Mutex<BTreeMap<u32, Shown>>,
    controllers: Mutex<BTreeMap<String, Exposed>>,
}

/// A namespace.
struct Shown {
    volume: Arc<dyn Volume>,
    /// What the volume's counters were when hosts began to see it.
    before: Counters,
    /// The limits that hosts were told last.
    told: Limits,
    /// It is taken away: what tells that its I/O has ended. Under its own lock: who waits for it holds up nobody else.
    going: Option<Arc<Mutex<Drain>>>,
}

/// A controller.
enum Exposed {
    /// All controllers that hosts make through an address, or the static one of that identifier there.
    Tcp(SocketAddr, Option<u16>),
    /// A socket.
    Pcie(Handle),
}

impl Plane {
    pub(super) fn new_subsystem(&self, name: &str, config: &SubsystemConfig) -> PlaneResult<()> {
        let subnqn = nqn("nqn", &config.nqn)?;
        if subnqn.as_str() == DISCOVERY_NQN {
            return refuse(Failure::Invalid, "nqn: this name is the discovery service's");
        }
        let allowed_hosts =
            config.hostnqn.iter().map(|host| nqn("hostnqn", host)).collect::<PlaneResult<_>>()?;
        let power = Power { cycles: config.starts, losses: config.kills };
        let config = frontend::SubsystemConfig {
            nqn: subnqn,
            serial: config.serial.clone(),
            model: config.model.clone(),
            max_namespaces: config.max_namespaces.unwrap_or(MAX_NAMESPACES),
            allowed_hosts,
        };
        let mut subsystems = lock(&self.subsystems);
        if subsystems.contains_key(name) {
            return refuse(Failure::Exists, format!("subsystem {name} exists"));
        }
        if let Some(other) = subsystems.values().find(|s| *s.subsystem.nqn() == subnqn) {
            return refuse(Failure::Exists, format!("subsystem {} has the same nqn", other.name));
        }
        let made = Subsystem::new(config, &self.shards).map_err(subsystem)?;
        made.set_power(power);
        let name = name.to_owned();
        let (namespaces, controllers) = (Mutex::default(), Mutex::default());
        let entry = SubsystemEntry { name: name.clone(), subsystem: made, namespaces, controllers };
        subsystems.insert(name, Arc::new(entry));
        Ok(())
    }

    pub(super) fn drop_subsystem(&self, name: &str) -> PlaneResult<()> {
        let entry = self.subsystem(name)?;
        if !lock(&entry.namespaces).is_empty() || !lock(&entry.controllers).is_empty() {
            return refuse(Failure::Precondition, format!("subsystem {name} has namespaces or controllers"));
        }
        if !entry.close().wait(ENDING) {
            return refuse(Failure::Unavailable, format!("I/O of subsystem {name} does not end"));
        }
        lock(&self.subsystems).remove(name);
        Ok(())
    }

    pub(super) fn subsystem(&self, name: &str) -> PlaneResult<Arc<SubsystemEntry>> {
        let unknown = || PlaneError::new(Failure::Precondition, format!("there is no subsystem {name}"));
        lock(&self.subsystems).get(name).cloned().ok_or_else(unknown)
    }

    pub(super) fn open_controller(
        &self,
        subsystem: &str,
        name: &str,
        config: &ControllerConfig,
    ) -> PlaneResult<Option<u16>> {
        let entry = self.subsystem(subsystem)?;
        let mut controllers = lock(&entry.controllers);
        if controllers.contains_key(name) {
            return refuse(Failure::Exists, format!("controller {name} exists"));
        }
        let (exposed, cntlid) = match config.endpoint {
            Endpoint::Tcp { address, fixed: true } => {
                let queues = config.io_queues.unwrap_or(MAX_IO_QUEUES);
                let listening = self.target.listen_static(address, &entry.subsystem, config.cntlid, queues);
                let (listening, cntlid) = listening.map_err(system(address))?;
                (Exposed::Tcp(listening, Some(cntlid)), Some(cntlid))
            }
            Endpoint::Tcp { address, fixed: false } => {
                if config.cntlid.is_some() {
                    return refuse(
                        Failure::Invalid,
                        "over TCP each association gets a controller identifier of its own",
                    );
                }
                let shared = |e: &&Exposed| matches!(e, Exposed::Tcp(other, _) if *other == address);
                if controllers.values().any(|e| shared(&e)) {
                    return refuse(
                        Failure::Exists,
                        format!("subsystem {subsystem} is shown at {address} already"),
                    );
                }
                let queues = config.io_queues.unwrap_or(MAX_IO_QUEUES);
                let listening =
                    self.target.listen_with(address, &entry.subsystem, queues).map_err(system(address))?;
                (Exposed::Tcp(listening, None), None)
            }
            Endpoint::Pcie { port, further } => {
                let doorbells = self.doorbells(port)?;
                let handle = self.serve_socket(&entry, further.then_some(name), doorbells, config)?;
                let cntlid = handle.controller().cntlid();
                (Exposed::Pcie(handle), Some(cntlid))
            }
        };
        entry.set_exposed_ana(&exposed, config.ana, &self.target);
        controllers.insert(name.to_owned(), exposed);
        Ok(cntlid)
    }

    /// The doorbells of controllers on a port.
    fn doorbells(&self, port: u32) -> PlaneResult<Doorbells> {
        let ports = &self.settings.doorbells;
        if let Some(doorbells) = usize::try_from(port).ok().and_then(|port| ports.get(port)) {
            return Ok(*doorbells);
        }
        let which = match ports.len() {
            1 => "port 0 is".into(),
            count => format!("ports 0 to {} are", count - 1),
        };
        refuse(Failure::Invalid, format!("only {which} supported for vfiouser"))
    }

    fn serve_socket(
        &self,
        entry: &SubsystemEntry,
        further: Option<&str>,
        doorbells: Doorbells,
        config: &ControllerConfig,
    ) -> PlaneResult<Handle> {
        let path = socket_path(&self.settings.ctrlr_dir, &entry.name, further)
            .map_err(|e| PlaneError::new(Failure::Invalid, e))?;
        let defaults = Options::default();
        let options = Options {
            doorbells,
            cntlid: config.cntlid,
            max_io_queues: config.io_queues.unwrap_or(defaults.max_io_queues),
            mode: self.settings.socket_mode,
            group: self.settings.socket_group,
            ..defaults
        };
        Server::listen(self.next_home(), &entry.subsystem, &path, options)
            .map_err(system(format!("vfio-user socket {}", path.display())))
    }

    pub(super) fn close_controller(
        &self,
        subsystem: &str,
        name: &str,
        patience: Duration,
    ) -> PlaneResult<()> {
        let entry = self.subsystem(subsystem)?;
        let closing = match lock(&entry.controllers).get_mut(name) {
            Some(exposed) => self.begin_close(&entry, exposed),
            None => return refuse(Failure::Precondition, format!("there is no controller {name}")),
        };
        self.pass_a_turn();
        // Until it has ended it stays: a call after one that lost its patience waits for the same end.
        if closing.is_some_and(|drain| !drain.wait(patience)) {
            return refuse(Failure::Unavailable, format!("I/O of controller {name} does not end"));
        }
        lock(&entry.controllers).remove(name);
        Ok(())
    }

    /// Begins to close a controller. One over TCP is closed when all shards have passed a turn, another one when all of
    /// its I/O has ended.
    fn begin_close(&self, entry: &SubsystemEntry, exposed: &mut Exposed) -> Option<Drain> {
        match exposed {
            Exposed::Tcp(address, cntlid) => {
                self.target.unlisten(*address, entry.subsystem.nqn(), *cntlid);
                None
            }
            Exposed::Pcie(handle) => Some(handle.begin_close()),
        }
    }

    /// Closes all controllers of these subsystems at once, and waits for them until `end`.
    pub(super) fn close_controllers(&self, subsystems: &[Arc<SubsystemEntry>], end: Instant) {
        let mut closing = Vec::new();
        for entry in subsystems {
            for (name, mut exposed) in std::mem::take(&mut *lock(&entry.controllers)) {
                let drain = self.begin_close(entry, &mut exposed);
                closing.extend(drain.map(|drain| (entry, name, drain)));
            }
        }
        self.pass_a_turn();
        for (entry, name, drain) in closing {
            if !drain.wait(end.saturating_duration_since(Instant::now())) {
                tracing::warn!(subsystem = entry.name, controller = name, "some I/O did not end");
            }
        }
    }
}

impl SubsystemEntry {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// As hosts know it.
    pub(super) fn frontend(&self) -> &Arc<Subsystem> {
        &self.subsystem
    }

    /// Tells hosts of namespaces whose volumes have other limits now.
    pub(super) fn tell_limits(&self) {
        let mut namespaces = lock(&self.namespaces);
        for (nsid, shown) in namespaces.iter_mut() {
            let limits = shown.volume.limits();
            if limits == shown.told {
                continue;
            }
            tracing::info!(
                subsystem = self.name,
                nsid,
                blocks = limits.blocks,
                "hosts are told of new limits"
            );
            shown.told = limits;
            // One that is being taken away is nobody's business any more.
            let _ = self.subsystem.refresh_namespace(*nsid);
        }
    }

    /// The volumes behind its namespaces.
    pub(super) fn volumes(&self) -> Vec<Arc<dyn Volume>> {
        lock(&self.namespaces).values().map(|shown| shown.volume.clone()).collect()
    }

    /// Ends what is left of it.
    pub(super) fn close(&self) -> Drain {
        self.subsystem.close()
    }

    pub(super) fn add_namespace(&self, config: &NamespaceConfig) -> PlaneResult<()> {
        let NamespaceConfig { nsid, uuid, nguid, eui64, ref volume, ref persist, hidden } = *config;
        let before = Counters::from(&volume.stats().snapshot());
        let mut namespaces = lock(&self.namespaces);
        if namespaces.contains_key(&nsid) {
            return refuse(Failure::Exists, format!("nsid {nsid} is in use"));
        }
        // Before any shard looks: what changes from now on is told.
        let told = volume.limits();
        let namespace = Namespace { nsid, uuid, nguid, eui64, volume: volume.clone() };
        let nobody = hidden.then(|| [].into());
        let added = self.subsystem.add_masked_namespace(namespace, persist.clone(), nobody);
        added.map_err(subsystem)?;
        namespaces.insert(nsid, Shown { volume: volume.clone(), before, told, going: None });
        Ok(())
    }

    pub(super) fn remove_namespace(&self, nsid: u32, patience: Duration) -> PlaneResult<()> {
        let drain = self.begin_remove(nsid)?;
        if !lock(&drain).wait(patience) {
            return refuse(Failure::Unavailable, format!("I/O of namespace {nsid} does not end"));
        }
        lock(&self.namespaces).remove(&nsid);
        Ok(())
    }

    fn begin_remove(&self, nsid: u32) -> PlaneResult<Arc<Mutex<Drain>>> {
        let mut namespaces = lock(&self.namespaces);
        let Some(shown) = namespaces.get_mut(&nsid) else {
            return refuse(Failure::Precondition, format!("there is no namespace {nsid}"));
        };
        // A call before this one may have lost its patience.
        if let Some(drain) = &shown.going {
            return Ok(drain.clone());
        }
        let drain = Arc::new(Mutex::new(self.subsystem.remove_namespace(nsid).map_err(subsystem)?));
        shown.going = Some(drain.clone());
        Ok(drain)
    }

    /// Shows a namespace to these alone, or to all.
    pub(super) fn mask_namespace(&self, nsid: u32, viewers: Option<&Viewers>) -> PlaneResult<()> {
        let mask = viewers.map(|viewers| self.mask(viewers)).transpose()?;
        self.subsystem.mask_namespace(nsid, mask.map(Into::into)).map_err(subsystem)
    }

    fn mask(&self, Viewers { hosts, controllers }: &Viewers) -> PlaneResult<Vec<Viewer>> {
        let exposed = lock(&self.controllers);
        let controller = |name: &String| match exposed.get(name) {
            Some(Exposed::Pcie(handle)) => Ok(Viewer::Controller(handle.controller().cntlid())),
            Some(Exposed::Tcp(..)) => {
                refuse(Failure::Invalid, format!("controller {name} is none of vfio-user"))
            }
            None => refuse(Failure::Precondition, format!("there is no controller {name}")),
        };
        let hosts = hosts.iter().map(|host| nqn("hostnqn", host).map(Viewer::Host));
        hosts.chain(controllers.iter().map(controller)).collect()
    }

    /// What was done to the namespace's volume since hosts see it.
    pub(super) fn namespace_counters(&self, nsid: u32) -> PlaneResult<Counters> {
        match lock(&self.namespaces).get(&nsid) {
            Some(shown) => Ok(since(&shown.before, &Counters::from(&shown.volume.stats().snapshot()))),
            None => refuse(Failure::Precondition, format!("there is no namespace {nsid}")),
        }
    }

    /// Sets how well hosts reach the namespaces through a controller.
    pub(super) fn set_ana(&self, name: &str, state: AccessState, target: &Target) -> PlaneResult<()> {
        let set = match lock(&self.controllers).get(name) {
            Some(exposed) => self.set_exposed_ana(exposed, state, target),
            None => false,
        };
        if set { Ok(()) } else { refuse(Failure::Precondition, format!("there is no controller {name}")) }
    }

    fn set_exposed_ana(&self, exposed: &Exposed, state: AccessState, target: &Target) -> bool {
        match exposed {
            Exposed::Tcp(address, cntlid) => {
                target.set_access(*address, self.subsystem.nqn(), *cntlid, state)
            }
            Exposed::Pcie(handle) => {
                handle.controller().set_access(state);
                true
            }
        }
    }

    /// What hosts did through a controller.
    pub(super) fn controller_counters(&self, name: &str, target: &Target) -> PlaneResult<Counters> {
        let counted = match lock(&self.controllers).get(name) {
            Some(Exposed::Tcp(address, cntlid)) => target.stats(*address, self.subsystem.nqn(), *cntlid),
            Some(Exposed::Pcie(handle)) => Some(handle.controller().stats().snapshot()),
            None => None,
        };
        match counted {
            Some(snapshot) => Ok(Counters::from(&snapshot)),
            None => refuse(Failure::Precondition, format!("there is no controller {name}")),
        }
    }
}

fn since(before: &Counters, now: &Counters) -> Counters {
    let less = |now: engine::stats::Sums, before: engine::stats::Sums| engine::stats::Sums {
        ops: now.ops.saturating_sub(before.ops),
        bytes: now.bytes.saturating_sub(before.bytes),
        latency_ns: now.latency_ns.saturating_sub(before.latency_ns),
        errors: now.errors.saturating_sub(before.errors),
    };
    Counters {
        read: less(now.read, before.read),
        write: less(now.write, before.write),
        unmap: less(now.unmap, before.unmap),
    }
}
