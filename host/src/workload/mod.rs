//! Loads: what is asked of queues, how it is checked, and what it took.

mod histogram;
mod job;
mod ledger;
mod random;
mod report;
mod run;

pub use histogram::Histogram;
pub use job::{Amount, Job, Pattern, parse_size};
pub use ledger::{Ledger, Mismatch};
pub use random::{Random, Shuffle};
pub use report::{Depths, Report, Samples};
pub use run::{Failure, Load, Progress, run, run_all};
