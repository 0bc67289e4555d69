//! Files that are made, refused, kept small, or taken away.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;

use idemptx_core::record::Record;
use idemptx_testkit::SmallDisk;
use rusqlite::Connection;

use super::*;
use crate::store::{AnyStore, Severity, StoreKind};

#[tokio::test]
async fn a_new_file_and_those_beside_it_are_for_their_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder.path().join("it.db"));
    granted(&store, id(1), &request(1, HOUR, HOUR)).await;
    for ending in ["", "-wal", "-shm", "-turn"] {
        let file = folder.path().join(format!("it.db{ending}"));
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600, "{}", file.display());
    }
    let report = store.check().await.unwrap();
    let about_mode = |text: &str| text.contains("mode");
    assert!(!report.findings.iter().any(|finding| about_mode(&finding.text)), "{report:?}");
    fs::set_permissions(folder.path().join("it.db"), fs::Permissions::from_mode(0o644)).unwrap();
    let report = store.check().await.unwrap();
    assert!(report.findings.iter().any(|finding| about_mode(&finding.text)), "{report:?}");
}

#[tokio::test]
async fn a_report_says_what_the_file_guarantees() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder.path().join("it.db"));
    let report = store.check().await.unwrap();
    assert!(report.guarantee.contains("it.db"), "{}", report.guarantee);
    assert!(!report.is_fatal(), "{report:?}");
    fs::remove_file(folder.path().join("it.db")).unwrap();
    let report = store.check().await.unwrap();
    assert_eq!(report.findings.first().unwrap().severity, Severity::Fatal);
}

#[test]
fn files_that_cannot_be_the_store_are_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("folder")).unwrap();
    fs::write(at("text"), "no database ".repeat(100)).unwrap();
    let theirs = Connection::open(at("theirs")).unwrap();
    theirs.execute_batch("CREATE TABLE orders (number)").unwrap();
    let newer = Connection::open(at("newer")).unwrap();
    let application = super::super::schema::APPLICATION_ID;
    newer.pragma_update(None, "application_id", application).unwrap();
    newer.pragma_update(None, "user_version", 99 << 16 | 99).unwrap();
    for (name, says) in [
        ("absent/it.db", "folder does not exist"),
        ("folder", "it is a folder"),
        ("text", "not an SQLite database"),
        ("theirs", "database of another application"),
        ("newer", "schema 99"),
    ] {
        let error = SqliteStore::open(at(name)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(error.contains(name), "{error}");
    }
    // What is not ours is left as it was.
    let mode: String = theirs.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    assert_eq!(mode, "delete");
}

/// Not even root may create files there.
#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_cannot_be_written_to_is_named() {
    let error = SqliteStore::open("/sys/kernel/keys.db").unwrap_err().to_string();
    assert!(error.contains("/sys/kernel/keys.db: its folder cannot be written to"), "{error}");
}

/// As a container has it that was given the file and not its folder.
#[cfg(target_os = "linux")]
#[test]
fn a_file_that_is_mounted_without_its_folder_is_refused() {
    let Some(disk) = SmallDisk::mount(3) else { return };
    let [here, there] = ["here", "there"].map(|name| disk.path().join(name));
    for folder in [&here, &there] {
        fs::create_dir(folder).unwrap();
    }
    drop(store(&here.join("it.db")));
    fs::write(there.join("it.db"), "").unwrap();
    let mut mount = std::process::Command::new("mount");
    mount.arg("--bind").args([here.join("it.db"), there.join("it.db")]);
    assert!(mount.status().unwrap().success());
    std::os::unix::fs::symlink(there.join("it.db"), here.join("link.db")).unwrap();
    for path in [there.join("it.db"), here.join("link.db")] {
        let error = SqliteStore::open(path).unwrap_err().to_string();
        assert!(error.contains("mount the folder"), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn processes_that_reach_a_file_by_a_link_take_turns_with_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let [file, link] = ["it.db", "link.db"].map(|name| folder.path().join(name));
    std::os::unix::fs::symlink("it.db", &link).unwrap();
    drop(store(&file));
    drop(store(&link));
    assert!(folder.path().join("it.db-turn").exists());
    assert!(!folder.path().join("link.db-turn").exists());
}

#[tokio::test]
async fn a_file_with_two_names_is_unsafe() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let store = store(&path);
    assert!(!store.check().await.unwrap().findings.iter().any(|it| it.text.contains("hard link")));
    fs::hard_link(&path, folder.path().join("other.db")).unwrap();
    let report = store.check().await.unwrap();
    assert!(report.is_unsafe(), "{report:?}");
    assert!(report.findings.iter().any(|it| it.text.contains("hard link")), "{report:?}");
}

#[tokio::test]
async fn a_damaged_file_gives_no_verdict_that_could_execute_anything() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let writer = store(&path);
    for n in 0..500 {
        let lease = granted(&writer, id(n), &request(n, HOUR, HOUR)).await;
        if n == 0 {
            writer.settle(&lease, &done(vec![b'x'; 1000], HOUR)).await.unwrap();
        }
    }
    drop(writer);
    closed(&path).await;
    // Every page but the first, which says what kind of file it is.
    let mut bytes = fs::read(&path).unwrap();
    bytes.iter_mut().skip(4096).for_each(|byte| *byte = !*byte);
    fs::write(&path, &bytes).unwrap();
    match SqliteStore::open(&path) {
        Err(error) => assert!(error.to_string().contains("damaged"), "{error}"),
        Ok(store) => {
            let error = store.claim(&id(0), &request(1000, HOUR, HOUR)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", told(&error));
        }
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let store = store(&path);
    let lease = granted(&store, id(1), &request(1, HOUR, HOUR)).await;
    let other = Connection::open(&path).unwrap();
    other
        .execute("UPDATE records SET record = CAST(x'63' || substr(record, 2) AS BLOB)", [])
        .unwrap();
    let claim = store.claim(&id(1), &request(2, HOUR, HOUR)).await.unwrap_err();
    let settle = store.settle(&lease, &done("late", HOUR)).await.unwrap_err();
    let lookup = store.lookup(&id(1)).await.unwrap_err();
    for error in [claim, settle, lookup] {
        assert_eq!(error.kind(), ErrorKind::Full);
        assert!(told(&error).contains("record format 99"), "{}", told(&error));
    }
    let page = store.list(&Query::in_flight()).await.unwrap();
    assert_eq!((page.entries, page.unreadable), (vec![], vec![id(1)]));
    let first: u8 = other
        .query_row("SELECT record FROM records", [], |row| Ok(row.get_ref(0)?.as_blob()?[0]))
        .unwrap();
    assert_eq!(first, 99);
}

#[tokio::test]
async fn a_file_that_was_removed_or_replaced_is_written_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let before = store(&path);
    granted(&before, id(1), &request(1, HOUR, HOUR)).await;
    for ending in ["", "-wal", "-shm"] {
        fs::remove_file(folder.path().join(format!("it.db{ending}"))).unwrap();
    }
    let removed = before.claim(&id(2), &request(2, HOUR, HOUR)).await.unwrap_err();
    let after = store(&path);
    granted(&after, id(2), &request(3, HOUR, HOUR)).await;
    let replaced = before.claim(&id(2), &request(2, HOUR, HOUR)).await.unwrap_err();
    let unseen = before.lookup(&id(2)).await.unwrap_err();
    let kinds = [&removed, &replaced, &unseen].map(|error| error.kind());
    assert_eq!(kinds, [ErrorKind::Refused, ErrorKind::Refused, ErrorKind::Unavailable]);
    for error in [removed, replaced, unseen] {
        assert!(told(&error).contains("removed, or replaced"), "{}", told(&error));
    }
}

#[tokio::test]
async fn somebody_else_who_keeps_the_file_locked_costs_the_verdict_and_nothing_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let store = SqliteStore::builder(&path).timeout(200 * MILLISECOND).open().unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = store.claim(&id(1), &request(1, HOUR, HOUR)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(told(&error).contains("locked"), "{}", told(&error));
    assert_eq!(store.lookup(&id(1)).await.unwrap(), None);
    other.execute_batch("ROLLBACK").unwrap();
    until(async || store.claim(&id(1), &request(1, HOUR, HOUR)).await.is_ok()).await;
}

/// As a process does that is stopped while it writes.
#[tokio::test]
async fn a_process_that_keeps_its_turn_costs_a_claim_a_share_of_the_time_and_is_certain() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let store = SqliteStore::builder(&path).timeout(4000 * MILLISECOND).open().unwrap();
    let turn = fs::File::options().write(true).open(folder.path().join("it.db-turn")).unwrap();
    turn.lock().unwrap();
    // An engine gives a claim a fifth of that.
    let claimed = async { store.claim(&id(1), &request(1, HOUR, HOUR)).await };
    let claimed = tokio::time::timeout(3000 * MILLISECOND, claimed).await;
    assert_eq!(claimed.unwrap().unwrap_err().kind(), ErrorKind::Refused);
    turn.unlock().unwrap();
    until(async || store.claim(&id(2), &request(2, HOUR, HOUR)).await.is_ok()).await;
    assert_eq!(store.lookup(&id(1)).await.unwrap(), None);
}

/// Everything expires at once, and commits are as large as they get.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_is_removed_as_fast_as_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let store = Arc::new(store(&path));
    let other = Connection::open(&path).unwrap();
    let count = "SELECT count(*) FROM records";
    for round in 0..8_u64 {
        let claims: Vec<_> = (0..2000)
            .map(|n| {
                let (store, n) = (store.clone(), 2000 * round + n);
                tokio::spawn(async move {
                    granted(&store, id(n), &request(n, Duration::ZERO, MILLISECOND)).await
                })
            })
            .collect();
        for claim in claims {
            claim.await.unwrap();
        }
    }
    let left = other.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap();
    // Those of the last round, and what its first commit found.
    assert!(left <= 6000, "{left} of 16,000 records");
}

#[tokio::test]
async fn tending_removes_what_has_expired_and_gives_the_file_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let store = store(&path);
    let claims = (0..2000).map(|n| (id(n), request(n, HOUR, HOUR)));
    let brief = MILLISECOND;
    for (id, request) in claims {
        let lease = granted(&store, id, &request).await;
        if id != super::id(0) {
            store.settle(&lease, &done(vec![b'x'; 4000], brief)).await.unwrap();
        }
    }
    let other = Connection::open(&path).unwrap();
    let number = |sql: &str| other.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    store.maintain();
    until(async || number("SELECT count(*) FROM records") == 1).await;
    until(async || number("PRAGMA page_count") < 1200).await;
    assert!(matches!(store.lookup(&id(0)).await.unwrap(), Some(RecordSnapshot::Held(_))));
}

#[tokio::test]
async fn a_response_is_removed_when_it_is_forgotten_and_its_key_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let store = store(&path);
    let lease = granted(&store, id(1), &request(1, HOUR, HOUR)).await;
    let mut secret = done("a response with a secret in it", MILLISECOND);
    secret.key_retain = HOUR;
    store.settle(&lease, &secret).await.unwrap();
    let other = Connection::open(&path).unwrap();
    let length = || {
        let sql = "SELECT length(record) FROM records";
        other.query_row(sql, [], |row| row.get::<_, u16>(0)).unwrap()
    };
    store.maintain();
    until(async || {
        store.maintain();
        usize::from(length()) == Record::HEAD_BYTES
    })
    .await;
    match store.lookup(&id(1)).await.unwrap() {
        Some(RecordSnapshot::Settled(record)) => assert_eq!(record.state, State::ResponseExpired),
        other => panic!("not settled: {other:?}"),
    }
}

#[tokio::test]
async fn a_file_of_the_first_version_is_read_with_all_that_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    fs::write(&path, include_bytes!("../../../../tests/fixtures/sqlite/1.db")).unwrap();
    let store = store(&path);
    assert_eq!(settled_payload(&store, id(1)).await.unwrap(), "the first response");
    match store.lookup(&id(2)).await.unwrap() {
        // The host has booted since.
        Some(RecordSnapshot::Held(holder)) => assert!(holder.is_orphan()),
        other => panic!("not held: {other:?}"),
    }
    granted(&store, id(3), &request(3, HOUR, HOUR)).await;
}

#[test]
fn urls_name_a_file_or_say_what_to_write_instead() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    for url in [format!("sqlite:{}", path.display()), format!("sqlite://{}", path.display())] {
        assert_eq!(AnyStore::from_url(&url).unwrap().kind(), StoreKind::Sqlite, "{url}");
    }
    for (url, says) in [
        ("sqlite::memory:", "`memory:`"),
        ("sqlite:", "names no file"),
        ("sqlite://it.db", "sqlite:///PATH"),
        ("sqlite:it.db?mode=ro", "no parameters"),
        ("sqlite:/nowhere/at/all/it.db", "folder does not exist"),
    ] {
        let error = AnyStore::from_url(url).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(says), "{url}: {cause}");
    }
}

#[tokio::test]
async fn watchers_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder.path().join("it.db"));
    let lease = granted(&store, id(1), &request(1, HOUR, HOUR)).await;
    let dropped = store.watch(&id(1)).await.unwrap();
    let kept = store.watch(&id(1)).await.unwrap();
    drop(dropped);
    assert_eq!(store.watched(), 1);
    store.release(&lease).await.unwrap();
    kept.await;
    assert_eq!(store.watched(), 0);
    store.watch(&id(2)).await.unwrap().await;
    assert_eq!(store.watched(), 0);
}

/// The log is gone once the last connection is.
async fn closed(path: &Path) {
    let log = path.with_extension("db-wal");
    until(async || !log.exists()).await;
}
