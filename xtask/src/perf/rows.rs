//! What is measured: the rows of the comparison.

/// Which of a target's subsystems a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// NVMe/TCP → RAM.
    Tcp,
    /// vfio-user → RAM.
    VfioUser,
    /// vfio-user → null.
    Null,
    /// vfio-user → XTS-256 → NVMe/TCP → the same process → RAM.
    Chain,
    /// NVMe/TCP → four RAM volumes.
    Four,
}

impl Way {
    /// The name of its subsystem.
    pub fn name(self) -> &'static str {
        match self {
            Way::Tcp | Way::VfioUser => "memory",
            Way::Null => "null",
            Way::Chain => "chain",
            Way::Four => "four",
        }
    }

    pub fn is_tcp(self) -> bool {
        matches!(self, Way::Tcp | Way::Four)
    }
}

/// What of a row must be in which ratio to the peer's.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// So many times its IOPS, at least.
    Iops(f64),
    /// Its p50 and p99, at most so many times.
    Latency(f64),
    /// It is a point of a plot.
    None,
}

/// One load on one way.
#[derive(Clone, Debug)]
pub struct Row {
    pub id: String,
    pub way: Way,
    /// Flags of `isthmus bench`, or a job file and its section.
    pub load: Vec<String>,
    pub writes: bool,
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
        let writes = id.contains("write");
        rows.push(Row { id, way, load: words(load), writes, goal, plot });
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
        for connections in [1u16, 4, 16, 64, 120] {
            let goal = if connections == 64 { Goal::Iops(1.2) } else { Goal::None };
            let plot = match rw {
                "randread" => "NVMe/TCP connections at depth 1, 4 KiB random read",
                _ => "NVMe/TCP connections at depth 1, 4 KiB random write",
            };
            let load = format!("--pattern {rw} --depth 1 --queues {connections}");
            add(
                format!("tcp-x{connections}-{rw}-1"),
                Way::Tcp,
                &load,
                goal,
                Some((plot, connections.into())),
            );
        }
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
    rows
}
