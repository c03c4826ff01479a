//! Fuzzing with no tool but the compiler. An input is a sequence of actions of [`RECORD`] bytes each; a [`Subject`]
//! does them, asserts what must hold, and notes in a [`Trace`] what it saw. Inputs that showed something new are
//! mutated further. One that fails is made smaller and written to a file; in the corpus directory it is a regression
//! test from then on.
//!
//! Environment: `ISTHMUS_FUZZ_SECONDS` says how long (else 4 s, with `ISTHMUS_SOAK=1` 120 s), `ISTHMUS_SEED` where the
//! random choices begin. `ISTHMUS_FUZZ_INPUT` names one file that is run alone; `ISTHMUS_FUZZ_KEEP` a directory to
//! which those inputs are written in the end that together show the most. `ISTHMUS_FUZZ_JOBS` says how many processes
//! do the same from other seeds (else it is this one alone).

mod input;
mod jobs;
mod watch;

use std::any::Any;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, mem};

pub use input::{Input, RECORD, Record};
use watch::Watchdog;

use crate::conformance::rng::Rng;

/// Inputs that are kept to be mutated.
const POOL: usize = 4096;
/// Inputs that are written to a corpus.
const KEPT: usize = 40;
/// Runs after which a subject is made anew.
const LIFE: u64 = 20_000;
/// Runs after which a subject is checked.
const CHECKED: u64 = 32;
/// Runs until what a subject keeps for ever has been allocated.
const WARM: u64 = 20_000;
/// Bytes by which the process may grow after that.
const GROWTH: usize = 96 << 20;

/// What is fuzzed.
pub trait Subject: Sized {
    /// As before the first run.
    fn new() -> Self;

    /// Does what the input says, and then asserts that everything is as before it. It panics when something is wrong.
    fn run(&mut self, input: &Input, trace: &mut Trace);

    /// Asserts what takes too long to be asserted after each run: that nothing of the last ones has stayed behind.
    fn check(&mut self) {}

    /// Ends it in good order.
    fn close(self) {}
}

/// What a run has shown.
#[derive(Debug, Default)]
pub struct Trace {
    seen: HashSet<u64>,
    before: u64,
}

impl Trace {
    /// Something was observed: an answer's kind and status, a state. It counts by itself, and after what was observed
    /// before it.
    pub fn note(&mut self, what: impl Hash) {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        let one = hasher.finish();
        self.seen.insert(one);
        (self.before, one).hash(&mut hasher);
        self.seen.insert(hasher.finish());
        self.before = one;
    }
}

/// How a run came to an end.
type Outcome = Result<(), String>;

struct Fuzzer<S> {
    name: String,
    subject: Option<S>,
    /// Runs of this subject.
    age: u64,
    /// What ran since the last check.
    unchecked: Vec<Input>,
    known: HashSet<u64>,
    watchdog: Watchdog,
}

/// Runs the corpus in `directory`, and then what becomes of it, until the time is up.
///
/// # Panics
/// When a run fails; the smallest input that fails is written to a file, which the message names.
pub fn fuzz<S: Subject>(name: &str, directory: &Path) {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let soak = std::env::var("ISTHMUS_SOAK").is_ok_and(|value| value == "1");
    let seconds = number("ISTHMUS_FUZZ_SECONDS").unwrap_or(if soak { 120 } else { 4 });
    let seed = number("ISTHMUS_SEED").unwrap_or(1);
    if let Some(jobs) = number("ISTHMUS_FUZZ_JOBS").filter(|jobs| *jobs > 1) {
        return jobs::run(name, jobs, seed);
    }
    let watchdog = Watchdog::start(name);
    let mut fuzzer = Fuzzer::<S> {
        name: name.into(),
        subject: None,
        age: 0,
        unchecked: Vec::new(),
        known: HashSet::new(),
        watchdog,
    };
    if let Some(path) = std::env::var_os("ISTHMUS_FUZZ_INPUT").map(PathBuf::from) {
        let input = Input::load(&path).unwrap_or_else(|error| fail(&error.to_string()));
        fuzzer.known.clear();
        if let Err(why) = fuzzer.run_and_check(&input) {
            fail(&why);
        }
        return fuzzer.close();
    }

    let mut pool = corpus(directory);
    for (path, input) in &pool {
        if let Err(why) = fuzzer.run_and_check(input) {
            fail(&format!("{name}: {}: {why}", path.display()));
        }
    }
    let mut pool: Vec<Input> = pool.drain(..).map(|(_, input)| input).collect();
    println!("{name}: {} inputs of the corpus; ISTHMUS_SEED={seed}, {seconds} s", pool.len());
    let keep = std::env::var_os("ISTHMUS_FUZZ_KEEP").map(PathBuf::from);
    let mut rng = Rng::new(seed);
    let (began, mut runs, mut told, mut memory) = (Instant::now(), 0, 0, 0);
    while began.elapsed() < Duration::from_secs(seconds) {
        let input = if pool.is_empty() || rng.one_in(16) {
            Input::random(&mut rng)
        } else {
            Input::mutated(&mut rng, &pool)
        };
        let (outcome, news) = fuzzer.run(&input);
        if let Err(why) = outcome {
            fuzzer.failed(input, &why);
        }
        fuzzer.unchecked.push(input.clone());
        if fuzzer.age.is_multiple_of(CHECKED)
            && let Err(why) = fuzzer.check()
        {
            let culprit = fuzzer.culprit();
            fuzzer.failed(culprit, &why);
        }
        if news > 0 {
            if pool.len() < POOL {
                pool.push(input);
            } else {
                let at = rng.index(POOL);
                pool[at] = input;
            }
        }
        runs += 1;
        if runs == WARM {
            memory = resident();
        }
        if began.elapsed().as_secs() / 60 > told {
            told += 1;
            eprintln!("{name}: {}", said(runs, began, &pool, &fuzzer.known));
        }
    }
    println!("{name}: {}", said(runs, began, &pool, &fuzzer.known));
    if runs > WARM {
        let grown = resident().saturating_sub(memory);
        println!(
            "{name}: {} KiB resident, {} KiB more than after {WARM} runs",
            resident() >> 10,
            grown >> 10
        );
        if grown > GROWTH {
            fail(&format!("{name}: the process grows: something leaks"));
        }
    }
    if let Some(keep) = keep {
        fuzzer.keep(&pool, &keep);
    }
    fuzzer.close();
}

fn said(runs: u64, began: Instant, pool: &[Input], known: &HashSet<u64>) -> String {
    let rate = runs as f64 / began.elapsed().as_secs_f64();
    format!("{runs} runs, {rate:.0} a second; {} things seen, {} inputs kept", known.len(), pool.len())
}

impl<S: Subject> Fuzzer<S> {
    /// Runs an input; how much of what it showed is new.
    fn run(&mut self, input: &Input) -> (Outcome, usize) {
        if self.age == LIFE
            && let Some(subject) = self.subject.take()
        {
            subject.close();
            self.age = 0;
        }
        self.age += 1;
        let mut trace = Trace::default();
        self.watchdog.begin(input);
        let subject = &mut self.subject;
        let ran =
            catch_unwind(AssertUnwindSafe(|| subject.get_or_insert_with(S::new).run(input, &mut trace)));
        self.watchdog.end();
        let before = self.known.len();
        self.known.extend(mem::take(&mut trace.seen));
        (ran.map_err(|panic| words(panic.as_ref())), self.known.len() - before)
    }

    /// Runs an input, and checks what it left behind.
    fn run_and_check(&mut self, input: &Input) -> Outcome {
        self.run(input).0.and_then(|()| self.check())
    }

    fn check(&mut self) -> Outcome {
        let Some(subject) = &mut self.subject else { return Ok(()) };
        let outcome = catch_unwind(AssertUnwindSafe(|| subject.check()));
        if outcome.is_ok() {
            self.unchecked.clear();
        }
        outcome.map_err(|panic| words(panic.as_ref()))
    }

    /// Which of the runs since the last check it was: one that fails alone, or else the last.
    fn culprit(&mut self) -> Input {
        let mut suspects = mem::take(&mut self.unchecked);
        let guilty = suspects.iter().position(|input| self.fails_anew(input));
        suspects.swap_remove(guilty.unwrap_or(suspects.len() - 1))
    }

    /// Writes the inputs that together show the most, each with what it adds to those before it.
    fn keep(&mut self, pool: &[Input], directory: &Path) {
        let mut all = Vec::new();
        for input in pool {
            self.known.clear();
            if self.run(input).0.is_ok() {
                all.push((input, mem::take(&mut self.known)));
            }
        }
        let _ = fs::create_dir_all(directory);
        for _ in 0..KEPT {
            all.sort_by_key(|(_, seen)| seen.len());
            let Some((input, news)) = all.pop().filter(|(_, seen)| !seen.is_empty()) else { break };
            all.iter_mut().for_each(|(_, seen)| seen.retain(|one| !news.contains(one)));
            let _ = fs::write(directory.join(format!("{:016x}.txt", hash(input))), input.text());
        }
    }

    /// Runs an input with a new subject.
    fn fails_anew(&mut self, input: &Input) -> bool {
        self.forget();
        self.run_and_check(input).is_err()
    }

    /// Lets go of a subject that may be broken.
    fn forget(&mut self) {
        let subject = self.subject.take();
        self.age = 0;
        self.unchecked.clear();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(subject)));
    }

    fn close(mut self) {
        if let Some(subject) = self.subject.take() {
            subject.close();
        }
    }

    /// Makes a failed input smaller, writes it to a file, and ends.
    fn failed(&mut self, mut input: Input, why: &str) -> ! {
        let age = self.age;
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let alone = self.fails_anew(&input);
        let until = Instant::now() + Duration::from_secs(60);
        if alone {
            self.reduce(&mut input, until);
        }
        self.forget();
        std::panic::set_hook(hook);
        let path = std::env::temp_dir().join(format!("isthmus-{}-{:016x}.txt", self.name, hash(&input)));
        let _ = fs::write(&path, input.text());
        let when = if alone { "alone".into() } else { format!("only after {} other runs", age - 1) };
        fail(&format!(
            "{}: {why}\nfails {when}; ISTHMUS_FUZZ_INPUT={} runs it again:\n{}",
            self.name,
            path.display(),
            input.text()
        ))
    }

    fn reduce(&mut self, input: &mut Input, until: Instant) {
        let mut part = input.0.len() / 2;
        while part > 0 {
            let mut at = 0;
            while at < input.0.len() && Instant::now() < until {
                let mut less = input.clone();
                less.0.drain(at..(at + part).min(less.0.len()));
                if self.fails_anew(&less) {
                    *input = less;
                } else {
                    at += part;
                }
            }
            part /= 2;
        }
        for at in 0..input.0.len() {
            for byte in 0..RECORD {
                let mut less = input.clone();
                less.0[at][byte] = 0;
                if less != *input && Instant::now() < until && self.fails_anew(&less) {
                    *input = less;
                }
            }
        }
    }
}

/// The inputs of a directory, in the order of their names.
fn corpus(directory: &Path) -> Vec<(PathBuf, Input)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    let load = |path: PathBuf| match Input::load(&path) {
        Ok(input) => (path, input),
        Err(error) => fail(&error.to_string()),
    };
    paths.into_iter().map(load).collect()
}

fn hash(input: &Input) -> u64 {
    let mut hasher = DefaultHasher::new();
    input.0.hash(&mut hasher);
    hasher.finish()
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// Bytes of the process in memory.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

#[expect(clippy::panic, reason = "a test fails by panicking")]
fn fail(why: &str) -> ! {
    panic!("{why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when it is told 7 and, later, 9.
    struct Picky;

    impl Subject for Picky {
        fn new() -> Self {
            Picky
        }

        fn run(&mut self, input: &Input, trace: &mut Trace) {
            let mut seven = false;
            for mut record in input.records() {
                let byte = record.byte();
                trace.note((byte == 7, byte == 9));
                seven |= byte == 7;
                assert!(!(seven && byte == 9), "nine after seven");
            }
        }
    }

    #[test]
    fn what_fails_is_found_and_made_small() {
        let ran = catch_unwind(|| fuzz::<Picky>("picky", Path::new("/nowhere")));
        let why = words(ran.unwrap_err().as_ref());
        assert!(why.contains("nine after seven") && why.contains("fails alone"), "{why}");
        let lines: Vec<_> = why.lines().filter(|line| line.len() == 2 * RECORD).collect();
        let zeroes = "0".repeat(30);
        assert_eq!(lines, [format!("07{zeroes}"), format!("09{zeroes}")]);
        let name = why.split("ISTHMUS_FUZZ_INPUT=").nth(1).and_then(|rest| rest.split(' ').next());
        fs::remove_file(name.unwrap()).unwrap();
    }
}
