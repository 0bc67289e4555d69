//! A file system with as little room as a test wants, to be filled.
#![allow(dead_code, reason = "no file of tests uses all of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

/// A file system in memory, mounted until dropped.
#[derive(Debug)]
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Mounts one with so much room; nothing where this process has no right to, which is said.
    ///
    /// In CI it has: there nothing is left out.
    #[allow(clippy::print_stderr, reason = "whoever runs the tests is to know")]
    pub(crate) fn mount(mebibytes: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={mebibytes}m,mode=0755");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(folder.path())
            .output()
            .unwrap();
        if mounted.status.success() {
            return Some(Self(folder));
        }
        let why = String::from_utf8_lossy(&mounted.stderr).trim().to_owned();
        assert!(std::env::var("CI").as_deref() != Ok("true"), "no disk can be filled: {why}");
        eprintln!("no disk is filled here, for none can be mounted: {why}");
        None
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Gives it more room.
    pub(crate) fn grow(&self, mebibytes: u32) {
        let size = format!("remount,size={mebibytes}m");
        let grown = Command::new("mount").args(["-o", &size]).arg(self.path()).status();
        assert!(grown.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Also if somebody has not closed the last file yet.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}
