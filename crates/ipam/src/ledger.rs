//! The ledger of a network: one file, its lock, and what happens when the file is not to be believed.
//!
//! `<directory>/<network>.ledger` is blocks (the inner documentation of this crate has their form); every operation
//! reads and writes a few of them, however many leases there are.
//!
//! **Kill.** A change is in the file's journal before it is anywhere else, so it is done or not done.
//! Damage was done by others: the file is kept as `<network>.ledger.corrupt-<time>` and a new one starts from what the
//! kernel says is live.
//!
//! **Power loss.** Nothing an earlier boot wrote counts: its pods and their interfaces are gone. So a change needs
//! no fsync; whatever a lost page leaves behind is never read as a lease.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netd_kernel::clock::uptime;
use netd_kernel::file::{atomic_write, boot_id};
use netd_kernel::lock::{FileLock, LockFile};

use crate::book::{Book, Kept, Snapshot, When, build};
use crate::contents::age;
use crate::lease::{Lease, Leases, Owner, Pod, Request};
use crate::range::{Pool, Span};
use crate::store::{FORMAT, Mode, NETWORK_MAX, Refusal, Store, Unfit};
use crate::text;
use crate::{Error, Result};

mod read;
mod salvage;
#[cfg(test)]
mod tests;

/// File name extension of a ledger; the stem is the network's name.
pub const EXTENSION: &str = "ledger";
/// How long another call may hold the ledger; a call holds it for less than a millisecond.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// The mode of the ledger: pod names are nobody else's business.
const MODE: u32 = 0o600;

/// A moment as the ledger counts it: this boot, and the time since its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// The kernel's random id of this boot.
    pub boot: String,
    /// Time since the boot, suspended time included.
    pub uptime: Duration,
}

impl Moment {
    /// Reads the boot id and the uptime of this machine.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn now() -> Result<Self> {
        Ok(Self { boot: boot_id()?, uptime: uptime() })
    }
}

/// Which ledger to open, when, and how long an address rests.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// The directory of the ledgers; made with mode 0700 where absent.
    pub directory: &'a Path,
    /// The network's name, as the CNI spec allows it (no slash).
    pub network: &'a str,
    /// How long a released address is not handed out again.
    pub cool_down: Duration,
    /// The present.
    pub now: Moment,
}

/// What opening and using a ledger came upon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opened {
    /// Where a damaged ledger was put aside, and what was wrong with it.
    pub damaged: Option<(PathBuf, String)>,
    /// Whether leases of an earlier boot ended.
    pub voided: bool,
    /// Whether a ledger of an earlier format was taken over.
    pub migrated: bool,
    /// How many live leases were found in the kernel instead of in the file.
    pub rebuilt: usize,
}

/// A network's ledger, open and locked: no other process changes it until this is dropped or suspended.
#[derive(Debug)]
pub struct Ledger<'a> {
    desk: Desk<'a>,
    book: Book,
    _lock: FileLock,
}

/// A network's ledger while others may change it.
#[derive(Debug)]
pub struct Suspended<'a> {
    desk: Desk<'a>,
    lock: LockFile,
}

/// Tells the leases that the kernel shows to be in use.
type Live<'a> = Box<dyn FnMut() -> Result<Vec<Lease>, String> + 'a>;

/// Which ledger, when, and how it is made anew.
struct Desk<'a> {
    path: PathBuf,
    network: String,
    now: Moment,
    cool_down: Duration,
    live: Live<'a>,
    opened: Opened,
}

impl std::fmt::Debug for Desk<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("path", &self.path).field("now", &self.now).finish_non_exhaustive()
    }
}

// === impl Ledger ===

impl<'a> Ledger<'a> {
    /// Opens and locks a network's ledger.
    ///
    /// `live` tells the leases that the kernel shows to be in use. It is asked only when there is no ledger of this
    /// boot to believe: none at all, one of an earlier boot, or a damaged one, which may be noticed by a later
    /// operation.
    ///
    /// # Errors
    /// When the lock is held for 10 s, when a file operation fails, when a later netd wrote the ledger
    /// ([`Error::Newer`], nothing is changed), or when `live` fails.
    pub fn open<E: std::fmt::Display>(
        options: Options<'_>,
        mut live: impl FnMut() -> Result<Vec<Lease>, E> + 'a,
    ) -> Result<Self> {
        let Options { directory, network, cool_down, now } = options;
        if network.len() > NETWORK_MAX {
            let (length, limit) = (network.len() as u64, NETWORK_MAX as u64);
            return Err(Error::TooLong { what: "the network's name", length, limit });
        }
        let lock = lock(directory, network)?;
        let mut desk = Desk {
            path: Self::path_of(directory, network),
            network: network.to_owned(),
            now,
            cool_down,
            live: Box::new(move || live().map_err(|error| error.to_string())),
            opened: Opened::default(),
        };
        let book = desk.open()?;
        Ok(Self { desk, book, _lock: lock })
    }

    /// What opening and using it came upon until now.
    pub fn opened(&self) -> &Opened {
        &self.desk.opened
    }

    /// Lets others change the ledger for a while; cheaper to open again than another one.
    ///
    /// # Errors
    /// When the kernel refuses to unlock.
    pub fn suspend(self) -> Result<Suspended<'a>> {
        Ok(Suspended { desk: self.desk, lock: self._lock.unlock()? })
    }

    /// Takes one address of each pool for `owner`: all or none.
    ///
    /// # Errors
    /// As [`Ledger::allocate_for`].
    pub fn allocate(&mut self, owner: &Owner, pod: Option<&Pod>, pools: &[Pool]) -> Result<Lease> {
        self.allocate_for(&Request::of(owner, pod), pools)
    }

    /// Takes one address of each pool: all or none. A wanted address of a pool is taken in place of any other, and does
    /// not wait for its cool-down: who asks for it means it.
    ///
    /// # Errors
    /// [`Error::Exists`] when the owner has a lease, [`Error::Exhausted`] when a pool has no address to give,
    /// [`Error::Outside`] and [`Error::InUse`] when a wanted address cannot be given, [`Error::TooLong`] when names or
    /// lists have no room in a ledger; nothing is taken then.
    pub fn allocate_for(&mut self, request: &Request<'_>, pools: &[Pool]) -> Result<Lease> {
        self.attempt(|ledger| {
            if let Some(segments) = ledger.book.misfit(pools)? {
                ledger.book = ledger.desk.rewrite(&ledger.book.snapshot()?, &segments)?.0;
            }
            let when = When { now: ledger.desk.now.uptime, cool_down: ledger.desk.cool_down };
            ledger.book.allocate(request, pools, when)
        })
    }

    /// Ends the owner's lease and returns it; `None` when it has none, which is success.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn release(&mut self, owner: &Owner) -> Result<Option<Lease>> {
        self.attempt(|ledger| ledger.book.release(owner, ledger.desk.now.uptime))
    }

    /// The owner's lease.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn lease_of(&mut self, owner: &Owner) -> Result<Option<Lease>> {
        self.attempt(|ledger| Ok(ledger.book.lease_of(owner)?.map(|record| record.lease)))
    }

    /// The lease that holds `address`, and for how long, where that is known.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn holder(&mut self, address: IpAddr) -> Result<Option<(Lease, Option<Duration>)>> {
        self.attempt(|ledger| {
            let now = ledger.desk.now.uptime;
            Ok(ledger.book.holder(address)?.map(|record| (record.lease, age(record.taken, now))))
        })
    }

    /// Every lease, in the order they were taken. Reads all of them.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn leases(&mut self) -> Result<Leases> {
        self.attempt(|ledger| {
            let snapshot = ledger.book.snapshot()?;
            Ok(snapshot.leases.into_iter().map(|kept| kept.lease).collect())
        })
    }

    /// Does `work`, and once more on a new file when the file turns out to be damaged.
    fn attempt<T>(&mut self, mut work: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        match work(self) {
            Err(Error::Corrupt { reason, .. }) => {
                self.book = self.desk.replace_damaged(reason)?;
                work(self)
            }
            done => done,
        }
    }
}

impl Ledger<'_> {
    /// The path of a network's ledger.
    pub fn path_of(directory: &Path, network: &str) -> PathBuf {
        directory.join(format!("{network}.{EXTENSION}"))
    }
}

// === impl Suspended ===

impl<'a> Suspended<'a> {
    /// Waits for the lock and opens the ledger as it is now.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub fn resume(self) -> Result<Ledger<'a>> {
        let Self { mut desk, lock } = self;
        let lock = lock.exclusive(LOCK_TIMEOUT)?;
        let book = desk.open()?;
        Ok(Ledger { desk, book, _lock: lock })
    }
}

// === impl Desk ===

impl Desk<'_> {
    fn open(&mut self) -> Result<Book> {
        let file = match OpenOptions::new().read(true).write(true).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.rebuild(),
            Err(cause) => return Err(self.failed("open", cause)),
        };
        match self.opened_as(file) {
            Err(Refusal::Unfit(Unfit::Foreign)) => self.migrate(),
            Err(Refusal::Unfit(unfit)) => self.without(unfit),
            Err(Refusal::Failed(error)) => Err(error),
            Ok(book) => Ok(book),
        }
    }

    fn opened_as(&self, file: File) -> Result<Book, Refusal> {
        let whose = (self.network.as_str(), self.now.boot.as_str());
        let store = Store::open(Box::new(file), &self.path, whose, Mode::Journaled)?;
        match Book::of(store) {
            Err(Error::Corrupt { reason, .. }) => Err(Refusal::Unfit(Unfit::Damaged(reason))),
            other => Ok(other?),
        }
    }

    /// Takes over a ledger of the earlier format.
    fn migrate(&mut self) -> Result<Book> {
        let bytes = fs::read(&self.path).map_err(|cause| self.failed("read", cause))?;
        match text::replay(&bytes, &self.network, &self.now.boot) {
            Ok(snapshot) => {
                self.opened.migrated = true;
                Ok(self.rewrite(&snapshot, &[])?.0)
            }
            Err(unfit) => self.without(unfit),
        }
    }

    /// Goes on where the file is not one to go on with.
    fn without(&mut self, unfit: Unfit) -> Result<Book> {
        match unfit {
            Unfit::Newer(found) => Err(Error::Newer { path: self.path.clone(), found, known: FORMAT }),
            Unfit::OtherBoot => {
                self.opened.voided = true;
                self.rebuild()
            }
            Unfit::Damaged(reason) => self.replace_damaged(reason),
            Unfit::Foreign => self.replace_damaged("it is no ledger".to_owned()),
        }
    }

    fn replace_damaged(&mut self, reason: String) -> Result<Book> {
        let salvaged = salvage::read(&self.path, (&self.network, &self.now.boot));
        self.opened.damaged = Some((put_aside(&self.path)?, reason));
        self.rebuild_with(salvaged)
    }

    /// Makes a new file of what the kernel says.
    fn rebuild(&mut self) -> Result<Book> {
        self.rebuild_with(Vec::new())
    }

    fn rebuild_with(&mut self, salvaged: Vec<Kept>) -> Result<Book> {
        let live = (self.live)().map_err(|cause| Error::Scan { path: self.path.clone(), cause })?;
        let leases = salvage::merge(live, salvaged, self.now.uptime);
        let (book, count) = self.rewrite(&Snapshot { leases, ..Snapshot::default() }, &[])?;
        self.opened.rebuilt = count;
        Ok(book)
    }

    /// Replaces the file by one that says what `snapshot` says; returns it, and how many leases it has.
    fn rewrite(&self, snapshot: &Snapshot, segments: &[Span]) -> Result<(Book, usize)> {
        let (bytes, count) = build(snapshot, segments, &self.path, (&self.network, &self.now.boot))?;
        atomic_write(&self.path, &bytes, MODE)?;
        let file = OpenOptions::new().read(true).write(true).open(&self.path);
        match self.opened_as(file.map_err(|cause| self.failed("open", cause))?) {
            Ok(book) => Ok((book, count)),
            Err(Refusal::Failed(error)) => Err(error),
            Err(Refusal::Unfit(unfit)) => Err(Error::Corrupt {
                path: self.path.clone(),
                reason: format!("{unfit:?} as soon as written"),
            }),
        }
    }

    fn failed(&self, action: &'static str, cause: io::Error) -> Error {
        Error::Io { action, path: self.path.clone(), cause }
    }
}

fn lock(directory: &Path, network: &str) -> Result<FileLock> {
    let path = directory.join(format!("{network}.lock"));
    match FileLock::exclusive(&path, LOCK_TIMEOUT) {
        Err(error) if error.is_not_found() => {
            DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|cause| Error::Io {
                action: "make directory",
                path: directory.to_owned(),
                cause,
            })?;
            Ok(FileLock::exclusive(&path, LOCK_TIMEOUT)?)
        }
        other => Ok(other?),
    }
}

/// Renames a damaged ledger so that a person can look at it; never over an earlier one.
fn put_aside(path: &Path) -> Result<PathBuf> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let named = |suffix: String| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".corrupt-{suffix}"));
        PathBuf::from(name)
    };
    let mut target = named(seconds.to_string());
    let mut turn = 1;
    while target.exists() {
        target = named(format!("{seconds}.{turn}"));
        turn += 1;
    }
    fs::rename(path, &target).map_err(|cause| Error::Io {
        action: "put aside the damaged ledger",
        path: path.to_owned(),
        cause,
    })?;
    Ok(target)
}
