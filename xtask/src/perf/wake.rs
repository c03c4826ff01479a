//! What waking costs where a thread does nothing else: it waits for a few bytes in recv(2), and answers with a block. A
//! halted CPU needs its time, more so a virtual one, and what it knew of memory is gone by then.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::cores::pin;

/// How long it was quiet before.
pub const GAPS: [Duration; 3] =
    [Duration::from_micros(100), Duration::from_micros(500), Duration::from_millis(10)];
/// Questions in one measurement, of which the median counts.
const ROUNDS: usize = 101;
/// Bytes of a question and of its answer: a command, and a block with its header.
const QUESTION: usize = 72;
const ANSWER: usize = 4120;

/// The µs that a thread on the first CPU answers one on the second later, after a `gap`, when it waits in recv(2) than when
/// it looks all the time. `None` where that cannot be known.
pub fn cost(cpus: [usize; 2], gap: Duration) -> Option<f64> {
    if cpus[0] == cpus[1] {
        return None;
    }
    Some(answers(cpus, gap, true)? - answers(cpus, gap, false)?)
}

/// The median time to an answer, in µs.
fn answers(cpus: [usize; 2], gap: Duration, waits: bool) -> Option<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
    let asks = TcpStream::connect(listener.local_addr().ok()?).ok()?;
    let answers = listener.accept().ok()?.0;
    [&asks, &answers].into_iter().try_for_each(|stream| stream.set_nodelay(true)).ok()?;
    asks.set_nonblocking(true).ok()?;
    answers.set_nonblocking(!waits).ok()?;
    std::thread::scope(|scope| {
        scope.spawn(move || answer(cpus[0], answers));
        scope.spawn(move || ask(cpus[1], asks, gap)).join().ok().flatten()
    })
}

/// Answers until the other one is gone.
fn answer(cpu: usize, mut stream: TcpStream) -> Option<()> {
    pin(cpu)?;
    let (mut question, answer) = ([0; QUESTION], [1; ANSWER]);
    loop {
        receive(&mut stream, &mut question)?;
        stream.write_all(&answer).ok()?;
    }
}

fn ask(cpu: usize, mut stream: TcpStream, gap: Duration) -> Option<f64> {
    pin(cpu)?;
    let (question, mut answer) = ([0; QUESTION], [0; ANSWER]);
    let mut took = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        while begin.elapsed() < gap {
            std::hint::spin_loop();
        }
        let begin = Instant::now();
        stream.write_all(&question).ok()?;
        receive(&mut stream, &mut answer)?;
        took.push(begin.elapsed().as_nanos() as f64 / 1e3);
    }
    took.sort_by(f64::total_cmp);
    took.get(ROUNDS / 2).copied()
}

/// Fills `bytes`, however often it takes; `None` when the other one is gone.
fn receive(stream: &mut TcpStream, bytes: &mut [u8]) -> Option<()> {
    let mut got = 0;
    while got < bytes.len() {
        match stream.read(&mut bytes[got..]) {
            Ok(0) => return None,
            Ok(n) => got += n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return None,
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_either_way() {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        for waits in [true, false] {
            if cpus > 1 {
                let took = answers([0, 1], Duration::from_micros(10), waits);
                assert!(took.is_none_or(|took| took > 1.0), "{took:?}");
            }
            assert!(answers([0, 100_000], Duration::ZERO, waits).is_none(), "there is no such CPU");
        }
        assert!(cost([0, 0], Duration::ZERO).is_none());
    }
}
