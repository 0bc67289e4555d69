//! `idemptx check`: reports the effective configuration before it is deployed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use idemptx::{CheckError, Policy};
use serde_json::Value;

use crate::config::{Config, ListenAddress, Protection, ScopeSource};
use crate::error::StartError;
use crate::error::error_text;
use crate::network;
use crate::proxy::RoutingTable;
use crate::recorder::{RecordedStore, Recorder};
use crate::traces::Tracer;

/// The result of a check.
#[derive(Debug)]
pub struct Report {
    /// The report, as text.
    pub text: String,
    /// The gateway would start and serve.
    pub is_usable: bool,
}

/// Reads certificates and keys, queries the store and reports the effective policies.
///
/// Nothing is bound or served.
///
/// # Errors
///
/// [`StartError`] for everything that would prevent a start.
///
/// # Cancel safety
///
/// Can be dropped.
pub async fn check(config: &Config) -> Result<Report, StartError> {
    let store = crate::store::open(&config.store)?;
    let store = Arc::new(RecordedStore::new(store, Arc::new(Recorder::without_admin(config.log))));
    let table = RoutingTable::new(config, store, None)?;
    Tracer::check(config.traces.as_ref())?;
    let mut report = Report { text: String::new(), is_usable: true };
    report.places(config);
    for warning in &config.warnings {
        report.line(format_args!("Warning: {warning}"));
    }
    for keys in table.key_sets() {
        let url = &keys.config().url;
        match keys.fetch().await {
            Ok(count) => report.line(format_args!("keys for tokens: {url}, {count} of them")),
            Err(error) => {
                report.is_usable = false;
                report.line(format_args!("keys for tokens: {url}: {}", error_text(&*error)));
            }
        }
    }
    for route in &table.routes {
        let Some((engine, protection)) =
            route.engine.as_ref().zip(route.config.protection.as_ref())
        else {
            report.line(format_args!(
                "\nroute {}: passes to {}",
                route.config.name, route.config.upstream
            ));
            continue;
        };
        let profile = protection.policy.profile;
        report.line(format_args!(
            "\nroute {}: to {}, under {profile}",
            route.config.name, route.config.upstream
        ));
        report.policy(protection);
        let checked = engine.check().await;
        match &checked {
            Ok(found) => report.line(format_args!("  store: {}", found.guarantee)),
            Err(error) => {
                report.is_usable = false;
                report.line(format_args!("  store: {}", error_text(error)));
            }
        }
        if let Ok(found) | Err(CheckError::Refused(found)) = &checked {
            for finding in &found.findings {
                report.line(format_args!("  {:?}: {}", finding.severity, finding.text));
            }
        }
    }
    Ok(report)
}

impl Report {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = writeln!(self.text, "{line}");
    }

    fn places(&mut self, config: &Config) {
        for listener in &config.listeners {
            let url = listener.address.url(listener.tls.is_some());
            self.place("listener", &listener.address, &url);
        }
        if let Some(ext_proc) = &config.ext_proc {
            let scheme = if ext_proc.tls.is_some() { "grpcs" } else { "grpc" };
            self.line(format_args!("processor for Envoy: {scheme}://{}", ext_proc.address));
        }
        for upstream in config.upstreams.iter().filter(|it| !it.origins.is_empty()) {
            let urls: Vec<_> = upstream.origins.iter().map(ToString::to_string).collect();
            self.line(format_args!("upstream {}: {}", upstream.name, urls.join(", ")));
        }
        if let Some(admin) = &config.admin {
            let how = if admin.token.is_some() { "with a token" } else { "without a token" };
            let url = format!("{}, {how}", admin.address.url(false));
            self.place("operators", &admin.address, &url);
        }
        match config.traces.as_ref().map(|traces| &traces.endpoint) {
            Some(Some(endpoint)) => self.line(format_args!("traces: {endpoint}")),
            Some(None) => self.line(format_args!("traces: configured by the environment")),
            None => {}
        }
    }

    /// Names an address to listen on, and what stands in the way of a Unix socket.
    fn place(&mut self, what: &str, address: &ListenAddress, url: &str) {
        let ListenAddress::Unix(path) = address else {
            return self.line(format_args!("{what}: {url}"));
        };
        match network::check_socket(path) {
            Ok(()) => self.line(format_args!("{what}: {url}")),
            Err(error) => {
                self.is_usable = false;
                self.line(format_args!("{what}: {url}: {error}"));
            }
        }
    }

    /// Lists every policy field, marked where it differs from the profile.
    fn policy(&mut self, protection: &Protection) {
        let own =
            Protection::with(Policy::profile(protection.policy.profile), protection.on_ambiguous);
        let usual = fields(&own.policy);
        for (name, value) in fields(&protection.policy) {
            let text = match (name.as_str(), &protection.scope) {
                // Shown as `on_ambiguous`.
                ("on_panic", _) => continue,
                ("scope", ScopeSource::Certificate) => "{\"mtls\":\"subject\"}".to_owned(),
                ("scope", ScopeSource::Token(jwt)) => format!("{{\"jwt\":\"{}\"}}", jwt.claim),
                _ => value.to_string(),
            };
            match usual.get(&name) {
                Some(usual) if *usual == value => self.line(format_args!("  {name} = {text}")),
                Some(usual) => self.line(format_args!("* {name} = {text}  (not {usual})")),
                None => self.line(format_args!("* {name} = {text}")),
            }
        }
        let word = match protection.on_ambiguous {
            crate::config::OnAmbiguous::Unknown => "unknown",
            crate::config::OnAmbiguous::Release => "release",
        };
        self.line(format_args!("  on_ambiguous = \"{word}\""));
    }
}

fn fields(policy: &Policy) -> BTreeMap<String, Value> {
    serde_json::from_str(&policy.to_json()).unwrap_or_default()
}
