//! A Linux guest in QEMU: boots in seconds to a test's shell script, with a serial line on which both sides talk.
//!
//! The script's lines `ISTHMUS-MARK name` tell the test how far it is, [`Guest::answer`] is what its `read` gets, and
//! its end is `ISTHMUS-OK` or `ISTHMUS-FAIL status`; `library.sh` has the words for that.
#![allow(dead_code, reason = "each test program uses a part")]

mod cpio;
pub mod esp;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::common::{count, seed, tail};

/// The address by which a guest reaches the host's loopback.
pub const HOST: &str = "10.0.2.2";

/// How many seconds one guest may take for everything, in a test and in a soak.
const PATIENCE: (u32, u32) = (180, 1800);

/// What every kernel is told. An emulated processor that gets no time for a while must not look broken to it.
const PARAMETERS: &str = "console=ttyS0 panic=-1 quiet no_timer_check tsc=reliable mitigations=off nokaslr \
                          rcupdate.rcu_cpu_stall_suppress=1";

const LIBRARY: &str = include_str!("library.sh");
const END: &str = "ISTHMUS-OK";

/// Two guests at once would only starve each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What a guest shall be.
#[derive(Clone)]
pub struct Builder {
    qemu: PathBuf,
    image: PathBuf,
    name: String,
    script: String,
    memory: u32,
    arguments: Vec<String>,
    kernel: String,
    reboots: bool,
    firmware: Option<PathBuf>,
}

impl Builder {
    /// A guest that runs a script, or `None` after skipping the running test when a peer could not be had. The name is
    /// its log's: `guest-<name>.log` in cargo's directory for tests.
    pub fn new(name: &str, script: &str) -> Option<Self> {
        Some(Self {
            qemu: crate::common::peer("qemu")?,
            image: crate::common::peer("guest")?,
            name: name.to_owned(),
            script: script.to_owned(),
            memory: 768,
            arguments: Vec::new(),
            kernel: String::new(),
            reboots: false,
            firmware: None,
        })
    }

    /// Another script.
    pub fn script(mut self, script: &str) -> Self {
        self.script = script.to_owned();
        self
    }

    /// Parameters for its kernel.
    pub fn kernel(mut self, parameters: &str) -> Self {
        self.kernel = parameters.to_owned();
        self
    }

    /// Memory in MiB.
    pub fn memory(mut self, mebibytes: u32) -> Self {
        self.memory = mebibytes;
        self
    }

    /// A disk on a vfio-user socket.
    pub fn vfio_user(mut self, socket: &Path) -> Self {
        let socket = socket.to_str().unwrap();
        self.arguments.push("-device".into());
        let socket = serde_json::json!({ "type": "unix", "path": socket });
        self.arguments.push(serde_json::json!({ "driver": "vfio-user-pci", "socket": socket }).to_string());
        self
    }

    /// Leads a loopback port of the host to a port of the guest.
    pub fn forward(mut self, host: u16, guest: u16) -> Self {
        self.arguments.push("-netdev".into());
        self.arguments.push(format!("user,id=net,hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
        self.arguments.push("-device".into());
        self.arguments.push("virtio-net-pci,netdev=net,romfile=".into());
        self
    }

    /// A network on which the guest reaches the host's loopback at [`HOST`].
    pub fn network(mut self) -> Self {
        self.arguments.push("-netdev".into());
        self.arguments.push("user,id=net".into());
        self.arguments.push("-device".into());
        self.arguments.push("virtio-net-pci,netdev=net,romfile=".into());
        self
    }

    /// Lets the guest reboot: the same QEMU process goes on, with the same connections.
    pub fn reboots(mut self) -> Self {
        self.reboots = true;
        self
    }

    /// Gives the guest no kernel: UEFI firmware looks for one on its disks. `None` after skipping the running test when
    /// the firmware could not be had.
    pub fn firmware(mut self) -> Option<Self> {
        self.firmware = Some(crate::common::peer("ovmf")?);
        Some(self)
    }

    /// What a disk must hold for the firmware to boot this guest's kernel and script from it, for [`esp::disk`]: the
    /// loader, a shell, and the files, among them what the shell does.
    pub fn boot_files(&self) -> (Vec<u8>, Vec<(&'static str, Vec<u8>)>) {
        let firmware = self.firmware.as_ref().expect("a guest with firmware");
        let kernel = fs::read(self.image.join("vmlinuz")).unwrap();
        let line = format!("FS0:\\LINUX.EFI initrd=\\INITRD.IMG {PARAMETERS} {}\r\n", self.kernel);
        let files =
            vec![("STARTUP.NSH", line.into_bytes()), ("LINUX.EFI", kernel), ("INITRD.IMG", self.initrd())];
        (fs::read(firmware.join("shellx64.efi")).unwrap(), files)
    }

    /// The initial file system with the script.
    fn initrd(&self) -> Vec<u8> {
        let mut segment = cpio::Archive::default();
        let (seed, rounds) = (seed() % 1_000_000_007, count(1, 20));
        let script = format!("SEED={seed}\nROUNDS={rounds}\n{LIBRARY}\n{}", self.script);
        segment.file("script", 0o644, script.as_bytes());
        [fs::read(self.image.join("initrd.cpio")).unwrap(), segment.finish()].concat()
    }

    /// Runs the guest to its end and returns what it printed.
    pub fn run(self) -> String {
        self.run_with(|_| Ok(()))
    }

    /// Runs the guest to its end while the test does its part, and returns what it printed. The test's part runs a
    /// second time when the guest's kernel panicked, which an emulated processor short of time makes it do now and then.
    pub fn run_with(self, mut part: impl FnMut(&mut Guest) -> Result<(), Trouble>) -> String {
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut attempt = || {
            let mut guest = Guest::start(&self);
            let ended = part(&mut guest).and_then(|()| guest.wait_for(END));
            guest.quit(ended.is_ok());
            ended.map(|()| guest.printed())
        };
        let outcome = match attempt() {
            Err(Trouble::KernelPanic(log)) => {
                eprintln!("the guest's kernel panicked, once more:\n{}", tail(&log, 30));
                attempt()
            }
            outcome => outcome,
        };
        match outcome {
            Ok(log) => log,
            Err(Trouble::KernelPanic(log) | Trouble::Failed(log)) => panic!("guest {}: {log}", self.name),
        }
    }
}

/// Why a guest did not do what it should.
#[derive(Debug)]
pub enum Trouble {
    /// Its kernel panicked.
    KernelPanic(String),
    /// Its script failed, QEMU ended, or it took too long.
    Failed(String),
}

/// A running guest.
pub struct Guest {
    qemu: Child,
    keyboard: ChildStdin,
    screen: Arc<Screen>,
    seen: usize,
    deadline: Instant,
    directory: tempfile::TempDir,
}

/// What the guest printed, and whether QEMU still runs.
#[derive(Default)]
struct Screen {
    state: Mutex<(Vec<u8>, bool)>,
    changed: Condvar,
}

impl Screen {
    fn lock(&self) -> MutexGuard<'_, (Vec<u8>, bool)> {
        self.state.lock().unwrap()
    }

    /// Keeps what the reader gives until its end; also in a file, to be read after a failure.
    fn fill(&self, mut reader: impl Read, mut log: fs::File) {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = reader.read(&mut chunk) {
            let _ = log.write_all(&chunk[..length]);
            self.lock().0.extend_from_slice(&chunk[..length]);
            self.changed.notify_all();
        }
        self.lock().1 = true;
        self.changed.notify_all();
    }
}

impl Guest {
    fn start(builder: &Builder) -> Self {
        let directory = tempfile::Builder::new().prefix("guest.").tempdir().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = command(builder, directory.path());
        command.stdin(Stdio::piped()).stdout(writer.try_clone().unwrap()).stderr(writer);
        let mut qemu = command.spawn().unwrap();
        drop(command);
        let keyboard = qemu.stdin.take().unwrap();
        let screen = Arc::new(Screen::default());
        let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("guest-{}.log", builder.name));
        let log = fs::File::create(log).unwrap();
        std::thread::spawn({
            let screen = Arc::clone(&screen);
            move || screen.fill(reader, log)
        });
        let deadline = Instant::now() + Duration::from_secs(count(PATIENCE.0, PATIENCE.1).into());
        Self { qemu, keyboard, screen, seen: 0, deadline, directory }
    }

    /// Waits until the script marks a point.
    ///
    /// # Errors
    /// The guest's trouble, if it does not get there.
    pub fn wait_for_mark(&mut self, name: &str) -> Result<(), Trouble> {
        self.wait_for(&format!("ISTHMUS-MARK {name}"))
    }

    /// What the script's `ask` or `read` gets.
    pub fn answer(&mut self, line: &str) {
        writeln!(self.keyboard, "{line}").unwrap();
    }

    /// All that the guest printed so far.
    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().0).into_owned()
    }

    /// Waits until a line is `marker`, after the last one that was waited for.
    fn wait_for(&mut self, marker: &str) -> Result<(), Trouble> {
        let screen = Arc::clone(&self.screen);
        let mut state = screen.lock();
        loop {
            let mut end = self.seen;
            for line in state.0[self.seen..].split_inclusive(|&byte| byte == b'\n') {
                end += line.len();
                if line.trim_ascii_end() == marker.as_bytes() && line.ends_with(b"\n") {
                    self.seen = end;
                    return Ok(());
                }
            }
            let printed = String::from_utf8_lossy(&state.0).into_owned();
            let trouble = if printed.contains("Kernel panic") {
                return Err(Trouble::KernelPanic(printed));
            } else if state.1 && printed.contains("ISTHMUS-FAIL") {
                "the script failed"
            } else if state.1 {
                "QEMU ended"
            } else if Instant::now() >= self.deadline {
                "it takes too long"
            } else {
                let left = self.deadline.saturating_duration_since(Instant::now());
                state = screen.changed.wait_timeout(state, left).unwrap().0;
                continue;
            };
            return Err(Trouble::Failed(format!("{trouble} before {marker:?}\n{}", tail(&printed, 80))));
        }
    }

    /// Waits until a guest that ended well has powered off; stops any other.
    fn quit(&mut self, ended_well: bool) {
        let screen = Arc::clone(&self.screen);
        let mut state = screen.lock();
        while ended_well && !state.1 && Instant::now() < self.deadline {
            state = screen.changed.wait_timeout(state, Duration::from_secs(1)).unwrap().0;
        }
        drop(state);
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// QEMU, started by its own loader since it is not installed.
fn command(builder: &Builder, directory: &Path) -> Command {
    let prefix = builder.qemu.join("usr");
    let memory = builder.memory;
    let mut command = Command::new(prefix.join("lib64/ld-linux-x86-64.so.2"));
    command.arg("--library-path").arg(prefix.join("lib/x86_64-linux-gnu"));
    command.args(["--argv0", "qemu-system-x86_64"]).arg(prefix.join("bin/qemu-system-x86_64"));
    command.arg("-L").arg(prefix.join("share/qemu")).arg("-L").arg(prefix.join("share/seabios"));
    command.args(["-nodefaults", "-display", "none", "-M", "q35", "-smp", "2", "-serial", "stdio"]);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]);
    command.args(["-m", &memory.to_string(), "-machine", "memory-backend=mem"]);
    command.args(["-object", &format!("memory-backend-memfd,id=mem,size={memory}M,share=on")]);
    if let Some(firmware) = &builder.firmware {
        // It keeps its variables in a second flash chip, which it writes.
        let variables = directory.join("variables");
        fs::copy(firmware.join("OVMF_VARS_4M.fd"), &variables).unwrap();
        let code = firmware.join("OVMF_CODE_4M.fd");
        command.arg("-drive").arg(format!("if=pflash,unit=0,format=raw,readonly=on,file={}", code.display()));
        command.arg("-drive").arg(format!("if=pflash,unit=1,format=raw,file={}", variables.display()));
    } else {
        let initrd = directory.join("initrd");
        fs::write(&initrd, builder.initrd()).unwrap();
        command.arg("-kernel").arg(builder.image.join("vmlinux")).arg("-initrd").arg(initrd);
        command.arg("-append").arg(format!("{PARAMETERS} {}", builder.kernel));
    }
    if !builder.reboots {
        command.arg("-no-reboot");
    }
    command.args(&builder.arguments);
    command
}
