//! The command line.

use std::error::Error;
use std::io::{self, Write as _};
use std::mem::ManuallyDrop;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Admin, Config, OnAmbiguous, Origin, Protection};
use crate::error::error_text;
use crate::keys::KeysCommand;
use crate::logging;
use crate::openapi::OpenApiArgs;
use crate::serve::Gateway;

/// Makes any HTTP service safe to retry.
#[derive(Debug, Parser)]
#[command(name = "idemptx", version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the gateway in front of a service.
    ServeArgs(ServeArgs),
    /// Checks a configuration and its store, and prints what is in force.
    Check(ServeArgs),
    /// Lists and decides about records in a store.
    KeysCommand(KeysCommand),
    /// Adds to an OpenAPI document what clients have to know about keys.
    Openapi(OpenApiArgs),
    /// Shows the gateway in front of a service that knows nothing of retries.
    DemoArgs(DemoArgs),
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Where to listen; any port if somebody is there already.
    #[arg(long, value_name = "ADDRESS", value_parser = address, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where records are kept.
    #[arg(long, value_name = "URL", default_value = "sqlite:idemptx-demo.db")]
    store: String,
    /// End after the scene, also in a terminal.
    #[arg(long)]
    scene_only: bool,
}

/// What is served: by flags, or by a file.
#[derive(Debug, Args)]
struct ServeArgs {
    /// The configuration file; the other flags are for the simple case.
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "upstream", "listen", "store", "profile", "policy", "on_ambiguous",
    ])]
    config: Option<PathBuf>,
    /// The service that requests go to.
    #[arg(long, value_name = "URL", value_parser = Origin::parse)]
    #[arg(required_unless_present = "config")]
    upstream: Option<Origin>,
    /// Where clients come in; port 0 is a free one.
    #[arg(long, value_name = "ADDRESS", value_parser = address, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where records are kept: memory:, sqlite:PATH, redis://…, postgres://…; `${NAME}` is a
    /// variable of the environment.
    #[arg(long, value_name = "URL", default_value = "sqlite:idemptx.db")]
    store: String,
    /// Where operators come in; other than a loopback address it wants `IDEMPTX_ADMIN_TOKEN`.
    #[arg(long, value_name = "ADDRESS", value_parser = address, conflicts_with = "config")]
    admin: Option<SocketAddr>,
    /// The policy to start from: draft, stripe, payments or idemptx.
    #[arg(long, value_name = "NAME", default_value = "draft")]
    profile: idemptx::Profile,
    /// A JSON object laid over the profile.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    policy: String,
    /// What becomes of an operation whose answer was lost.
    #[arg(long, value_name = "WORD", value_enum, default_value = "unknown")]
    on_ambiguous: OnAmbiguous,
}

impl ServeArgs {
    fn config(self) -> Result<Config, Box<dyn Error>> {
        match (self.config, self.upstream) {
            (Some(file), _) => Ok(Config::load(&file)?),
            (None, Some(upstream)) => {
                let (profile, policy) = (self.profile, &self.policy);
                if policy.contains("\"on_panic\"") {
                    return Err("--policy: `on_panic` is --on-ambiguous here".into());
                }
                let protection = Protection::from_json(profile, policy, self.on_ambiguous)?;
                let variable = |name: &str| std::env::var(name).ok();
                let store = crate::config::expanded(&self.store, &variable)
                    .map_err(|it| format!("--store: {it}"))?;
                let mut config = Config::simple(self.listen, upstream, store, Some(protection));
                config.admin = self.admin.map(admin).transpose()?;
                Ok(config)
            }
            (None, None) => Err("give --upstream or --config".into()),
        }
    }
}

/// A place for operators, with the token that it needs unless only this host can reach it.
fn admin(address: SocketAddr) -> Result<Admin, &'static str> {
    let token = std::env::var("IDEMPTX_ADMIN_TOKEN").ok().filter(|token| !token.is_empty());
    if token.is_none() && !address.ip().is_loopback() {
        return Err("whoever reaches --admin could read and free keys: set IDEMPTX_ADMIN_TOKEN");
    }
    Ok(Admin { address, token })
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let line = CommandLine::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        // Not taken apart at the end: a connection to an upstream could go before the request on
        // it, which would be taken for lost, and its claim given up, where it is to lapse.
        Ok(runtime) => ManuallyDrop::new(runtime),
        Err(error) => return print_error(&error, ExitCode::FAILURE),
    };
    let ended = match line.command {
        Command::ServeArgs(serve) => runtime.block_on(self::serve(serve)),
        Command::Check(serve) => runtime.block_on(check(serve)),
        Command::KeysCommand(keys) => {
            let ended = runtime.block_on(keys.run());
            Ok(ended.unwrap_or_else(|error| print_error(&*error, ExitCode::FAILURE)))
        }
        Command::Openapi(openapi) => openapi.run(),
        Command::DemoArgs(demo) => runtime.block_on(run_demo(demo)),
    };
    ended.unwrap_or_else(|error| print_error(&*error, USAGE.into()))
}

async fn serve(flags: ServeArgs) -> Result<ExitCode, Box<dyn Error>> {
    let file = flags.config.clone();
    let config = flags.config()?;
    logging::init(config.log);
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let secure: Vec<_> = config.listeners.iter().map(|it| it.tls.is_some()).collect();
    let gateway = Gateway::start(config).await?;
    let admin = gateway.admin_address();
    for (address, secure) in gateway.addresses().iter().zip(secure) {
        let scheme = if secure { "https" } else { "http" };
        writeln!(io::stdout(), "listening on {scheme}://{address}")?;
    }
    if let Some(address) = admin {
        writeln!(io::stdout(), "operators on http://{address}")?;
    }
    loop {
        tokio::select! {
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
            _ = hung_up.recv() => match &file {
                Some(file) => reload(&gateway, file).await,
                None => tracing::warn!("nothing to reload: started without --config"),
            },
        }
    }
    gateway.drain().await;
    Ok(ExitCode::SUCCESS)
}

async fn check(flags: ServeArgs) -> Result<ExitCode, Box<dyn Error>> {
    let report = crate::check::check(&flags.config()?).await?;
    write!(io::stdout(), "{}", report.text)?;
    Ok(if report.is_usable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run_demo(flags: DemoArgs) -> Result<ExitCode, Box<dyn Error>> {
    let held = crate::demo::play(flags.listen, &flags.store, flags.scene_only).await?;
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn reload(gateway: &Gateway, file: &Path) {
    let reloaded: Result<(), Box<dyn Error>> = async {
        let config = Config::load(file)?;
        Ok(gateway.reload(&config).await?)
    }
    .await;
    match reloaded {
        Ok(()) => tracing::info!("reloaded {}", file.display()),
        Err(error) => tracing::error!("kept the former configuration: {}", error_text(&*error)),
    }
}

fn print_error(error: &dyn Error, code: ExitCode) -> ExitCode {
    // Nobody is left to hear that stderr is closed.
    let _ = writeln!(io::stderr(), "error: {}", error_text(error));
    code
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut addresses = text.to_socket_addrs().map_err(|error| error.to_string())?;
    addresses.next().ok_or_else(|| "it names no address".to_owned())
}

/// What clap ends with, too.
const USAGE: u8 = 2;
