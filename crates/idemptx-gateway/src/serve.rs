//! The running gateway: listeners, connections, and a routing table that can be replaced.

mod client_connections;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idemptx::CheckError;
use idemptx::store::{AnyStore, SafetyCheck, StoreKind};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use crate::error::StartError;
pub use crate::tls::TlsError;
pub use crate::token::TokenError;

use self::client_connections::{ListenerContext, accept};
use crate::admin::{self, AdminService};
use crate::config::{Config, ListenAddress, SOCKET_MODE};
use crate::connection_limit::ConnectionLimit;
use crate::network::{self, Listener, SocketFile};
use crate::proxy::{ExtProcServer, LoggedFindings, RoutingTable};
use crate::recorder::{RecordedStore, Recorder};
use crate::shutdown::ShutdownTrigger;
use crate::workers::Workers;

/// A running gateway.
///
/// # Cancel safety
///
/// Dropping it closes its listeners and connections at once; [`drain`](Self::drain) waits for them.
#[derive(Debug)]
pub struct Gateway {
    addresses: Vec<ListenAddress>,
    /// The files of Unix sockets, which go before the sockets do.
    socket_files: Vec<SocketFile>,
    admin_file: Option<SocketFile>,
    /// The configuration at the start; some sections cannot be reloaded.
    config: Config,
    admin_address: Option<ListenAddress>,
    ext_proc_address: Option<SocketAddr>,
    recorder: Arc<Recorder>,
    /// Runs until the end of the drain, so that operators can watch it.
    operating: JoinSet<()>,
    table: watch::Sender<Arc<RoutingTable>>,
    /// Replaced routing tables that still have requests in flight.
    retired: Mutex<Vec<Arc<RoutingTable>>>,
    logged: LoggedFindings,
    shutdown: ShutdownTrigger,
    accept_tasks: JoinSet<()>,
}

impl Gateway {
    /// Binds the listeners, checks the store and starts to serve in the current runtime; the store
    /// may be unavailable.
    ///
    /// # Errors
    ///
    /// [`StartError`] if an address cannot be bound or the store's URL is invalid.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_on(Workers::default(), config).await
    }

    /// Starts as [`start`](Self::start) does, but serves clients on these threads.
    ///
    /// # Errors
    ///
    /// Those of [`start`](Self::start).
    pub async fn start_on(workers: Workers, config: Config) -> Result<Self, StartError> {
        let store = crate::store::open(&config.store)?;
        Self::start_over(store, workers, config).await
    }

    /// Starts over a store that is open already.
    pub(crate) async fn start_over(
        store: AnyStore,
        workers: Workers,
        config: Config,
    ) -> Result<Self, StartError> {
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let recorder = match &config.admin {
            Some(_) => Recorder::with_admin(config.log),
            None => Recorder::without_admin(config.log),
        };
        let traces = crate::traces::Tracer::start(config.traces.as_ref())?;
        let recorder = Arc::new(recorder.with_traces(traces));
        recorder.readiness().require_store(config.store.required_for_readiness);
        let kind = store.kind();
        let mut store = RecordedStore::new(store, Arc::clone(&recorder));
        if kind == StoreKind::Postgres {
            store = store.in_current_runtime();
        }
        let store = Arc::new(store);
        let table = Arc::new(RoutingTable::new(&config, Arc::clone(&store), None)?);
        let (mut sockets, mut socket_files) = (Vec::new(), Vec::new());
        for listener in &config.listeners {
            let (socket, file) = match listener.inherit {
                true => network::inherited()
                    .map(|socket| (socket, None))
                    .map_err(|error| StartError::Listen(listener.address.clone(), error))?,
                false => bind(&listener.address, listener.socket_mode).await?,
            };
            sockets.push(socket);
            socket_files.extend(file);
        }
        let (admin_socket, admin_file) = match &config.admin {
            Some(admin) => {
                let (socket, file) = bind(&admin.address, admin.socket_mode).await?;
                (Some(socket), file)
            }
            None => (None, None),
        };
        let ext_proc = match &config.ext_proc {
            Some(ext_proc) => Some(ExtProcServer::bind(ext_proc, &config.limits).await?),
            None => None,
        };
        let logged = LoggedFindings::default();
        let connect = || {
            let store = Arc::clone(&store);
            async move { crate::recorder::connect(&store).await }
        };
        tokio::join!(table.check_store(&logged), table.start_key_sets(), workers.on_each(connect),);
        table.start_health_checks();
        let (table, tables) = watch::channel(table);
        let (shutdown, shutdown_watch) = crate::shutdown::channel();
        let limit = ConnectionLimit::new(&config.limits);
        let (mut addresses, mut accept_tasks) = (Vec::new(), JoinSet::new());
        for (number, (listener, socket)) in config.listeners.iter().zip(sockets).enumerate() {
            addresses.push(socket.address().unwrap_or_else(|| listener.address.clone()));
            let context = ListenerContext {
                number,
                listener: listener.clone(),
                tables: tables.clone(),
                shutdown_watch: shutdown_watch.clone(),
                limit: limit.clone(),
                workers: workers.clone(),
            };
            accept_tasks.spawn(accept(socket, Arc::new(context)));
        }
        let ext_proc_address = ext_proc.as_ref().map(ExtProcServer::address);
        if let Some(ext_proc) = ext_proc {
            accept_tasks.spawn(ext_proc.serve(tables.clone(), shutdown_watch, workers));
        }
        let mut admin_tasks = JoinSet::new();
        let mut admin_address = None;
        if let Some((admin, socket)) = config.admin.as_ref().zip(admin_socket) {
            admin_address = Some(socket.address().unwrap_or_else(|| admin.address.clone()));
            let service = Arc::new(AdminService::new(admin, tables, Arc::clone(&recorder)));
            admin_tasks.spawn(admin::listen(socket, service));
        }
        let is_probed = config.admin.is_some()
            || config.ext_proc.is_some()
            || config.listeners.iter().any(|listener| listener.probes);
        if is_probed {
            admin_tasks.spawn(crate::recorder::poll(store));
        }
        Ok(Self {
            addresses,
            socket_files,
            admin_file,
            config,
            admin_address,
            ext_proc_address,
            recorder,
            operating: admin_tasks,
            table,
            retired: Mutex::default(),
            logged,
            shutdown,
            accept_tasks,
        })
    }

    /// The listeners' addresses, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[ListenAddress] {
        &self.addresses
    }

    /// The address of the admin listener, if there is one.
    #[must_use]
    pub const fn admin_address(&self) -> Option<&ListenAddress> {
        self.admin_address.as_ref()
    }

    /// The address of the listener for Envoy, if there is one.
    #[must_use]
    pub const fn ext_proc_address(&self) -> Option<SocketAddr> {
        self.ext_proc_address
    }

    /// Applies a new configuration; requests in flight finish under the previous one.
    ///
    /// # Errors
    ///
    /// [`StartError`] if the configuration cannot be applied; the previous one stays in force.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the previous configuration stays in force.
    pub async fn reload(&self, config: &Config) -> Result<(), StartError> {
        let applied = self.take(config).await;
        self.recorder.reloaded(applied.is_ok());
        applied
    }

    /// Counts a reload that was refused before there was a configuration.
    pub(crate) fn note_unreadable(&self) {
        self.recorder.reloaded(false);
    }

    async fn take(&self, config: &Config) -> Result<(), StartError> {
        if let Some(section) = self.config.restart_section(config) {
            return Err(StartError::RequiresRestart(section));
        }
        let retired = Arc::clone(&self.table.borrow());
        let table =
            Arc::new(RoutingTable::new(config, Arc::clone(&retired.store), Some(&retired))?);
        tokio::join!(table.check_store(&self.logged), table.start_key_sets());
        table.start_health_checks();
        retired.stop_health_checks(Some(&table));
        retired.stop_store_checks();
        let former: Vec<_> = retired.routes.iter().map(|route| route.config.clone()).collect();
        let forgotten = crate::config::forgotten_records(&former, &config.routes);
        for warning in config.warnings.iter().chain(&forgotten) {
            tracing::warn!("{warning}");
        }
        self.table.send_replace(Arc::clone(&table));
        let mut leaving = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.push(retired);
        leaving.retain(|it| Arc::strong_count(it) > 1 || it.in_flight_beside(&table) > 0);
        table.follow(&leaving);
        Ok(())
    }

    /// The store's guarantee, in one line.
    ///
    /// # Errors
    ///
    /// Those of [`Engine::check`](idemptx::Engine::check) for the first protected route.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped and called again.
    pub async fn store_guarantee(&self) -> Result<String, CheckError> {
        let table = Arc::clone(&self.table.borrow());
        match table.routes.iter().find_map(|route| route.engine.as_ref()) {
            Some(engine) => {
                let report = table.store.check().await.map_err(CheckError::Unreachable)?;
                Ok(engine.judge(report)?.guarantee)
            }
            None => Ok(String::new()),
        }
    }

    /// Reports to probes that the gateway is about to end, while it goes on serving, and returns the
    /// time for which a load balancer needs that.
    ///
    /// Zero where no listener answers probes.
    #[must_use]
    pub fn announce_end(&self) -> Duration {
        self.recorder.readiness().start_draining();
        let is_probed = self.config.admin.is_some()
            || self.config.ext_proc.is_some()
            || self.config.listeners.iter().any(|it| it.probes);
        if is_probed { self.table.borrow().limits.lame_duck } else { Duration::ZERO }
    }

    /// Stops accepting, and waits for requests in flight for as long as the policies allow; returns
    /// whether all of them have ended.
    pub async fn drain(mut self) -> bool {
        self.recorder.readiness().start_draining();
        let table = Arc::clone(&self.table.borrow());
        table.stop_health_checks(None);
        // While the sockets listen, so that no other process takes a file for a stale one.
        self.socket_files.clear();
        self.accept_tasks.shutdown().await;
        let all = async {
            self.shutdown.finish().await;
            let mut is_drained = table.drain().await;
            let retired = std::mem::take(&mut self.retired);
            for table in retired.into_inner().unwrap_or_else(PoisonError::into_inner) {
                is_drained &= table.drain().await;
            }
            is_drained
        };
        let is_drained = timeout(table.drain_max(), all).await.unwrap_or(false);
        if !is_drained {
            tracing::warn!("drain timed out with requests in flight; their claims will lapse");
        }
        self.recorder.traces().end().await;
        drop(self.admin_file.take());
        self.operating.shutdown().await;
        is_drained
    }
}

async fn bind(
    address: &ListenAddress,
    mode: Option<u32>,
) -> Result<(Listener, Option<SocketFile>), StartError> {
    let bound = Listener::bind(address, mode.unwrap_or(SOCKET_MODE)).await;
    bound.map_err(|error| StartError::Listen(address.clone(), error))
}
