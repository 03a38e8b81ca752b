//! The ledger: one append-only file a network, so that leases survive a kill at any instruction.
//!
//! `<directory>/<network>.ledger` is lines of text. Each but the second is a CRC-32 in hexadecimal, a space and JSON:
//!
//! ```text
//! 5b2c1f0e {"format":1,"network":"pods","boot":"0b1e…"}      which file this is
//! 00000000000000000298 a4d31c77                             how many bytes are known to be written, and its CRC
//! 1f6a0c9d {"op":"take","id":"4f2…","if":"eth0","ips":["172.16.1.2"],"ns":"default","pod":"web-0","at":81230}
//! 77ab1290 {"op":"free","ips":["172.16.1.2"],"at":93011}     `at` is the machine's uptime in milliseconds
//! ```
//!
//! Why a log and not one JSON document: an allocation appends ~150 bytes instead of rewriting and syncing all of them.
//! It is rewritten (temporary file, fsync, rename, fsync of the directory) only when most of it is history.
//!
//! **Kill.** Every change is one `write` under the lock, followed by one `pwrite` of the second line. A torn record can
//! only be the last, lies beyond the committed length, and belongs to a call that has not answered: it is cut off.
//! Damage before the committed length, or a file shorter than it, was done by others: the file is kept as
//! `<network>.ledger.corrupt-<time>` and a new one starts from what the kernel says is live.
//!
//! **Power loss.** Nothing an earlier boot wrote counts: its pods and their interfaces are gone. So an append needs
//! no fsync; whatever a lost page leaves behind is never read as a lease.
//!
//! Readers ([`Ledger::read`]) need no lock: the committed length is written last and read first.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netd_kernel::file::{atomic_write, boot_id};
use netd_kernel::lock::FileLock;

use crate::book::{Book, Occupancy};
use crate::lease::{Lease, Leases, Owner, Pod};
use crate::range::Pool;
use crate::{Error, Result};

mod format;
#[cfg(test)]
mod tests;

use format::{Damage, Replay};

/// File name extension of a ledger; the stem is the network's name.
pub const EXTENSION: &str = "ledger";
/// How long another call may hold the ledger; a call holds it for less than a millisecond.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Below this many records a ledger is not rewritten.
const SMALL: usize = 512;
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
        const UPTIME: &str = "/proc/uptime";
        let failed = |cause| Error::Io { action: "read", path: UPTIME.into(), cause };
        let text = fs::read_to_string(UPTIME).map_err(failed)?;
        let seconds: f64 = text
            .split_whitespace()
            .next()
            .and_then(|word| word.parse().ok())
            .ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidData)))?;
        let uptime = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        Ok(Self { boot: boot_id()?, uptime })
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

/// What opening a ledger came upon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opened {
    /// Where a damaged ledger was put aside, and what was wrong with it.
    pub damaged: Option<(PathBuf, String)>,
    /// How many leases of an earlier boot ended.
    pub voided: bool,
    /// How many live leases were found in the kernel instead of in the file.
    pub rebuilt: usize,
}

/// A network's ledger, open and locked: no other process changes it until this is dropped.
#[derive(Debug)]
pub struct Ledger {
    place: Place,
    file: File,
    /// Bytes of whole records, which is where the next one goes.
    length: u64,
    records: usize,
    book: Book,
}

/// What a ledger says, read without its lock.
#[derive(Debug, Default)]
pub struct Contents {
    book: Book,
}

impl Contents {
    /// Every lease in the order they were taken, and for how long at the uptime `now`, where that is known.
    pub fn leases(&self, now: Duration) -> impl Iterator<Item = (&Lease, Option<Duration>)> {
        self.book.leases_since().map(move |(lease, taken)| (lease, age(taken, now)))
    }

    /// How full a pool is at the uptime `now`.
    pub fn occupancy(&self, pool: &Pool, now: Duration, cool_down: Duration) -> Occupancy {
        self.book.occupancy(pool, now, cool_down)
    }
}

/// How long ago it was, at the uptime `now`; zero stands for not known.
fn age(taken: Duration, now: Duration) -> Option<Duration> {
    if taken.is_zero() { None } else { now.checked_sub(taken) }
}

/// Which ledger, when, and the lock on it.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    network: String,
    now: Moment,
    cool_down: Duration,
    _lock: FileLock,
}

// === impl Ledger ===

impl Ledger {
    /// Opens and locks a network's ledger.
    ///
    /// `live` tells the leases that the kernel shows to be in use. It is asked only when there is no ledger of this
    /// boot to believe: none at all, one of an earlier boot, or a damaged one.
    ///
    /// # Errors
    /// When the lock is held for 10 s, when a file operation fails, when a later netd wrote the ledger
    /// ([`Error::Newer`], nothing is changed), or when `live` fails.
    pub fn open<E: std::fmt::Display>(
        options: Options<'_>,
        live: impl FnOnce() -> Result<Vec<Lease>, E>,
    ) -> Result<(Self, Opened)> {
        let Options { directory, network, cool_down, now } = options;
        let lock = lock(directory, network)?;
        let place = Place {
            path: path_of(directory, network),
            network: network.to_owned(),
            now,
            cool_down,
            _lock: lock,
        };
        let path = &place.path;
        let mut opened = Opened::default();
        match read_file(path)?.map(|bytes| format::replay(bytes, network, &place.now.boot)) {
            Some(Ok(replay)) => return Ok((Self::adopt(place, replay)?, opened)),
            Some(Err(Damage::Newer(found))) => {
                return Err(Error::Newer { path: path.clone(), found, known: format::FORMAT });
            }
            Some(Err(Damage::OtherBoot)) => opened.voided = true,
            Some(Err(Damage::Torn(reason))) => opened.damaged = Some((put_aside(path)?, reason)),
            None => {}
        }
        let live = live().map_err(|e| Error::Scan { path: path.clone(), cause: e.to_string() })?;
        let mut book = Book::default();
        opened.rebuilt = live.into_iter().filter(|lease| book.take(lease.clone())).count();
        let (file, length) = write_whole(&place, &book)?;
        Ok((Self { place, file, length, records: book.size(), book }, opened))
    }

    /// Reads the leases of a ledger without locking it.
    ///
    /// A ledger that does not exist yet, or was written before a reboot, has no leases.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the file is damaged; the next ADD repairs it.
    pub fn read(path: &Path) -> Result<Leases> {
        Self::read_at(path, &boot_id()?)
    }

    /// The path of a network's ledger.
    pub fn path_of(directory: &Path, network: &str) -> PathBuf {
        path_of(directory, network)
    }

    /// Reads what a ledger says of leases and releases, without locking it: for who wants to show it.
    ///
    /// A ledger that does not exist yet, or was written before a reboot, says nothing.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the file is damaged; the next ADD repairs it.
    pub fn inspect(path: &Path) -> Result<Contents> {
        Self::inspect_at(path, &boot_id()?)
    }

    fn read_at(path: &Path, boot: &str) -> Result<Leases> {
        Ok(Self::inspect_at(path, boot)?.book.leases().cloned().collect())
    }

    fn inspect_at(path: &Path, boot: &str) -> Result<Contents> {
        let network = path.file_stem().unwrap_or_default().to_string_lossy();
        match read_file(path)?.map(|bytes| format::replay(bytes, &network, boot)) {
            None | Some(Err(Damage::OtherBoot)) => Ok(Contents::default()),
            Some(Ok(replay)) => Ok(Contents { book: replay.book }),
            Some(Err(Damage::Newer(found))) => {
                Err(Error::Newer { path: path.to_owned(), found, known: format::FORMAT })
            }
            Some(Err(Damage::Torn(reason))) => Err(Error::Corrupt { path: path.to_owned(), reason }),
        }
    }

    /// Takes one address of each pool for `owner`: all or none.
    ///
    /// # Errors
    /// [`Error::Exists`] when the owner has a lease, [`Error::Exhausted`] when a pool has no address to give.
    pub fn allocate(&mut self, owner: &Owner, pod: Option<&Pod>, pools: &[Pool]) -> Result<Lease> {
        self.allocate_wanted(owner, pod, pools, &[])
    }

    /// Like [`Ledger::allocate`], but takes the `wanted` address of a pool where there is one.
    ///
    /// A wanted address does not wait for its cool-down: who asks for it means it.
    ///
    /// # Errors
    /// Also [`Error::Outside`] and [`Error::InUse`] when a wanted address cannot be given; nothing is taken then.
    pub fn allocate_wanted(
        &mut self,
        owner: &Owner,
        pod: Option<&Pod>,
        pools: &[Pool],
        wanted: &[IpAddr],
    ) -> Result<Lease> {
        if let Some(lease) = self.book.lease_of(owner) {
            return Err(Error::Exists { owner: owner.clone(), addresses: lease.addresses.clone() });
        }
        let addresses = self.book.choose(pools, wanted, self.place.now.uptime, self.place.cool_down)?;
        let lease = Lease { owner: owner.clone(), pod: pod.cloned(), addresses };
        self.append(&format::take(&lease, self.place.now.uptime))?;
        // `choose` returns addresses that nobody has, so the lease is always entered.
        self.book.take_at(lease.clone(), self.place.now.uptime);
        Ok(lease)
    }

    /// Ends the owner's lease and returns it; `None` when it has none, which is success.
    pub fn release(&mut self, owner: &Owner) -> Result<Option<Lease>> {
        let Some(lease) = self.book.lease_of(owner) else { return Ok(None) };
        let addresses = lease.addresses.clone();
        self.append(&format::free(&addresses, self.place.now.uptime))?;
        Ok(addresses.first().and_then(|first| self.book.free(*first, self.place.now.uptime)))
    }

    /// The owner's lease.
    pub fn lease_of(&self, owner: &Owner) -> Option<&Lease> {
        self.book.lease_of(owner)
    }

    /// The lease that holds `address`, and for how long, where that is known.
    pub fn holder(&self, address: IpAddr) -> Option<(&Lease, Option<Duration>)> {
        let (lease, taken) = self.book.holder(address)?;
        Some((lease, age(taken, self.place.now.uptime)))
    }

    /// Every lease, in the order they were taken.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.book.leases()
    }

    /// How full a pool is.
    pub fn occupancy(&self, pool: &Pool) -> Occupancy {
        self.book.occupancy(pool, self.place.now.uptime, self.place.cool_down)
    }

    /// Takes over what was read: cuts a torn tail off and rewrites a file that is mostly history.
    fn adopt(place: Place, replay: Replay) -> Result<Self> {
        let file = open_file(&place.path)?;
        let Replay { book, length, records, torn_tail } = replay;
        let mut ledger = Self { place, file, length: length as u64, records, book };
        if torn_tail {
            ledger.file.set_len(ledger.length).map_err(|e| ledger.io("cut the torn end off", e))?;
        }
        if ledger.records > SMALL && ledger.records > 2 * ledger.book.size() {
            ledger.rewrite()?;
        }
        Ok(ledger)
    }

    fn rewrite(&mut self) -> Result<()> {
        self.book.forget_old_releases();
        (self.file, self.length) = write_whole(&self.place, &self.book)?;
        self.records = self.book.size();
        Ok(())
    }

    /// Appends one record and then commits it; on failure the file is as it was.
    fn append(&mut self, record: &str) -> Result<()> {
        let end = self.length + record.len() as u64;
        let written = self
            .file
            .seek(SeekFrom::Start(self.length))
            .and_then(|_| self.file.write_all(record.as_bytes()))
            .and_then(|()| self.file.write_all_at(format::committed(end).as_bytes(), self.commit_offset()));
        if let Err(cause) = written {
            // The disk may be full: what stays behind the committed length is cut off by the next opener.
            let _ = self.file.set_len(self.length);
            return Err(self.io("append to", cause));
        }
        self.length = end;
        self.records += 1;
        Ok(())
    }

    fn commit_offset(&self) -> u64 {
        format::header(&self.place.network, &self.place.now.boot).len() as u64
    }

    fn io(&self, action: &'static str, cause: io::Error) -> Error {
        Error::Io { action, path: self.place.path.clone(), cause }
    }
}

/// Replaces the file by one that says what `book` holds; returns it open, with its length.
fn write_whole(place: &Place, book: &Book) -> Result<(File, u64)> {
    let bytes = format::render(&place.network, &place.now.boot, book);
    atomic_write(&place.path, &bytes, MODE)?;
    Ok((open_file(&place.path)?, bytes.len() as u64))
}

fn path_of(directory: &Path, network: &str) -> PathBuf {
    directory.join(format!("{network}.{EXTENSION}"))
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

fn open_file(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).mode(MODE).open(path).map_err(|cause| Error::Io {
        action: "open",
        path: path.to_owned(),
        cause,
    })
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::Io { action: "read", path: path.to_owned(), cause }),
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

/// The addresses of a lease, checked against what may not be in one.
fn distinct(addresses: &[IpAddr]) -> bool {
    !addresses.is_empty()
        && addresses.iter().enumerate().all(|(i, a)| addresses.iter().skip(i + 1).all(|b| a != b))
}
