//! A controller behind a Unix socket.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use engine::ring::{Fd, RingOp};
use engine::{Shard, ShardHandle};
use nix::sys::socket::{Shutdown, shutdown};

use super::listener::Listener;
use super::reject::Rejections;
use super::session::Session;
use super::socket::Socket;
use crate::controller::Shared;
use crate::namespace::Drain;
use crate::pcie::Doorbells;
use crate::pcie::function::Function;
use crate::subsystem::Subsystem;

/// Entries of the largest queue. A host that makes a queue brings its memory; nothing is kept here for queues that there
/// may be.
const MAX_QUEUE_ENTRIES: u16 = 4096;
/// I/O queues of a controller.
const MAX_IO_QUEUES: u16 = 256;

/// How a controller is served.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How hosts ring its doorbells.
    pub doorbells: Doorbells,
    /// CNTLID; `None` for the lowest that is free.
    pub cntlid: Option<u16>,
    /// Entries of the largest queue: 2 to 4096.
    pub max_queue_entries: u16,
    /// I/O queues that a host may have: 1 to 256.
    pub max_io_queues: u16,
    /// The socket's permissions.
    pub mode: u32,
    /// The socket's group, by number; `None` for the process's own.
    pub group: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            doorbells: Doorbells::default(),
            cntlid: None,
            max_queue_entries: MAX_QUEUE_ENTRIES,
            max_io_queues: MAX_IO_QUEUES,
            mode: 0o600,
            group: None,
        }
    }
}

/// Serves controllers over vfio-user.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Makes a controller of `subsystem` whose home is `shard`, and lets clients connect to it at `path` (see
    /// [`super::socket_path`]), one at a time. Not to be called on a shard: it waits for one.
    ///
    /// # Errors
    /// `AddrInUse` when another process serves that path; `AlreadyExists` when it is no socket; those of bind(2) and
    /// memfd_create(2); the controller identifier is in use, or the subsystem has none left ([`crate::SubsystemError`] inside).
    pub fn listen(
        shard: &ShardHandle,
        subsystem: &Arc<Subsystem>,
        path: &Path,
        options: Options,
    ) -> io::Result<Handle> {
        let (listener, fd) = Listener::bind(path, options.mode, options.group)?;
        let news = Arc::<News>::default();
        let key = serving_key();
        let (subsystem, theirs) = (subsystem.clone(), news.clone());
        let start = move |shard: &Shard| serve(shard, &subsystem, options, fd, key, theirs);
        let shared = shard.call(start).ok_or_else(|| io::Error::other("the shard has stopped"))??;
        let path = path.to_owned();
        Ok(Handle { shard: shard.clone(), key, path, shared, news, listener: Some(listener) })
    }
}

fn serving_key() -> u64 {
    // Objects that shards keep under addresses are aligned: odd keys are nobody's.
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(2, Ordering::Relaxed)
}

/// What the control plane may know at any time.
#[derive(Debug, Default)]
struct News {
    connected: AtomicBool,
    rejections: Rejections,
}

/// What runs on the home shard.
struct Serving {
    function: Rc<Function>,
    listening: Fd,
    client: RefCell<Option<Rc<Socket>>>,
    closing: Cell<bool>,
    news: Arc<News>,
    /// For each who waits for the end: let go with this, and so last.
    awaited: RefCell<Vec<Sender<Infallible>>>,
}

fn serve(
    shard: &Shard,
    subsystem: &Arc<Subsystem>,
    options: Options,
    fd: OwnedFd,
    key: u64,
    news: Arc<News>,
) -> io::Result<Arc<Shared>> {
    let Options { doorbells, cntlid, max_queue_entries, max_io_queues, .. } = options;
    let entries = max_queue_entries.clamp(2, MAX_QUEUE_ENTRIES);
    let queues = max_io_queues.clamp(1, MAX_IO_QUEUES);
    let function = Function::new(shard, subsystem, doorbells, cntlid, entries, queues)?;
    let shared = function.controller().shared().clone();
    let serving = Rc::new(Serving {
        function,
        listening: Arc::new(fd),
        client: RefCell::default(),
        closing: Cell::new(false),
        news,
        awaited: RefCell::default(),
    });
    let weak = Rc::downgrade(&serving);
    serving.function.on_end(move || {
        if let Some(serving) = weak.upgrade() {
            serving.hang_up();
        }
    });
    shard.put_local(key, serving.clone());
    let home = shard.clone();
    let run = async move {
        serving.accept().await;
        home.take_local(key);
    };
    shard.spawn(run).detach();
    Ok(shared)
}

impl Serving {
    async fn accept(&self) {
        let shard = &self.function.shard;
        while !self.closing.get() {
            let accepted = shard.ring().run(RingOp::Accept { fd: self.listening.clone() }).await.accepted();
            match accepted {
                _ if self.closing.get() => break,
                Ok(fd) => {
                    let socket = Socket::new(shard, fd);
                    self.client.replace(Some(socket.clone()));
                    self.news.connected.store(true, Ordering::Release);
                    Session::new(&self.function, &socket, &self.news.rejections).run().await;
                    self.client.replace(None);
                    self.news.connected.store(false, Ordering::Release);
                }
                Err(error) => {
                    // Out of descriptors, most likely: clients wait meanwhile.
                    tracing::warn!(%error, "cannot accept a vfio-user client");
                    shard.sleep(Duration::from_millis(100)).await;
                }
            }
        }
        if !self.function.has_ended() {
            self.function.controller().terminate();
        }
        while !self.function.has_ended() {
            shard.sleep(Duration::from_millis(1)).await;
        }
    }

    /// No more clients.
    fn hang_up(&self) {
        self.closing.set(true);
        let _ = shutdown(self.listening.as_raw_fd(), Shutdown::Both);
        if let Some(client) = &*self.client.borrow() {
            client.shut();
        }
    }
}

/// A controller that is served. Dropping it ends the service too, without waiting.
pub struct Handle {
    shard: ShardHandle,
    key: u64,
    path: PathBuf,
    shared: Arc<Shared>,
    news: Arc<News>,
    listener: Option<Listener>,
}

impl Handle {
    /// Where clients connect.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The controller.
    pub fn controller(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Whether a client is there.
    pub fn is_connected(&self) -> bool {
        self.news.connected.load(Ordering::Acquire)
    }

    /// What clients did wrong, and how often.
    pub fn rejections(&self) -> &Rejections {
        &self.news.rejections
    }

    /// Removes the socket, lets the client go, and ends the controller. Waits until all of its I/O has ended, at most
    /// `patience`; whether it has. Not to be called on a shard.
    pub fn close(mut self, patience: Duration) -> bool {
        self.begin_close().wait(patience)
    }

    /// As [`Handle::close`], without waiting: the answer tells when all of its I/O has ended. Called again, another one
    /// tells of the same end.
    pub fn begin_close(&mut self) -> Drain {
        self.listener = None;
        let (hold, drain) = Drain::new();
        let key = self.key;
        self.shard.run(move |shard| {
            if let Some(serving) = shard.local::<Serving>(key) {
                serving.awaited.borrow_mut().push(hold);
                serving.hang_up();
            }
        });
        drain
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.begin_close();
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Handle({})", self.path.display())
    }
}
