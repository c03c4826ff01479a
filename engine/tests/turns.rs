//! What a shard does in its turns for others: messages, pollers, tasks.
#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use engine::{
    Channel, ChannelRef, Config, Io, IoId, IoResult, Issuer, Limits, Poller, PollerId, Scope, Shard, Shards,
    Sim, Task, Volume, VolumeStats, Wake,
};

#[test]
fn messages_run_in_order_whoever_sends_them_and_wake_a_sleeper() {
    let shards = Shards::start(&Config { spin: Duration::ZERO, ..Config::default() }).unwrap();
    let (tx, rx) = channel();
    std::thread::scope(|scope| {
        for sender in 0..4 {
            let (handle, tx) = (shards.handles()[0].clone(), tx.clone());
            scope.spawn(move || {
                for n in 0..500 {
                    let tx = tx.clone();
                    handle.run(move |_| tx.send((sender, n)).unwrap());
                    if n % 100 == 0 {
                        // Each of these finds the shard asleep or awake, and returns either way.
                        assert_eq!(handle.call(|shard| shard.id()), Some(0));
                    }
                }
            });
        }
    });
    let mut next = [0; 4];
    for (sender, n) in rx.iter().take(2000) {
        assert_eq!(next[sender], n);
        next[sender] += 1;
    }
    let handle = shards.handles()[0].clone();
    shards.stop();
    assert_eq!(handle.call(|shard| shard.id()), None, "a stopped shard answers nobody");
}

#[test]
fn a_shard_that_must_look_sees_what_no_event_tells() {
    struct Doorbell {
        memory: Arc<AtomicUsize>,
        seen: std::sync::mpsc::Sender<usize>,
        last: Cell<usize>,
    }
    impl Poller for Doorbell {
        fn poll(self: Rc<Self>) -> bool {
            let now = self.memory.load(Ordering::Acquire);
            let rung = now != self.last.replace(now);
            if rung {
                self.seen.send(now).unwrap();
            }
            rung
        }
        fn sleep(&self) -> Wake {
            match self.memory.load(Ordering::Acquire) == self.last.get() {
                true => Wake::Look,
                false => Wake::Busy,
            }
        }
    }
    let shards = Shards::start(&Config { spin: Duration::ZERO, ..Config::default() }).unwrap();
    let memory = Arc::new(AtomicUsize::new(0));
    let (seen, rung) = channel();
    let theirs = memory.clone();
    shards.handles()[0].run(move |shard| {
        shard.add_poller(Rc::new(Doorbell { memory: theirs, seen, last: Cell::new(0) }));
    });
    for value in 1..=20 {
        memory.store(value, Ordering::Release);
        assert_eq!(rung.recv(), Ok(value));
    }
    shards.stop();
}

#[test]
fn a_shard_looks_for_work_for_as_long_as_it_is_told() {
    #[derive(Default)]
    struct Looks {
        turns: AtomicUsize,
        sleeps: AtomicUsize,
    }
    struct Watch(Arc<Looks>);
    impl Poller for Watch {
        fn poll(self: Rc<Self>) -> bool {
            self.0.turns.fetch_add(1, Ordering::Relaxed);
            false
        }
        fn sleep(&self) -> Wake {
            self.0.sleeps.fetch_add(1, Ordering::Relaxed);
            Wake::Look
        }
    }
    let watch = |spin, until: fn(&Looks) -> bool| {
        let looks = Arc::<Looks>::default();
        let shards = Shards::start(&Config { spin, ..Config::default() }).unwrap();
        let theirs = looks.clone();
        shards.handles()[0].run(|shard| {
            shard.add_poller(Rc::new(Watch(theirs)));
        });
        while !until(&looks) {
            std::thread::yield_now();
        }
        shards.stop();
        looks.sleeps.load(Ordering::Relaxed)
    };
    assert_eq!(watch(Duration::from_secs(3600), |looks| looks.turns.load(Ordering::Relaxed) > 10_000), 0);
    assert!(watch(Duration::ZERO, |looks| looks.sleeps.load(Ordering::Relaxed) > 10) > 10);
}

/// Counts its turns, and may take another out of the walk.
struct Counter {
    turns: Cell<usize>,
    shard: Shard,
    takes_out: Cell<Option<PollerId>>,
}

impl Poller for Counter {
    fn poll(self: Rc<Self>) -> bool {
        self.turns.set(self.turns.get() + 1);
        if let Some(id) = self.takes_out.take() {
            self.shard.remove_poller(id);
        }
        false
    }
    fn sleep(&self) -> Wake {
        Wake::Event
    }
}

#[test]
fn pollers_may_change_the_walk_they_are_in() {
    let sim = Sim::new(1).unwrap();
    let [first, second] = [0, 1].map(|_| {
        sim.on(0, |shard| {
            let poller = Counter { turns: Cell::new(0), shard: shard.clone(), takes_out: Cell::new(None) };
            Rc::new(poller)
        })
    });
    let id = sim.on(0, |shard| {
        shard.add_poller(first.clone());
        shard.add_poller(second.clone())
    });
    sim.run_until(|| second.turns.get() == 1);
    first.takes_out.set(Some(id));
    let before = second.turns.get();
    sim.advance(Duration::from_secs(1));
    sim.advance(Duration::from_secs(1));
    assert_eq!(second.turns.get(), before, "it is looked at no more");
    assert!(first.turns.get() > 2);
    assert_eq!(Rc::strong_count(&second), 1);
}

#[test]
fn a_task_may_end_itself_or_another() {
    let sim = Sim::new(1).unwrap();
    let tasks: Rc<RefCell<Vec<Task>>> = Rc::default();
    let steps = Rc::new(Cell::new(0));
    let alive = Rc::new(());
    for _ in 0..3 {
        let (tasks, theirs, steps, alive) = (tasks.clone(), tasks.clone(), steps.clone(), alive.clone());
        let task = sim.on(0, |shard| {
            let shard2 = shard.clone();
            shard.spawn(async move {
                let _alive = alive;
                shard2.sleep(Duration::from_secs(1)).await;
                steps.set(steps.get() + 1);
                // All of them, this one among them: it ends at its next await point.
                let all = std::mem::take(&mut *theirs.borrow_mut());
                drop(all);
                shard2.sleep(Duration::from_secs(1)).await;
                steps.set(100);
            })
        });
        tasks.borrow_mut().push(task);
    }
    sim.advance(Duration::from_secs(10));
    assert_eq!(steps.get(), 1, "the first ended the others before their turn");
    assert_eq!(Rc::strong_count(&alive), 1, "nothing of them is left");
}

#[test]
fn work_on_completions_does_not_keep_a_shard_from_looking_around() {
    /// Works for a while on each completion, and submits again.
    struct Work(ChannelRef, Cell<usize>, Sender<usize>, Rc<Counter>);
    impl Issuer for Work {
        fn resume(self: Rc<Self>, io: Io, _cookie: u64, _result: IoResult) {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_micros(100) {}
            self.1.set(self.1.get() + 1);
            if self.1.get() == 400 {
                return self.2.send(self.3.turns.get()).unwrap();
            }
            io.forward(&self.0.clone(), self, 0);
        }
    }
    struct Nothing(VolumeStats);
    struct NoChannel;
    impl Volume for Nothing {
        fn limits(&self) -> Limits {
            Limits::full(512, 1)
        }
        fn stats(&self) -> &VolumeStats {
            &self.0
        }
        fn open(self: Arc<Self>, _shard: &Shard) -> Rc<dyn Channel> {
            Rc::new(NoChannel)
        }
    }
    impl Channel for NoChannel {
        fn submit(self: Rc<Self>, io: Io) {
            io.complete(Ok(()));
        }
        fn revoke(&self, _scope: Scope) {}
    }
    let shards = Shards::start(&Config::default()).unwrap();
    let (tell, told) = channel();
    shards.handles()[0].run(move |shard| {
        let counter = Counter { turns: Cell::new(0), shard: shard.clone(), takes_out: Cell::new(None) };
        let counter = Rc::new(counter);
        shard.add_poller(counter.clone());
        let volume: Arc<dyn Volume> = Arc::new(Nothing(VolumeStats::default()));
        let channel = ChannelRef::open(&volume, shard);
        let work = Work(channel.clone(), Cell::new(0), tell, counter);
        Io::new(IoId::default()).forward(&channel, Rc::new(work), 0);
    });
    let looks = told.recv().unwrap();
    assert!(looks >= 10, "{looks} in 400 completions of 100 µs each");
    shards.stop();
}

#[test]
fn nor_do_messages() {
    let shards = Shards::start(&Config::default()).unwrap();
    let handle = shards.handles()[0].clone();
    let (tell, told) = channel();
    handle.run(move |shard| {
        let counter = Counter { turns: Cell::new(0), shard: shard.clone(), takes_out: Cell::new(None) };
        let counter = Rc::new(counter);
        shard.add_poller(counter.clone());
        shard.put_local(1, counter);
        for left in (0..400).rev() {
            let tell = tell.clone();
            shard.handle().run(move |shard| {
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_micros(100) {}
                if left == 0 {
                    let counter = shard.local::<Counter>(1).unwrap();
                    tell.send(counter.turns.get()).unwrap();
                }
            });
        }
    });
    let looks = told.recv().unwrap();
    assert!(looks >= 10, "{looks} in 400 messages of 100 µs each");
    shards.stop();
}

/// An object that keeps its shard, as channels do.
struct Keeper(#[expect(dead_code, reason = "it is kept, and nothing more")] Shard, Sender<()>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.1.send(()).unwrap();
    }
}

#[test]
fn a_shard_that_ends_lets_go_of_everything_and_answers_nobody() {
    let shards = Shards::start(&Config::default()).unwrap();
    let handle = shards.handles()[0].clone();
    let (tx, gone) = channel();
    handle.run(move |shard| {
        let keeper = |tx: &Sender<()>| Rc::new(Keeper(shard.clone(), tx.clone()));
        shard.put_local(1, keeper(&tx));
        let (in_task, sleeper) = (keeper(&tx), shard.clone());
        let task = async move {
            sleeper.sleep(Duration::from_secs(3600)).await;
            drop(in_task);
        };
        shard.spawn(task).detach();
    });
    // Dropping is stopping.
    drop(shards);
    assert_eq!(gone.iter().count(), 2);
    assert_eq!(handle.call(|shard| shard.id()), None);
}

#[test]
fn a_shard_that_panics_leaves_nobody_waiting() {
    let shards = Shards::start(&Config::default()).unwrap();
    let handle = shards.handles()[0].clone();
    handle.run(|shard| {
        shard.put_local(1, Rc::new(shard.clone()));
        panic!("on purpose");
    });
    assert_eq!(handle.call(|shard| shard.id()), None);
}

#[test]
fn objects_may_use_the_shard_while_they_go() {
    struct Last(Shard, PollerId);
    impl Drop for Last {
        fn drop(&mut self) {
            self.0.take_local(8);
            self.0.remove_poller(self.1);
        }
    }
    impl Poller for Last {
        fn poll(self: Rc<Self>) -> bool {
            false
        }
        /// One that goes away when it is asked whether the shard may sleep.
        fn sleep(&self) -> Wake {
            self.0.remove_poller(self.1);
            Wake::Event
        }
    }
    let shards = Shards::start(&Config { spin: Duration::ZERO, ..Config::default() }).unwrap();
    let done = shards.handles()[0].call(|shard| {
        let counter = Counter { turns: Cell::new(0), shard: shard.clone(), takes_out: Cell::new(None) };
        let id = shard.add_poller(Rc::new(counter));
        let outer = shard.add_poller(Rc::new(Last(shard.clone(), id)));
        shard.put_local(7, Rc::new(Last(shard.clone(), outer)));
        shard.put_local(7, Rc::new(()));
        let again = shard.add_poller(Rc::new(Last(shard.clone(), id)));
        shard.remove_poller(again);
        shard.add_poller(Rc::new(Last(shard.clone(), id)));
    });
    assert_eq!(done, Some(()));
    assert_eq!(shards.handles()[0].call(|shard| shard.id()), Some(0), "it slept and woke");
    shards.stop();
}

#[test]
fn a_task_may_be_woken_from_another_thread() {
    let shards = Shards::start(&Config { spin: Duration::ZERO, ..Config::default() }).unwrap();
    let (tell, told) = channel();
    let (wakers, woken) = channel();
    shards.handles()[0].run(move |shard| {
        let mut left = 3;
        let wait = std::future::poll_fn(move |cx| {
            left -= 1;
            wakers.send(cx.waker().clone()).unwrap();
            if left == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        });
        shard
            .spawn(async move {
                wait.await;
                tell.send(()).unwrap()
            })
            .detach();
    });
    for waker in woken.iter().take(2) {
        // By now or soon the shard is asleep.
        std::thread::sleep(Duration::from_millis(5));
        waker.wake();
    }
    assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(()));
    shards.stop();
}

#[test]
fn objects_of_a_shard_are_found_by_key_and_type() {
    let sim = Sim::new(2).unwrap();
    sim.on(0, |shard| shard.put_local(7, Rc::new("seven")));
    sim.handles()[0].run(|shard| {
        assert_eq!(shard.local::<&str>(7).as_deref(), Some(&"seven"));
        assert!(shard.local::<u32>(7).is_none() && shard.local::<&str>(8).is_none());
        shard.take_local(7);
    });
    sim.run_until(|| false);
    sim.on(0, |shard| assert!(shard.local::<&str>(7).is_none()));
    sim.on(1, |shard| assert!(shard.local::<&str>(7).is_none(), "shards share nothing"));
}
