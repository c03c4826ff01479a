//! Prints the throughput of each engine on one core, in GB/s: `cargo run --release -p xts --example throughput`.

use std::hint::black_box;
use std::sync::atomic::AtomicU8;
use std::time::{Duration, Instant};

use xts::{KeyError, Xts};

/// A run as large as a large I/O, which stays in the second-level cache.
const RUN: usize = 128 << 10;

fn main() -> Result<(), KeyError> {
    println!(
        "{:<9} {:>7} {:>7}  {:>9} {:>9} {:>9}",
        "engine", "key", "unit", "in place", "encrypt", "decrypt"
    );
    for key in [32, 64].map(|length| (0..length).collect::<Vec<u8>>()) {
        for xts in Xts::engines(&key)? {
            for unit in [512, 4096] {
                let shared: Vec<AtomicU8> = (0..RUN).map(|_| AtomicU8::new(1)).collect();
                let mut buf = vec![1u8; RUN];
                let in_place = measure(|| xts.encrypt_in_place(unit, 0, black_box(&mut buf)));
                let encrypt = measure(|| xts.encrypt(unit, 0, black_box(&shared), black_box(&mut buf)));
                let decrypt = measure(|| xts.decrypt(unit, 0, black_box(&buf), black_box(&shared)));
                let bits = key.len() * 4;
                let engine = xts.engine();
                println!("{engine:<9} XTS-{bits} {unit:>7}  {in_place:>9.1} {encrypt:>9.1} {decrypt:>9.1}");
            }
        }
    }
    Ok(())
}

/// The best of many short rounds, since other work on the machine only ever makes a round slower.
fn measure(mut run: impl FnMut()) -> f64 {
    let mut best = Duration::MAX;
    let end = Instant::now() + Duration::from_millis(150);
    while Instant::now() < end {
        let start = Instant::now();
        for _ in 0..8 {
            run();
        }
        best = best.min(start.elapsed());
    }
    (8 * RUN) as f64 / best.as_secs_f64() / 1e9
}
