//! Disks that fill up, and get room again.

use std::os::unix::fs::chown;
use std::path::Path;

use idemptx::store::postgres::PostgresStore;
use idemptx_core::lease::Lease;
use idemptx_core::store::{Claim, ErrorKind, RecordSnapshot, Store, StoreError};
use idemptx_testkit::PostgresServer;
use idemptx_testkit::SmallDisk;

use super::fixture::{
    claim_request, done, eventually, granted, id, patient, reason, settled, started,
};

/// The records are on a small disk, the log of the server is not.
#[tokio::test]
async fn a_full_disk_takes_nothing_new_keeps_what_there_is_and_serves_again_once_it_has_room() {
    let Some(disk) = SmallDisk::mount(8) else { return };
    let server = PostgresServer::start(&[]);
    give_to_owner_of(server.directory(), disk.path());
    let space = format!("CREATE TABLESPACE small LOCATION '{}'", disk.path().display());
    server.session().await.batch_execute(&space).await.unwrap();
    server.configure("default_tablespace", "small").await;
    let store = patient(server.url()).connect().await.unwrap();
    let mut filled = Filled::default();
    let error = filled.fill(&store).await;
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    assert!(reason(&error).contains("No space left"), "{}", reason(&error));
    filled.assert_kept(&store).await;
    assert!(settled(&store, id(0)).await.payload == response(0), "a retry is answered");
    disk.grow(32);
    filled.go_on(&store).await;
    filled.assert_kept(&store).await;
}

/// The whole server is on the disk: it ends when it cannot write its log, and is started again.
#[tokio::test]
async fn a_full_disk_under_the_whole_server_loses_nothing() {
    let Some(disk) = SmallDisk::mount(64) else { return };
    let directory = tempfile::tempdir_in(disk.path()).unwrap();
    let mut server = PostgresServer::start_in(directory, &[]);
    let store = patient(server.url()).connect().await.unwrap();
    let mut filled = Filled::default();
    let error = filled.fill(&store).await;
    // It is not certain what of the last step is in the log.
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    disk.grow(256);
    server.kill();
    server.restart();
    filled.assert_kept(&store).await;
    filled.go_on(&store).await;
    filled.assert_kept(&store).await;
}

/// A trigger raises the server's error, for machines on which no small disk can be mounted.
#[tokio::test]
async fn want_of_room_is_told_as_such_and_what_is_there_can_be_read() {
    let (server, store) = started(&[]).await;
    let lease = granted(&store, id(1)).await;
    store.settle(&lease, &done("kept")).await.unwrap();
    let full = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'no space left on device' USING ERRCODE = '53100'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON idemptx.records EXECUTE FUNCTION refuse()";
    server.session().await.batch_execute(full).await.unwrap();
    let error = store.claim(&id(2), &claim_request()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.retry_after().is_some());
    assert!(reason(&error).contains("no space left"), "{}", reason(&error));
    // A claim would be stopped by the trigger before it finds something.
    let found = store.lookup(&id(1)).await;
    assert!(matches!(found, Ok(Some(RecordSnapshot::Settled(record))) if record.payload == "kept"));
    let room = "DROP TRIGGER refuse ON idemptx.records";
    server.session().await.batch_execute(room).await.unwrap();
    granted(&store, id(2)).await;
}

/// The settlements acknowledged before the disk was full.
#[derive(Default)]
struct Filled {
    settled: u64,
    /// Claimed, and not settled.
    last: Option<Lease>,
}

impl Filled {
    /// Claims, and settles with responses that cannot be compressed, until one of both fails.
    async fn fill(&mut self, store: &PostgresStore) -> StoreError {
        loop {
            let claim = store.claim(&id(self.settled), &claim_request()).await;
            let lease = match claim {
                Ok(Claim::Granted(lease)) => lease,
                Ok(other) => panic!("{other:?}"),
                Err(error) => return error,
            };
            self.last = Some(lease.clone());
            if let Err(error) = store.settle(&lease, &done(response(self.settled))).await {
                return error;
            }
            self.last = None;
            self.settled += 1;
        }
    }

    /// Settles what could not be, and serves on.
    async fn go_on(&mut self, store: &PostgresStore) {
        if let Some(lease) = self.last.take() {
            let result = done(response(self.settled));
            eventually(async || store.settle(&lease, &result).await).await.unwrap();
            self.settled += 1;
        }
        let lease = granted(store, id(self.settled)).await;
        store.settle(&lease, &done(response(self.settled))).await.unwrap();
        self.settled += 1;
    }

    async fn assert_kept(&self, store: &PostgresStore) {
        assert!(self.settled > 3, "{}", self.settled);
        for number in 0..self.settled {
            let found = eventually(async || store.lookup(&id(number)).await).await;
            let Ok(Some(RecordSnapshot::Settled(record))) = found else {
                panic!("{number}: {found:?}")
            };
            assert!(record.payload == response(number), "{number}");
        }
        if let Some(lease) = &self.last {
            let found = store.lookup(&lease.id).await;
            let Ok(Some(RecordSnapshot::Held(holder))) = found else { panic!("{found:?}") };
            assert_eq!(holder.token, lease.token);
        }
    }
}

/// A quarter of a mebibyte that looks like noise.
fn response(number: u64) -> Vec<u8> {
    let mut state = number + 1;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 32).to_be_bytes()[7]
    });
    noise.take(256 << 10).collect()
}

fn give_to_owner_of(owned: &Path, path: &Path) {
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(owned).unwrap();
    chown(path, Some(owner.uid()), Some(owner.gid())).unwrap();
}
