//! Loads: what is asked of queues, how it is checked, and what it took.

mod histogram;
mod job;
mod ledger;
mod random;
mod run;

pub use histogram::Histogram;
pub use job::{Amount, Job, Pattern, parse_size};
pub use ledger::{Ledger, Mismatch};
pub use random::Random;
pub use run::{Failure, Progress, Report, run};
