//! The cost of the layer to a server, over sockets.

use crate::load::{self, Keys};
use crate::redis_server::RedisServer;
use crate::report::{Report, Table, count, ratio, small};
use crate::series::in_turns;
use crate::server::{Framework, Server};
use crate::{Effort, Measured};

/// Adds the table.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    let redis = RedisServer::start()?;
    let url = redis.url();
    let variants = [
        ("axum alone", None, Keys::Fresh, "1.00"),
        ("layer, request without a key", Some("memory:"), Keys::None, "-"),
        ("layer, memory, new", Some("memory:"), Keys::Fresh, "0.75"),
        ("layer, memory, hit", Some("memory:"), Keys::Used, "0.90"),
        ("layer, Redis, new", Some(url.as_str()), Keys::Fresh, "0.50"),
        ("layer, Redis, hit", Some(url.as_str()), Keys::Used, "0.75"),
    ];
    compare(
        "A server with the layer, over sockets",
        "Baseline: the same axum server without the layer, in the same round.\n\
         The server has one worker thread on core 0; the client (32 keep-alive connections) and \
         Redis share core 1, so that a rate over Redis can be theirs: then the processor time \
         tells.\n\
         Requests have 200 bytes, answers 300; the handler does nothing else.",
        Framework::Axum,
        &variants,
        &redis,
        effort,
        report,
    )
}

/// A row: its name, where the server's layer keeps records if it has one, which keys the requests
/// carry, and the goal.
pub(crate) type Variant<'a> = (&'static str, Option<&'a str>, Keys, &'static str);

/// Adds a table of variants, of which the first is the baseline.
pub(crate) fn compare(
    title: &'static str,
    about: &'static str,
    framework: Framework,
    variants: &[Variant<'_>],
    redis: &RedisServer,
    effort: Effort,
    report: &mut Report,
) -> Measured<()> {
    let series = in_turns(effort.rounds, variants, |(_, store, keys, _)| {
        redis.flush()?;
        let server = Server::of(framework, *store)?;
        if *keys == Keys::Used {
            load::prepare(server.address, load::ORDER)?;
        }
        load::run(server.address, load::ORDER, *keys, effort.window / 5)?;
        let before = server.cpu_seconds()?;
        let done = load::run(server.address, load::ORDER, *keys, effort.window)?;
        let cpu = (server.cpu_seconds()? - before) * 1e6 / done.requests;
        Ok([done.requests / done.seconds, cpu])
    })?;
    let mut table = Table::new(
        title,
        about,
        &["", "requests/s", "ratio", "goal", "server µs/request", "ratio of 1/µs"],
    );
    let [base_rate, base_cpu] = &series[0];
    for ((name, .., goal), [rate, cpu]) in variants.iter().zip(&series) {
        table.row([
            (*name).to_owned(),
            count(rate.median()),
            ratio(rate.relative_to(base_rate).median()),
            (*goal).to_owned(),
            small(cpu.median()),
            ratio(base_cpu.relative_to(cpu).median()),
        ]);
    }
    report.add(&table);
    Ok(())
}
