//! Programs that no package of the system has, or only an old one.

use std::path::{Path, PathBuf};

/// Returns the program on the path, or else the one that `.ci/released.sh` installs.
pub fn released_program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|it| it.join(name));
    let installed = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/bin"));
    found.find(|it| it.is_file()).unwrap_or_else(|| installed.join(name))
}
