//! `idemptx openapi`: documents idempotency keys in an OpenAPI document.
//!
//! draft-ietf-httpapi-idempotency-key-header §2.5.2 asks a resource to publish its specification,
//! including the expiry of keys.
//! All additions come from the policy, so that the document cannot disagree with the behaviour: the
//! header parameter, a problem response for each possible refusal, the header that marks a replay,
//! and `x-idempotency` with retention times and codes.
//!
//! Additions carry a marker, so that a second run replaces them and leaves everything else
//! unchanged.

mod annotate;
mod node;

use std::error::Error;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use http::Method;
use idemptx::{Policy, Profile};

use self::node::Node;
use crate::config::Config;

/// Documents idempotency keys in an OpenAPI document.
///
/// Comments of a YAML document are not preserved.
#[derive(Debug, Args)]
pub(crate) struct OpenApiArgs {
    /// The OpenAPI document (3.0 or later), as JSON or YAML.
    #[arg(long, value_name = "FILE")]
    merge: PathBuf,
    /// The file to write; by default the standard output.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The gateway's configuration, for its routes and policies.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["profile", "policy"])]
    config: Option<PathBuf>,
    /// The policy profile of all operations.
    #[arg(long, value_name = "NAME", default_value = "draft")]
    profile: Profile,
    /// Policy fields that override the profile, as a JSON object.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    policy: String,
}

impl OpenApiArgs {
    /// Reads, annotates and writes the document.
    pub(crate) fn run(self) -> Result<ExitCode, Box<dyn Error>> {
        let text = std::fs::read_to_string(&self.merge)
            .map_err(|error| format!("{}: {error}", self.merge.display()))?;
        let (mut document, format) =
            Node::read(&text).map_err(|error| format!("{}: {error}", self.merge.display()))?;
        let policy_source = self.policy_source()?;
        let added = annotate::annotate(&mut document, |method, path| {
            policy_source.policy_for(method, path)
        })?;
        let text = document.write(format)?;
        match &self.output {
            Some(file) => std::fs::write(file, text)?,
            None => io::stdout().write_all(text.as_bytes())?,
        }
        writeln!(io::stderr(), "{added}")?;
        Ok(ExitCode::SUCCESS)
    }

    fn policy_source(&self) -> Result<PolicySource, Box<dyn Error>> {
        match &self.config {
            Some(file) => Ok(PolicySource::Routes(Box::new(Config::load(file)?))),
            None => {
                let policy = Policy::from_json(self.profile, &self.policy)?;
                Ok(PolicySource::Everywhere(Box::new(policy)))
            }
        }
    }
}

/// Maps operations to policies.
enum PolicySource {
    Everywhere(Box<Policy>),
    Routes(Box<Config>),
}

impl PolicySource {
    /// Returns the policy of an operation, if it uses keys.
    ///
    /// A path parameter matches as one segment; a route's host is ignored.
    fn policy_for(&self, method: &Method, path: &str) -> Option<&Policy> {
        let policy = match self {
            Self::Everywhere(policy) => policy,
            Self::Routes(config) => {
                let meant = config.routes.iter().find(|route| {
                    (route.methods.is_empty() || route.methods.contains(method))
                        && route.path.matches(path)
                });
                meant?.policy()?
            }
        };
        policy.methods.contains(method).then_some(policy)
    }
}
