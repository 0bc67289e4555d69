//! Leases and retention after the host has rebooted.

use super::super::boot_clock::HostClock;
use super::*;

#[tokio::test]
async fn no_lease_outlives_the_boot_of_its_host_and_every_record_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let before = booted(&path, "one");
    let running = granted(&before, id(1), &request(1, HOUR, HOUR)).await;
    let settled = granted(&before, id(2), &request(2, HOUR, HOUR)).await;
    before.settle(&settled, &done("result", HOUR)).await.unwrap();
    let same_boot = booted(&path, "one");
    assert!(!holder(&same_boot, id(1)).await.is_orphan());

    let after = booted(&path, "two");
    assert!(holder(&after, id(1)).await.is_orphan());
    let page = after.list(&Query::in_doubt()).await.unwrap();
    assert_eq!(page.entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), [id(1)]);
    assert_eq!(settled_payload(&after, id(2)).await.unwrap(), "result");
    let expected = idemptx_core::store::Expected::Orphan(running.token);
    let lease = granted(&after, id(1), &request(3, HOUR, HOUR).expecting(expected)).await;
    assert!(lease.fence > running.fence && lease.attempt == 2, "{lease:?}");
    assert!(!holder(&after, id(1)).await.is_orphan());
}

#[tokio::test]
async fn an_owner_that_the_reboot_spared_may_still_renew_and_settle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let before = booted(&path, "one");
    let lease = granted(&before, id(1), &request(1, HOUR, HOUR)).await;
    let after = booted(&path, "two");
    assert!(holder(&after, id(1)).await.is_orphan());
    after.renew(&lease).await.unwrap();
    assert!(!holder(&after, id(1)).await.is_orphan());
    after.settle(&lease, &done("late", HOUR)).await.unwrap();
}

#[tokio::test]
async fn a_process_of_another_boot_is_refused_once_the_file_has_gone_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let former = booted(&path, "one");
    let lease = granted(&former, id(1), &request(1, HOUR, HOUR)).await;
    let _latter = booted(&path, "two");
    let errors = [
        former.claim(&id(2), &request(2, HOUR, HOUR)).await.unwrap_err(),
        former.renew(&lease).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(told(&error).contains("another host"), "{}", told(&error));
    }
}

#[tokio::test]
async fn time_does_not_go_back_when_the_wall_clock_has() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    let before = booted(&path, "one");
    granted(&before, id(1), &request(1, HOUR, HOUR)).await;
    drop(before);
    // As if the wall clock had been a year ahead before the host was booted.
    let year = 365 * 24 * HOUR;
    let micros = i64::try_from(year.as_micros()).unwrap();
    let file = rusqlite::Connection::open(&path).unwrap();
    file.execute("UPDATE clock SET mark = mark + ?1", [micros]).unwrap();
    file.execute("UPDATE records SET expires = expires + ?1, due = due + ?1", [micros]).unwrap();
    let after = booted(&path, "two");
    let held = holder(&after, id(1)).await;
    let lease = granted(&after, id(2), &request(2, HOUR, HOUR)).await;
    let gone_by = Duration::from_micros(lease.fence - held.fence);
    assert!(gone_by >= year, "{gone_by:?}");
}

#[tokio::test]
async fn a_process_whose_clock_is_behind_that_of_the_others_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it.db");
    drop(booted(&path, "one"));
    let file = rusqlite::Connection::open(&path).unwrap();
    file.execute("UPDATE clock SET mark = mark + 3600000000", []).unwrap();
    let builder = SqliteStore::builder(&path);
    let error = builder.open_at(HostClock::of_boot("one")).unwrap_err().to_string();
    assert!(error.contains("time namespace"), "{error}");
}

fn booted(path: &Path, boot: &str) -> SqliteStore {
    SqliteStore::builder(path).timeout(PATIENCE).open_at(HostClock::of_boot(boot)).unwrap()
}

async fn holder(store: &SqliteStore, id: RecordId) -> idemptx_core::store::ClaimInfo {
    match store.lookup(&id).await.unwrap() {
        Some(RecordSnapshot::Held(holder)) => holder,
        other => panic!("not held: {other:?}"),
    }
}
