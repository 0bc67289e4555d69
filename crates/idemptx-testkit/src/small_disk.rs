//! File systems that fill up.

use std::path::Path;
use std::process::Command;

/// A small file system in memory, mounted until dropped.
#[derive(Debug)]
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Mounts one of this size, or returns `None` where the process may not mount.
    ///
    /// In CI mounting must succeed, so that no test is skipped there.
    #[allow(clippy::print_stderr, reason = "a skipped test is reported")]
    pub fn mount(mebibytes: u32) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let size = format!("size={mebibytes}m,mode=0755");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(directory.path())
            .output()
            .unwrap();
        if mounted.status.success() {
            return Some(Self(directory));
        }
        let reason = String::from_utf8_lossy(&mounted.stderr).trim().to_owned();
        assert!(std::env::var("CI").as_deref() != Ok("true"), "cannot mount a tmpfs: {reason}");
        eprintln!("skipped, because a tmpfs cannot be mounted: {reason}");
        None
    }

    /// Returns the mount point.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Resizes the file system.
    pub fn grow(&self, mebibytes: u32) {
        let size = format!("remount,size={mebibytes}m");
        let grown = Command::new("mount").args(["-o", &size]).arg(self.path()).status();
        assert!(grown.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, because a process may still hold a file open.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}
