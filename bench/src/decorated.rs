//! The gain of a near cache in front of a store, and the cost of sealed results.

use std::time::Duration;

use bytes::Bytes;
use idemptx::store::AnyStore;
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::lease::Token;
use idemptx_core::record::State;
use idemptx_core::store::{Claim, ClaimRequest, RecordSnapshot, Settlement, Store};

use crate::app::{self, Gate};
use crate::in_process::{call, created, on_one_thread, request};
use crate::load::Keys;
use crate::machine::thread_time;
use crate::over_http;
use crate::redis_server::RedisServer;
use crate::report::{Report, Table, count, ratio, small};
use crate::series::in_turns;
use crate::server::Framework;
use crate::{Effort, Measured};

/// Adds the tables of the near cache.
pub(crate) fn near(effort: Effort, report: &mut Report) -> Measured<()> {
    let redis = RedisServer::start()?;
    let (url, near) = (redis.url(), format!("near+{}", redis.url()));
    let variants = [
        ("axum alone", None, Keys::Fresh, "1.00"),
        ("layer, memory, hit", Some("memory:"), Keys::Used, "-"),
        ("layer, Redis, hit", Some(url.as_str()), Keys::Used, "-"),
        ("layer, Redis, near, hit", Some(near.as_str()), Keys::Used, "0.90"),
        ("layer, Redis, new", Some(url.as_str()), Keys::Fresh, "-"),
        ("layer, Redis, near, new", Some(near.as_str()), Keys::Fresh, "-"),
    ];
    over_http::compare(
        "A server with results near, over sockets",
        "Baseline and circumstances: as in the first table.\n\
         What is near is held for one second, as by default, so that each of the 1,024 keys is \
         asked for once a second.",
        Framework::Axum,
        &variants,
        &redis,
        effort,
        report,
    )?;
    claims(&[("memory", "memory:"), ("near, over Redis", &near), ("Redis", &url)], effort, report)
}

/// Adds the table of claims that find a result, without an engine.
fn claims(stores: &[(&str, &str)], effort: Effort, report: &mut Report) -> Measured<()> {
    let series = in_turns(effort.rounds * 3, stores, |(_, url)| {
        let url = (*url).to_owned();
        Ok([on_one_thread(move || nanos_per_claim(url))?])
    })?;
    let mut table = Table::new(
        "A claim that finds a result, without the engine",
        "Baseline: the memory store.\n\
         One claim after the other, through `AnyStore`, on one thread; processor time of that \
         thread, to which a wait for Redis adds nothing.",
        &["", "ns/claim", "ratio"],
    );
    for ((name, _), [nanos]) in stores.iter().zip(&series) {
        let relative = nanos.relative_to(&series[0][0]);
        table.row([(*name).to_owned(), count(nanos.median()), ratio(relative.median())]);
    }
    report.add(&table);
    Ok(())
}

async fn nanos_per_claim(url: String) -> Measured<f64> {
    let store: AnyStore = app::store(&url)?;
    let id = RecordId::from_bytes([7; RecordId::BYTES]);
    let fingerprint =
        Fingerprint { config: 1, digest: [2; 32], binding: [3; 16], operation: [4; 16] };
    let claim_request = |number: u128| {
        ClaimRequest::new(Token::from_bytes(number.to_be_bytes()), fingerprint, HOUR, HOUR)
    };
    // Of the rounds on one server the first settles.
    if let Claim::Granted(lease) = store.claim(&id, &claim_request(1)).await? {
        let payload = Bytes::from_static(app::WISH.as_bytes());
        store.settle(&lease, &Settlement::new(State::Completed, payload, HOUR, HOUR)).await?;
    }
    let claim_request = claim_request(2);
    let began = thread_time();
    for _ in 0..CLAIMS {
        let Claim::Found(RecordSnapshot::Settled(_)) = store.claim(&id, &claim_request).await?
        else {
            return Err("a settled record was not found".into());
        };
    }
    Ok((thread_time() - began).as_nanos() as f64 / f64::from(CLAIMS))
}

/// Adds the table of sealing.
pub(crate) fn sealed(effort: Effort, report: &mut Report) -> Measured<()> {
    let mut table = Table::new(
        "A call of the service with sealed results",
        "Baseline: the same calls with results in the clear, in the same round.\n\
         Memory store, one call after the other on one thread, no sockets; processor time of that \
         thread; the answer is the request's body.\n\
         Text is JSON, which is compressed above 1 KiB; noise is tried and left as it is.",
        &["", "clear µs", "sealed µs", "ratio", "more, µs"],
    );
    let text =
        |bytes: usize| Bytes::from(app::WISH.repeat(bytes / app::WISH.len() + 1)).slice(..bytes);
    for (name, body) in [
        ("200 B of text", text(200)),
        ("8 KiB of text", text(8 << 10)),
        ("8 KiB of noise", noise(8 << 10)),
    ] {
        for (kind, is_hit) in [("new", false), ("hit", true)] {
            let series = in_turns(effort.rounds * 3, &["memory:", "sealed+memory:"], |store| {
                let (store, body) = (*store, body.clone());
                Ok([on_one_thread(move || micros_per_call(store, body, is_hit))?])
            })?;
            let [[clear], [sealed]] = &series[..] else { return Err("two were compared".into()) };
            table.row([
                format!("{kind}, {name}"),
                small(clear.median()),
                small(sealed.median()),
                ratio(sealed.relative_to(clear).median()),
                small(sealed.median() - clear.median()),
            ]);
        }
    }
    report.add(&table);
    Ok(())
}

async fn micros_per_call(store: &str, body: Bytes, is_hit: bool) -> Measured<f64> {
    let router = app::protected(&app::engine(store, Duration::ZERO)?, Gate::default());
    let mut began = thread_time();
    for number in 0..WARM_UP + CALLS {
        if number == WARM_UP {
            began = thread_time();
        }
        let key = if is_hit { 0 } else { number };
        let request = request("/echo", Some(&key.to_string()), body.clone())?;
        created(call(&router, request).await?)?;
    }
    Ok((thread_time() - began).as_secs_f64() * 1e6 / f64::from(CALLS))
}

/// Bytes that no compressor makes smaller.
fn noise(bytes: usize) -> Bytes {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    words.flat_map(u64::to_le_bytes).take(bytes).collect()
}

const CLAIMS: u32 = 2_000;
const WARM_UP: u32 = 100;
const CALLS: u32 = 1_000;
const HOUR: Duration = Duration::from_secs(3600);
