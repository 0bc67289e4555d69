//! Hosts and the network between them, driven step by step.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use idemptx::store::{AnyStore, MemoryStore};
use tokio::sync::Notify;
use turmoil::Sim;

use super::backend::{Backend, Behavior};
use super::caller::{self, Reply};
use crate::config::Config;
use crate::serve::Gateway;
use crate::workers::Workers;

pub(super) const GATEWAYS: [&str; 2] = ["gateway-1", "gateway-2"];
pub(super) const SERVICE: &str = "service";
pub(super) const GATEWAY_PORT: u16 = 8080;
pub(super) const SERVICE_PORT: u16 = 9000;

/// Two gateways over one store, in front of one backend.
pub(super) struct Cluster {
    pub(super) network: Sim<'static>,
    pub(super) backend: Backend,
    closing: Arc<Notify>,
    callers: usize,
}

/// A request without a response yet, or with one not taken yet.
pub(super) struct Call {
    /// The host that sent it.
    pub(super) caller: String,
    answer: Rc<RefCell<Option<io::Result<Reply>>>>,
}

impl Cluster {
    /// Creates one with a reliable network, whose backend takes three quarters of a second.
    pub(super) fn calm(upstream: &str, route: &str) -> Self {
        let backend = Backend::new(|| Behavior::Answer(Duration::from_millis(500)));
        Self::new(0, Duration::from_millis(5), &settings(upstream, route), backend)
    }

    pub(super) fn new(seed: u64, latency_max: Duration, settings: &str, backend: Backend) -> Self {
        let mut network = turmoil::Builder::new()
            .rng_seed(seed)
            .tick_duration(TICK)
            .max_message_latency(latency_max)
            .simulation_duration(DURATION_MAX)
            .enable_random_order()
            .build();
        let served = backend.clone();
        network.host(SERVICE, move || served.clone().serve());
        let (store, closing) = (MemoryStore::new(), Arc::new(Notify::new()));
        let listening = Rc::new(Cell::new(0));
        let config = Config::parse("simulation.toml", settings, |_| None).unwrap();
        for name in GATEWAYS {
            let (store, config, closing) = (store.clone(), config.clone(), Arc::clone(&closing));
            let listening = Rc::clone(&listening);
            network.host(name, move || {
                let (store, config) = (AnyStore::from(store.clone()), config.clone());
                let (closing, listening) = (Arc::clone(&closing), Rc::clone(&listening));
                async move {
                    let gateway = Gateway::start_over(store, Workers::default(), config).await?;
                    listening.set(listening.get() + 1);
                    closing.notified().await;
                    gateway.drain().await;
                    Ok(())
                }
            });
        }
        let mut cluster = Self { network, backend, closing, callers: 0 };
        cluster.until(|_| listening.get() == GATEWAYS.len());
        cluster
    }

    /// Starts a request under a key, from a new host.
    pub(super) fn post(&mut self, gateway: &'static str, key: &'static str) -> Call {
        self.post_for(PATIENCE, gateway, key)
    }

    /// Does the same for a caller that disconnects after `patience`.
    pub(super) fn post_for(
        &mut self,
        patience: Duration,
        gateway: &'static str,
        key: &'static str,
    ) -> Call {
        self.callers += 1;
        let caller = format!("caller-{}", self.callers);
        let answer = Rc::new(RefCell::new(None));
        let given = Rc::clone(&answer);
        self.network.client(caller.as_str(), async move {
            *given.borrow_mut() = Some(caller::post(gateway, key, patience).await);
            Ok(())
        });
        Call { caller, answer }
    }

    /// Advances the simulation until a condition holds.
    #[track_caller]
    pub(super) fn until(&mut self, is_so: impl Fn(&Self) -> bool) {
        let deadline = self.network.elapsed() + PATIENCE;
        while !is_so(self) {
            assert!(
                self.network.elapsed() < deadline,
                "the condition does not hold after {PATIENCE:?}"
            );
            self.network.step().unwrap();
        }
    }

    /// Advances the simulation by a duration.
    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.network.elapsed() + time;
        while self.network.elapsed() < until {
            self.network.step().unwrap();
        }
    }

    /// Waits for the result of a call.
    #[track_caller]
    pub(super) fn answer(&mut self, call: &Call) -> io::Result<Reply> {
        self.until(|_| call.answer.borrow().is_some());
        call.answer.borrow_mut().take().unwrap()
    }

    /// Sends a request and returns its response.
    #[track_caller]
    pub(super) fn reply(&mut self, gateway: &'static str, key: &'static str) -> Reply {
        let call = self.post(gateway, key);
        self.answer(&call).unwrap()
    }

    /// Drains all gateways, and waits until they have stopped.
    #[track_caller]
    pub(super) fn drain(&mut self) {
        self.closing.notify_waiters();
        for name in GATEWAYS {
            while self.network.is_host_running(name) {
                assert!(self.network.elapsed() < DURATION_MAX, "{name} has not stopped");
                self.network.step().unwrap();
            }
        }
    }
}

/// Returns a configuration with short limits and these lines in its upstream and route.
pub(super) fn settings(upstream: &str, route: &str) -> String {
    format!(
        "[[listener]]\naddress = \"0.0.0.0:{GATEWAY_PORT}\"\n\
         [[upstream]]\nname = \"service\"\nurls = [\"http://{SERVICE}:{SERVICE_PORT}\"]\n\
         connect_timeout_ms = 1000\nresponse_timeout_ms = 2000\npause_timeout_ms = 2000\n\
         down_ms = 100\n{upstream}\n\
         [[route]]\nupstream = \"service\"\n{route}\n"
    )
}

impl Call {
    /// Returns whether it has no response yet.
    pub(super) fn is_open(&self) -> bool {
        self.answer.borrow().is_none()
    }
}

/// The simulated time after which a wait fails.
const PATIENCE: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(10);
const DURATION_MAX: Duration = Duration::from_secs(600);
