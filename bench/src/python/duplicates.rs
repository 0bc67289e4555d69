//! The number of executions of operations whose duplicates arrive all at once.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::load;
use crate::redis_server::RedisServer;
use crate::report::{Report, Table, count};
use crate::server::Server;
use crate::{Effort, Measured};

use super::{Front, Python};

/// Adds the table.
pub(crate) fn measure(_: Effort, report: &mut Report) -> Measured<()> {
    let python = Python::find()?;
    let redis = RedisServer::start()?;
    let mut table = Table::new(
        "Executions of operations whose duplicates come at once",
        format!(
            "Two processes, {KEYS} keys, each sent {EACH} times at once, by turns to both.\n\
             Baseline and goal: one execution for each key.",
        ),
        &["", "executions", "goal", "too many"],
    );
    let url = redis.url();
    for (name, front, store) in [
        ("original, memory", Front::Original, "memory:"),
        ("original, RedisBackend", Front::Original, &url.replacen("redis", "redis+sync", 1)),
        ("original, AsyncRedisBackend", Front::Original, &url),
        ("decorator, Redis", Front::Decorator, &url),
        ("middleware, Redis", Front::Middleware, &url),
    ] {
        redis.flush()?;
        let servers = [python.serve(front, store, 0, None)?, python.serve(front, store, 0, None)?];
        load::at_once([servers[0].address, servers[1].address], KEYS, EACH)?;
        let executions = executions(&servers[0])? + executions(&servers[1])?;
        table.row([
            name.to_owned(),
            count(executions),
            count(KEYS as f64),
            format!("{:.1} %", (executions / KEYS as f64 - 1.0) * 100.0),
        ]);
    }
    report.add(&table);
    Ok(())
}

/// Asks a server for the number of executions in its process.
fn executions(server: &Server) -> Measured<f64> {
    let mut stream = TcpStream::connect(server.address)?;
    stream.write_all(b"GET /executions HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("the server hung up")?;
    Ok(body.trim().parse()?)
}

const KEYS: u64 = 1500;
const EACH: usize = 9;
