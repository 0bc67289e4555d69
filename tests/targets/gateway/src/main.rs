//! The target application with the gateway in front of it.
//!
//! It starts the gateway in front of a private `plain`, which knows nothing of keys.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program under test: it prints, and ends at a failure"
)]

use std::error::Error;
use std::io;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use clap::Parser;
use idemptx::{Policy, Profile};
use idemptx_gateway::config::{Config, Forwarded, OnAmbiguous, Origin, Protection};
use idemptx_gateway::logging;
use idemptx_gateway::serve::Gateway;
use serde_json::Value;
use target_axum::flags::Flags;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let flags = Flags::parse();
    let protection = match protection(&flags) {
        Ok(protection) => protection,
        Err(error) => return failed(&*error, 2),
    };
    let runtime = match Runtime::new() {
        // As in the gateway itself: what has not ended in time is left as it is.
        Ok(runtime) => ManuallyDrop::new(runtime),
        Err(error) => return failed(&error, 1),
    };
    match runtime.block_on(run(&flags, protection)) {
        Err(error) => failed(&*error, 1),
        Ok(()) => ExitCode::SUCCESS,
    }
}

/// Translates the flags into a gateway's protection.
fn protection(flags: &Flags) -> Result<Option<Protection>, Box<dyn Error>> {
    // Refused before anything is started, as a policy is.
    idemptx::store::AnyStore::from_url(&flags.store)?;
    let profile: Profile = flags.profile.parse()?;
    // What the others do when a handler breaks down is done here when it does not answer.
    let on_ambiguous = match Policy::from_json(profile, &flags.policy)?.on_panic.as_str() {
        "release" => OnAmbiguous::Release,
        _ => OnAmbiguous::Unknown,
    };
    let mut protection =
        Protection::from_json(profile, &policy(profile, &flags.policy)?, on_ambiguous)?;
    protection.forward = vec![Forwarded::Attempt, Forwarded::Fence, Forwarded::Derived];
    protection.derive = "charge".to_owned();
    Ok((!flags.unprotected).then_some(protection))
}

/// A large body is refused and no key is bound to the host unless something else is said, as it is
/// by the others.
fn policy(profile: Profile, text: &str) -> Result<String, Box<dyn Error>> {
    let mut policy: Value = serde_json::from_str(text)?;
    if let Some(policy) = policy.as_object_mut() {
        // `on_ambiguous` says it here.
        policy.remove("on_panic");
        policy.entry("on_large_body").or_insert_with(|| "reject".into());
        let usual: Value = serde_json::from_str(&Policy::profile(profile).to_json())?;
        if !usual["scope"].is_null() {
            policy.entry("scope").or_insert_with(|| usual["scope"].clone());
        }
    }
    Ok(policy.to_string())
}

async fn run(flags: &Flags, protection: Option<Protection>) -> Result<(), Box<dyn Error>> {
    let upstream = plain(flags).await?;
    let mut config = Config::simple(flags.listen, upstream, flags.store.clone(), protection);
    // The others are in the empty namespace, and share their records.
    config.upstreams.iter_mut().for_each(|upstream| upstream.name.clear());
    config.routes.iter_mut().for_each(|route| route.upstream.clear());
    logging::init(config.log);
    let mut terminated = signal(SignalKind::terminate())?;
    let gateway = Gateway::start(config).await?;
    for address in gateway.addresses() {
        println!("listening on http://{address}");
    }
    terminated.recv().await;
    gateway.drain().await;
    Ok(())
}

/// Starts an unprotected application, which ends with this process: not before, or the gateway
/// would see the requests that it has cut off fail.
async fn plain(flags: &Flags) -> Result<Origin, Box<dyn Error>> {
    let program = std::env::current_exe()?.with_file_name("plain");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program).args(["--listen", "127.0.0.1:0"]);
    if let Some(journal) = &flags.journal {
        command.arg("--journal").arg(PathBuf::from(journal));
    }
    let mut plain = command.stdout(Stdio::piped()).spawn()?;
    let stdout = plain.stdout.take().ok_or_else(|| io::Error::other("no stdout"))?;
    let line = BufReader::new(stdout).lines().next_line().await?.unwrap_or_default();
    let url = line.strip_prefix("listening on ").ok_or("the application does not start")?;
    Ok(Origin::parse(url)?)
}

fn failed(error: &dyn Error, code: u8) -> ExitCode {
    eprint!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprint!(": {error}");
        cause = error.source();
    }
    eprintln!();
    ExitCode::from(code)
}
