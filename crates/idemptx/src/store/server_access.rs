//! Certificates and passwords of the stores on servers.

use std::fmt;
use std::future::Future;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

/// Certificates and password of a store's builder.
#[derive(Clone, Default)]
pub(super) struct ServerAccess {
    pub(super) tls: TlsFiles,
    /// Source of the password, where it is not the URL.
    pub(super) password: Option<PasswordSource>,
}

/// The settings of a builder with a field `access`, the same for every server.
macro_rules! access_settings {
    () => {
        /// The authorities that may vouch for the server, in PEM, instead of those that the system
        /// trusts.
        ///
        /// # Security
        ///
        /// Certificates are always verified: the server's must lead to one of these, and name the
        /// host.
        #[must_use]
        pub fn ca_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
            self.access.tls.ca = Some(pem.into());
            self
        }

        /// The certificate by which the server knows this client, with those that lead to it, and
        /// its private key; both in PEM.
        #[must_use]
        pub fn client_certificate(
            mut self,
            certificate: impl Into<Vec<u8>>,
            key: impl Into<Vec<u8>>,
        ) -> Self {
            self.access.tls.client = Some((certificate.into(), key.into()));
            self
        }

        /// Reads the password from a file, again before each attempt to connect, and for a moment
        /// when the server refuses it: the file may be changed after the server.
        #[must_use]
        pub fn password_file(mut self, path: impl Into<std::path::PathBuf>) -> Self {
            self.access.password =
                Some($crate::store::server_access::PasswordSource::File(path.into()));
            self
        }

        /// Has the password printed by a command of the shell, again before each attempt to
        /// connect, as a token that expires needs it.
        ///
        /// It may take half a minute.
        #[must_use]
        pub fn password_command(mut self, command: impl Into<String>) -> Self {
            self.access.password =
                Some($crate::store::server_access::PasswordSource::Command(command.into()));
            self
        }
    };
}
pub(super) use access_settings;

/// Certificates in PEM.
#[derive(Clone, Default)]
pub(super) struct TlsFiles {
    /// Authorities that may vouch for the server, instead of the system's.
    pub(super) ca: Option<Vec<u8>>,
    /// Certificate by which the server knows the client, and its private key.
    pub(super) client: Option<(Vec<u8>, Vec<u8>)>,
}

impl TlsFiles {
    /// Returns true if nothing was named.
    pub(super) const fn is_empty(&self) -> bool {
        self.ca.is_none() && self.client.is_none()
    }
}

/// Returns the authorities that the system trusts, read once; none where there are none, as in a
/// container without them.
pub(super) fn system_roots() -> &'static [CertificateDer<'static>] {
    static ROOTS: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut certificates = rustls_native_certs::load_native_certs().certs;
        // One that cannot be read must not keep the others from being used.
        let mut store = RootCertStore::empty();
        certificates.retain(|certificate| store.add(certificate.clone()).is_ok());
        certificates
    })
}

/// Source of a password that may change, asked before each attempt to connect.
#[derive(Clone)]
pub(super) enum PasswordSource {
    File(PathBuf),
    /// A command of the shell, which prints it.
    Command(String),
}

impl PasswordSource {
    /// Returns the password, without the line's end.
    pub(super) async fn read(&self) -> Result<String, NoPassword> {
        let source = self.clone();
        let reading = tokio::task::spawn_blocking(move || source.read_blocking());
        let text = reading.await.map_err(io::Error::other).flatten().map_err(|error| {
            let source = match self {
                Self::File(path) => format!("the file {}", path.display()),
                // Its text may hold a secret.
                Self::Command(_) => "the command".to_owned(),
            };
            NoPassword(format!("{source} gives no password: {error}"))
        })?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Returns the password once it is another than this one, if that happens soon.
    ///
    /// Where a server and a file are changed one after the other, the file may come second.
    async fn read_other(&self, known: &str) -> Result<Option<String>, NoPassword> {
        let pauses = match self {
            Self::File(_) => &CHANGE_PAUSES[..],
            // Another run is another answer, and may take long.
            Self::Command(_) => &[],
        };
        for pause in [Duration::ZERO].iter().chain(pauses) {
            tokio::time::sleep(*pause).await;
            let password = self.read().await?;
            if password != known {
                return Ok(Some(password));
            }
        }
        Ok(None)
    }

    fn read_blocking(&self) -> io::Result<String> {
        match self {
            Self::File(path) => std::fs::read_to_string(path),
            Self::Command(command) => output_of(command),
        }
    }
}

/// The text says which source failed; it shows neither a command nor a password.
impl fmt::Debug for PasswordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Command(_) => f.debug_tuple("Command").finish_non_exhaustive(),
        }
    }
}

/// A password that could not be read.
#[derive(Clone, Debug)]
pub(super) struct NoPassword(String);

impl fmt::Display for NoPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoPassword {}

/// Makes an attempt to connect with the password as it is now, and again where that was refused and
/// is another by then.
pub(super) async fn with_password<T, E, F>(
    source: Option<&PasswordSource>,
    unreadable: impl Fn(&NoPassword) -> E,
    is_refused: impl Fn(&E) -> bool,
    mut attempt: impl FnMut(Option<String>) -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let Some(source) = source else { return attempt(None).await };
    let mut password = source.read().await.map_err(|error| unreadable(&error))?;
    let mut changes_left = CHANGES_MAX;
    loop {
        let refusal = match attempt(Some(password.clone())).await {
            Err(error) if is_refused(&error) && changes_left > 0 => error,
            outcome => return outcome,
        };
        changes_left -= 1;
        match source.read_other(&password).await {
            Ok(Some(other)) => password = other,
            // The refusal says more than that the source has failed meanwhile.
            Ok(None) | Err(_) => return Err(refusal),
        }
    }
}

/// Runs a command of the shell, and returns what it prints; a command that goes on for too long is
/// killed.
fn output_of(command: &str) -> io::Result<String> {
    let (shell, flag) = if cfg!(windows) { ("cmd", "/C") } else { ("sh", "-c") };
    let mut child = Command::new(shell)
        .args([flag, command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let deadline = Instant::now() + COMMAND_MAX;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
            None => {
                child.kill()?;
                child.wait()?;
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    };
    if !status.success() {
        return Err(io::Error::other(status.to_string()));
    }
    let mut text = String::new();
    // What it has printed is in the pipe: a longer text than fits would have kept it from ending.
    if let Some(output) = child.stdout.take() {
        output.take(PASSWORD_BYTES_MAX).read_to_string(&mut text)?;
    }
    Ok(text)
}

/// A command line of a cloud provider may take seconds.
const COMMAND_MAX: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Changes of a password during one attempt to connect.
const CHANGES_MAX: u32 = 2;
/// Pauses before a file with a password that was refused is read again.
const CHANGE_PAUSES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(200)];
/// The size of a pipe.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_is_read_without_its_end_of_line_each_time_it_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "first\n").unwrap();
        let sources = [
            PasswordSource::File(path.clone()),
            PasswordSource::Command(format!("cat {}", path.display())),
        ];
        for source in &sources {
            assert_eq!(source.read().await.unwrap(), "first");
        }
        std::fs::write(&path, "second").unwrap();
        for source in &sources {
            assert_eq!(source.read().await.unwrap(), "second");
        }
    }

    #[tokio::test]
    async fn a_refused_password_is_read_again_and_tried_if_it_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "old").unwrap();
        let sources =
            [PasswordSource::File(path.clone()), PasswordSource::Command("echo old".to_owned())];
        let refused = |password: Option<String>| async move {
            Err::<(), String>(format!("refused: {}", password.unwrap_or_default()))
        };
        for source in &sources {
            let tried = with_password(Some(source), ToString::to_string, |_| true, refused).await;
            assert_eq!(tried.unwrap_err(), "refused: old");
        }
        // The file is changed while the first attempt is under way.
        let attempt = |password: Option<String>| {
            let is_new = password.as_deref() == Some("new");
            std::fs::write(&path, "new").unwrap();
            async move { if is_new { Ok(()) } else { Err("refused".to_owned()) } }
        };
        let tried = with_password(Some(&sources[0]), ToString::to_string, |_| true, attempt);
        tried.await.unwrap();
        // What is no refusal is not tried again.
        let tried = with_password(Some(&sources[0]), ToString::to_string, |_| false, refused);
        assert_eq!(tried.await.unwrap_err(), "refused: new");
        let alone = with_password(None, ToString::to_string, |_: &String| true, refused);
        assert_eq!(alone.await.unwrap_err(), "refused: ");
    }

    #[tokio::test]
    async fn a_source_that_fails_is_named_and_shows_nothing() {
        let command = PasswordSource::Command("echo hunter2; exit 3".to_owned());
        let error = command.read().await.unwrap_err().to_string();
        assert!(error.contains("the command") && error.contains('3'), "{error}");
        assert!(!format!("{error} {command:?}").contains("hunter2"));
        let file = PasswordSource::File("/nowhere/password".into());
        assert!(file.read().await.unwrap_err().to_string().contains("/nowhere/password"));
    }
}
