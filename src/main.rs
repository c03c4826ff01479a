//! `isthmus`: the daemon and the command line.
#![forbid(unsafe_code)]

mod bench;
mod cli;
mod demo;
mod process;
mod query;
mod serve;

use std::process::ExitCode;

use clap::Parser;
use cli::Command;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if e.is::<process::Unheard>() => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("isthmus: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: cli::Cli) -> anyhow::Result<()> {
    process::start_logging(&cli.log, cli.log_format)?;
    match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Discover(args) => query::discover(&args),
        Command::Identify(args) => query::identify(&args),
    }
}
