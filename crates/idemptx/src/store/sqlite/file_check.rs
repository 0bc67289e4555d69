//! The start-up check: what can happen to a file's records.

use std::path::Path;

use rusqlite::Connection;

use super::boot_clock::StoreClock;
use super::file::DatabaseFile;
use super::filesystem;
use crate::store::{Finding, SafetyReport, Severity};

/// Looks at the file, and at what it is on.
pub(super) fn look(
    connection: &Connection,
    file: &DatabaseFile,
    clock: &StoreClock,
) -> rusqlite::Result<SafetyReport> {
    let path = file.path();
    let findings = [
        in_place(file),
        names(path),
        sound(connection)?,
        filesystem_kind(path),
        room(path),
        readers(path),
        clock.can_be_set().then(|| {
            warning(
                "this system has no clock that cannot be set, so leases are judged by the wall \
                 clock: a step of it forward lets live claims lapse early",
            )
        }),
    ];
    let guarantee = format!(
        "sqlite {} in {}: one execution per key among all processes of this host; claims and \
         results survive the end of the process and of the machine (write-ahead log, \
         synchronous=FULL), the loss of this disk ends them",
        rusqlite::version(),
        path.display(),
    );
    Ok(SafetyReport::new(findings.into_iter().flatten().collect(), guarantee))
}

fn in_place(file: &DatabaseFile) -> Option<Finding> {
    (!file.is_in_place()).then(|| {
        Finding::new(
            Severity::Fatal,
            "the file was removed or replaced while it was in use; restart every process that uses \
             it",
        )
    })
}

fn sound(connection: &Connection) -> rusqlite::Result<Option<Finding>> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let bytes = number("page_count")?.saturating_mul(number("page_size")?);
    if bytes > CHECKED_BYTES_MAX {
        return Ok(Some(Finding::new(
            Severity::Note,
            "the file is too large to be checked for damage at every start; run `PRAGMA \
             quick_check` in the `sqlite3` shell once in a while",
        )));
    }
    let told: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
    Ok((told != "ok").then(|| {
        let text = format!(
            "the file is damaged ({told}); stop every process that uses it, keep a copy, and \
             restore a backup or start with a new file"
        );
        Finding::new(Severity::Fatal, text)
    }))
}

fn filesystem_kind(path: &Path) -> Option<Finding> {
    about_kind(filesystem::kind(path)?)
}

fn about_kind(kind: u64) -> Option<Finding> {
    if let Some((_, name)) = filesystem::FOREIGN.iter().find(|(number, _)| *number == kind) {
        let text = format!(
            "the file is on {name}: if others reach it by other ways, their locks do not exclude \
             each other, and one key is executed twice; what is acknowledged may not be on a disk; \
             put it on a local file system"
        );
        return Some(Finding::new(Severity::Unsafe, text));
    }
    if filesystem::MEMORY.contains(&kind) {
        return Some(Finding::new(
            Severity::Unsafe,
            "the file is on a file system in memory: when the host stops, every record is lost, \
             and retries execute again; put it on a disk",
        ));
    }
    (kind == filesystem::OVERLAY).then(|| {
        warning(
            "the file is on an overlay, most likely the writable layer of a container: its records \
             end with the container, and other containers do not see them; put it on a volume",
        )
    })
}

fn room(path: &Path) -> Option<Finding> {
    let free = filesystem::free_bytes(path)?;
    (free < FREE_BYTES_MIN).then(|| {
        // Without what is free, which would make each check another finding.
        let mebibytes = FREE_BYTES_MIN >> 20;
        warning(format!(
            "less than {mebibytes} MiB are free on the disk; when it is full, requests with a key \
             are refused"
        ))
    })
}

/// Warns of hard links: a process has the write-ahead log beside the name that it was given.
#[cfg(unix)]
fn names(path: &Path) -> Option<Finding> {
    use std::os::unix::fs::MetadataExt;
    (std::fs::metadata(path).ok()?.nlink() > 1).then(|| {
        Finding::new(
            Severity::Unsafe,
            "the file has another name, a hard link: a process that uses it by that name has \
             another write-ahead log, one key is executed twice, and the file is damaged; remove \
             that name, and copy a file instead of linking it",
        )
    })
}

#[cfg(not(unix))]
fn names(_: &Path) -> Option<Finding> {
    None
}

#[cfg(unix)]
fn readers(path: &Path) -> Option<Finding> {
    use std::os::unix::fs::MetadataExt;
    let mode = std::fs::metadata(path).ok()?.mode() & 0o777;
    (mode & OTHERS != 0).then(|| {
        warning(format!(
            "the file has mode {mode:o}, so other users can reach the responses in it; `chmod 600`"
        ))
    })
}

#[cfg(not(unix))]
fn readers(_: &Path) -> Option<Finding> {
    None
}

fn warning(text: impl Into<String>) -> Finding {
    Finding::new(Severity::Warning, text)
}

/// Permission bits of group and others.
#[cfg(unix)]
const OTHERS: u32 = 0o077;
const CHECKED_BYTES_MAX: i64 = 64 << 20;
const FREE_BYTES_MIN: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_that_may_not_lock_for_every_host_are_unsafe() {
        for (kind, word) in [(0x6573_5546, "sshfs"), (0x786f_4256, "VirtualBox")] {
            let finding = about_kind(kind).unwrap();
            assert_eq!(finding.severity, Severity::Unsafe);
            assert!(finding.text.contains(word), "{}", finding.text);
        }
        const EXT4: u64 = 0xEF53;
        assert_eq!(about_kind(EXT4), None);
        assert!(about_kind(filesystem::OVERLAY).is_some_and(|it| it.severity == Severity::Warning));
    }
}
