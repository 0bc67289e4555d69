//! Certificates of servers that tests start.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A certificate authority that lives for one test.
#[derive(Debug)]
pub struct CertificateAuthority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>);

impl CertificateAuthority {
    /// Creates one with a fresh key.
    pub fn generate() -> Self {
        let mut parameters = rcgen::CertificateParams::default();
        // Not the default name, which its certificates have: each would pass for self-signed.
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "authority");
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        Self(rcgen::CertifiedIssuer::self_signed(parameters, key).unwrap())
    }

    /// Returns its certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Writes `ca.pem`, and `server.pem` with its `server.key` for a server on 127.0.0.1.
    pub fn issue_into(&self, directory: &Path) {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        let write = |name: &str, text: String| fs::write(directory.join(name), text).unwrap();
        write("ca.pem", self.pem());
        write("server.pem", certificate.pem());
        write("server.key", key.serialize_pem());
        // PostgreSQL refuses a key that others may read.
        let owner_only = Permissions::from_mode(0o600);
        fs::set_permissions(directory.join("server.key"), owner_only).unwrap();
    }

    /// Writes `client.pem` with its `client.key` for a client of this name.
    pub fn issue_client_into(&self, directory: &Path, name: &str) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        fs::write(directory.join("client.pem"), certificate.pem()).unwrap();
        fs::write(directory.join("client.key"), key.serialize_pem()).unwrap();
    }
}
