//! Errors of the start, and their texts.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use idemptx::EngineError;
use idemptx::store::UnknownStore;
#[cfg(feature = "seal")]
use idemptx::store::seal::InvalidKeys;

use crate::config::ListenAddress;
use crate::tls::TlsError;
use crate::token::TokenError;

/// An error that prevents a start or a reload.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// An address cannot be bound.
    Listen(ListenAddress, io::Error),
    /// The store's URL is invalid, or its file cannot be opened.
    Store(UnknownStore),
    /// The sealing keys are invalid.
    #[cfg(feature = "seal")]
    Seal(InvalidKeys),
    /// No file can be written in the directory for large request bodies.
    Spool(PathBuf, io::Error),
    /// A policy is invalid.
    Policy(EngineError),
    /// A certificate or private key is invalid.
    Tls(TlsError),
    /// The keys that verify tokens are invalid.
    Token(TokenError),
    /// The trace exporter cannot be set up.
    Traces(Box<dyn Error + Send + Sync>),
    /// A setting changed that takes effect at a restart only.
    RequiresRestart(&'static str),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(address, _) => write!(f, "cannot listen on {address}"),
            Self::Store(_) => f.write_str("cannot open the store"),
            #[cfg(feature = "seal")]
            Self::Seal(_) => f.write_str("[store.seal]"),
            Self::Tls(error) => error.fmt(f),
            Self::Token(error) => error.fmt(f),
            Self::Traces(_) => f.write_str("cannot set up the trace exporter"),
            Self::Spool(directory, _) => {
                write!(f, "`spool_directory`: no file can be written in {}", directory.display())
            }
            Self::Policy(_) => f.write_str("invalid policy"),
            Self::RequiresRestart(what) => {
                write!(f, "{what} has changed: restart the gateway to apply it")
            }
        }
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Listen(_, error) | Self::Spool(_, error) => Some(error),
            Self::Store(error) => Some(error),
            #[cfg(feature = "seal")]
            Self::Seal(error) => Some(error),
            Self::Policy(error) => Some(error),
            Self::Tls(error) => error.source(),
            Self::Traces(error) => Some(&**error),
            Self::Token(_) | Self::RequiresRestart(_) => None,
        }
    }
}

/// Formats an error and its chain of causes as one line.
pub(crate) fn error_text(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", error_text(cause)),
        None => error.to_string(),
    }
}
