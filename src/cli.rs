//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Local NVMe disks for hosts, blocks on remote NVMe/TCP targets.
#[derive(Debug, Parser)]
#[command(name = "isthmus", version, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What is logged: error, warn, info, debug, trace; also per module, e.g. `info,isthmus::control=debug`.
    #[arg(long, global = true, env = "ISTHMUS_LOG", default_value = "info", value_name = "LEVEL")]
    pub log: String,
    /// How it is logged, on standard error.
    #[arg(long, global = true, env = "ISTHMUS_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
}

const EXAMPLES: &str = "\
Examples:
  isthmus demo                             see the whole chain at work, on this machine alone
  isthmus serve --state-dir /var/lib/isthmus --ctrlr-dir /run/isthmus
                                           serve; declare volumes and controllers over gRPC (OPI v1alpha1)
  isthmus bench --vfio-user /run/isthmus/subsys0/cntrl --pattern randread --depth 32
  isthmus discover 127.0.0.1:4420          which subsystems a target offers
  isthmus identify 127.0.0.1:4420 nqn.2014-08.org.example:disk";

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve what is declared over gRPC, until SIGTERM or SIGINT.
    Serve(Box<Serve>),
    /// Build the whole chain on this machine, drive it as a host would, and verify every byte.
    Demo(Demo),
    /// Load a controller (any vendor's) from user space and print what it does.
    Bench(Box<Bench>),
    /// List the subsystems that an NVMe/TCP discovery service offers.
    Discover(Discover),
    /// Show a subsystem's controller and namespaces.
    Identify(Identify),
}

/// How log lines look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which doorbells a vfio-user controller offers.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Doorbells {
    /// In memory shared with the client: fastest; an idle shard looks at them every 2 ms, and after seconds
    /// of quiet as seldom (32 ms at most) as it takes to cost a third of a percent of a core.
    Mapped,
    /// By message, with shadow doorbells where the host uses them: an idle shard sleeps.
    Trapped,
}

/// When writes that were out on a lost connection are sent again.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Resend {
    /// When the remote can no longer execute the old ones: the keep-alive timeout and its command quiesce time after the
    /// loss. Only what touches their blocks waits meanwhile.
    Strict,
    /// As soon as there is a connection, as Linux does: a remote that still executes the old ones could do so over newer
    /// writes. Isthmus's own target does not, unless the network was silent for long.
    Fast,
}

/// Flags of `serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Where the gRPC API listens.
    #[arg(long, env = "ISTHMUS_GRPC_ADDR", default_value = "127.0.0.1:50051", value_name = "ADDR")]
    pub grpc_addr: SocketAddr,
    /// Directory of the vfio-user sockets: `<subsystem>/cntrl` for a subsystem's first controller,
    /// `<subsystem>.<controller>/cntrl` for further ones.
    #[arg(long, env = "ISTHMUS_CTRLR_DIR", default_value = "/run/isthmus", value_name = "DIR")]
    pub ctrlr_dir: PathBuf,
    /// Directory of what is declared: it outlives the process.
    #[arg(long, env = "ISTHMUS_STATE_DIR", default_value = "/var/lib/isthmus", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Directory in which aio volumes may open files; without it they are refused.
    #[arg(long, env = "ISTHMUS_AIO_DIR", value_name = "DIR")]
    pub aio_dir: Option<PathBuf>,
    /// File with the key-encryption key, 32 bytes; by default one is made in the state directory.
    #[arg(long, env = "ISTHMUS_KEK_FILE", value_name = "FILE")]
    pub kek_file: Option<PathBuf>,
    /// Permissions of vfio-user sockets, octal.
    #[arg(long, env = "ISTHMUS_SOCKET_MODE", default_value = "0600", value_parser = octal, value_name = "MODE")]
    pub socket_mode: u32,
    /// Group that vfio-user sockets belong to, by name or number.
    #[arg(long, env = "ISTHMUS_SOCKET_GROUP", value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// CPUs to serve on: one shard pinned to each, e.g. `2,3` or `4-7`; by default one shard that is not pinned.
    #[arg(long, env = "ISTHMUS_CPUS", value_parser = cpus, value_name = "LIST")]
    pub cpus: Option<Cpus>,
    /// Shards to serve on when `--cpus` is not given.
    #[arg(long, env = "ISTHMUS_SHARDS", default_value_t = 1, value_name = "N", conflicts_with = "cpus")]
    pub shards: usize,
    /// Microseconds that a shard without work looks for some before it sleeps. A large number, such as
    /// 1000000000000, is a shard that never sleeps: it spares the time of waking and costs a CPU each.
    #[arg(
        long,
        env = "ISTHMUS_SPIN",
        default_value_t = 50,
        value_parser = clap::value_parser!(u64).range(..=1_000_000_000_000),
        value_name = "MICROSECONDS"
    )]
    pub spin: u64,
    /// Doorbells of vfio-user controllers, by the PCIe port that they are on: the first for controllers declared with
    /// `port_id` 0, the next for `port_id` 1, such as `mapped,trapped`.
    #[arg(
        long,
        env = "ISTHMUS_DOORBELLS",
        default_value = "mapped",
        value_delimiter = ',',
        value_name = "KINDS"
    )]
    pub doorbells: Vec<Doorbells>,
    /// Other NVMe/TCP discovery services, `ADDRESS:PORT`, that the discovery service here refers hosts to.
    #[arg(long, env = "ISTHMUS_REFERRALS", value_delimiter = ',', value_name = "ADDRESSES")]
    pub referrals: Vec<SocketAddr>,
    /// Keep-alive timeout of connections to remote controllers, in seconds.
    #[arg(
        long,
        env = "ISTHMUS_REMOTE_KATO",
        default_value_t = 5,
        value_parser = clap::value_parser!(u64).range(1..=3600),
        value_name = "SECONDS"
    )]
    pub remote_kato: u64,
    /// When writes that were out on a lost connection to a remote controller are sent again.
    #[arg(long, env = "ISTHMUS_REMOTE_RESEND", default_value = "strict", value_name = "WHEN")]
    pub remote_resend: Resend,
    /// End when the process that started this one ends.
    #[arg(long, hide = true)]
    pub die_with_parent: bool,
    /// TOML file of objects that are declared at start where they do not exist yet (docs/config.md).
    #[arg(long, env = "ISTHMUS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// A list of CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus(pub Vec<usize>);

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected permissions in octal, such as 0660".into()),
    }
}

fn cpus(text: &str) -> Result<Cpus, String> {
    let mut list = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |t: &str| {
            t.trim().parse::<usize>().map_err(|_| format!("`{part}` is no CPU and no range of CPUs"))
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last || last >= 4096 {
            return Err(format!("`{part}` is no range of CPUs"));
        }
        list.extend(first..=last);
    }
    let before = list.len();
    list.sort_unstable();
    list.dedup();
    if list.len() != before { Err("a CPU is named twice".into()) } else { Ok(Cpus(list)) }
}

/// Flags of `demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Seconds of load in each measured stage.
    #[arg(long, default_value_t = 2, value_name = "SECONDS")]
    pub seconds: u64,
    /// Size of the remote disk in MiB.
    #[arg(long, default_value_t = 64, value_name = "MIB", value_parser = clap::value_parser!(u64).range(8..=65536))]
    pub size: u64,
}

/// Flags of `bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// Socket of a vfio-user controller, or the directory that holds `cntrl`; repeated, `--queues` on each of them.
    #[arg(long, value_name = "PATH", required_unless_present = "tcp")]
    pub vfio_user: Vec<PathBuf>,
    /// Address of an NVMe/TCP target; `--nqn` names the subsystem.
    #[arg(long, value_name = "ADDR", conflicts_with = "vfio_user", requires = "nqn")]
    pub tcp: Option<SocketAddr>,
    /// Subsystem of the NVMe/TCP target.
    #[arg(long, value_name = "NQN")]
    pub nqn: Option<String>,
    /// Controllers of that subsystem to have, each with `--queues` connections.
    #[arg(long, default_value_t = 1, value_name = "N", conflicts_with_all = ["job", "vfio_user"])]
    pub controllers: u16,
    /// Ask for header digests.
    #[arg(long)]
    pub hdgst: bool,
    /// Ask for data digests.
    #[arg(long)]
    pub ddgst: bool,
    /// Keep to SQ flow control over NVMe/TCP, as Linux does unless told otherwise: then a response capsule follows the data
    /// of every read.
    #[arg(long)]
    pub flow_control: bool,
    /// Namespaces: the first disk that a job file names is the first of them, and so on.
    #[arg(long, default_value = "1", value_delimiter = ',', value_name = "NSID")]
    pub nsid: Vec<u32>,
    /// Run fio's job file instead of the load that the flags describe.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["pattern", "read_mix", "block_size", "depth", "queues", "rate", "verify", "size", "seed"])]
    pub job: Option<PathBuf>,
    /// Run only this section of the job file; may be repeated.
    #[arg(long, value_name = "NAME", requires = "job")]
    pub section: Vec<String>,
    /// What is done: read, write, randread, randwrite, rw, randrw, trim, randtrim.
    #[arg(long, default_value = "randread", value_name = "PATTERN")]
    pub pattern: String,
    /// Percentage of reads in rw and randrw.
    #[arg(long, default_value_t = 70, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub read_mix: u8,
    /// Bytes in an I/O; k and m suffixes.
    #[arg(long, default_value = "4k", value_name = "BYTES")]
    pub block_size: String,
    /// Commands in flight on each queue.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub depth: u16,
    /// I/O queues.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub queues: u16,
    /// Commands a second at most, of all queues together.
    #[arg(long, value_name = "N")]
    pub rate: Option<u64>,
    /// Seconds to run: 5, or what the job file says.
    #[arg(long, value_name = "SECONDS")]
    pub seconds: Option<u64>,
    /// Stamp what is written and check every byte that is read back.
    #[arg(long)]
    pub verify: bool,
    /// Bytes of the namespace to use, from its start; all by default.
    #[arg(long, value_name = "BYTES")]
    pub size: Option<String>,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Connect the queues, and ask nothing for the whole time.
    #[arg(long, conflicts_with = "job")]
    pub hold: bool,
    /// CPU to run the load on.
    #[arg(long, value_name = "CPU")]
    pub cpu: Option<usize>,
    /// Process whose CPU time is reported beside the figures, where it is not the one that listens there.
    #[arg(long, value_name = "PID")]
    pub target_pid: Option<u32>,
    /// Print a table, or the JSON that fio prints.
    #[arg(long, value_enum, default_value = "normal", value_name = "FORMAT")]
    pub output_format: OutputFormat,
    /// Show no progress.
    #[arg(long)]
    pub quiet: bool,
}

/// How `bench` prints what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OutputFormat {
    /// A table.
    Normal,
    /// fio's JSON.
    Json,
}

/// Flags of `discover`.
#[derive(Debug, Args)]
pub struct Discover {
    /// Address of the discovery service; port 4420 unless it names another.
    pub addr: String,
    /// NQN that this host gives for itself.
    #[arg(long, value_name = "NQN")]
    pub hostnqn: Option<String>,
    /// Print the answer as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `identify`.
#[derive(Debug, Args)]
pub struct Identify {
    /// Address of the target; port 4420 unless it names another.
    pub addr: String,
    /// The subsystem.
    pub nqn: String,
    /// NQN that this host gives for itself.
    #[arg(long, value_name = "NQN")]
    pub hostnqn: Option<String>,
    /// Print the answer as JSON.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn lists_of_cpus() {
        assert_eq!(cpus("0,2-4"), Ok(Cpus(vec![0, 2, 3, 4])));
        assert!(
            cpus("4-2").is_err()
                && cpus("x").is_err()
                && cpus("1,1").is_err()
                && cpus("0-99999999999").is_err()
        );
        assert_eq!(octal("0660"), Ok(0o660));
        assert!(octal("888").is_err() && octal("7777").is_err());
    }
}
