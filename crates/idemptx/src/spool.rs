//! Request bodies on disk, where they are too large for memory.
//!
//! Such a body is stored, then claimed, then forwarded.
//! To claim while it streams would need claims without a fingerprint: a request that must be refused
//! would already run, and a slow sender would hold the key meanwhile.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_blocking};

/// A directory for request bodies that are larger than the policy's `request_bytes_max`, under
/// `on_large_body: stream`; given to [`EngineBuilder::spool`](crate::EngineBuilder::spool).
///
/// Such a body is written to a file without a name while it is hashed, and read from there once
/// the record is claimed: before its end it is not known whether it is the request that its key
/// was first used for.
/// Clones share the limit, so that it holds for several engines together.
///
/// ```
/// use idemptx::{Engine, Policy, Spool, store::MemoryStore};
/// use idemptx_core::policy::OnLargeBody;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let policy = Policy::draft().into_builder().on_large_body(OnLargeBody::Stream).build()?;
/// let engine = Engine::builder(MemoryStore::new())
///     .policy(policy)
///     .spool(Spool::new(std::env::temp_dir()).bytes_max(4 << 30))
///     .build()?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use]
pub struct Spool {
    directory: Arc<Path>,
    bytes_max: u64,
    total_bytes_max: u64,
    used: Arc<AtomicU64>,
}

impl Spool {
    /// Files in this directory: 1 GiB each at most, 8 GiB together.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into().into(),
            bytes_max: BYTES_MAX,
            total_bytes_max: TOTAL_BYTES_MAX,
            used: Arc::default(),
        }
    }

    /// Sets how large one body may be; a larger one is refused with `body-too-large`.
    pub fn bytes_max(mut self, bytes: u64) -> Self {
        self.bytes_max = bytes;
        self
    }

    /// Sets how large all bodies may be together; beyond it a request is refused with
    /// `store-unavailable`, and may be sent again later.
    pub fn total_bytes_max(mut self, bytes: u64) -> Self {
        self.total_bytes_max = bytes;
        self
    }

    /// Checks that files can be written in the directory.
    ///
    /// # Errors
    ///
    /// The system's, such as that there is no such directory.
    pub fn check(&self) -> io::Result<()> {
        tempfile::tempfile_in(&self.directory)?.write_all(b"spool")
    }

    /// Returns the number of bytes in it now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns `true` if a body of so many bytes, as its sender declares, can be taken.
    pub(crate) const fn takes(&self, bytes: u64) -> bool {
        bytes <= self.bytes_max
    }

    /// Begins a body.
    pub(crate) fn begin(&self) -> Spooling {
        let room = Room { used: Arc::clone(&self.used), bytes: 0 };
        Spooling { spool: self.clone(), file: None, room, gathered: Vec::new() }
    }
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool")
            .field("directory", &self.directory)
            .field("bytes_max", &self.bytes_max)
            .field("total_bytes_max", &self.total_bytes_max)
            .finish_non_exhaustive()
    }
}

/// A body that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    TooLarge,
    /// The limit is reached, or the disk cannot be written.
    NoRoom,
}

/// A body that is being written.
pub(crate) struct Spooling {
    spool: Spool,
    file: Option<Arc<File>>,
    room: Room,
    gathered: Vec<u8>,
}

impl Spooling {
    /// Takes the next piece; what is refused is kept, to be [read](Self::finish) all the same.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the body is gone.
    pub(crate) async fn push(&mut self, piece: &[u8]) -> Result<(), Refusal> {
        let taken = self.room.take(piece.len() as u64, &self.spool);
        self.gathered.extend_from_slice(piece);
        taken?;
        if self.gathered.len() >= CHUNK_BYTES {
            self.write().await.map_err(|_| Refusal::NoRoom)?;
        }
        Ok(())
    }

    /// The body, to be read from its beginning.
    ///
    /// # Errors
    ///
    /// If the disk cannot be written or read.
    pub(crate) async fn finish(mut self) -> io::Result<Spooled> {
        self.write().await?;
        let Some(file) = self.file else { return Ok(Spooled { file: None, ..self.room.into() }) };
        let rewound = Arc::clone(&file);
        blocking(move || (&*rewound).rewind()).await?;
        Ok(Spooled { file: Some(file), ..self.room.into() })
    }

    async fn write(&mut self) -> io::Result<()> {
        let gathered = std::mem::take(&mut self.gathered);
        if gathered.is_empty() {
            return Ok(());
        }
        let (file, directory) = (self.file.take(), Arc::clone(&self.spool.directory));
        let written = blocking(move || {
            let file = match file {
                Some(file) => file,
                None => Arc::new(tempfile::tempfile_in(directory)?),
            };
            (&*file).write_all(&gathered)?;
            Ok(file)
        });
        let written = written.await;
        #[cfg(feature = "tracing")]
        if let Err(error) = &written {
            crate::engine::warn_of_spool(&self.spool.directory, error);
        }
        self.file = Some(written?);
        Ok(())
    }
}

/// A body that was written.
pub(crate) struct Spooled {
    file: Option<Arc<File>>,
    left: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    _room: Room,
}

impl From<Room> for Spooled {
    fn from(room: Room) -> Self {
        Self { file: None, left: room.bytes, reading: None, _room: room }
    }
}

impl Spooled {
    /// Returns the number of bytes that are still to be read.
    pub(crate) const fn left(&self) -> u64 {
        self.left
    }

    /// The next piece.
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let Some(file) = self.file.as_ref().filter(|_| self.left > 0) else {
            return Poll::Ready(None);
        };
        let reading = self.reading.get_or_insert_with(|| {
            let (file, left) = (Arc::clone(file), self.left);
            spawn_blocking(move || read_piece(&file, left))
        });
        let piece = ready!(std::pin::Pin::new(reading).poll(cx));
        self.reading = None;
        let piece = piece.unwrap_or_else(|error| Err(io::Error::other(error)));
        match &piece {
            Ok(piece) => self.left = self.left.saturating_sub(piece.len() as u64),
            Err(_) => self.left = 0,
        }
        Poll::Ready(Some(piece))
    }
}

fn read_piece(file: &File, left: u64) -> io::Result<Bytes> {
    let bytes = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
    let mut piece = vec![0; bytes];
    let mut file = file;
    file.read_exact(&mut piece)?;
    Ok(piece.into())
}

/// The bytes that a body takes of the limit, given back with it.
struct Room {
    used: Arc<AtomicU64>,
    bytes: u64,
}

impl Room {
    fn take(&mut self, bytes: u64, spool: &Spool) -> Result<(), Refusal> {
        let total = self.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        self.bytes = self.bytes.saturating_add(bytes);
        match () {
            () if self.bytes > spool.bytes_max => Err(Refusal::TooLarge),
            () if total > spool.total_bytes_max => Err(Refusal::NoRoom),
            () => Ok(()),
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Runs work that may wait for a disk on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

const BYTES_MAX: u64 = 1 << 30;
const TOTAL_BYTES_MAX: u64 = 8 << 30;
/// Written and read at a time; so much of a body is in memory.
const CHUNK_BYTES: usize = 256 << 10;
