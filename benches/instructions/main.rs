//! Drives one path from a host's command to its completion, on simulated shards on this thread, so that callgrind counts
//! the same instructions in every run: `cargo xtask instructions`, or one path by hand:
//!
//! ```text
//! cargo build --release --bench instructions
//! valgrind --tool=callgrind --toggle-collect='*instructions*counted*' --dump-instr=yes \
//!   target/release/deps/instructions-HASH tcp-read && callgrind_annotate callgrind.out.PID
//! ```
//!
//! Only what runs inside [`counted`] counts: the turns of the shards that are measured, without their host.

mod load;
mod paths;
mod world;

use std::process::ExitCode;

/// Commands that are counted.
pub const COMMANDS: usize = 4096;
/// Commands before those, in which pools, lists and maps grow to their sizes.
const WARM: usize = 1024;

/// What is measured: callgrind counts inside of this function alone.
#[inline(never)]
pub fn counted(f: &mut dyn FnMut()) {
    f();
    // No tail call: the function must be on the stack as long as `f` runs.
    std::hint::black_box(());
}

fn main() -> ExitCode {
    let names = paths::PATHS.map(|path| path.name);
    match std::env::args().nth(1).as_deref() {
        // `cargo bench` runs without a name.
        None | Some("--bench" | "--list") => {
            println!("{COMMANDS} {}", names.join(" "));
            ExitCode::SUCCESS
        }
        Some(name) => match paths::run(name, WARM, COMMANDS) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{name}: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}
