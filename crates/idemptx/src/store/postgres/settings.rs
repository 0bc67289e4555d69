//! Settings in a PostgreSQL URL, and the part that may be shown.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::invalid_setting::{InvalidSetting, SettingProblem};
use crate::store::server_access::{TlsFiles, system_roots};

/// Value of `synchronous_commit`: the commits that a step waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SynchronousCommit {
    /// The primary has it on its disk; no standby need have it.
    Local,
    /// Synchronous standbys have received it, but not necessarily on their disks.
    RemoteWrite,
    /// Synchronous standbys, where there are any, have it on their disks.
    On,
    /// Synchronous standbys have applied it.
    RemoteApply,
}

impl SynchronousCommit {
    const fn word(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::RemoteWrite => "remote_write",
            Self::On => "on",
            Self::RemoteApply => "remote_apply",
        }
    }
}

/// Time limits of a store.
#[derive(Clone, Copy, Debug)]
pub(super) struct PostgresTimeouts {
    /// Limit of a step, with all it takes to send it.
    pub(super) command: Duration,
    /// Limit of opening a session.
    pub(super) connect: Duration,
    /// Limit of waiting for a row or a table that another session has locked.
    pub(super) lock: Duration,
}

/// Address of the server, with its TLS settings.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
    pub(super) name: Arc<str>,
    is_plaintext: bool,
}

impl Address {
    /// Reads a URL, with the certificates of both sides.
    pub(super) fn parse(url: &str, tls: &TlsFiles) -> Result<Self, InvalidSetting> {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(SettingProblem::Scheme.into());
        }
        let mut config: Config =
            translated(url)?.parse().map_err(|error: tokio_postgres::Error| malformed(&error))?;
        if config.get_hosts().is_empty() {
            return Err(SettingProblem::Host.into());
        }
        let is_remote = config.get_hosts().iter().any(is_beyond_this_host);
        // `prefer`, the default of a URL, would give in to an attacker in between who pretends
        // that the server has no TLS.
        if config.get_ssl_mode() == SslMode::Prefer {
            config.ssl_mode(if is_remote { SslMode::Require } else { SslMode::Disable });
        }
        let is_tls = config.get_ssl_mode() == SslMode::Require;
        if !tls.is_empty() && !is_tls {
            return Err(SettingProblem::CertificatesWithoutTls.into());
        }
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        if config.get_application_name().is_none() {
            config.application_name(env!("CARGO_PKG_NAME"));
        }
        Ok(Self {
            name: name(&config).into(),
            tls: MakeRustlsConnect::new(trusting(tls, is_tls)?),
            is_plaintext: is_remote && !is_tls,
            config,
        })
    }

    /// Returns the first statement of a session, without the settings in the URL's `options`.
    ///
    /// Statements, and no options of ours: poolers refuse those.
    pub(super) fn session_settings(
        &self,
        timeouts: &PostgresTimeouts,
        synchronous_commit: Option<SynchronousCommit>,
    ) -> String {
        let millis = |timeout: Duration| timeout.as_millis().max(1).to_string();
        let mut settings = vec![
            ("lock_timeout", millis(timeouts.lock)),
            ("statement_timeout", millis(timeouts.command)),
            ("idle_in_transaction_session_timeout", millis(IDLE_IN_TRANSACTION_MAX)),
            ("default_transaction_isolation", "read committed".to_owned()),
            ("client_min_messages", "warning".to_owned()),
            ("plan_cache_mode", "force_generic_plan".to_owned()),
            ("jit", "off".to_owned()),
        ];
        // Each statement is planned once for a session, and at first for an empty table: whatever
        // it looks for, it finds by an index, in the order of the batch.
        for plan in ["enable_seqscan", "enable_bitmapscan", "enable_hashjoin", "enable_mergejoin"] {
            settings.push((plan, "off".to_owned()));
        }
        self.set("SET", settings) + &self.set_commit(false, synchronous_commit)
    }

    /// Returns the settings of a handler's transaction, without those in the URL's `options`; the
    /// server
    /// or the role decides about the others.
    pub(super) fn transaction_settings(
        &self,
        synchronous_commit: Option<SynchronousCommit>,
    ) -> String {
        let idle_max = HANDLER_IDLE_MAX.as_millis().to_string();
        let settings = vec![
            ("idle_in_transaction_session_timeout", idle_max),
            ("client_min_messages", "warning".to_owned()),
        ];
        self.set("SET LOCAL", settings) + &self.set_commit(true, synchronous_commit)
    }

    fn set(&self, verb: &str, settings: Vec<(&str, String)>) -> String {
        let own = self.own_settings();
        settings
            .into_iter()
            .filter(|(name, _)| !own.iter().any(|own| own == name))
            .map(|(name, value)| format!("{verb} {name} = '{value}';"))
            .collect()
    }

    /// Returns the statement that sets which commits are waited for: what was chosen, and otherwise
    /// no less than `on`.
    fn set_commit(&self, is_local: bool, chosen: Option<SynchronousCommit>) -> String {
        if self.own_settings().iter().any(|own| own == SYNCHRONOUS_COMMIT) {
            return String::new();
        }
        let weaker = match chosen {
            Some(_) => "",
            None => {
                " WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')"
            }
        };
        let level = chosen.unwrap_or(SynchronousCommit::On).word();
        format!("SELECT set_config('{SYNCHRONOUS_COMMIT}', '{level}', {is_local}){weaker};")
    }

    /// Names of the settings that the URL's `options` make.
    fn own_settings(&self) -> Vec<String> {
        names_in(self.config.get_options().unwrap_or_default())
    }

    /// Lets a session notice that its server is gone.
    pub(super) fn set_patience(&mut self) {
        self.config
            .tcp_user_timeout(SILENCE_MAX)
            .keepalives_idle(SILENCE_MAX)
            .keepalives_interval(SILENCE_MAX / 2)
            .keepalives_retries(KEEPALIVES);
    }

    /// Returns true if records and passwords cross a network in plain text.
    pub(super) const fn is_plaintext(&self) -> bool {
        self.is_plaintext
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Address").field(&self.name).finish()
    }
}

/// The URL in the words of the client library, which knows no `verify-full`: here every certificate
/// is verified, and the host's name with it.
fn translated(url: &str) -> Result<String, InvalidSetting> {
    let Some((base, query)) = url.split_once('?') else { return Ok(url.to_owned()) };
    let parameters: Vec<&str> = query
        .split('&')
        .map(|parameter| match parameter {
            "sslmode=verify-full" => Ok("sslmode=require"),
            "sslmode=allow" | "sslmode=verify-ca" => Err(SettingProblem::Insecure.into()),
            other => Ok(other),
        })
        .collect::<Result<_, InvalidSetting>>()?;
    Ok(format!("{base}?{}", parameters.join("&")))
}

/// Names of the settings in `options`, which are arguments as of the server's command line:
/// `-c name=value`, `-cname=value` or `--name=value`, with a backslash before a space that is
/// meant.
fn names_in(options: &str) -> Vec<String> {
    let mut arguments = vec![String::new()];
    let mut letters = options.chars();
    while let Some(letter) = letters.next() {
        match (letter, arguments.last_mut()) {
            (' ' | '\t' | '\n' | '\r', _) => arguments.push(String::new()),
            ('\\', Some(last)) => last.extend(letters.next()),
            (letter, Some(last)) => last.push(letter),
            (_, None) => {}
        }
    }
    let mut names = Vec::new();
    let mut arguments = arguments.iter().filter(|argument| !argument.is_empty());
    while let Some(argument) = arguments.next() {
        let setting = match (argument.strip_prefix("--"), argument.strip_prefix("-c")) {
            (Some(setting), _) => Some(setting),
            (_, Some("")) => arguments.next().map(String::as_str),
            (_, setting) => setting,
        };
        if let Some((name, _)) = setting.and_then(|setting| setting.split_once('=')) {
            names.push(name.replace('-', "_").to_ascii_lowercase());
        }
    }
    names
}

fn malformed(error: &tokio_postgres::Error) -> InvalidSetting {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    SettingProblem::Malformed(cause.unwrap_or_else(|| error.to_string())).into()
}

fn is_beyond_this_host(host: &Host) -> bool {
    match host {
        Host::Tcp(host) => {
            let loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
            !loopback && host != "localhost"
        }
        #[cfg(unix)]
        Host::Unix(_) => false,
    }
}

/// Returns the address without credentials, for messages.
pub(super) fn name(config: &Config) -> String {
    let ports = config.get_ports();
    let mut name = String::new();
    for (place, host) in config.get_hosts().iter().enumerate() {
        let port = ports.get(place).or(ports.first()).copied().unwrap_or(PORT);
        let comma = if place == 0 { "" } else { "," };
        name.push_str(&match host {
            Host::Tcp(host) if host.contains(':') => format!("{comma}[{host}]:{port}"),
            Host::Tcp(host) => format!("{comma}{host}:{port}"),
            #[cfg(unix)]
            Host::Unix(path) => format!("{comma}{}:{port}", path.display()),
        });
    }
    format!("{name}/{}", config.get_dbname().or(config.get_user()).unwrap_or_default())
}

fn trusting(tls: &TlsFiles, is_tls: bool) -> Result<ClientConfig, InvalidSetting> {
    let mut roots = RootCertStore::empty();
    match &tls.ca {
        None if is_tls => {
            // Those of the library where the system has none.
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            roots.add_parsable_certificates(system_roots().iter().cloned());
        }
        None => {}
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|e| InvalidSetting::certificates(&e))?;
                roots.add(certificate).map_err(|e| InvalidSetting::certificates(&e))?;
            }
            if roots.is_empty() {
                return Err(InvalidSetting::certificates(&"there is none in them"));
            }
        }
    }
    // Named, because features of other crates may leave rustls more than one to choose from.
    let cryptography = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(cryptography)
        .with_safe_default_protocol_versions()
        .map_err(|error| InvalidSetting::certificates(&error))?;
    let config = config.with_root_certificates(roots);
    let Some((certificate, key)) = &tls.client else { return Ok(config.with_no_client_auth()) };
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| InvalidSetting::client_certificate(&error))?;
    let key = PrivateKeyDer::from_pem_slice(key);
    let key = key.map_err(|error| InvalidSetting::client_certificate(&error))?;
    config
        .with_client_auth_cert(chain, key)
        .map_err(|error| InvalidSetting::client_certificate(&error))
}

pub(super) const PORT: u16 = 5432;
const SYNCHRONOUS_COMMIT: &str = "synchronous_commit";
/// Time without traffic before keepalive probes, and without acknowledgement before a session is
/// closed.
const SILENCE_MAX: Duration = Duration::from_secs(10);
const KEEPALIVES: u32 = 3;
/// No transaction of this store waits for anything but the server.
const IDLE_IN_TRANSACTION_MAX: Duration = Duration::from_secs(5);
/// Idle time after which a handler's transaction is ended, with the locks of a host that is gone.
const HANDLER_IDLE_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str) -> Address {
        Address::parse(url, &TlsFiles::default()).unwrap()
    }

    fn refusal(url: &str) -> String {
        Address::parse(url, &TlsFiles::default()).unwrap_err().to_string()
    }

    #[test]
    fn every_form_of_url_is_read() {
        for (url, name) in [
            ("postgres://localhost/app", "localhost:5432/app"),
            ("postgresql://user:secret@[::1]:6000/app", "[::1]:6000/app"),
            ("postgres://one,two:6000/app", "one:5432,two:6000/app"),
            ("postgres:///app?host=/run/postgresql", "/run/postgresql:5432/app"),
            ("postgres://user@%2Frun%2Fpostgresql/app", "/run/postgresql:5432/app"),
            ("postgres://user@host", "host:5432/user"),
        ] {
            assert_eq!(&*address(url).name, name, "{url}");
        }
    }

    #[test]
    fn whatever_leaves_this_host_is_encrypted_unless_it_is_told_not_to() {
        for (url, mode, plaintext) in [
            ("postgres://localhost/app", SslMode::Disable, false),
            ("postgres://127.0.0.1/app?sslmode=prefer", SslMode::Disable, false),
            ("postgres:///app?host=/run/postgresql", SslMode::Disable, false),
            ("postgres://localhost/app?sslmode=require", SslMode::Require, false),
            ("postgres://db.example/app", SslMode::Require, false),
            ("postgres://db.example/app?sslmode=prefer", SslMode::Require, false),
            ("postgres://db.example/app?sslmode=verify-full", SslMode::Require, false),
            ("postgres://db.example/app?sslmode=disable", SslMode::Disable, true),
            ("postgres://localhost,10.0.0.1/app?sslmode=disable", SslMode::Disable, true),
        ] {
            let address = address(url);
            assert_eq!(address.config.get_ssl_mode(), mode, "{url}");
            assert_eq!(address.is_plaintext(), plaintext, "{url}");
        }
    }

    #[test]
    fn a_wrong_url_is_refused_with_what_to_change() {
        for (url, hint) in [
            ("http://localhost", "postgres://"),
            ("host=localhost", "postgres://"),
            ("postgres:///app", "host=/path"),
            ("postgres://localhost:port/app", "port"),
            ("postgres://localhost/app?timeout=5", "timeout"),
            ("postgres://localhost/app?sslmode=allow", "always verified"),
        ] {
            assert!(refusal(url).contains(hint), "{url}: {}", refusal(url));
        }
    }

    #[test]
    fn no_text_about_an_address_shows_its_password() {
        assert!(
            !format!("{:?}", address("postgres://app:hunter2@localhost/x")).contains("hunter2")
        );
        for url in ["postgres://app:hunter2@/x", "postgres://app:hunter2@h:x/", "http://hunter2@h"]
        {
            assert!(!refusal(url).contains("hunter2"), "{}", refusal(url));
        }
    }

    #[test]
    fn certificates_need_tls_and_must_be_some() {
        let wrong = TlsFiles { ca: Some(b"x".to_vec()), client: None };
        let plain = Address::parse("postgres://localhost/app", &wrong);
        assert!(plain.unwrap_err().to_string().contains("sslmode"));
        let empty = Address::parse("postgres://db.example/app", &wrong);
        assert!(empty.unwrap_err().to_string().contains("PEM"));
        let keyless = TlsFiles { ca: None, client: Some((b"x".to_vec(), b"x".to_vec())) };
        let keyless = Address::parse("postgres://db.example/app", &keyless);
        assert!(keyless.unwrap_err().to_string().contains("client's certificate"));
    }

    #[test]
    fn a_sessions_settings_leave_the_last_word_to_the_url() {
        let [command, connect, lock] = [2000, 3000, 500].map(Duration::from_millis);
        let timeouts = PostgresTimeouts { command, connect, lock };
        let plain = address("postgres://localhost/app").session_settings(&timeouts, None);
        assert!(plain.starts_with("SET lock_timeout = '500';SET statement_timeout = '2000';"));
        assert!(plain.ends_with("IN ('off', 'local', 'remote_write');"), "{plain}");
        let url = "postgres://localhost/app?options=-c%20lock_timeout%3D7";
        let level = Some(SynchronousCommit::RemoteApply);
        let told = address(url).session_settings(&timeouts, level);
        assert!(!told.contains("lock_timeout"));
        assert!(told.ends_with("set_config('synchronous_commit', 'remote_apply', false);"));
        let off = address("postgres://localhost/app?options=-csynchronous_commit%3Doff");
        assert!(!off.session_settings(&timeouts, level).contains("synchronous_commit"));
        assert!(!off.transaction_settings(None).contains("synchronous_commit"));
    }

    #[test]
    fn a_setting_of_a_similar_name_takes_none_of_ours_away() {
        let [command, connect, lock] = [2000, 3000, 500].map(Duration::from_millis);
        let timeouts = PostgresTimeouts { command, connect, lock };
        let url = "postgres://localhost/app?options=-c%20deadlock_timeout%3D7s";
        let told = address(url).session_settings(&timeouts, None);
        assert!(told.contains("SET lock_timeout = '500';"), "{told}");
    }

    #[test]
    fn every_way_to_write_a_setting_is_known() {
        for (options, names) in [
            ("", &[][..]),
            ("-c lock_timeout=7", &["lock_timeout"]),
            ("-clock_timeout=7", &["lock_timeout"]),
            ("--lock-timeout=7  -c JIT=on", &["lock_timeout", "jit"]),
            ("-c search_path=a\\ jit=x -B 5", &["search_path"]),
            ("-c application_name=jit=on", &["application_name"]),
        ] {
            assert_eq!(names_in(options), names, "{options}");
        }
    }
}
