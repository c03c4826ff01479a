//! One process for each core: what is counted of a process, descriptors and maps, stays each one's own.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::fail;

/// Runs the calling test in so many processes, from one seed after the other; adds up how many runs they made.
///
/// # Panics
/// When it fails in one of them.
pub(super) fn run(name: &str, jobs: u64, seed: u64) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or_default();
    let start = |job: u64| {
        let mut command = Command::new("/proc/self/exe");
        command.args(["--exact", "--nocapture", test]).env_remove("ISTHMUS_FUZZ_JOBS");
        command.env("ISTHMUS_SEED", (seed + job).to_string()).stdout(Stdio::piped());
        command.spawn().unwrap_or_else(|error| fail(&format!("{name}: {error}")))
    };
    let children: Vec<Child> = (0..jobs).map(start).collect();
    let (mut runs, mut rate, mut failed) = (0, 0, false);
    for mut child in children {
        for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()).flatten() {
            let Some((_, said)) = line.split_once(&format!("{name}: ")) else { continue };
            println!("{name}: {said}");
            let mut words = said.split(' ');
            if let (Some(n), Some("runs,"), Some(per)) = (words.next(), words.next(), words.next()) {
                runs += n.parse::<u64>().unwrap_or(0);
                rate += per.parse::<u64>().unwrap_or(0);
            }
        }
        failed |= !child.wait().is_ok_and(|status| status.success());
    }
    println!("{name}: {runs} runs in {jobs} processes, {rate} a second");
    if failed {
        fail(&format!("{name}: failed in one of the processes"));
    }
}
