//! The cost of the package to a server, over sockets.

use std::time::Duration;

use idemptx_testkit::PostgresServer;

use crate::durable;
use crate::load::{self, Keys, Wish};
use crate::redis_server::{Monitor, RedisServer};
use crate::report::{Report, Table, count, ratio, small};
use crate::series::Series;
use crate::server::Server;
use crate::{Effort, Measured, machine};

use super::{Front, Python};

/// Adds the tables.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    let python = Python::find()?;
    let redis = RedisServer::start()?;
    let folder = durable::folder()?;
    let sqlite = format!("sqlite:{}", folder.path().join("records.db").display());
    let postgres = PostgresServer::start(&["shared_buffers = 256MB"]);
    let doors = doors(&redis.url(), &sqlite, &postgres.url());
    let mut rows: Vec<Vec<Row>> =
        doors.iter().map(|door| door.cases.iter().map(|_| Row::default()).collect()).collect();
    for round in 0..effort.rounds.min(ROUNDS_MAX) {
        for (door, rows) in doors.iter().zip(&mut rows) {
            redis.flush()?;
            let server = python.serve(door.front, &door.store, 0, Some(machine::MEASURED))?;
            for (case, row) in door.cases.iter().zip(rows) {
                prepare(&server, case, effort.window / 3)?;
                row.measure(&server, &redis, case, effort.window)?;
                if round == 0 {
                    row.commands = commands(&server, case, redis.monitor()?)?;
                }
            }
        }
    }
    report.add(&cheap(&doors, &rows));
    report.add(&usual(&doors, &rows));
    Ok(())
}

/// A server, and what is measured of it.
struct Door {
    name: &'static str,
    front: Front,
    store: String,
    cases: Vec<Case>,
}

struct Case {
    name: &'static str,
    wish: Wish,
    keys: Keys,
    goal: &'static str,
}

fn doors(redis: &str, sqlite: &str, postgres: &str) -> Vec<Door> {
    let door = |name, front, store: &str, cases| Door { name, front, store: store.into(), cases };
    let new = |goal| Case { name: "new", wish: load::ORDER, keys: Keys::Fresh, goal };
    let hit = |goal| Case { name: "hit", wish: load::ORDER, keys: Keys::Used, goal };
    let usual = |name, keys, goal| Case { name, wish: CHECKOUT, keys, goal };
    let without = Case { name: "no key", wish: load::ORDER, keys: Keys::None, goal: "-" };
    vec![
        // The first is what the others are compared with.
        door(
            "plain",
            Front::Plain,
            "memory:",
            vec![new("1.00"), usual("usual", Keys::Fresh, "1.00")],
        ),
        door("ceiling of middleware", Front::Ceiling, "memory:", vec![hit("-")]),
        door("original, memory", Front::Original, "memory:", vec![new("-"), hit("-")]),
        door("decorator, memory", Front::Decorator, "memory:", vec![new("0.95"), hit("1.00")]),
        door(
            "middleware, memory",
            Front::Middleware,
            "memory:",
            vec![without, new("0.95"), hit("2.60")],
        ),
        door("wrapper, memory", Front::Wrapper, "memory:", vec![new("-"), hit("-")]),
        door(
            "original, RedisBackend",
            Front::Original,
            &redis.replacen("redis", "redis+sync", 1),
            vec![new("-"), hit("-")],
        ),
        door("original, AsyncRedisBackend", Front::Original, redis, vec![new("-"), hit("-")]),
        door(
            "decorator, Redis",
            Front::Decorator,
            redis,
            vec![
                new("0.80"),
                hit("1.05"),
                usual("usual, new", Keys::Fresh, "1.00"),
                usual("usual, hit", Keys::Used, "1.05"),
            ],
        ),
        door(
            "middleware, Redis",
            Front::Middleware,
            redis,
            vec![
                new("0.85"),
                hit("2.60"),
                usual("usual, new", Keys::Fresh, "0.95"),
                usual("usual, hit", Keys::Used, "4.00"),
            ],
        ),
        door("wrapper, Redis", Front::Wrapper, redis, vec![new("-"), hit("3.20")]),
        door("decorator, SQLite", Front::Decorator, sqlite, vec![new("-"), hit("-")]),
        door("middleware, SQLite", Front::Middleware, sqlite, vec![new("-"), hit("-")]),
        door("decorator, PostgreSQL", Front::Decorator, postgres, vec![new("-"), hit("-")]),
        door("middleware, PostgreSQL", Front::Middleware, postgres, vec![new("-"), hit("-")]),
    ]
}

/// Lets the server come to its pace, and know the keys that it must.
fn prepare(server: &Server, case: &Case, window: Duration) -> Measured<()> {
    if case.keys == Keys::Used {
        load::prepare(server.address, case.wish)?;
    }
    load::run(server.address, case.wish, case.keys, window)?;
    Ok(())
}

/// The commands that a request has Redis sent; those of connecting were sent before.
fn commands(server: &Server, case: &Case, mut monitor: Monitor<'_>) -> Measured<f64> {
    load::one_by_one(server.address, case.wish, case.keys, COUNTED)?;
    Ok(monitor.commands()?.sent.len() as f64 / COUNTED as f64)
}

/// The measurements of one case over all rounds.
#[derive(Clone, Debug, Default)]
struct Row {
    rate: Series,
    cpu: Series,
    redis_cpu: Series,
    p50: Series,
    p99: Series,
    commands: f64,
}

impl Row {
    fn measure(
        &mut self,
        server: &Server,
        redis: &RedisServer,
        case: &Case,
        window: Duration,
    ) -> Measured<()> {
        let (server_before, redis_before) = (server.cpu_seconds()?, redis.cpu_seconds()?);
        let done = load::run(server.address, case.wish, case.keys, window)?;
        let micros = |seconds: f64| seconds * 1e6 / done.requests;
        self.rate.push(done.requests / done.seconds);
        self.cpu.push(micros(server.cpu_seconds()? - server_before));
        self.redis_cpu.push(micros(redis.cpu_seconds()? - redis_before));
        self.p50.push(done.latencies.quantile(0.50) / 1000.0);
        self.p99.push(done.latencies.quantile(0.99) / 1000.0);
        Ok(())
    }
}

fn cheap(doors: &[Door], rows: &[Vec<Row>]) -> Table {
    let mut table = Table::new(
        "A FastAPI server, over sockets",
        format!(
            "Baseline: plain FastAPI, in the same round; {} rounds at most.\n\
             One uvicorn worker (uvloop, httptools) on core 0; the client (32 keep-alive \
             connections) and Redis share core 1.\n\
             PostgreSQL runs where the system puts it; it and SQLite flush every commit.\n\
             Requests have 200 bytes, answers 300; the handler reads the body and does nothing \
             else.\n\
             The *ceiling* is a middleware that gives every request the same answer and does \
             nothing else.\n\
             The *wrapper* is the middleware around the application as a whole.\n\
             The *original* is version 0.2.2 of the package, with handlers for its exceptions.",
            ROUNDS_MAX,
        ),
        &COLUMNS,
    );
    add(&mut table, doors, rows, load::ORDER.path);
    table
}

fn usual(doors: &[Door], rows: &[Vec<Row>]) -> Table {
    let mut table = Table::new(
        "A FastAPI handler as they usually are",
        "Baseline: plain FastAPI, in the same round.\n\
         The body is a Pydantic model of ten fields, one of them a model, the answer another \
         one; there is one dependency.\n\
         The original package cannot do it: it takes no answer but a `JSONResponse`.",
        &COLUMNS,
    );
    add(&mut table, doors, rows, CHECKOUT.path);
    table
}

fn add(table: &mut Table, doors: &[Door], rows: &[Vec<Row>], path: &str) {
    let cases = doors.iter().zip(rows).flat_map(|(door, rows)| {
        door.cases.iter().zip(rows).map(move |(case, row)| (door, case, row))
    });
    let cases: Vec<_> = cases.filter(|(_, case, _)| case.wish.path == path).collect();
    let Some((_, _, baseline)) = cases.first() else { return };
    for (door, case, row) in &cases {
        let redis = door.store.starts_with("redis");
        let of_redis = |text: String| if redis { text } else { String::new() };
        table.row([
            door.name.to_owned(),
            case.name.to_owned(),
            count(row.rate.median()),
            ratio(row.rate.relative_to(&baseline.rate).median()),
            case.goal.to_owned(),
            small(row.cpu.median()),
            ratio(baseline.cpu.relative_to(&row.cpu).median()),
            of_redis(small(row.redis_cpu.median())),
            of_redis(ratio(row.commands)),
            small(row.p50.median()),
            small(row.p99.median()),
        ]);
    }
}

const CHECKOUT: Wish = Wish {
    path: "/checkout",
    used_from: 1 << 32,
    body: concat!(
        r#"{"customer":"c_81f3a90b2e","currency":"EUR","sku":"tea-earl-grey-250","count":2,"#,
        r#""cents":450,"discount":0.05,"note":"please ring twice","gift":true,"#,
        r#""tags":["tea","bio"],"address":{"street":"Am Markt 1","city":"Jena","country":"DE"}}"#,
    ),
};
const COLUMNS: [&str; 11] = [
    "",
    "",
    "requests/s",
    "ratio",
    "goal",
    "server µs",
    "ratio of 1/µs",
    "Redis µs",
    "commands",
    "p50 ms",
    "p99 ms",
];
const ROUNDS_MAX: usize = 5;
const COUNTED: u64 = 100;
