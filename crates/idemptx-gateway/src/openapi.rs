//! `idemptx openapi`: an API's document, with what a client has to know about keys.
//!
//! draft-ietf-httpapi-idempotency-key-header §2.5.2 wants a resource to publish its specification,
//! the expiry of keys among it.
//! What is added comes from the policy, so that the document and the behaviour have one source:
//! the header parameter, a problem response for each refusal that can happen, the header that marks
//! a replay, and `x-idempotency` with retention and codes.
//!
//! All of it carries a mark, so that a second run replaces what the first one has added, and
//! nothing that somebody wrote is changed.

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

/// Adds to an OpenAPI document what clients have to know about keys.
///
/// Comments of a YAML document are not kept.
#[derive(Debug, Args)]
pub(crate) struct OpenApiArgs {
    /// The document, of OpenAPI 3.0 or later, as JSON or YAML.
    #[arg(long, value_name = "FILE")]
    merge: PathBuf,
    /// Where to write it; the standard output without.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The gateway's configuration, whose routes and policies count.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["profile", "policy"])]
    config: Option<PathBuf>,
    /// The profile for all operations.
    #[arg(long, value_name = "NAME", default_value = "draft")]
    profile: Profile,
    /// A JSON object laid over the profile.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    policy: String,
}

impl OpenApiArgs {
    /// Reads, adds and writes.
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

/// Which policy an operation has.
enum PolicySource {
    Everywhere(Box<Policy>),
    Routes(Box<Config>),
}

impl PolicySource {
    /// The policy in force, if keys are for this operation.
    ///
    /// A parameter of the path is taken as one segment of it; a route's host does not count.
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
