//! The state directory: what is declared, in a database that a crash at any moment leaves whole.
//!
//! `state.redb` holds four tables: `objects`, a [`Record`] under each resource name; `reservations` and `protection` of
//! the namespaces that have some, under their identity for life; and `meta`. `lock` is locked while a process uses the
//! directory. `kek` may hold the key-encryption key (see [`super::vault`]).
//!
//! After one failure of its file, redb refuses everything. Here it costs the call that meets it: the next one opens the
//! file again.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use engine::Limits;
use frontend::Kept;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use prost::Message as _;
use redb::backends::FileBackend;
use redb::{Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use uuid::Uuid;

use super::vault::{self, Vault, VaultError};

const OBJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("objects");
const RESERVATIONS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("reservations");
const PROTECTION: TableDefinition<&[u8], &[u8]> = TableDefinition::new("protection");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

/// The key in `meta` that is there while a process has the directory.
const RUNNING: &str = "running";
/// The keys in `meta` that count the processes that had the directory, and those of them that did not end in order.
const STARTS: &str = "starts";
const KILLS: &str = "kills";
/// Version of what the tables hold.
const FORMAT: u8 = 1;
/// Wrapped by the vault, so that another key-encryption key is noticed at once.
const PROBE: &[u8] = b"the key-encryption key of this directory";

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory cannot be made or opened.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error("state directory {0} is in use by another process")]
    Locked(PathBuf),
    /// The database does not open, read or write.
    #[error("{path}: {reason}")]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A later version wrote the database.
    #[error("{path}: its format is {found}, and this version reads {FORMAT}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The format that it has.
        found: u8,
    },
    /// Keys cannot be wrapped.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// An object as it is kept.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Record {
    /// Objects are built again in this order.
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    /// The kind's collection, such as `mallocVolumes`.
    #[prost(string, tag = "2")]
    pub kind: String,
    /// The message as the client sent it, without its key.
    #[prost(bytes = "vec", tag = "3")]
    pub declared: Vec<u8>,
    /// The message as clients get it.
    #[prost(bytes = "vec", tag = "4")]
    pub object: Vec<u8>,
    /// The wrapped key.
    #[prost(bytes = "vec", tag = "5")]
    pub sealed: Vec<u8>,
    /// Its identity for life.
    #[prost(bytes = "vec", tag = "6")]
    pub uuid: Vec<u8>,
    /// What the users of a volume were told of it.
    #[prost(message, optional, tag = "7")]
    pub promise: Option<Promise>,
    /// Names of the objects that it needs.
    #[prost(string, repeated, tag = "8")]
    pub uses: Vec<String>,
    /// Of a vfio-user controller: whether its socket has a name of its own, since another has the subsystem's.
    #[prost(bool, optional, tag = "9")]
    pub further: Option<bool>,
    /// Of a controller: its ANA state, since it was set, as the API numbers it.
    #[prost(int32, optional, tag = "10")]
    pub ana: Option<i32>,
    /// Of a subsystem: whether its controllers over fabrics are static.
    #[prost(bool, tag = "11")]
    pub fixed: bool,
}

/// Limits of a volume as they are kept.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Promise {
    #[prost(uint32, tag = "1")]
    block_size: u32,
    #[prost(uint64, tag = "2")]
    blocks: u64,
    #[prost(uint32, tag = "3")]
    max_blocks: u32,
    #[prost(uint32, tag = "4")]
    optimal_boundary: u32,
    #[prost(uint32, tag = "5")]
    write_granularity: u32,
    #[prost(uint32, tag = "6")]
    atomic_blocks: u32,
    #[prost(bool, tag = "7")]
    volatile_cache: bool,
    #[prost(bool, tag = "8")]
    fua: bool,
    #[prost(bool, tag = "9")]
    write_zeroes: bool,
    #[prost(bool, tag = "10")]
    unmap: bool,
    #[prost(bool, tag = "11")]
    compare: bool,
    #[prost(bool, tag = "12")]
    unmapped_reads_zero: bool,
}

impl From<&Limits> for Promise {
    fn from(limits: &Limits) -> Self {
        Promise {
            block_size: limits.block_size,
            blocks: limits.blocks,
            max_blocks: limits.max_blocks,
            optimal_boundary: limits.optimal_boundary,
            write_granularity: limits.write_granularity,
            atomic_blocks: limits.atomic_blocks,
            volatile_cache: limits.volatile_cache,
            fua: limits.fua,
            write_zeroes: limits.write_zeroes,
            unmap: limits.unmap,
            compare: limits.compare,
            unmapped_reads_zero: limits.unmapped_reads_zero,
        }
    }
}

impl From<&Promise> for Limits {
    fn from(promise: &Promise) -> Self {
        Limits {
            max_blocks: promise.max_blocks,
            optimal_boundary: promise.optimal_boundary,
            write_granularity: promise.write_granularity,
            atomic_blocks: promise.atomic_blocks,
            volatile_cache: promise.volatile_cache,
            fua: promise.fua,
            write_zeroes: promise.write_zeroes,
            unmap: promise.unmap,
            compare: promise.compare,
            unmapped_reads_zero: promise.unmapped_reads_zero,
            ..Limits::full(promise.block_size, promise.blocks)
        }
    }
}

fn table(kept: Kept) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    match kept {
        Kept::Reservations => RESERVATIONS,
        Kept::Protection => PROTECTION,
    }
}

/// Where something stands that is changed alone.
#[derive(Clone)]
enum Place {
    /// Of an object, by name.
    Object(String),
    /// Of a namespace, by its identity.
    Kept(Uuid, Kept),
}

/// What stood in a place.
type Before = (Place, Option<Vec<u8>>);

/// The database, and what it takes to go on after a failure.
struct Held {
    /// `None` after a failure, until it is opened again.
    database: Option<Database>,
    /// To be put back first: nobody knows whether the change was made whose commit failed, and its caller was told that
    /// it was not.
    undo: Option<Before>,
}

/// Opens a database in its file; a test has one on a disk that fails.
type OpenDatabase = fn(File) -> Result<Database, DatabaseError>;

/// The state directory, locked while this lives.
pub(crate) struct Store {
    path: PathBuf,
    held: Mutex<Held>,
    open_database: OpenDatabase,
    host_id: Uuid,
    /// The last process that had the directory did not end in order.
    killed: bool,
    starts: u64,
    kills: u64,
    vault: Vault,
    _lock: File,
    /// Writing fails, as on a full disk.
    #[cfg(test)]
    pub fails: std::sync::atomic::AtomicBool,
}

impl Store {
    /// Opens the state directory, and makes it if there is none.
    ///
    /// # Errors
    /// In words that name the file.
    pub fn open(state_dir: &Path, kek_file: Option<&Path>) -> Result<Self, StoreError> {
        let on_file = |file| Database::builder().create_with_backend(FileBackend::new(file)?);
        Store::open_by(on_file, state_dir, kek_file)
    }

    fn open_by(
        open_database: OpenDatabase,
        state_dir: &Path,
        kek_file: Option<&Path>,
    ) -> Result<Self, StoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(|e| file_error(state_dir, e))?;
        let lock_path = state_dir.join("lock");
        let lock = open_file(&lock_path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(state_dir.to_owned())),
            Err(TryLockError::Error(source)) => return Err(file_error(&lock_path, source)),
        }
        let path = state_dir.join("state.redb");
        let database = open_file(&path).and_then(|file| open_in(&path, file, open_database))?;
        let vault = Vault::open(kek_file, state_dir)?;
        let mut store = Store {
            path,
            held: Mutex::new(Held { database: Some(database), undo: None }),
            open_database,
            host_id: Uuid::nil(),
            killed: false,
            starts: 0,
            kills: 0,
            vault,
            _lock: lock,
            #[cfg(test)]
            fails: false.into(),
        };
        store.prepare()?;
        store.begin()?;
        Ok(store)
    }

    /// The identifier of this installation as an NVMe host.
    pub fn host_id(&self) -> Uuid {
        self.host_id
    }

    /// Whether the last process that had the directory was killed, and volatile caches in its memory with it.
    pub fn was_killed(&self) -> bool {
        self.killed
    }

    /// How many processes had the directory, this one among them.
    pub fn starts(&self) -> u64 {
        self.starts
    }

    /// How many of them did not end in order.
    pub fn kills(&self) -> u64 {
        self.kills
    }

    /// Notes that this process ends in order: everything is flushed.
    pub fn end(&self) -> Result<(), StoreError> {
        self.transact(|database| {
            let transaction = database.begin_write()?;
            transaction.open_table(META)?.remove(RUNNING)?;
            Ok(transaction.commit()?)
        })
    }

    /// Sets the mark of a running process, and counts it.
    fn begin(&mut self) -> Result<(), StoreError> {
        (self.killed, self.starts, self.kills) = self.transact(|database| {
            let transaction = database.begin_write()?;
            let mut meta = transaction.open_table(META)?;
            let killed = meta.insert(RUNNING, &[1][..])?.is_some();
            let mut count = |name: &str, more: bool| -> Result<u64, redb::Error> {
                let before =
                    meta.get(name)?.and_then(|n| Some(u64::from_le_bytes(n.value().try_into().ok()?)));
                let now = before.unwrap_or(0).saturating_add(more.into());
                meta.insert(name, &now.to_le_bytes()[..])?;
                Ok(now)
            };
            let (starts, kills) = (count(STARTS, true)?, count(KILLS, killed)?);
            drop(meta);
            transaction.commit()?;
            Ok((killed, starts, kills))
        })?;
        Ok(())
    }

    /// Wraps and unwraps keys.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Keeps an object. It is durable when this returns.
    pub fn put(&self, name: &str, record: &Record) -> Result<(), StoreError> {
        self.change(Place::Object(name.to_owned()), Some(&record.encode_to_vec()))
    }

    /// Forgets an object.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.change(Place::Object(name.to_owned()), None)
    }

    /// What is kept of a namespace.
    pub fn kept(&self, uuid: Uuid, kept: Kept) -> Result<Option<Vec<u8>>, StoreError> {
        self.transact(|database| {
            let table = database.begin_read()?.open_table(table(kept))?;
            Ok(table.get(uuid.as_bytes().as_slice())?.map(|kept| kept.value().to_owned()))
        })
    }

    /// Keeps something of a namespace, or forgets it. It is durable when this returns.
    pub fn keep(&self, uuid: Uuid, kept: Kept, state: Option<&[u8]>) -> Result<(), StoreError> {
        self.change(Place::Kept(uuid, kept), state)
    }

    /// Forgets what is kept of all namespaces but these: a crash may have come between a namespace's end and that.
    pub fn retain_kept(&self, keep: impl Fn(Uuid) -> bool) -> Result<(), StoreError> {
        let known = |key: &[u8]| Uuid::from_slice(key).is_ok_and(&keep);
        self.transact(|database| {
            let transaction = database.begin_write()?;
            for table in [RESERVATIONS, PROTECTION] {
                transaction.open_table(table)?.retain(|key, _| known(key))?;
            }
            Ok(transaction.commit()?)
        })
    }

    /// Every object with its name, in the order of creation.
    pub fn load(&self) -> Result<Vec<(String, Record)>, StoreError> {
        let kept: Vec<(String, Vec<u8>)> = self.transact(|database| {
            let objects = database.begin_read()?.open_table(OBJECTS)?;
            let all = objects.iter()?.map(|entry| {
                let (name, bytes) = entry?;
                Ok((name.value().to_owned(), bytes.value().to_owned()))
            });
            all.collect()
        })?;
        let mut records = Vec::new();
        for (name, bytes) in kept {
            let record = Record::decode(bytes.as_slice())
                .map_err(|e| self.failed(format!("what it keeps of {name} is damaged: {e}")))?;
            records.push((name, record));
        }
        records.sort_by_key(|(_, record)| record.sequence);
        Ok(records)
    }

    /// Checks the format and the key-encryption key, or sets them in a new database.
    fn prepare(&mut self) -> Result<(), StoreError> {
        let probe = self.vault.seal(&PROBE.to_vec().into(), "probe")?;
        let host_id = uuid::Builder::from_random_bytes(vault::random()?).into_uuid();
        let [format, probe, host_id] = self.transact(|database| {
            let transaction = database.begin_write()?;
            transaction.open_table(OBJECTS)?;
            transaction.open_table(RESERVATIONS)?;
            transaction.open_table(PROTECTION)?;
            let mut meta = transaction.open_table(META)?;
            let mut kept = |name: &str, new: &[u8]| -> Result<Vec<u8>, redb::Error> {
                if let Some(old) = meta.get(name)? {
                    return Ok(old.value().to_owned());
                }
                meta.insert(name, new)?;
                Ok(new.to_owned())
            };
            let all =
                [kept("format", &[FORMAT])?, kept("probe", &probe)?, kept("host_id", host_id.as_bytes())?];
            drop(meta);
            transaction.commit()?;
            Ok(all)
        })?;
        if format != [FORMAT] {
            let found = format.first().copied().unwrap_or(0);
            return Err(StoreError::Format { path: self.path.clone(), found });
        }
        self.vault.unseal(&probe, "probe").map_err(|_| {
            self.failed("the key-encryption key is not the one that this directory was made with")
        })?;
        self.host_id = Uuid::from_slice(&host_id).map_err(|e| self.failed(e))?;
        Ok(())
    }

    /// Puts something in a place, or clears it. It is durable when this returns; if that fails, nothing changed.
    fn change(&self, place: Place, value: Option<&[u8]>) -> Result<(), StoreError> {
        #[cfg(test)]
        if self.fails.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(self.failed("no space left"));
        }
        self.transact_or_undo(|database, undo| exchange(database, &place, value, undo))
    }

    /// Runs a transaction.
    fn transact<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        self.transact_or_undo(|database, _| work(database))
    }

    /// Runs a transaction, which may leave what is to be put back if it fails.
    fn transact_or_undo<T>(
        &self,
        work: impl FnOnce(&Database, &mut Option<Before>) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Held { database, undo } = &mut *held;
        let open = match database.take() {
            Some(open) => open,
            None => self.open_again(undo)?,
        };
        // One that failed is closed here.
        let done = work(&open, undo).map_err(|e| self.failed(e))?;
        *database = Some(open);
        Ok(done)
    }

    /// Opens the database again after a failure.
    fn open_again(&self, undo: &mut Option<Before>) -> Result<Database, StoreError> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path);
        let file = file.map_err(|e| file_error(&self.path, e))?;
        // After a sync that failed, the kernel's cache may have what the disk never got. What is read from now on is the
        // disk's.
        file.sync_data().map_err(|e| file_error(&self.path, e))?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(|e| file_error(&self.path, e.into()))?;
        let database = open_in(&self.path, file, self.open_database)?;
        if let Some((place, before)) = undo {
            exchange(&database, place, before.as_deref(), &mut None).map_err(|e| self.failed(e))?;
        }
        *undo = None;
        tracing::info!(file = %self.path.display(), "opened again after a failure");
        Ok(database)
    }

    /// An error about the database.
    pub fn failed(&self, reason: impl ToString) -> StoreError {
        StoreError::Database { path: self.path.clone(), reason: reason.to_string() }
    }
}

fn open_in(path: &Path, file: File, open_database: OpenDatabase) -> Result<Database, StoreError> {
    // The database panics on some damaged files.
    let reason = match catch_unwind(AssertUnwindSafe(|| open_database(file))) {
        Ok(Ok(database)) => return Ok(database),
        Ok(Err(e)) => e.to_string(),
        Err(_) => "the file is damaged".into(),
    };
    Err(StoreError::Database { path: path.to_owned(), reason })
}

/// Puts something in a place, or clears it. While it is not known whether that happened, `undo` has what stood there.
fn exchange(
    database: &Database,
    place: &Place,
    value: Option<&[u8]>,
    undo: &mut Option<Before>,
) -> Result<(), redb::Error> {
    fn set<'k, K: redb::Key + 'static>(
        mut table: redb::Table<'_, K, &'static [u8]>,
        key: K::SelfType<'k>,
        value: Option<&[u8]>,
    ) -> Result<Option<Vec<u8>>, redb::StorageError> {
        let before = match value {
            Some(value) => table.insert(key, value)?,
            None => table.remove(key)?,
        };
        Ok(before.map(|before| before.value().to_owned()))
    }
    let transaction = database.begin_write()?;
    let before = match place {
        Place::Object(name) => set(transaction.open_table(OBJECTS)?, name.as_str(), value)?,
        Place::Kept(uuid, kept) => {
            set(transaction.open_table(table(*kept))?, uuid.as_bytes().as_slice(), value)?
        }
    };
    *undo = Some((place.clone(), before));
    transaction.commit()?;
    *undo = None;
    Ok(())
}

fn file_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::File { path: path.to_owned(), source }
}

fn open_file(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(|e| file_error(path, e))
}

#[cfg(test)]
mod tests {
    use std::ops::Bound;
    use std::sync::atomic::AtomicU8;
    use std::sync::atomic::Ordering::Relaxed;

    use redb::{BackendError, StorageBackend};

    use super::*;

    fn record(sequence: u64) -> Record {
        Record { sequence, kind: "nullVolumes".into(), ..Record::default() }
    }

    #[test]
    fn what_is_kept_comes_back_in_the_order_of_creation() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), None).unwrap();
        for (name, sequence) in [("volumes/b", 1), ("volumes/a", 2), ("volumes/c", 3)] {
            store.put(name, &record(sequence)).unwrap();
        }
        store.remove("volumes/c").unwrap();
        let host = store.host_id();
        drop(store);
        let store = Store::open(dir.path(), None).unwrap();
        assert_eq!(store.host_id(), host);
        let names: Vec<_> = store.load().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["volumes/b", "volumes/a"]);
    }

    #[test]
    fn what_is_kept_of_a_namespace_stays_until_it_or_the_namespace_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), None).unwrap();
        let [a, b] = [1, 2].map(Uuid::from_u128);
        for kept in [Kept::Reservations, Kept::Protection] {
            assert_eq!(store.kept(a, kept).unwrap(), None);
            store.keep(a, kept, Some(format!("{kept:?} one").as_bytes())).unwrap();
            store.keep(b, kept, Some(b"two")).unwrap();
        }
        drop(store);
        let store = Store::open(dir.path(), None).unwrap();
        store.retain_kept(|uuid| uuid == a).unwrap();
        for kept in [Kept::Reservations, Kept::Protection] {
            assert_eq!(store.kept(a, kept).unwrap().unwrap(), format!("{kept:?} one").as_bytes());
            assert_eq!(store.kept(b, kept).unwrap(), None);
            store.keep(a, kept, None).unwrap();
            assert_eq!(store.kept(a, kept).unwrap(), None);
        }
    }

    #[test]
    fn processes_and_their_ends_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        // Started, killed, started, ended, started.
        for (ends, killed, starts, kills) in [(false, false, 1, 0), (true, true, 2, 1), (false, false, 3, 1)]
        {
            let store = Store::open(dir.path(), None).unwrap();
            assert_eq!((store.was_killed(), store.starts(), store.kills()), (killed, starts, kills));
            if ends {
                store.end().unwrap();
            }
        }
    }

    /// What the disk of [`Full`] refuses: nothing, syncs, or writes and growth too.
    static REFUSED: AtomicU8 = AtomicU8::new(0);

    /// A file on a disk that is full for a while.
    #[derive(Debug)]
    struct Full(FileBackend);

    impl Full {
        fn check(least: u8) -> io::Result<()> {
            if REFUSED.load(Relaxed) >= least {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        }
    }

    impl StorageBackend for Full {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }

        fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
            self.0.try_lock_range(start, end)
        }

        fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
            self.0.unlock_range(start, end)
        }

        fn close(&self) -> io::Result<()> {
            self.0.close()
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            Full::check(2)?;
            self.0.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            Full::check(1)?;
            self.0.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            Full::check(2)?;
            self.0.write(offset, data)
        }
    }

    #[test]
    fn a_disk_that_was_full_costs_what_came_meanwhile_alone() {
        let dir = tempfile::tempdir().unwrap();
        let on_full = |file| Database::builder().create_with_backend(Full(FileBackend::new(file)?));
        let [a, b] = [1, 2].map(Uuid::from_u128);
        let kept = Kept::Reservations;
        let store = Store::open_by(on_full, dir.path(), None).unwrap();
        store.put("volumes/old", &record(1)).unwrap();
        store.keep(a, kept, Some(b"old")).unwrap();
        let old = store.load().unwrap();
        type Change = Box<dyn Fn(&Store) -> Result<(), StoreError>>;
        let changes: [Change; 5] = [
            Box::new(|store| store.put("volumes/new", &record(2))),
            Box::new(|store| store.put("volumes/old", &record(3))),
            Box::new(|store| store.remove("volumes/old")),
            Box::new(move |store| store.keep(a, kept, Some(b"new"))),
            Box::new(move |store| store.keep(b, kept, Some(b"new"))),
        ];
        for refused in [1, 2] {
            for change in &changes {
                REFUSED.store(refused, Relaxed);
                for _ in 0..3 {
                    let error = change(&store).unwrap_err().to_string();
                    assert!(error.contains("state.redb"), "{error}");
                }
                assert!(matches!(Store::open(dir.path(), None), Err(StoreError::Locked(_))));
                REFUSED.store(0, Relaxed);
                assert_eq!(store.kept(a, kept).unwrap().unwrap(), b"old");
                assert_eq!(store.kept(b, kept).unwrap(), None);
                assert_eq!(store.load().unwrap(), old);
            }
        }
        REFUSED.store(2, Relaxed);
        store.put("volumes/new", &record(2)).unwrap_err();
        store.end().unwrap_err();
        REFUSED.store(0, Relaxed);
        store.put("volumes/newer", &record(3)).unwrap();
        store.keep(b, kept, Some(b"newer")).unwrap();
        store.keep(a, kept, None).unwrap();
        store.remove("volumes/old").unwrap();
        store.end().unwrap();
        drop(store);
        let store = Store::open(dir.path(), None).unwrap();
        assert!(!store.was_killed());
        assert_eq!(store.load().unwrap(), [("volumes/newer".to_owned(), record(3))]);
        assert_eq!(store.kept(b, kept).unwrap().unwrap(), b"newer");
        assert_eq!(store.kept(a, kept).unwrap(), None);
    }

    #[test]
    fn a_directory_serves_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), None).unwrap();
        assert!(matches!(Store::open(dir.path(), None), Err(StoreError::Locked(_))));
        drop(store);
        Store::open(dir.path(), None).unwrap();
    }

    #[test]
    fn another_kek_is_noticed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path(), None).unwrap());
        std::fs::write(dir.path().join("kek"), [3; 32]).unwrap();
        let error = Store::open(dir.path(), None).err().unwrap().to_string();
        assert!(error.contains("state.redb") && error.contains("key-encryption key"), "{error}");
    }

    #[test]
    fn damaged_files_are_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), None).unwrap();
        (0..200).for_each(|n| store.put(&format!("volumes/{n}"), &record(n)).unwrap());
        drop(store);
        let path = dir.path().join("state.redb");
        let whole = std::fs::read(&path).unwrap();
        let half = whole[..whole.len() / 2].to_vec();
        for damaged in [b"not a database at all, but text".repeat(300), half, whole[..100].to_vec()] {
            std::fs::write(&path, &damaged).unwrap();
            let error = Store::open(dir.path(), None).err().unwrap().to_string();
            assert!(error.contains("state.redb"), "{error}");
            assert!(std::fs::read(&path).unwrap() == damaged);
        }
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(Store::open(dir.path(), None).unwrap().load().unwrap().len(), 200);
    }

    #[test]
    fn limits_come_back_as_they_were() {
        let limits = Limits { max_blocks: 256, volatile_cache: true, fua: false, ..Limits::full(4096, 77) };
        assert_eq!(Limits::from(&Promise::from(&limits)), limits);
    }
}
