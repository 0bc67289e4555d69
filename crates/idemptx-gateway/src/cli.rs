//! The command line.

pub(crate) mod examples;

use std::error::Error;
use std::io::{self, Write as _};
use std::mem::ManuallyDrop;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use idemptx::store::SafetyCheck as _;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Admin, Config, ListenAddress, OnAmbiguous, Origin, Protection, Store};
use crate::error::error_text;
use crate::keys::KeysCommand;
use crate::logging;
use crate::openapi::OpenApiArgs;
use crate::serve::Gateway;
use crate::systemd::Supervisor;
use crate::workers::Workers;

/// Makes any HTTP service safe to retry.
#[derive(Debug, Parser)]
#[command(name = "idemptx", version, after_help = examples::IDEMPTX)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the gateway in front of a service.
    #[command(after_help = examples::SERVE)]
    Serve(ServeArgs),
    /// Runs the external processor for Envoy's filter `ext_proc`.
    #[command(after_help = examples::EXT_PROC)]
    ExtProc(ExtProcArgs),
    /// Checks a configuration and its store, and prints the effective settings.
    #[command(after_help = examples::CHECK)]
    Check(ServeArgs),
    /// Prepares the store for this release, such as PostgreSQL's tables, and exits.
    #[command(after_help = examples::MIGRATE)]
    Migrate(MigrateArgs),
    /// Lists and resolves records in a store.
    Keys(Box<KeysCommand>),
    /// Documents idempotency keys in an OpenAPI document.
    #[command(after_help = examples::OPENAPI)]
    Openapi(OpenApiArgs),
    /// Runs the gateway in front of an example service and sends it retries.
    #[command(after_help = examples::DEMO)]
    Demo(DemoArgs),
    /// Prints a script that completes the command line in a shell.
    #[command(after_help = examples::COMPLETIONS)]
    Completions(CompletionsArgs),
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// The address to listen on; a free port is used if it is taken.
    #[arg(long, value_name = "ADDRESS", value_parser = address, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The store of the records.
    #[arg(long, value_name = "URL", default_value = "sqlite:idemptx-demo.db")]
    store: String,
    /// Exits after the scenario, also in a terminal.
    #[arg(long)]
    scene_only: bool,
}

#[derive(Debug, Args)]
struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// The configuration of the processor.
#[derive(Debug, Args)]
struct ExtProcArgs {
    /// The configuration file, with a section `[ext_proc]`.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// The store to prepare.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("where").args(["config", "store"]).required(true))]
struct MigrateArgs {
    /// The gateway's configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The store: sqlite:PATH, redis://…, postgres://…; `${NAME}` is replaced by an environment
    /// variable.
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

/// The configuration to serve, from flags or a file.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").args(["config", "upstream"]).required(true))]
struct ServeArgs {
    /// The configuration file; the other flags cover the simple case.
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "upstream", "listen", "store", "profile", "policy", "on_ambiguous",
    ])]
    config: Option<PathBuf>,
    /// The service to forward requests to: http://HOST:PORT, https://HOST:PORT or unix:PATH.
    #[arg(long, value_name = "URL", value_parser = Origin::parse)]
    upstream: Option<Origin>,
    /// The address to listen on for clients: HOST:PORT, where port 0 picks a free port, or unix:PATH.
    #[arg(long, value_name = "ADDRESS", value_parser = listen_address)]
    #[arg(default_value = "127.0.0.1:8080")]
    listen: ListenAddress,
    /// The store of the records: memory:, sqlite:PATH, redis://…, postgres://…; `${NAME}` is
    /// replaced by an environment variable.
    #[arg(long, value_name = "URL", default_value = "sqlite:idemptx.db")]
    store: String,
    /// Admin address (inspector, metrics), as for --listen; requires `IDEMPTX_ADMIN_TOKEN` unless it
    /// is loopback or a Unix socket.
    #[arg(long, value_name = "ADDRESS", value_parser = listen_address, conflicts_with = "config")]
    admin: Option<ListenAddress>,
    /// The policy profile: draft, stripe, payments, idemptx, acp, ucp or iceberg.
    #[arg(long, value_name = "NAME", default_value = "draft")]
    profile: idemptx::Profile,
    /// Policy fields that override the profile, as a JSON object.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    policy: String,
    /// The state of an operation whose response was lost: unknown, or released for a retry.
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
                    return Err("--policy: use --on-ambiguous instead of `on_panic`".into());
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

/// Returns the admin listener's settings, with the token that a non-loopback address requires.
fn admin(address: ListenAddress) -> Result<Admin, &'static str> {
    let token = std::env::var("IDEMPTX_ADMIN_TOKEN").ok().filter(|token| !token.is_empty());
    if token.is_none() && !address.is_local() {
        return Err("--admin on a non-loopback address requires a token: set IDEMPTX_ADMIN_TOKEN");
    }
    Ok(Admin { address, socket_mode: None, token })
}

/// Runs the command line's command and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let line = CommandLine::parse();
    let runtime = match Builder::new_current_thread().enable_all().build() {
        // Never dropped: shutting the runtime down could close an upstream connection before the
        // request on it, which would then count as lost and release a claim that must lapse
        // instead.
        Ok(runtime) => ManuallyDrop::new(runtime),
        Err(error) => return print_error(&error, ExitCode::FAILURE),
    };
    let ended = match line.command {
        Command::Serve(flags) => runtime.block_on(async {
            let file = flags.config.clone();
            let config = flags.config()?.into_gateway().ok_or(NO_LISTENER)?;
            serve(config, file, Config::into_gateway).await
        }),
        Command::ExtProc(ExtProcArgs { config: file }) => runtime.block_on(async {
            let config = Config::load(&file)?.into_ext_proc().ok_or(NO_EXT_PROC)?;
            serve(config, Some(file), Config::into_ext_proc).await
        }),
        Command::Check(serve) => runtime.block_on(check(serve)),
        Command::Migrate(migrate) => runtime.block_on(self::migrate(migrate)),
        Command::Keys(keys) => {
            let ended = runtime.block_on(keys.run());
            Ok(ended.unwrap_or_else(|error| print_error(&*error, ExitCode::FAILURE)))
        }
        Command::Openapi(openapi) => openapi.run(),
        Command::Demo(demo) => runtime.block_on(run_demo(demo)),
        Command::Completions(CompletionsArgs { shell }) => print_completions(shell),
    };
    let code = ended.unwrap_or_else(|error| print_error(&*error, USAGE.into()));
    logging::flush();
    code
}

/// Serves until a signal ends it; a reload takes of the `file` what `part` leaves of it.
async fn serve(
    config: Config,
    file: Option<PathBuf>,
    part: fn(Config) -> Option<Config>,
) -> Result<ExitCode, Box<dyn Error>> {
    logging::init(config.log);
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let secure: Vec<_> = config.listeners.iter().map(|it| it.tls.is_some()).collect();
    let ext_proc_tls = config.ext_proc.as_ref().is_some_and(|it| it.tls.is_some());
    let gateway = Gateway::start_on(Workers::start()?, config).await?;
    for (address, secure) in gateway.addresses().iter().zip(secure) {
        writeln!(io::stdout(), "listening on {}", address.url(secure))?;
    }
    if let Some(address) = gateway.admin_address() {
        writeln!(io::stdout(), "operators on {}", address.url(false))?;
    }
    if let Some(address) = gateway.ext_proc_address() {
        let scheme = if ext_proc_tls { "grpcs" } else { "grpc" };
        writeln!(io::stdout(), "listening on {scheme}://{address}")?;
    }
    log_start(&gateway);
    let supervisor = Supervisor::from_environment();
    supervisor.ready();
    let mut by_hand = false;
    loop {
        tokio::select! {
            _ = terminated.recv() => break,
            _ = interrupted.recv() => {
                by_hand = true;
                break;
            }
            _ = hung_up.recv() => match &file {
                Some(file) => reload(&gateway, file, part).await,
                None => tracing::warn!("nothing to reload: the gateway was started without --config"),
            },
        }
    }
    supervisor.stopping();
    let lame_duck = gateway.announce_end();
    let drained = async {
        if !by_hand && !lame_duck.is_zero() {
            tracing::info!(
                "about to end: probes are told, connections are accepted for {lame_duck:?} more"
            );
            tokio::time::sleep(lame_duck).await;
        }
        tracing::info!("draining: no further connections, requests in flight are finished");
        if gateway.drain().await {
            tracing::info!("drained");
        }
    };
    tokio::select! {
        () = drained => Ok(ExitCode::SUCCESS),
        _ = terminated.recv() => Ok(ended_at_once()),
        _ = interrupted.recv() => Ok(ended_at_once()),
    }
}

/// Logs the beginning, so that a restart can be found in the log.
fn log_start(gateway: &Gateway) {
    let version = env!("CARGO_PKG_VERSION");
    if let Some(address) = gateway.ext_proc_address() {
        tracing::info!("idemptx {version} serves Envoy on {address}");
        return;
    }
    let addresses: Vec<_> = gateway.addresses().iter().map(ToString::to_string).collect();
    tracing::info!("idemptx {version} serves clients on {}", addresses.join(", "));
}

/// The operator does not want to wait: what is in flight keeps its claim, which will lapse.
fn ended_at_once() -> ExitCode {
    tracing::warn!("ended at once by a second signal; claims of requests in flight will lapse");
    ExitCode::FAILURE
}

async fn check(flags: ServeArgs) -> Result<ExitCode, Box<dyn Error>> {
    let mut config = flags.config()?;
    if config.listeners.is_empty() {
        config = config.into_ext_proc().ok_or(NO_EXT_PROC)?;
    }
    let report = crate::check::check(&config).await?;
    write!(io::stdout(), "{}", report.text)?;
    Ok(if report.is_usable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn migrate(flags: MigrateArgs) -> Result<ExitCode, Box<dyn Error>> {
    let store = match (flags.config, flags.store) {
        (Some(file), _) => Config::load(&file)?.store,
        (None, Some(url)) => {
            let variable = |name: &str| std::env::var(name).ok();
            Store::new(crate::config::expanded(&url, &variable)?)
        }
        (None, None) => return Err("give --config or --store".into()),
    };
    let store = crate::store::open(&Store { near_bytes: 0, ..store })?;
    Ok(match store.migrate().await {
        Ok(()) => {
            writeln!(io::stdout(), "the store is ready for idemptx {}", env!("CARGO_PKG_VERSION"))?;
            ExitCode::SUCCESS
        }
        Err(error) => print_error(&error, ExitCode::FAILURE),
    })
}

fn print_completions(shell: Shell) -> Result<ExitCode, Box<dyn Error>> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "idemptx", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

async fn run_demo(flags: DemoArgs) -> Result<ExitCode, Box<dyn Error>> {
    let held = crate::demo::play(flags.listen, &flags.store, flags.scene_only).await?;
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn reload(gateway: &Gateway, file: &Path, part: fn(Config) -> Option<Config>) {
    let reloaded: Result<(), Box<dyn Error>> = async {
        let config = Config::load(file).inspect_err(|_| gateway.note_unreadable())?;
        let config = part(config).ok_or_else(|| {
            gateway.note_unreadable();
            "a section that this command needs is gone"
        })?;
        Ok(gateway.reload(&config).await?)
    }
    .await;
    match reloaded {
        Ok(()) => tracing::info!("configuration reloaded: {}", file.display()),
        Err(error) => tracing::error!(
            "reload failed, the previous configuration stays in force: {}",
            error_text(&*error)
        ),
    }
}

fn print_error(error: &dyn Error, code: ExitCode) -> ExitCode {
    // Writing fails only if stderr is closed; then there is no place left to report it.
    let _ = writeln!(io::stderr(), "error: {}", error_text(error));
    code
}

/// Parses an address to listen on; a name is resolved.
fn listen_address(text: &str) -> Result<ListenAddress, String> {
    match text.parse() {
        Err(_) if text.contains(':') && !text.starts_with("unix:") => {
            address(text).map(ListenAddress::Tcp)
        }
        parsed => parsed.map_err(str::to_owned),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut addresses = text.to_socket_addrs().map_err(|error| error.to_string())?;
    addresses.next().ok_or_else(|| "the name has no address".to_owned())
}

const NO_LISTENER: &str = "there is no [[listener]]; for Envoy run `idemptx ext-proc`";
const NO_EXT_PROC: &str = "there is no section [ext_proc]";
/// The exit code that clap uses for usage errors as well.
const USAGE: u8 = 2;

#[cfg(test)]
mod tests;
