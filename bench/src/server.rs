//! A server process, on a dedicated core.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use axum::serve::ListenerExt;
use clap::Args;
use tokio::net::TcpListener;

use crate::instructions::Counter;
use crate::{Measured, actix, app, machine};

/// The flags of a server process.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Flags {
    /// The URL of the layer's store; without one there is no layer.
    #[arg(long)]
    store: Option<String>,
    /// The longest wait of a duplicate, in milliseconds.
    #[arg(long, default_value_t = 0)]
    wait_ms: u64,
    /// Stay on this core.
    #[arg(long)]
    core: Option<usize>,
    /// Serve with actix-web.
    #[arg(long)]
    actix: bool,
}

/// The framework that a server is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framework {
    Axum,
    Actix,
}

/// Serves until killed.
pub(crate) fn run(flags: &Flags) -> Measured<()> {
    if let Some(core) = flags.core {
        machine::stay_on(core);
    }
    let workers = if flags.core.is_some() { 1 } else { 2 };
    let wait = Duration::from_millis(flags.wait_ms);
    if flags.actix {
        let store = flags.store.as_deref();
        return actix::serve(store.map(|it| app::engine(it, wait)).transpose()?, workers);
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    runtime.block_on(async {
        let gate = app::Gate::default();
        let router = match &flags.store {
            None => app::routes(gate),
            Some(store) => app::protected(&app::engine(store, wait)?, gate),
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        println!("{}", listener.local_addr()?);
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        // In a task, for the thread that waits here is none of the runtime's.
        Ok(tokio::spawn(axum::serve(listener, router).into_future()).await??)
    })
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// With the layer, on axum.
    pub(crate) fn protected(store: &str, wait_ms: u64, core: Option<usize>) -> Measured<Self> {
        Self::start(&["--store", store, "--wait-ms", &wait_ms.to_string()], core)
    }

    /// With the layer of this framework, where there is a store for it, on the core of what is
    /// measured.
    pub(crate) fn of(framework: Framework, store: Option<&str>) -> Measured<Self> {
        let mut flags: Vec<_> = store.iter().flat_map(|store| ["--store", *store]).collect();
        if framework == Framework::Actix {
            flags.push("--actix");
        }
        Self::start(&flags, Some(machine::MEASURED))
    }

    /// With the layer or without it, and its instructions counted.
    pub(crate) fn counted(store: Option<&str>, counter: &Counter) -> Measured<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--core", "0"]);
        if let Some(store) = store {
            command.args(["--store", store]);
        }
        Self::launch(counter.wrap(&command))
    }

    /// Processor time that it has had, in seconds.
    pub(crate) fn cpu_seconds(&self) -> Measured<f64> {
        Ok(machine::cpu_seconds(self.child.id())?)
    }

    fn start(flags: &[&str], core: Option<usize>) -> Measured<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").args(flags);
        if let Some(core) = core {
            command.args(["--core", &core.to_string()]);
        }
        Self::launch(command)
    }

    /// Starts a program that prints its address once it listens.
    pub(crate) fn launch(mut command: Command) -> Measured<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let unknown = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let mut server = Self { child, address: unknown };
        server.address = line.trim().parse()?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        machine::end(&mut self.child);
    }
}
