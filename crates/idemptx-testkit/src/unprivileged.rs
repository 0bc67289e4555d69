//! Servers that refuse to run as root.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns a command for a program of PostgreSQL, which runs as another user if we are root.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(path_of(program));
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group);
    }
    command
}

/// Gives a directory and the files in it to the user that servers run as.
pub(crate) fn hand_over(directory: &Path) {
    let Some((user, group)) = server_user() else { return };
    chown(directory, Some(user), Some(group)).unwrap();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        chown(entry.path(), Some(user), Some(group)).unwrap();
    }
}

/// Finds a program where Debian installs it: off the PATH, in one directory for each version.
fn path_of(program: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|version| {
            let number: u32 = version.file_name().to_str()?.parse().ok()?;
            let path = version.path().join("bin").join(program);
            path.exists().then_some((number, path))
        })
        .max();
    newest.map_or_else(
        || {
            let administrative = Path::new("/usr/sbin").join(program);
            if administrative.exists() { administrative } else { program.into() }
        },
        |(_, path)| path,
    )
}

/// Returns the user and group that servers run as; `None` unless we are root.
fn server_user() -> Option<(u32, u32)> {
    let is_root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    is_root.then(|| {
        let users = fs::read_to_string("/etc/passwd").unwrap();
        let entry = |name: &str| {
            users.lines().find_map(|line| {
                let fields: Vec<_> = line.split(':').collect();
                let [found, _, user, group, ..] = fields[..] else { return None };
                (found == name).then(|| Some((user.parse().ok()?, group.parse().ok()?)))?
            })
        };
        entry("postgres").or_else(|| entry("nobody")).expect("an unprivileged user")
    })
}
