//! The journal of a target's executions.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use crate::until;

/// The file that one target or several journal their executions in.
#[derive(Clone, Debug)]
pub struct Journal {
    path: PathBuf,
    _directory: Arc<TempDir>,
}

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The process.
    pub pid: u32,
    /// The kind of event.
    pub event: Event,
    /// The request's method.
    pub method: String,
    /// The request's path, without its query.
    pub path: String,
    /// The request's key, `-` without one.
    pub key: String,
}

/// The kind of an [`Entry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A handler began.
    Start,
    /// A handler had its whole answer.
    End,
}

impl Journal {
    /// An empty journal, gone with its last clone.
    ///
    /// # Panics
    ///
    /// If there is no room for it.
    #[must_use]
    pub fn new() -> Self {
        let directory = Arc::new(TempDir::new().expect("a temporary directory"));
        Self { path: directory.path().join("journal"), _directory: directory }
    }

    /// Returns the path of the journal's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the lines of the journal.
    ///
    /// # Panics
    ///
    /// If one is not as the targets' specification says.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        // Absent until a target has started.
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        // A line that crosses a page may be seen half written: it counts once its end is there.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(entry).collect()
    }

    /// Returns the number of executions with `key` that started.
    #[must_use]
    pub fn starts(&self, key: &str) -> usize {
        self.count(key, Event::Start)
    }

    /// Returns the number of executions with `key` that finished.
    #[must_use]
    pub fn ends(&self, key: &str) -> usize {
        self.count(key, Event::End)
    }

    /// Asserts how many executions with `key` began and how many ended.
    ///
    /// # Panics
    ///
    /// If it is otherwise.
    #[track_caller]
    pub fn assert_executions(&self, key: &str, starts: usize, ends: usize) {
        let entries = self.entries();
        assert_eq!((self.starts(key), self.ends(key)), (starts, ends), "{entries:#?}");
    }

    /// Waits until executions with `key` have begun that often.
    pub async fn started(&self, key: &str, times: usize) {
        until("the handler starts", || async { self.starts(key) >= times }).await;
    }

    /// Waits until executions with `key` have ended that often.
    pub async fn ended(&self, key: &str, times: usize) {
        until("the handler ends", || async { self.ends(key) >= times }).await;
    }

    fn count(&self, key: &str, event: Event) -> usize {
        self.entries().iter().filter(|entry| entry.key == key && entry.event == event).count()
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self::new()
    }
}

fn entry(line: &str) -> Entry {
    let mut words = line.splitn(6, ' ');
    let mut word = || words.next().unwrap_or_else(|| panic!("the journal's line is short: {line}"));
    let time: u128 = word().parse().expect("the time in milliseconds");
    assert!(time > 0, "{line}");
    let pid = word().parse().expect("a process id");
    let event = match word() {
        "start" => Event::Start,
        "end" => Event::End,
        other => panic!("the journal tells of a {other}: {line}"),
    };
    let (method, path, key) = (word().to_owned(), word().to_owned(), word().to_owned());
    Entry { pid, event, method, path, key }
}
