//! Unix sockets to listen on, and their files.

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::time::{sleep, timeout};

/// The file of a listening socket, which is removed when this is dropped.
///
/// Drop it while the socket still listens: another process that starts then finds either a socket
/// that is in use or no file.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// The device and the inode.
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Someone may have removed it, and another process have made its own.
        if identity(&self.path).is_ok_and(|it| it == self.identity) {
            // What remains is replaced by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|it| (it.dev(), it.ino()))
}

/// Binds a socket whose file has these permissions, in the place of one on which no process listens.
///
/// # Errors
///
/// `AddrInUse` if another process listens there, `AlreadyExists` if the file is no socket, and those
/// of the system.
pub(super) async fn bind(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    check(path)?;
    // Held until the socket listens: before that it looks as if nobody did.
    let _lock = lock(folder(path)).await?;
    remove_stale(path).await?;
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    let file = SocketFile::of(path)?;
    // Before it listens, so that nobody connects who may not.
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok((socket.listen(BACKLOG)?, file))
}

/// Checks that a socket can be made at a path, whether or not another process has one there.
///
/// # Errors
///
/// What stands in the way.
pub(crate) fn check(path: &Path) -> io::Result<()> {
    let folder = folder(path);
    if !folder.is_dir() {
        let text = format!("there is no folder {}", folder.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => Ok(()),
        Ok(_) => {
            let text = "there is a file that is no socket: remove it, or choose another path";
            Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Locks a folder against other processes that start; where that is not possible, nothing is locked.
async fn lock(folder: &Path) -> io::Result<Option<File>> {
    let Ok(folder) = File::open(folder) else { return Ok(None) };
    for _ in 0..LOCK_ATTEMPTS_MAX {
        match folder.try_lock() {
            Ok(()) => return Ok(Some(folder)),
            Err(TryLockError::Error(_)) => return Ok(None),
            Err(TryLockError::WouldBlock) => sleep(LOCK_PAUSE).await,
        }
    }
    Err(io::Error::new(io::ErrorKind::WouldBlock, "another process has locked the folder"))
}

/// Removes the file of a socket on which no process listens.
async fn remove_stale(path: &Path) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    match timeout(CONNECT_MAX, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        // It has accepted, or is too busy to.
        _ => {
            let text = "another process listens there: end it, or choose another path";
            Err(io::Error::new(io::ErrorKind::AddrInUse, text))
        }
    }
}

/// The connections that may wait to be accepted, as for TCP.
const BACKLOG: u32 = 1024;
const CONNECT_MAX: Duration = Duration::from_secs(1);
const LOCK_ATTEMPTS_MAX: usize = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn a_socket_of_a_dead_process_is_replaced_and_a_live_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        // The file outlives its process.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (socket, file) = bind(&path, 0o600).await.unwrap();
        assert_eq!(mode(&path), 0o600);
        let refused = bind(&path, 0o666).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(mode(&path), 0o600);
        let connected = UnixStream::connect(&path).await;
        assert!(connected.is_ok() && socket.accept().await.is_ok());
        drop((file, socket));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn of_several_that_start_at_once_one_listens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let starts = (0..8).map(|_| {
            let path = path.clone();
            tokio::spawn(async move { bind(&path, 0o660).await })
        });
        let mut bound = Vec::new();
        for start in starts.collect::<Vec<_>>() {
            bound.extend(start.await.unwrap().ok());
        }
        assert_eq!(bound.len(), 1);
    }

    #[tokio::test]
    async fn what_is_no_socket_or_another_ones_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        fs::write(&path, "important").unwrap();
        let refused = bind(&path, 0o660).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "important");
        let nowhere = bind(&folder.path().join("none/a.sock"), 0o660).await.unwrap_err();
        assert!(nowhere.to_string().contains("there is no folder"), "{nowhere}");
        let path = folder.path().join("b.sock");
        let (_socket, file) = bind(&path, 0o660).await.unwrap();
        fs::remove_file(&path).unwrap();
        let successor = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists(), "{successor:?}");
    }
}
