//! What is measured: the rows of the comparison.

use super::target::{NAMESPACES, Setup};

/// Which of a target's subsystems a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// NVMe/TCP → RAM.
    Tcp,
    /// vfio-user → RAM.
    VfioUser,
    /// The same with trapped doorbells, where the target has them.
    Trapped,
    /// vfio-user → null.
    Null,
    /// vfio-user → XTS-256 → NVMe/TCP → the same process → RAM.
    Chain,
    /// NVMe/TCP → four RAM volumes.
    Four,
    /// NVMe/TCP → RAM, beside much else.
    Crowd,
    /// So many vfio-user → null.
    Controllers(u16),
    /// NVMe/TCP → null, in a subsystem with so many namespaces.
    Namespaces(u16),
}

impl Way {
    /// The name of its subsystem.
    pub fn name(self) -> String {
        match self {
            Way::Tcp | Way::VfioUser => "memory".into(),
            Way::Trapped => "memory.pcie1".into(),
            Way::Null => "null".into(),
            Way::Chain => "chain".into(),
            Way::Four => "four".into(),
            Way::Crowd | Way::Controllers(_) => "crowd".into(),
            Way::Namespaces(n) => format!("many{n}"),
        }
    }

    pub fn is_tcp(self) -> bool {
        matches!(self, Way::Tcp | Way::Four | Way::Crowd | Way::Namespaces(_))
    }
}

/// What of a row must be in which ratio to the peer's.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// So many times its IOPS, at least.
    Iops(f64),
    /// Its p50 and p99, at most so many times.
    Latency(f64),
    /// Our p99.9, at most so many times our p50.
    Tail(f64),
    /// Our p50, at most so many µs more than it is where the shard never sleeps.
    Waking(f64),
    /// It is a point of a plot.
    None,
}

/// One load on one way.
#[derive(Clone, Debug)]
pub struct Row {
    pub id: String,
    pub setup: Setup,
    pub way: Way,
    /// Flags of `isthmus bench`, or a job file and its section.
    pub load: Vec<String>,
    pub writes: bool,
    /// The share of the IOPS that this load reaches at which it is then run.
    pub pace: Option<f64>,
    pub goal: Goal,
    /// The plot that it is a point of, and where on its horizontal axis.
    pub plot: Option<(&'static str, f64)>,
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// All rows.
pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |id: String, way, load: &str, goal, plot| {
        let setup = match way {
            Way::Crowd | Way::Controllers(_) | Way::Namespaces(_) => Setup::Crowd,
            _ => Setup::Paths,
        };
        let (writes, pace) = (id.contains("write"), matches!(goal, Goal::Tail(_)).then_some(0.7));
        rows.push(Row { id, setup, way, load: words(load), writes, pace, goal, plot });
    };
    for (way, name) in [(Way::Tcp, "tcp"), (Way::VfioUser, "vfio-user"), (Way::Chain, "chain")] {
        for rw in ["randread", "randwrite"] {
            for depth in [1u16, 2, 4, 8, 16, 32, 64, 128, 256] {
                // Depth 256 needs queues that not every peer has by default.
                if depth > 128 {
                    continue;
                }
                let goal = match (way, depth) {
                    (Way::Tcp | Way::Chain, 1) => Goal::Latency(1.0),
                    (Way::Tcp | Way::Chain, 32 | 128) => Goal::Iops(1.3),
                    (Way::VfioUser, 1 | 32 | 128) => Goal::Iops(1.2),
                    _ => Goal::None,
                };
                let plot = match (way, rw) {
                    (Way::Tcp, "randread") => "NVMe/TCP, 4 KiB random read",
                    (Way::Tcp, _) => "NVMe/TCP, 4 KiB random write",
                    (Way::VfioUser, "randread") => "vfio-user, 4 KiB random read",
                    (Way::VfioUser, _) => "vfio-user, 4 KiB random write",
                    (_, "randread") => "the chain, 4 KiB random read",
                    _ => "the chain, 4 KiB random write",
                };
                let load = format!("--job fio-jobs/{rw}.fio --section {rw}-{depth}");
                add(format!("{name}-{rw}-{depth}"), way, &load, goal, Some((plot, f64::from(depth))));
            }
        }
    }
    for rw in ["randread", "randwrite"] {
        for depth in [32, 128] {
            let load = format!("--pattern {rw} --depth {depth} --hdgst --ddgst");
            add(format!("tcp-digests-{rw}-{depth}"), Way::Tcp, &load, Goal::Iops(1.5), None);
            let load = format!("--pattern {rw} --depth {depth} --queues 4");
            add(format!("vfio-user-x4-{rw}-{depth}"), Way::VfioUser, &load, Goal::Iops(1.2), None);
        }
        for (way, name) in [(Way::Tcp, "tcp"), (Way::VfioUser, "vfio-user")] {
            let load = format!("--pattern {rw} --depth 32");
            add(format!("{name}-{rw}-32-at-70%"), way, &load, Goal::Tail(3.0), None);
        }
        add(
            format!("tcp-x64-{rw}-1"),
            Way::Tcp,
            &format!("--pattern {rw} --queues 64"),
            Goal::Iops(1.2),
            None,
        );
        add(
            format!("null-{rw}-128"),
            Way::Null,
            &format!("--pattern {rw} --depth 128"),
            Goal::Iops(1.0),
            None,
        );
    }
    for rw in ["read", "write"] {
        let load = format!("--job fio-jobs/sequential.fio --section {rw}-8");
        add(format!("tcp-128k-{rw}-8"), Way::Tcp, &load, Goal::Iops(1.1), None);
        add(format!("vfio-user-128k-{rw}-8"), Way::VfioUser, &load, Goal::None, None);
    }
    for volumes in [1u16, 2, 3, 4] {
        let sections: String = (1..=volumes).map(|n| format!(" --section volume-{n}")).collect();
        let load = format!("--job fio-jobs/volumes.fio --nsid 1,2,3,4{sections}");
        let plot = Some(("volumes, each 4 KiB random 70/30 at depth 32", f64::from(volumes)));
        add(format!("volumes-{volumes}"), Way::Four, &load, Goal::None, plot);
    }
    for rw in ["randread", "randwrite"] {
        let plot = match rw {
            "randread" => "NVMe/TCP connections at depth 1, 4 KiB random read",
            _ => "NVMe/TCP connections at depth 1, 4 KiB random write",
        };
        for connections in [1u16, 4, 16, 64, 256, 1024] {
            let (controllers, queues) = (connections.div_ceil(64), connections.min(64));
            let load = format!("--pattern {rw} --controllers {controllers} --queues {queues}");
            let plot = Some((plot, connections.into()));
            add(format!("connections-{connections}-{rw}"), Way::Crowd, &load, Goal::None, plot);
        }
    }
    for controllers in [1u16, 4, 16, 64, 200] {
        let plot = Some((
            "vfio-user controllers on null volumes, each 4 KiB random read at depth 4",
            controllers.into(),
        ));
        let id = format!("controllers-{controllers}");
        add(id, Way::Controllers(controllers), "--pattern randread --depth 4", Goal::None, plot);
    }
    for many in NAMESPACES {
        let plot =
            Some(("namespaces in a subsystem over TCP, 4 KiB random read of one at depth 32", many.into()));
        let id = format!("namespaces-{many}");
        add(id, Way::Namespaces(many), "--pattern randread --depth 32", Goal::None, plot);
    }
    for (way, name, goal) in
        [(Way::Tcp, "tcp", 25.0), (Way::Trapped, "trapped", 25.0), (Way::VfioUser, "mapped", 2000.0)]
    {
        let plot = match way {
            Way::Tcp => "NVMe/TCP, so many 4 KiB reads a second, one at a time",
            Way::Trapped => "vfio-user with trapped doorbells, so many 4 KiB reads a second, one at a time",
            _ => "vfio-user with mapped doorbells, so many 4 KiB reads a second, one at a time",
        };
        for rate in [10_000u16, 2_000, 100] {
            rows.push(Row {
                id: format!("waking-{name}-{rate}"),
                setup: Setup::Waking,
                way,
                load: words(&format!("--pattern randread --depth 1 --rate {rate}")),
                writes: false,
                pace: None,
                goal: Goal::Waking(goal),
                plot: Some((plot, rate.into())),
            });
        }
    }
    for shards in [1u16, 2] {
        rows.push(Row {
            id: format!("shards-{shards}"),
            setup: Setup::Shards(shards),
            way: Way::Tcp,
            load: words("--pattern randread --depth 4 --queues 8 --rate 50000"),
            writes: false,
            pace: None,
            goal: Goal::None,
            plot: Some(("shards, eight TCP connections, 50,000 reads a second", shards.into())),
        });
    }
    rows
}
