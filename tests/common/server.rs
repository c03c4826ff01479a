//! Runs the built `isthmus` as an ordinary user, in a directory of its own.

use std::fs::{self, File, Permissions};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{free_port, tail};

/// The user and group that the server runs as when the tests run as root.
const NOBODY: u32 = 65534;
/// The same for a server whose use of the kernel is limited: what others of its user use would count.
const CONFINED: u32 = 65533;

/// How long a server may take to answer or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running `isthmus serve` with its gRPC server up. It is killed when this is dropped.
pub struct Server {
    directory: TempDir,
    program: PathBuf,
    arguments: Vec<String>,
    user: u32,
    /// What prlimit(1) limits.
    limit: Option<String>,
    grpc: SocketAddr,
    child: Option<Child>,
}

impl Server {
    /// Starts a server with directories of its own for sockets, state and aio files, and waits until it answers.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_as(NOBODY, None, arguments)
    }

    /// As [`Server::start`], as a user of its own and with a limit in the words of prlimit(1), or skips the running
    /// test when only root could.
    pub fn start_confined(limit: &str, arguments: &[&str]) -> Option<Self> {
        if !is_root() {
            super::skip("another user is needed, and so is root");
            return None;
        }
        Some(Self::start_as(CONFINED, Some(limit.to_owned()), arguments))
    }

    fn start_as(user: u32, limit: Option<String>, arguments: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("isthmus.").tempdir().unwrap();
        hand_over(directory.path(), 0o755, user);
        for name in ["ctrlr", "state", "aio"] {
            fs::create_dir(directory.path().join(name)).unwrap();
            hand_over(&directory.path().join(name), 0o700, user);
        }
        let program = reachable_program(directory.path());
        let grpc = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut server = Self { directory, program, arguments, user, limit, grpc, child: None };
        server.launch();
        server
    }

    /// Starts the program again with the same directories and port; it must not be running.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "the server is running");
        let log = File::options().append(true).create(true).open(self.path("log")).unwrap();
        let mut command = as_user(self.user, self.limit.as_deref(), &self.program);
        command.arg("serve").arg("--grpc-addr").arg(self.grpc.to_string());
        command.arg("--ctrlr-dir").arg(self.path("ctrlr"));
        command.arg("--state-dir").arg(self.path("state"));
        command.arg("--aio-dir").arg(self.path("aio"));
        command.args(&self.arguments).current_dir(self.directory.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.grpc).is_err() {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("isthmus serve ended at once: {status}\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "isthmus serve does not answer\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The program itself, for its other commands.
    pub fn command(&self) -> Command {
        let mut command = as_ordinary_user(&self.program);
        command.stdin(Stdio::null());
        command
    }

    /// The gRPC server's address.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server is not running").id()
    }

    /// A path in the server's own directory: below `ctrlr`, `state` or `aio`.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A sparse file of `size` bytes below `aio`, owned by the server's user.
    pub fn aio_file(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path("aio").join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        hand_over(&path, 0o600, self.user);
        path
    }

    /// All that the server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The CPU time that the process has used, its ended threads included, in steps of 10 ms.
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // The name in parentheses may hold anything; user and system time are the 12th and 13th field after it. Their
        // sum is what the scheduler measured, not what its ticks sampled.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        Duration::from_millis(fields[11..13].iter().map(|field| field.parse::<u64>().unwrap() * 10).sum())
    }

    /// The process's own memory, without what it shares, in bytes.
    pub fn anonymous_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// The number of open file descriptors.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Kills the process outright, as a crash would.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the server is not running");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Stops the process where it is, as if its machine could not be reached: its connections stay.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets a frozen process go on.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let signalled = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().unwrap();
        assert!(signalled.success());
    }

    /// Asks the process to end, and waits for that.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        let mut child = self.child.take().expect("the server is not running");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("isthmus serve does not end\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of isthmus serve on {}\n{}", self.grpc, tail(&self.log(), 60));
        }
    }
}

/// A command for a program that runs without root's rights even when the tests have them.
pub fn as_ordinary_user(program: &Path) -> Command {
    as_user(NOBODY, None, program)
}

fn as_user(user: u32, limit: Option<&str>, program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={user}")).arg(format!("--regid={user}"));
    command.args(["--clear-groups", "--no-new-privs", "--"]);
    if let Some(limit) = limit {
        command.args(["prlimit", &format!("--{limit}"), "--"]);
    }
    command.arg(program);
    command
}

/// The built program, from a place that the ordinary user can reach: the one in `ISTHMUS_BIN` if that
/// is set, else cargo's for this test.
pub fn reachable_program(directory: &Path) -> PathBuf {
    let built =
        std::env::var_os("ISTHMUS_BIN").map_or_else(|| env!("CARGO_BIN_EXE_isthmus").into(), PathBuf::from);
    let open =
        |path: &Path| fs::metadata(path).is_ok_and(|entry| entry.permissions().mode() & 0o005 == 0o005);
    if !is_root() || built.ancestors().filter(|path| !path.as_os_str().is_empty()).all(open) {
        return built;
    }
    let copy = directory.join("isthmus");
    fs::copy(&built, &copy).unwrap();
    hand_over(&copy, 0o755, NOBODY);
    copy
}

/// Gives a path to a user when the tests run as root.
fn hand_over(path: &Path, mode: u32, user: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    if is_root() {
        chown(path, Some(user), Some(user)).unwrap();
    }
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    // Uid: real effective saved file-system
    status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}
