//! Settings that cannot be used.

use std::fmt;

use crate::store::url_settings::InvalidUrlSetting;

/// A URL, or a setting that goes with it, with which no PostgreSQL can be reached.
///
/// Its text says what to change and shows neither user nor password.
#[derive(Clone, PartialEq, Eq)]
pub struct InvalidSetting(SettingProblem);

#[derive(Clone, PartialEq, Eq)]
pub(super) enum SettingProblem {
    Scheme,
    Host,
    Insecure,
    Malformed(String),
    CertificatesWithoutTls,
    NoCertificates(String),
    NoClientCertificate(String),
    InUrl(InvalidUrlSetting),
    Name(&'static str, usize),
}

impl InvalidSetting {
    pub(super) const fn name(what: &'static str, bytes_max: usize) -> Self {
        Self(SettingProblem::Name(what, bytes_max))
    }

    pub(super) fn client_certificate(reason: &impl ToString) -> Self {
        Self(SettingProblem::NoClientCertificate(reason.to_string()))
    }

    pub(super) fn certificates(reason: &impl ToString) -> Self {
        Self(SettingProblem::NoCertificates(reason.to_string()))
    }
}

impl From<InvalidUrlSetting> for InvalidSetting {
    fn from(problem: InvalidUrlSetting) -> Self {
        Self(SettingProblem::InUrl(problem))
    }
}

impl fmt::Display for InvalidSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            SettingProblem::Scheme => f.write_str(
                "not a PostgreSQL URL: write postgres://[user[:password]@]host[:port]/database, or \
                 postgres:///database?host=/path/of/the/socket",
            ),
            SettingProblem::Host => f.write_str(
                "the PostgreSQL URL names no host: write postgres://host/database, or \
                 postgres:///database?host=/path/of/the/socket",
            ),
            SettingProblem::Insecure => f.write_str(
                "certificates are always verified: name a private authority with \
                 `ca_certificates` or `ca_file`, and write sslmode=verify-full or sslmode=disable",
            ),
            SettingProblem::Malformed(reason) => write!(f, "malformed PostgreSQL URL: {reason}"),
            SettingProblem::CertificatesWithoutTls => {
                f.write_str("certificates need TLS: write sslmode=verify-full into the URL")
            }
            SettingProblem::NoCertificates(reason) => {
                write!(f, "`ca_certificates` are no certificates in PEM: {reason}")
            }
            SettingProblem::NoClientCertificate(reason) => {
                write!(f, "the client's certificate or its key cannot be used: {reason}")
            }
            SettingProblem::InUrl(problem) => problem.fmt(f),
            SettingProblem::Name(what, bytes_max) => {
                write!(f, "the name of the {what} must have 1 to {bytes_max} bytes, none of them 0")
            }
        }
    }
}

impl fmt::Debug for InvalidSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InvalidSetting({self})")
    }
}

impl std::error::Error for InvalidSetting {}

impl From<SettingProblem> for InvalidSetting {
    fn from(problem: SettingProblem) -> Self {
        Self(problem)
    }
}
