//! Settings of a store in the query of its URL.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use super::server_access::{PasswordSource, ServerAccess, TlsFiles};

/// Settings in the query of a URL that are this crate's, taken out of what the client library
/// reads.
pub(super) struct UrlSettings {
    /// The rest of the URL.
    pub(super) url: String,
    values: Vec<(&'static str, String)>,
}

impl UrlSettings {
    /// Takes the settings of these names out of a URL, and those of every server.
    pub(super) fn take(url: &str, names: &[&'static str]) -> Result<Self, InvalidUrlSetting> {
        let Some((base, query)) = url.split_once('?') else {
            return Ok(Self { url: url.to_owned(), values: Vec::new() });
        };
        let (query, fragment) = match query.split_once('#') {
            Some((query, fragment)) => (query, format!("#{fragment}")),
            None => (query, String::new()),
        };
        let (mut values, mut rest) = (Vec::<(&str, String)>::new(), Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(name) = names.iter().chain(ACCESS).find(|known| **known == name) else {
                rest.push(pair);
                continue;
            };
            if values.iter().any(|(set, _)| set == name) {
                return Err(InvalidUrlSetting::of(name, "is there twice"));
            }
            let value = percent_decoded(value)
                .filter(|value| !value.is_empty())
                .ok_or_else(|| InvalidUrlSetting::of(name, "has no value that can be read"))?;
            values.push((name, value));
        }
        let question = if rest.is_empty() { "" } else { "?" };
        Ok(Self { url: format!("{base}{question}{}{fragment}", rest.join("&")), values })
    }

    /// Returns a setting as it is written.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// Returns a setting of another type.
    pub(super) fn parsed<T: std::str::FromStr>(
        &self,
        name: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, InvalidUrlSetting> {
        let parse = |text: &str| text.parse().map_err(|_| InvalidUrlSetting::of(name, expected));
        self.text(name).map(parse).transpose()
    }

    /// Returns a period in milliseconds, which is longer than none.
    pub(super) fn period(&self, name: &'static str) -> Result<Option<Duration>, InvalidUrlSetting> {
        let millis = self.parsed::<NonZeroU32>(name, "must be a number of milliseconds from 1")?;
        Ok(millis.map(|millis| Duration::from_millis(millis.get().into())))
    }

    /// Reads the files that the settings name, and where the password comes from, over what is
    /// there.
    pub(super) fn read_access(&self, access: &mut ServerAccess) -> Result<(), InvalidUrlSetting> {
        self.read_access_named(ACCESS, access)
    }

    /// Does the same for settings of other names, in the order of [`ACCESS`].
    pub(super) fn read_access_named(
        &self,
        names: &AccessNames,
        access: &mut ServerAccess,
    ) -> Result<(), InvalidUrlSetting> {
        self.read_tls(names, &mut access.tls)?;
        if let Some(password) = self.password(names)? {
            access.password = Some(password);
        }
        Ok(())
    }

    fn read_tls(
        &self,
        [ca_file, cert_file, key_file, ..]: &AccessNames,
        tls: &mut TlsFiles,
    ) -> Result<(), InvalidUrlSetting> {
        let read = |name: &'static str| match self.text(name) {
            None => Ok(None),
            Some(path) => std::fs::read(path).map(Some).map_err(|error| InvalidUrlSetting {
                name,
                problem: format!("cannot be read: {path}: {error}"),
            }),
        };
        if let Some(ca) = read(ca_file)? {
            tls.ca = Some(ca);
        }
        match (read(cert_file)?, read(key_file)?) {
            (None, None) => {}
            (Some(certificate), Some(key)) => tls.client = Some((certificate, key)),
            (Some(_), None) => {
                return Err(InvalidUrlSetting::of(cert_file, &format!("needs `{key_file}`")));
            }
            (None, Some(_)) => {
                return Err(InvalidUrlSetting::of(key_file, &format!("needs `{cert_file}`")));
            }
        }
        Ok(())
    }

    fn password(
        &self,
        [.., file, command]: &AccessNames,
    ) -> Result<Option<PasswordSource>, InvalidUrlSetting> {
        match (self.text(file), self.text(command)) {
            (None, None) => Ok(None),
            (Some(path), None) => Ok(Some(PasswordSource::File(PathBuf::from(path)))),
            (None, Some(command)) => Ok(Some(PasswordSource::Command(command.to_owned()))),
            (Some(_), Some(_)) => {
                Err(InvalidUrlSetting::of(file, &format!("excludes `{command}`")))
            }
        }
    }
}

/// A setting in a URL that cannot be used; its text shows no password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct InvalidUrlSetting {
    name: &'static str,
    problem: String,
}

impl InvalidUrlSetting {
    pub(super) fn of(name: &'static str, problem: &str) -> Self {
        Self { name, problem: problem.to_owned() }
    }
}

impl fmt::Display for InvalidUrlSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the setting `{}` of the store's URL {}", self.name, self.problem)
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(16 * high + low).ok()?
            }
            byte => *byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Names of the settings of one side: the authorities, the certificate and its key, the file and the
/// command that give the password.
pub(super) type AccessNames = [&'static str; 5];

/// Settings of every store on a server.
const ACCESS: &AccessNames =
    &["ca_file", "cert_file", "key_file", "password_file", "password_command"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_taken_out_and_the_rest_is_left() {
        let url = "postgres://u:p%20@h/db?sslmode=require&schema=a%20b&ca_file=%2Ftmp%2Fca.pem#x";
        let taken =
            UrlSettings::take(url, &["schema", "table"]).unwrap_or_else(|it| panic!("{it}"));
        assert_eq!(taken.url, "postgres://u:p%20@h/db?sslmode=require#x");
        assert_eq!(taken.text("schema"), Some("a b"));
        assert_eq!(taken.text("table"), None);
        let plain = UrlSettings::take("redis://h?prefix=a:", &["prefix"]);
        assert_eq!(plain.unwrap_or_else(|it| panic!("{it}")).url, "redis://h");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (url, text) in [
            ("redis://h?prefix=a&prefix=b", "`prefix` of the store's URL is there twice"),
            ("redis://h?prefix=", "no value"),
            ("redis://h?prefix=%zz", "no value"),
        ] {
            let Err(error) = UrlSettings::take(url, &["prefix"]) else { panic!("{url}") };
            assert!(error.to_string().contains(text), "{error}");
        }
        for (query, text) in [
            ("ca_file=/nowhere/ca.pem", "cannot be read: /nowhere/ca.pem"),
            ("cert_file=/dev/null", "needs `key_file`"),
        ] {
            let url = format!("redis://h?{query}");
            let settings = UrlSettings::take(&url, &[]).unwrap_or_else(|it| panic!("{it}"));
            let Err(error) = settings.read_tls(ACCESS, &mut TlsFiles::default()) else {
                panic!("{url}")
            };
            assert!(error.to_string().contains(text), "{error}");
        }
        let both = UrlSettings::take("redis://h?password_file=a&password_command=b", &[]);
        assert!(both.is_ok_and(|both| both.password(ACCESS).is_err()));
    }
}
