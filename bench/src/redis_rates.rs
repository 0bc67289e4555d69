//! The rates at which the Redis store claims and settles, against the bare commands.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use idemptx::store::redis::RedisStore;
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::lease::Token;
use idemptx_core::record::State;
use idemptx_core::store::{Claim, ClaimRequest, Settlement, Store};
use redis::aio::MultiplexedConnection;

use crate::in_process::on_one_thread;
use crate::redis_server::RedisServer;
use crate::report::{Report, Table, count, ratio};
use crate::series::in_turns;
use crate::{Effort, Measured};

/// Adds the table.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    let redis = RedisServer::start()?;
    let mut table = Table::new(
        "Claims through the Redis store",
        "Baseline: the same commands through the same client library on one multiplexed \
         connection, with a name and a value of the same length, in the same round; the trivial \
         script is a `GET`, a comparison and a `SET`.\n\
         The client has one thread on core 0, Redis is on core 1.\n\
         Goal: claim and settlement at 0.85 of the bare two commands.",
        &["", "tasks", "a second", "over SET", "over SET + SET", "over SET + script"],
    );
    let steps = [Step::Set, Step::SetSet, Step::SetScript, Step::Claim, Step::ClaimSettle];
    for tasks in [64, 256] {
        let series = in_turns(effort.rounds.div_ceil(2), &steps, |step| {
            redis.flush()?;
            let (url, step, window) = (redis.url(), *step, effort.window);
            Ok([on_one_thread(move || rate(url, step, tasks, window))?])
        })?;
        for (step, [rate]) in steps.iter().zip(&series) {
            let relative = |base: usize| ratio(rate.relative_to(&series[base][0]).median());
            let one = matches!(step, Step::Set | Step::Claim);
            let unless = |skip: bool, text: String| if skip { String::new() } else { text };
            table.row([
                step.name().to_owned(),
                tasks.to_string(),
                count(rate.median()),
                unless(!one, relative(0)),
                unless(one, relative(1)),
                unless(one, relative(2)),
            ]);
        }
    }
    report.add(&table);
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Set,
    SetSet,
    SetScript,
    Claim,
    ClaimSettle,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Set => "bare SET NX GET",
            Self::SetSet => "bare SET NX GET + SET",
            Self::SetScript => "bare SET NX GET + script",
            Self::Claim => "claim",
            Self::ClaimSettle => "claim + settle",
        }
    }
}

async fn rate(url: String, step: Step, tasks: u32, window: Duration) -> Measured<f64> {
    let store = Arc::new(RedisStore::connect(&*url).await?);
    let connection = redis::Client::open(&*url)?.get_multiplexed_async_connection().await?;
    let script: String =
        redis::cmd("SCRIPT").arg("LOAD").arg(TRIVIAL).query_async(&mut connection.clone()).await?;
    let script: Arc<str> = script.into();
    let done = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let running: Vec<_> = (0..tasks)
        .map(|_| {
            let (store, connection) = (store.clone(), connection.clone());
            let (script, done) = (script.clone(), done.clone());
            tokio::spawn(async move {
                let told = |error: Box<dyn std::error::Error>| error.to_string();
                while began.elapsed() < window {
                    let number = done.fetch_add(1, Ordering::Relaxed);
                    match step {
                        Step::Claim | Step::ClaimSettle => {
                            claimed(&store, number, step).await.map_err(told)?;
                        }
                        _ => bare(connection.clone(), &script, number, step).await.map_err(told)?,
                    }
                }
                Ok::<_, String>(())
            })
        })
        .collect();
    for task in running {
        task.await??;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

async fn claimed(store: &RedisStore, number: u64, step: Step) -> Measured<()> {
    let claim_request = claim_request(number);
    let Claim::Granted(lease) = store.claim(&id(number), &claim_request).await? else {
        return Err("a claim was not granted".into());
    };
    if matches!(step, Step::ClaimSettle) {
        let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
        store.settle(&lease, &Settlement::new(State::Completed, payload, DAY, DAY)).await?;
    }
    Ok(())
}

async fn bare(
    mut connection: MultiplexedConnection,
    script: &str,
    number: u64,
    step: Step,
) -> Measured<()> {
    let name = format!("bare:{{{}}}", id(number));
    let (claim, done) = ([b'c'; CLAIM_BYTES], [b'd'; CLAIM_BYTES + PAYLOAD_BYTES]);
    let retain = DAY.as_millis().to_string();
    let mut set = redis::cmd("SET");
    set.arg(&name).arg(&claim).arg("NX").arg("GET").arg("PX").arg(&retain);
    set.query_async::<redis::Value>(&mut connection).await?;
    let mut settle = match step {
        Step::SetSet => redis::cmd("SET"),
        Step::SetScript => redis::cmd("EVALSHA"),
        _ => return Ok(()),
    };
    if matches!(step, Step::SetSet) {
        settle.arg(&name).arg(&done).arg("PX").arg(&retain);
    } else {
        settle.arg(script).arg(1).arg(&name).arg(&claim).arg(&done).arg(&retain);
    }
    settle.query_async::<redis::Value>(&mut connection).await?;
    Ok(())
}

/// A claim request that no other is equal to.
pub(crate) fn claim_request(number: u64) -> ClaimRequest {
    let mut token = [0; Token::BYTES];
    token[..8].copy_from_slice(&number.to_be_bytes());
    ClaimRequest::new(
        Token::from_bytes(token),
        Fingerprint::unchecked(),
        Duration::from_secs(15),
        DAY,
    )
}

/// A name that no other is equal to, its bits as random as those of a hash.
pub(crate) fn id(number: u64) -> RecordId {
    let mut bytes = [0; RecordId::BYTES];
    let mut state = number;
    for part in bytes.chunks_mut(8) {
        // SplitMix64.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        part.copy_from_slice(&(mixed ^ (mixed >> 31)).to_be_bytes());
    }
    RecordId::from_bytes(bytes)
}

pub(crate) const DAY: Duration = Duration::from_secs(86_400);
pub(crate) const PAYLOAD_BYTES: usize = 300;
/// The size of a record without its payload.
const CLAIM_BYTES: usize = 143;
const TRIVIAL: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end \
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) return 1";
