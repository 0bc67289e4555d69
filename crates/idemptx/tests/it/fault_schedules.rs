//! Schedules of faults between a store and its server, from seeds.
//!
//! A worker takes every step of an operation through a proxy that, before a step, plans to cut,
//! delay, swallow or refuse what goes over it; a rival claims the same key directly all the while.
//! Whatever happens, at most one of them executes, what was answered as stored is replayed, and a
//! refusal that was called certain has changed nothing.
//!
//! A failure names its seed; `IDEMPTX_TEST_SEED=7` plays that one alone.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use idemptx::store::postgres::PostgresStore;
use idemptx::store::redis::RedisStore;
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::record::State;
use idemptx_core::store::{Claim, ClaimRequest, ErrorKind, RecordSnapshot, Settlement, Store};
use idemptx_testkit::faulty_proxy::{Direction, Fault};
use idemptx_testkit::{FaultyProxy, PostgresServer, RedisServer, Refusal};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_schedules_of_faults_execute_once_and_replay_what_was_stored() {
    let server = RedisServer::start(&["appendfsync everysec"]);
    let direct = RedisStore::builder(server.url()).timeout(PATIENCE).open().unwrap();
    let open = |port: u16| {
        let url = format!("redis://127.0.0.1:{port}");
        RedisStore::builder(url).timeout(STEP_MAX).connect_timeout(STEP_MAX).open().unwrap()
    };
    play_all(server.port(), &direct, open, REDIS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_schedules_of_faults_execute_once_and_replay_what_was_stored() {
    let server = PostgresServer::start(&["fsync = off", "max_connections = 200"]);
    let direct = PostgresStore::builder(server.url()).timeout(PATIENCE).connect_timeout(PATIENCE);
    let direct = direct.connect().await.unwrap();
    let open = |port: u16| {
        let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        let store = PostgresStore::builder(url).timeout(STEP_MAX).connect_timeout(STEP_MAX);
        store.sessions(1).open().unwrap()
    };
    play_all(server.port(), &direct, open, POSTGRES).await;
}

#[test]
fn a_refusal_answers_every_request_and_nothing_else() {
    let redis = Refusal::Redis("OOM full");
    let two = b"*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$3\r\n\r\n*\r\n";
    assert_eq!(redis.answer_to(two).unwrap(), b"-OOM full\r\n-OOM full\r\n");
    assert_eq!(redis.answer_to(&two[..20]), None);
    let postgres = Refusal::Postgres("53100");
    let twice = postgres.answer_to(b"B\0\0\0\x05xS\0\0\0\x04S\0\0\0\x04").unwrap();
    assert_eq!(twice.iter().filter(|byte| **byte == b'Z').count(), 2);
    // The first message of a session, and a password.
    assert_eq!(postgres.answer_to(b"\0\0\0\x08\x04\xd2\x16\x2f"), None);
    assert_eq!(postgres.answer_to(b"p\0\0\0\x05x"), None);
}

/// Plays every schedule, a few at a time.
async fn play_all<S: Store>(
    port: u16,
    direct: &S,
    open: impl Fn(u16) -> S,
    refusals: &'static [Refusal],
) {
    let only = std::env::var("IDEMPTX_TEST_SEED").ok().map(|seed| seed.parse().unwrap());
    let seeds: Vec<u64> = only.map_or_else(|| (0..SCHEDULES).collect(), |seed| vec![seed]);
    let mut faults = 0;
    for some in seeds.chunks(AT_ONCE) {
        let playing = some.iter().copied().map(async |seed| {
            let proxy = FaultyProxy::to(port).await;
            let store = open(proxy.port());
            let schedule = Schedule {
                store: &store,
                direct,
                proxy: &proxy,
                refusals,
                random: Random(seed),
                refuses: false,
                seed,
                faults: 0,
            };
            tokio::time::timeout(PATIENCE, schedule.play()).await.unwrap_or_else(|_| {
                panic!("seed {seed}: it does not come to an end");
            })
        });
        faults += join_all(playing).await.into_iter().sum::<usize>();
    }
    if seeds.len() > 1 {
        assert!(faults > seeds.len(), "only {faults} faults happened");
    }
}

/// Polls all of them in one task.
async fn join_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, output) in running.iter_mut().filter(|(_, output)| output.is_none()) {
            if let std::task::Poll::Ready(ready) = future.as_mut().poll(context) {
                *output = Some(ready);
            }
        }
        match running.iter().all(|(_, output)| output.is_some()) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}

struct Schedule<'s, S> {
    /// Behind the proxy.
    store: &'s S,
    direct: &'s S,
    proxy: &'s FaultyProxy,
    refusals: &'static [Refusal],
    random: Random,
    /// Requests are refused in this operation; otherwise clients leave in the middle of a step,
    /// whose answer a refusal would overtake.
    refuses: bool,
    seed: u64,
    faults: usize,
}

impl<S: Store> Schedule<'_, S> {
    /// Plays some operations, and returns how many faults happened.
    async fn play(mut self) -> usize {
        for operation in 0..OPERATIONS {
            self.operation(operation).await;
        }
        self.faults
    }

    async fn operation(&mut self, operation: u64) {
        self.refuses = self.random.one_in(2);
        let audit = Audit { seed: self.seed, operation, ..Audit::default() };
        let id = id_of(self.seed, operation);
        let worker_request = request(self.seed, operation, 0);
        let is_over = tokio::sync::watch::Sender::new(false);
        let (direct, rival_request) = (self.direct, request(self.seed, operation, 1));
        let delay = PAUSE * u32::try_from(self.random.below(12)).unwrap();
        let rival = async {
            // Or the worker would never be the first.
            tokio::time::sleep(delay).await;
            rival(direct, id, rival_request, &audit, &is_over).await;
        };
        let worker = async {
            self.work(id, &worker_request, &audit).await;
            is_over.send_replace(true);
        };
        tokio::join!(rival, worker);
        // What was left behind is answered before the next operation begins.
        let drained = async || self.store.lookup(&id).await;
        while drained().await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
        // Everything that was on its way has arrived, or never will.
        audit.check(self.direct.lookup(&id).await.unwrap());
    }

    /// Claims, and if that is granted executes, renews, and settles or releases.
    async fn work(&mut self, id: RecordId, request: &ClaimRequest, audit: &Audit) {
        let Some(lease) = self.claim(id, request, audit).await else { return };
        if self.random.one_in(2) {
            self.plan();
            let renewed = self.store.renew(&lease).await.map(drop).map_err(|error| error.kind());
            assert!(
                !matches!(renewed, Err(ErrorKind::Fenced)),
                "{audit}: a live lease is fenced on renewal"
            );
            self.happened();
        }
        let is_release = self.random.one_in(3);
        let payload = Bytes::from(format!("worker {}", self.seed));
        match is_release {
            true => audit.end(request.token),
            false => audit.may_be_stored(&payload),
        }
        let done = settlement(&payload);
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.plan();
            let ended = match is_release {
                true => self.store.release(&lease).await,
                false => self.store.settle(&lease, &done).await,
            };
            self.happened();
            match ended.map_err(|error| error.kind()) {
                Ok(()) => break,
                // Released, but the answer was lost: another claim may be there by now.
                Err(ErrorKind::Fenced) if is_release => break,
                Err(kind) if kind.is_transient() && Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(kind) => panic!("{audit}: ended with {kind:?}"),
            }
        }
        if !is_release {
            audit.stored(request.token, &payload);
        }
    }

    async fn claim(
        &mut self,
        id: RecordId,
        request: &ClaimRequest,
        audit: &Audit,
    ) -> Option<Lease> {
        let mut is_doubtful = false;
        for attempt in 0..CLAIMS_MAX {
            self.plan();
            let claim = self.store.claim(&id, request);
            let claim = match !self.refuses && self.random.one_in(3) {
                // The client leaves in the middle.
                true => tokio::time::timeout(STEP_MAX / 10, claim).await.ok(),
                false => Some(claim.await),
            };
            self.happened();
            match claim.map(|claim| claim.map_err(|error| error.kind())) {
                Some(Ok(Claim::Granted(lease))) => {
                    audit.begin(request.token);
                    return Some(lease);
                }
                Some(Ok(Claim::Found(RecordSnapshot::Settled(record)))) => {
                    audit.replayed(&record.payload);
                    return None;
                }
                Some(Ok(Claim::Found(RecordSnapshot::Held(holder)))) => {
                    assert_ne!(holder.token, request.token, "{audit}: its own claim is refused");
                }
                Some(Ok(other)) => panic!("{audit}: {other:?}"),
                Some(Err(ErrorKind::Refused)) if !is_doubtful => {
                    if let Some(RecordSnapshot::Held(holder)) =
                        self.direct.lookup(&id).await.unwrap()
                    {
                        assert_ne!(holder.token, request.token, "{audit}: a refusal has claimed");
                    }
                }
                Some(Err(kind)) => {
                    assert!(kind.is_transient(), "{audit}: a claim came to {kind:?}");
                    is_doubtful |= kind.is_unknown();
                }
                None => is_doubtful = true,
            }
            if is_doubtful {
                audit.may_come_late(request.token);
            }
            if attempt + 1 < CLAIMS_MAX {
                tokio::time::sleep(PAUSE).await;
            }
        }
        // As a driver does behind: the claim may have arrived, or be on its way.
        let lease = Lease::granted(id, request, 0, 1);
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.store.release(&lease).await {
            if error.kind() == ErrorKind::Fenced {
                break;
            }
            assert!(Instant::now() < deadline, "{audit}: the claim is never given up: {error:?}");
            tokio::time::sleep(PAUSE).await;
        }
        None
    }

    /// Plans a fault for the next step, or none.
    fn plan(&mut self) {
        if self.random.one_in(4) {
            return;
        }
        let direction = match self.random.one_in(2) {
            true => Direction::ToServer,
            false => Direction::ToClient,
        };
        // A request, or the answer to it, is often lost as a whole.
        let bytes = match self.random.one_in(2) {
            true => 0,
            false => usize::try_from(self.random.below(120)).unwrap(),
        };
        let (direction, bytes, fault) = match self.random.below(if self.refuses { 6 } else { 3 }) {
            0 => (direction, bytes, Fault::Disconnect),
            1 => (direction, bytes, Fault::Stall),
            2 => {
                let share = u32::try_from(self.random.below(20)).unwrap();
                (direction, bytes, Fault::Delay(STEP_MAX * share / 10))
            }
            _ => (Direction::ToServer, 0, self.refusal()),
        };
        self.proxy.plan(direction, bytes, fault);
        // What is sent again on a new connection meets another one.
        if fault == Fault::Disconnect && self.random.one_in(2) {
            let next = match self.refuses && self.random.one_in(2) {
                true => self.refusal(),
                false => Fault::Disconnect,
            };
            self.proxy.plan_next(Direction::ToServer, 0, next);
        }
    }

    fn refusal(&mut self) -> Fault {
        let place = self.random.below(self.refusals.len() as u64);
        Fault::Refuse(self.refusals[usize::try_from(place).unwrap()])
    }

    /// Counts the fault of a step that has ended, and ends it.
    fn happened(&mut self) {
        self.faults += usize::from(self.proxy.has_faulted());
        self.proxy.heal();
    }
}

/// Claims directly until the worker has ended; executes, and settles, if that is granted.
async fn rival<S: Store>(
    direct: &S,
    id: RecordId,
    request: ClaimRequest,
    audit: &Audit,
    is_over: &tokio::sync::watch::Sender<bool>,
) {
    loop {
        let was_over = *is_over.borrow();
        match direct.claim(&id, &request).await.unwrap() {
            Claim::Granted(lease) => {
                audit.begin(request.token);
                tokio::time::sleep(PAUSE).await;
                let payload = Bytes::from_static(b"rival");
                audit.may_be_stored(&payload);
                direct.settle(&lease, &settlement(&payload)).await.unwrap();
                return audit.stored(request.token, &payload);
            }
            Claim::Found(RecordSnapshot::Settled(record)) => {
                return audit.replayed(&record.payload);
            }
            // A claim that was given up may hold the key until its lease lapses.
            _ if was_over => return,
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// The history of an operation.
#[derive(Debug, Default)]
struct Audit {
    seed: u64,
    operation: u64,
    state: Mutex<AuditState>,
}

#[derive(Debug, Default)]
struct AuditState {
    executing: Option<Token>,
    /// Results that were sent, and may be found.
    possible: Vec<Bytes>,
    /// Result that was acknowledged as stored.
    stored: Option<Bytes>,
    /// Token of claims that may still be on their way.
    late: Option<Token>,
}

impl Audit {
    fn begin(&self, token: Token) {
        let mut state = self.state.lock().unwrap();
        assert_eq!(state.executing, None, "{self}: two execute");
        assert_eq!(state.stored, None, "{self}: a stored result is executed again");
        state.executing = Some(token);
    }

    fn end(&self, token: Token) {
        let mut state = self.state.lock().unwrap();
        assert_eq!(state.executing.take(), Some(token), "{self}");
    }

    fn may_be_stored(&self, payload: &Bytes) {
        self.state.lock().unwrap().possible.push(payload.clone());
    }

    fn stored(&self, token: Token, payload: &Bytes) {
        self.end(token);
        let former = self.state.lock().unwrap().stored.replace(payload.clone());
        assert_eq!(former, None, "{self}: two results");
    }

    /// Records a claim whose request may still be on its way, and that no worker waits for.
    fn may_come_late(&self, token: Token) {
        self.state.lock().unwrap().late = Some(token);
    }

    fn replayed(&self, payload: &Bytes) {
        let state = self.state.lock().unwrap();
        match &state.stored {
            Some(stored) => assert_eq!(payload, stored, "{self}: another result is replayed"),
            None => assert!(state.possible.contains(payload), "{self}: nobody made {payload:?}"),
        }
    }

    fn check(&self, found: Option<RecordSnapshot>) {
        let stored = self.state.lock().unwrap().stored.clone();
        let late = self.state.lock().unwrap().late;
        match (found, stored) {
            (Some(RecordSnapshot::Settled(record)), Some(_)) => self.replayed(&record.payload),
            (_, Some(stored)) => panic!("{self}: {stored:?} was stored, and is gone"),
            (Some(RecordSnapshot::Held(holder)), None) => {
                assert_eq!(Some(holder.token), late, "{self}: nobody holds that claim");
            }
            (None, None) => {}
            (found, None) => panic!("{self}: {found:?}"),
        }
    }
}

impl std::fmt::Display for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {}, operation {}", self.seed, self.operation)
    }
}

fn settlement(payload: &Bytes) -> Settlement {
    Settlement::new(State::Completed, payload.clone(), HOUR, HOUR)
}

fn id_of(seed: u64, operation: u64) -> RecordId {
    let mut bytes = [0x5D; RecordId::BYTES];
    bytes[..8].copy_from_slice(&seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
    bytes[8..16].copy_from_slice(&operation.to_be_bytes());
    RecordId::from_bytes(bytes)
}

fn request(seed: u64, operation: u64, actor: u8) -> ClaimRequest {
    let mut token = [actor; Token::BYTES];
    token[..8].copy_from_slice(&seed.to_be_bytes());
    token[8..12].copy_from_slice(&operation.to_be_bytes()[4..]);
    let fingerprint =
        Fingerprint { config: 1, digest: [2; 32], binding: [3; 16], operation: [4; 16] };
    ClaimRequest::new(Token::from_bytes(token), fingerprint, HOUR, HOUR)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

const REDIS: &[Refusal] = &[
    Refusal::Redis("OOM command not allowed when used memory > 'maxmemory'."),
    Refusal::Redis("READONLY You can't write against a read only replica."),
    Refusal::Redis("LOADING Redis is loading the dataset in memory"),
    Refusal::Redis("MASTERDOWN Link with MASTER is down"),
    Refusal::Redis("NOREPLICAS Not enough good replicas to write."),
    Refusal::Redis("MISCONF Redis is configured to save RDB snapshots"),
    Refusal::Redis("TRYAGAIN Multiple keys request during rehashing of slot"),
    Refusal::Redis("CLUSTERDOWN The cluster is down"),
    Refusal::Redis("NOAUTH Authentication required."),
    Refusal::Redis("NOPERM this user has no permissions"),
    Refusal::Redis("BUSY Redis is busy running a script."),
];
const POSTGRES: &[Refusal] = &[
    Refusal::Postgres("25006"),
    Refusal::Postgres("26000"),
    Refusal::Postgres("40001"),
    Refusal::Postgres("40P01"),
    Refusal::Postgres("42501"),
    Refusal::Postgres("42P01"),
    Refusal::Postgres("53100"),
    Refusal::Postgres("53200"),
    Refusal::Postgres("53300"),
    Refusal::Postgres("55P03"),
    Refusal::Postgres("57014"),
    Refusal::Postgres("57P01"),
    Refusal::Postgres("57P03"),
    Refusal::Postgres("XX000"),
];
const SCHEDULES: u64 = 40;
const AT_ONCE: usize = 16;
const OPERATIONS: u64 = 4;
const CLAIMS_MAX: u32 = 4;
/// Time limit of a step behind the proxy.
const STEP_MAX: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
