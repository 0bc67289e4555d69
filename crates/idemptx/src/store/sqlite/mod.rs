//! The store that keeps its records in a file, with SQLite.
//!
//! For one host, on which several processes may share the file: the durable store that needs no
//! server.
//!
//! # What it promises
//!
//! A step is acknowledged when it is in SQLite's write-ahead log on the disk (`synchronous=FULL`),
//! so that **no acknowledged claim or result is lost** to a crash of the process, of the others
//! that
//! share the file, or of the machine, as far as the disk keeps what it says it has.
//! Among all processes of the host, a claim is granted once.
//! A commit that fails, on a full disk for instance, leaves every step in it without a verdict
//! ([`Unavailable`](idemptx_core::store::ErrorKind::Unavailable)) and every record as it was.
//! A step that was not begun in time, because another process kept the file locked, never will be
//! ([`Refused`](idemptx_core::store::ErrorKind::Refused)); a claim has 15 % of the time limit for
//! that, so that a process which is stopped while it writes costs the others a refusal and no
//! doubt.
//!
//! # One writer, group commit
//!
//! SQLite has one writer at a time, and a commit costs a flush of the disk.
//! So one thread of a store writes: it takes all steps that wait, performs them in one transaction,
//! and answers them once that is on disk, while the next ones gather.
//! A single step is committed at once.
//! What needs nothing written, such as a replay, is answered before the commit; lookups have
//! threads and connections of their own.
//!
//! Several processes take turns at a lock on `PATH-turn`, in which the operating system wakes them,
//! since SQLite's own lock lets the unlucky starve.
//!
//! # Waking up
//!
//! Who waits for a claim of the same process is woken by its commit.
//! Who waits for a claim of another process is woken within 2 ms and what it takes to look, during
//! which one thread asks SQLite whether anybody has written; where thousands of keys are waited for
//! on a busy file, within 100 ms.
//!
//! # The clock
//!
//! Leases are judged by the time since the host has booted, which all its processes share, which
//! goes on while it is suspended, and which cannot be set.
//! A reboot lets every lease lapse: their owners have ended.
//! Retention goes on through it by the wall clock, but never back.
//! On other systems than Linux the wall clock has to do for everything, as the
//! [check](SqliteStore::check) warns.
//!
//! # Processes
//!
//! A store has threads and locks, which no child made by `fork` inherits: open it in each process,
//! after the fork.
//! Only processes of one host, and under one kernel, may share a file: a container whose kernel is
//! its own (gVisor, Kata) is another host, and the first to notice refuses to serve.
//!
//! # The files
//!
//! `PATH`, `PATH-wal` and `PATH-shm` are the database, and must be kept, moved and removed
//! together,
//! and only while no process uses them; what is on them when the machine stops is all that is
//! needed.
//! `PATH-turn` is an empty file for a lock, and may stay.
//! They are created for their owner alone (mode 0600), because they hold responses.
//! Back them up with `sqlite3 PATH ".backup COPY"`; but a copy that is put back does not know what
//! has been executed since.
//!
//! What has expired is removed with each commit, twice as fast as it is written, and whenever the
//! engine tends its store.
//! Its room is used again, and given back to the disk once it is more than a quarter of the file.
//!
//! Network file systems are refused: what locks on them is worth differs from host to host.
//! FUSE, which may be one (sshfs, GlusterFS, virtiofs), and folders shared with a virtual machine
//! are findings of the check, for which the profile `payments` refuses to start.
//! So is another name of the file, a hard link.
//! A file that is mounted without its folder, as a container may have it, is refused: its log would
//! be elsewhere.
//!
//! # SQLite
//!
//! The library is linked statically, in a version without the WAL-reset bug (3.51.3 or newer).
//! A program can have it only once: this feature and `sqlx` with its SQLite driver exclude each
//! other.

mod boot_clock;
#[cfg(test)]
mod failpoint;
mod file;
mod file_check;
mod filesystem;
mod group_commit;
mod job_queue;
mod list_blobs;
mod poller;
mod reader;
mod records;
mod schema;
mod sqlite_failure;
mod sqlite_store;
mod writer;
mod writer_lock;

pub use self::sqlite_store::{OpenError, SqliteStore, SqliteStoreBuilder};
pub(super) use self::sqlite_store::{STEP_LIMIT, path_of};

#[cfg(test)]
mod tests;
