//! The author of a decision on the command line.

use clap::Args;

use crate::operators::Author;

/// The author of a decision, for the audit line on stderr.
#[derive(Debug, Args)]
pub(super) struct AuthorArgs {
    /// The reason for the decision, for the audit line.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// The name of the operator, for the audit line; by default that of the login.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

impl AuthorArgs {
    pub(super) fn author(&self) -> Author {
        // Behind `sudo` the login says more than `root`.
        let variable = |name: &str| std::env::var(name).ok().filter(|it| !it.is_empty());
        let login = || ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(variable);
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        Author {
            by: self.by.clone().or_else(login).unwrap_or_else(|| "unknown".to_owned()),
            from: host.map_or_else(String::new, |name| name.trim().to_owned()),
            why: Author::reason(&self.reason),
        }
    }
}
