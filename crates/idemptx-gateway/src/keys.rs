//! `idemptx keys`: the calls of operators from the command line.
//!
//! They work on the store directly, with or without a gateway, and need its URL and, to compute
//! record ids or to store responses, the policy.

mod author;
mod output;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use idemptx::operator::{Cursor, Operator, Query};
use idemptx::store::AnyStore;
use idemptx::{Policy, Profile};
use idemptx_core::key::RecordId;
use idemptx_core::response::may_have_content;

use self::author::AuthorArgs;
use self::output::{OutputWriter, prefix_hint};
use crate::cli::examples;
use crate::config::{Config, Route, Store};
use crate::operators::{self, Author, Decision, Operators};

/// Records in a store: list, show, export, resolve, forget, purge.
#[derive(Debug, Args)]
#[command(after_help = examples::KEYS)]
pub(crate) struct KeysCommand {
    #[command(flatten)]
    location: StoreLocation,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: KeysSubcommand,
}

/// The store of the records, and how they are named.
///
/// The flags may stand before or after the subcommand, so clap cannot relate them to each other.
#[derive(Debug, Args)]
struct StoreLocation {
    /// The gateway's configuration file.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The route whose policy applies; by default the one that keeps responses for the longest, and
    /// a key is looked up under each.
    #[arg(long, value_name = "NAME", global = true)]
    route: Option<String>,
    /// The store: sqlite:PATH, redis://…, postgres://…; `${NAME}` is replaced by an environment
    /// variable.
    #[arg(long, value_name = "URL", global = true)]
    store: Option<String>,
    /// The policy profile of the services that use the store; by default draft.
    #[arg(long, value_name = "NAME", global = true)]
    profile: Option<Profile>,
    /// Policy fields that override the profile, as a JSON object; if the policy has secrets, from
    /// which record ids are computed, use --config.
    #[arg(long, value_name = "JSON", global = true)]
    policy: Option<String>,
    /// The namespace of the service: for a gateway the name of the upstream, `upstream` without a
    /// configuration file.
    #[arg(long, value_name = "NAME", global = true)]
    namespace: Option<String>,
}

/// A policy, and the namespace in which it names records.
struct Naming {
    policy: Policy,
    namespace: String,
}

/// The operators' calls under the policy of a route or service.
type StoreOperators = Operators<Arc<AnyStore>>;

#[derive(Debug, Subcommand)]
enum KeysSubcommand {
    /// Lists records, by default those in flight.
    #[command(after_help = examples::LIST)]
    List(ListArgs),
    /// Shows a record, without its response's body.
    #[command(after_help = examples::SHOW)]
    Show(ShowArgs),
    /// Prints all records as JSON, one a line, without keys and bodies.
    #[command(after_help = examples::EXPORT)]
    Export(ExportArgs),
    /// Resolves an operation in doubt.
    #[command(after_help = examples::RESOLVE)]
    Resolve(ResolveArgs),
    /// Removes a settled record: a retry executes the operation again; without `--yes` it only
    /// shows the record.
    #[command(after_help = examples::FORGET)]
    Forget(ForgetArgs),
    /// Removes many settled records; without `--yes` it only reports them.
    #[command(after_help = examples::PURGE)]
    Purge(PurgeArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    filter: RecordFilter,
    /// The maximum number of records.
    #[arg(long, value_name = "COUNT", default_value = "100")]
    limit: NonZeroUsize,
    /// Continue where an earlier list ended.
    #[arg(long, value_name = "CURSOR")]
    after: Option<Cursor>,
}

#[derive(Debug, Args)]
struct ExportArgs {
    #[command(flatten)]
    filter: RecordFilter,
}

#[derive(Debug, Args)]
struct RecordFilter {
    /// Only records in these states, or `in-flight`, `in-doubt`, `all`.
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    state: Vec<String>,
    /// Only records that were last written longer ago, as `90s`, `15m`, `2h` or `30d`.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    idle: Option<Duration>,
}

/// A record, selected by its id or by the key that a client sent.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("name").args(["id", "key"]).required(true))]
struct RecordSelector {
    /// The record's id, or the first digits of its second half, as the log and lists show them.
    #[arg(value_name = "ID")]
    id: Option<RecordName>,
    /// The key, as the client sent it.
    #[arg(long)]
    key: Option<String>,
    /// The scope of the key: the value that the policy takes it from.
    #[arg(long, requires = "key", default_value = "")]
    scope: String,
    /// The request's method, if the policy's `key_space` is `route`.
    #[arg(long, requires = "key", default_value = "POST")]
    method: Method,
    /// The request's path, if the policy's `key_space` is `route`.
    #[arg(long, requires = "key", default_value = "/")]
    path: String,
}

/// A record's id, or the beginning of its second half.
#[derive(Clone, Debug)]
enum RecordName {
    Id(RecordId),
    Prefix(String),
}

impl FromStr for RecordName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        if operators::is_prefix(text) {
            Ok(Self::Prefix(text.to_ascii_lowercase()))
        } else {
            Err(NO_RECORD_NAME)
        }
    }
}

#[derive(Debug, Args)]
struct ShowArgs {
    #[command(flatten)]
    selector: RecordSelector,
    /// Print the response's headers and body, too.
    #[arg(long)]
    body: bool,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("how").args(["release", "answer"]).required(true))]
struct ResolveArgs {
    #[command(flatten)]
    selector: RecordSelector,
    /// Release the key of an operation that did not happen: the next request executes.
    #[arg(long)]
    release: bool,
    /// Store the body in this file for retries of an operation that happened; `-` is stdin.
    #[arg(long, value_name = "FILE")]
    answer: Option<PathBuf>,
    /// The status of the stored response.
    #[arg(long, requires = "answer", default_value = "200")]
    status: StatusCode,
    /// The content type of the stored response.
    #[arg(long, requires = "answer", default_value = "application/json")]
    content_type: HeaderValue,
    #[command(flatten)]
    author: AuthorArgs,
}

#[derive(Debug, Args)]
struct ForgetArgs {
    #[command(flatten)]
    selector: RecordSelector,
    /// Remove the record.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    author: AuthorArgs,
}

#[derive(Debug, Args)]
struct PurgeArgs {
    #[command(flatten)]
    filter: RecordFilter,
    /// Remove the records.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    author: AuthorArgs,
}

impl KeysCommand {
    /// Runs the command.
    pub(crate) async fn run(self) -> Result<ExitCode, Box<dyn Error>> {
        crate::logging::init_audit(self.json);
        let (store, namings) = self.location.open()?;
        let hint = prefix_hint(&store);
        let store = Arc::new(crate::store::open(&store)?);
        let mut named = Vec::new();
        for Naming { policy, namespace } in namings {
            let operator = Operator::new(Arc::clone(&store), policy.clone())?;
            named.push((policy, Operators::new(operator.namespace(&namespace))));
        }
        let (_, operators) = named.first().ok_or(NO_ROUTE)?;
        let absent = match (&self.location.store, &self.location.namespace) {
            (Some(_), None) => format!("{ABSENT_OUTSIDE}{hint}"),
            _ => format!("{ABSENT}{hint}"),
        };
        let mut output = OutputWriter::new(self.json);
        match self.command {
            KeysSubcommand::List(list) => list.run(operators, &mut output, hint).await?,
            KeysSubcommand::Show(show) => {
                let id = show.selector.resolve_id(&named, &absent).await?;
                let record = operators.show(&id).await?.ok_or(ABSENT)?;
                output.record(&record, show.body)?;
            }
            KeysSubcommand::Export(export) => export.run(operators, &mut output).await?,
            KeysSubcommand::Resolve(resolve) => {
                let id = resolve.selector.resolve_id(&named, &absent).await?;
                let author = resolve.author.author();
                decide(operators, &id, resolve.decision()?, &author, &mut output).await?;
            }
            KeysSubcommand::Forget(forget) => {
                let id = forget.selector.resolve_id(&named, &absent).await?;
                if forget.yes {
                    let author = forget.author.author();
                    decide(operators, &id, Decision::Forget, &author, &mut output).await?;
                } else {
                    let record = operators.show(&id).await?.ok_or(ABSENT)?;
                    output.record(&record, false)?;
                    return Err("nothing was removed: a retry would execute the operation again. \
                                Add --yes to remove the record"
                        .into());
                }
            }
            KeysSubcommand::Purge(purge) => {
                let query = purge.filter.query(operators::settled())?;
                let report = operators.purge(query, !purge.yes).await?;
                if purge.yes {
                    purge.author.author().log_purge(&purge.filter.state.join(","), &report);
                }
                output.purged(&report, purge.yes)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl StoreLocation {
    /// Returns the store's configuration and the policies, that of the longest retention first.
    fn open(&self) -> Result<(Store, Vec<Naming>), Box<dyn Error>> {
        let of_store = self.profile.is_some() || self.policy.is_some() || self.namespace.is_some();
        let (store, namings) = match (&self.config, &self.store) {
            (Some(_), Some(_)) => return Err("give one of --config and --store".into()),
            (Some(_), None) if of_store => {
                return Err("--profile, --policy and --namespace go with --store: \
                            --config says them, route by route"
                    .into());
            }
            (Some(file), None) => self.configured(file)?,
            (None, Some(_)) if self.route.is_some() => {
                return Err("--route goes with --config, which has the routes".into());
            }
            (None, Some(url)) => {
                let json = self.policy.as_deref().unwrap_or("{}");
                let policy = Policy::from_json(self.profile.unwrap_or(Profile::Draft), json)?;
                let variable = |name: &str| std::env::var(name).ok();
                let namespace = self.namespace.clone().unwrap_or_default();
                let naming = Naming { policy, namespace };
                (Store::new(crate::config::expanded(url, &variable)?), vec![naming])
            }
            (None, None) => {
                return Err("give --config FILE, the gateway's, or --store URL".into());
            }
        };
        if store.url.starts_with("memory:") {
            return Err("the records of `memory:` are in the gateway's own process: use its \
                        admin listener"
                .into());
        }
        // SQLite would create an empty store at a mistyped path.
        let path = store.url.strip_prefix("sqlite:").map(|path| path.trim_start_matches("//"));
        if let Some(path) = path.and_then(|path| path.split('?').next())
            && !Path::new(path).exists()
        {
            return Err(format!("there is no file {path}").into());
        }
        Ok((store, namings))
    }

    fn configured(&self, file: &Path) -> Result<(Store, Vec<Naming>), Box<dyn Error>> {
        let config = Config::load(file)?;
        let wanted = |name: &str| self.route.as_ref().is_none_or(|route| route == name);
        let routes = config.routes.iter().filter(|route| wanted(&route.name));
        let naming = |route: &Route| {
            let (policy, namespace) = (route.policy()?.clone(), route.upstream.clone());
            Some(Naming { policy, namespace })
        };
        let mut namings: Vec<_> = routes.filter_map(naming).collect();
        namings.sort_by_key(|naming| Reverse(naming.policy.retain));
        // A command reads once: a cache would not help.
        Ok((Store { near_bytes: 0, ..config.store.clone() }, namings))
    }
}

impl RecordFilter {
    /// The query for the states, or else the default.
    fn query(&self, default: Query) -> Result<Query, Box<dyn Error>> {
        let query = match self.state.as_slice() {
            [] => default,
            states => operators::query_of(states.iter().map(String::as_str))?,
        };
        Ok(query.idle_for(self.idle.unwrap_or_default()))
    }
}

impl ListArgs {
    async fn run(
        self,
        operators: &StoreOperators,
        output: &mut OutputWriter,
        hint: &str,
    ) -> Result<(), Box<dyn Error>> {
        let empty = match self.filter.state.is_empty() {
            true => "no records in flight; --state all lists the others, too",
            false => "no records",
        };
        let limit = self.limit.get();
        let query = self.filter.query(Query::in_flight())?.limit(limit).after(self.after);
        Ok(output
            .list(&operators.list(query, limit, usize::MAX).await?, &format!("{empty}{hint}"))?)
    }
}

impl ExportArgs {
    async fn run(
        self,
        operators: &StoreOperators,
        output: &mut OutputWriter,
    ) -> Result<(), Box<dyn Error>> {
        let mut query = self.filter.query(Query::all())?;
        loop {
            let page = operators.list(query.clone(), 1, usize::MAX).await?;
            output.export(&page)?;
            match page.next {
                Some(next) => query = query.after(Some(next)),
                None => return Ok(()),
            }
        }
    }
}

impl RecordSelector {
    /// Returns the id of the selected record; `absent` says why there may be none.
    async fn resolve_id(
        &self,
        named: &[(Policy, StoreOperators)],
        absent: &str,
    ) -> Result<RecordId, Box<dyn Error>> {
        match &self.id {
            Some(RecordName::Id(id)) => return Ok(*id),
            Some(RecordName::Prefix(prefix)) => {
                let (_, operators) = named.first().ok_or(NO_ROUTE)?;
                let mut found = operators.named(prefix).await?.into_iter();
                return match (found.next(), found.next()) {
                    (Some(id), None) => Ok(id),
                    (Some(one), Some(another)) => {
                        Err(format!("several records begin so, such as {one} and {another}").into())
                    }
                    (None, _) => Err(absent.into()),
                };
            }
            None => {}
        }
        let key = operators::parse_key(self.key.as_deref().unwrap_or_default())
            .map_err(|error| format!("--key: {error}"))?;
        let mut found = BTreeSet::new();
        let mut is_scoped = false;
        for (policy, operators) in named {
            let Some(scope) = operators::scope_of(policy, &self.scope) else { continue };
            is_scoped = true;
            for id in operators.ids(&scope, &key, (&self.method, &self.path)) {
                // Not by a lookup: a record that cannot be read is found as well, to be forgotten.
                if !found.contains(&id) && operators.summary(&id).await?.is_some() {
                    found.insert(id);
                }
            }
        }
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some(id), None) => Ok(id),
            (Some(one), Some(another)) => Err(format!(
                "several routes have a record of this key, such as {one} and {another}: \
                 give --route, or the id"
            )
            .into()),
            (None, _) if is_scoped => Err(absent.into()),
            (None, _) => Err(NO_SCOPE.into()),
        }
    }
}

impl ResolveArgs {
    fn decision(&self) -> Result<Decision, Box<dyn Error>> {
        let Some(file) = &self.answer else { return Ok(Decision::Release) };
        let mut body = Vec::new();
        let read = match file.as_os_str() == "-" {
            true => io::stdin().read_to_end(&mut body),
            false => File::open(file).and_then(|mut it| it.read_to_end(&mut body)),
        };
        read.map_err(|error| format!("--answer {}: {error}", file.display()))?;
        if !body.is_empty() && !may_have_content(self.status) {
            return Err(format!("--answer: a response with {} has no body", self.status).into());
        }
        // Without a body there is nothing whose type could be told.
        let kind = (!body.is_empty()).then(|| (CONTENT_TYPE, self.content_type.clone()));
        let headers = HeaderMap::from_iter(kind);
        Ok(Decision::Answer { status: self.status, headers, body: body.into() })
    }
}

async fn decide(
    operators: &StoreOperators,
    id: &RecordId,
    decision: Decision,
    author: &Author,
    output: &mut OutputWriter,
) -> Result<(), Box<dyn Error>> {
    let action = decision.action();
    let before = operators.summary(id).await?.ok_or(ABSENT)?;
    operators.decide(&before, decision, author).await?;
    Ok(output.done(id, action)?)
}

/// Parses `90s`, `15m`, `2h` or `30d`.
fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    let advice = "write a number with s, m, h or d, as `15m`";
    let unit = text.chars().next_back().ok_or(advice)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(advice),
    };
    let number: u64 = text.strip_suffix(unit).unwrap_or_default().parse().map_err(|_| advice)?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or(advice)
}

const NO_RECORD_NAME: &str = "a record is named by its id, or by at least four hexadecimal digits, as the log shows them; \
     name a client's key with --key";
const ABSENT: &str = "there is no such record: it was never there, was released, or has expired";
const ABSENT_OUTSIDE: &str = "there is no such record: it was never there, was released, or has expired; a gateway's records \
     are in the namespace of its upstream: give --namespace, or --config instead of --store";
const NO_ROUTE: &str = "there is no protected route of that name";
const NO_SCOPE: &str = "this policy takes the scope from the request: give --scope";
