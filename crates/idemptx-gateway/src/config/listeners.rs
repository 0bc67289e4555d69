//! The addresses that the gateway listens on: for clients and for operators.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use super::invalid_config::InvalidSetting;
use super::listen_address::socket_mode;
use super::values::yes;
use super::{ListenAddress, Network};

/// An address for clients.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Listener {
    /// The address.
    pub address: ListenAddress,
    /// The permissions of a Unix socket's file; by default its owner and group may connect.
    #[serde(default, deserialize_with = "socket_mode")]
    pub socket_mode: Option<u32>,
    /// Takes the listening socket that the supervisor passes as standard input, whose address counts.
    #[serde(default)]
    pub inherit: bool,
    /// Accepts HTTP/1.1.
    #[serde(default = "yes")]
    pub http1: bool,
    /// Accepts HTTP/2: by ALPN over TLS, else by its preface.
    #[serde(default = "yes")]
    pub http2: bool,
    /// The treatment of a client's `X-Forwarded-*` and `Forwarded`.
    #[serde(default)]
    pub forwarded: ForwardedRule,
    /// The proxies that are believed in what they forward; empty leaves it to `forwarded`.
    #[serde(default)]
    pub trusted_proxies: Vec<Network>,
    /// Each connection begins with the header of the PROXY protocol, version 2.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// Answers `/healthz` and `/readyz` here.
    #[serde(default)]
    pub probes: bool,
    /// The certificate; clear text without one.
    pub tls: Option<ListenerTls>,
}

impl Listener {
    /// Returns a clear-text listener for both versions of HTTP.
    #[must_use]
    pub const fn new(address: ListenAddress) -> Self {
        let forwarded = ForwardedRule::Replace;
        let trusted_proxies = Vec::new();
        Self {
            address,
            socket_mode: None,
            inherit: false,
            http1: true,
            http2: true,
            forwarded,
            trusted_proxies,
            proxy_protocol: false,
            probes: false,
            tls: None,
        }
    }

    pub(super) fn validate(&self, position: &str) -> Result<(), InvalidSetting> {
        if self.proxy_protocol && self.trusted_proxies.is_empty() {
            let text = "with `proxy_protocol` say in `trusted_proxies` whose word counts";
            return Err(InvalidSetting::at(["listener", position, "proxy_protocol"], text));
        }
        if self.socket_mode.is_some() && (self.inherit || self.address.tcp().is_some()) {
            let text = "only a Unix socket that the gateway makes itself has permissions";
            return Err(InvalidSetting::at(["listener", position, "socket_mode"], text));
        }
        if self.http1 || self.http2 {
            return Ok(());
        }
        let text = "enable `http1` or `http2`: without both no client can connect";
        Err(InvalidSetting::at(["listener", position, "address"], text))
    }
}

/// The treatment of a client's `X-Forwarded-*` and `Forwarded`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ForwardedRule {
    /// Replaces them: any client can send them.
    #[default]
    Replace,
    /// Appends to them: a trusted proxy in front of the gateway has set them.
    Append,
}

/// The TLS settings of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ListenerTls {
    /// A PEM file with the certificate and its chain.
    pub certificate: PathBuf,
    /// A PEM file with the private key.
    pub key: PathBuf,
    /// Certificates for other names, chosen by the name that the client asks for.
    #[serde(default)]
    pub certificates: Vec<KeyPair>,
    /// A PEM file with the authorities of client certificates; without it none is requested.
    pub client_ca: Option<PathBuf>,
    /// Rejects clients without a certificate.
    #[serde(default = "yes")]
    pub client_required: bool,
}

/// A certificate and its private key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct KeyPair {
    /// A PEM file with the certificate and its chain.
    pub certificate: PathBuf,
    /// A PEM file with the private key.
    pub key: PathBuf,
}

/// The admin listener.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Admin {
    /// The address; one that other hosts can reach requires a token.
    pub address: ListenAddress,
    /// The permissions of a Unix socket's file; by default its owner and group may connect.
    #[serde(default, deserialize_with = "socket_mode")]
    pub socket_mode: Option<u32>,
    /// The token of operators.
    pub token: Option<String>,
}

impl Admin {
    pub(super) fn validate(&self) -> Result<(), InvalidSetting> {
        if self.socket_mode.is_some() && self.address.tcp().is_some() {
            let text = "only a Unix socket has permissions";
            return Err(InvalidSetting::at(["admin", "socket_mode"], text));
        }
        if let Some(token) = &self.token {
            // What is shown is compared without the spaces around it.
            let is_sendable = token.bytes().all(|byte| byte.is_ascii_graphic());
            return if is_sendable && token.len() >= TOKEN_BYTES_MIN {
                Ok(())
            } else {
                Err(InvalidSetting::at(["admin", "token"], TOKEN_ADVICE))
            };
        }
        if self.address.is_local() {
            return Ok(());
        }
        let text = "an address that is not loopback requires a token: set `token`";
        Err(InvalidSetting::at(["admin", "address"], text))
    }
}

impl fmt::Debug for Admin {
    /// Omits the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("address", &self.address).finish_non_exhaustive()
    }
}

const TOKEN_BYTES_MIN: usize = 6;
const TOKEN_ADVICE: &str = "write a token of visible ASCII without spaces, of 6 characters at least \
     and better of 32 random ones; an empty one would let everyone in";
