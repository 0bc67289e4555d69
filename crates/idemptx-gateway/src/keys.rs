//! `idemptx keys`: what operators do about records, from a shell.
//!
//! It works on the store itself, with or without a gateway: all that it needs to know is where the
//! store is and, to compute names or to store answers, under which policy.

mod output;

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::{ArgGroup, Args, Subcommand};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use idemptx::operator::{Cursor, Operator, Query, RecordStatus, Resolution};
use idemptx::store::AnyStore;
use idemptx::{Key, Policy, Profile, Scope};
use idemptx_core::key::RecordId;
use idemptx_core::policy::{KeySyntax, ScopeRule};

use self::output::OutputWriter;
use crate::admin::actions::OperatorAction;
use crate::config::{Config, Store};

/// Records in a store: list, show, resolve, forget, purge.
#[derive(Debug, Args)]
pub(crate) struct KeysCommand {
    #[command(flatten)]
    place: StoreLocation,
    /// Prints JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    call: KeysSubcommand,
}

/// Where the records are, and under which policy.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("where").args(["config", "store"]).required(true))]
struct StoreLocation {
    /// The gateway's configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The route whose policy counts; without it, the one that keeps answers for the longest.
    #[arg(long, value_name = "NAME", requires = "config")]
    route: Option<String>,
    /// The store: sqlite:PATH, redis://…, postgres://…; `${NAME}` is a variable of the
    /// environment.
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// The profile of the services on it.
    #[arg(long, value_name = "NAME", requires = "store", default_value = "draft")]
    profile: Profile,
    /// A JSON object laid over the profile; where there are secrets, which count for names, use
    /// --config.
    #[arg(long, value_name = "JSON", requires = "store", default_value = "{}")]
    policy: String,
}

#[derive(Debug, Subcommand)]
enum KeysSubcommand {
    /// Lists records: those in flight, unless asked otherwise.
    ListArgs(ListArgs),
    /// Shows one record, without its response's body.
    ShowArgs(ShowArgs),
    /// Decides about an operation in doubt.
    ResolveArgs(ResolveArgs),
    /// Removes a settled record: a retry executes again.
    Forget(RecordSelector),
    /// Removes many settled records; says what it would do unless told `--yes`.
    PurgeArgs(PurgeArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    filter: RecordFilter,
    /// How many at most.
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,
    /// Goes on where an earlier list ended.
    #[arg(long, value_name = "CURSOR")]
    after: Option<Cursor>,
}

#[derive(Debug, Args)]
struct RecordFilter {
    /// Only records in these states, or `in-flight`, `in-doubt`, `all`.
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    state: Vec<String>,
    /// Only what nobody has written for so long, as `90s`, `15m`, `2h` or `30d`.
    #[arg(long, value_name = "TIME", value_parser = time)]
    idle: Option<Duration>,
}

/// A record, by its id or by the key that a client sent.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("name").args(["id", "key"]).required(true))]
struct RecordSelector {
    /// The record's id: 32 hexadecimal digits, a colon, and 32 more.
    #[arg(value_name = "ID")]
    id: Option<RecordId>,
    /// The key, as the client sent it.
    #[arg(long)]
    key: Option<String>,
    /// Whose key: what the policy's `scope` takes it from.
    #[arg(long, requires = "key", default_value = "")]
    scope: String,
    /// The request's method, where the policy's `key_space` is `route`.
    #[arg(long, requires = "key", default_value = "POST")]
    method: Method,
    /// The request's path, where the policy's `key_space` is `route`.
    #[arg(long, requires = "key", default_value = "/")]
    path: String,
}

#[derive(Debug, Args)]
struct ShowArgs {
    #[command(flatten)]
    selector: RecordSelector,
    /// Prints the response's headers and body, too.
    #[arg(long)]
    body: bool,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("how").args(["release", "answer"]).required(true))]
struct ResolveArgs {
    #[command(flatten)]
    selector: RecordSelector,
    /// It did not happen: the next request with the key executes.
    #[arg(long)]
    release: bool,
    /// It happened: retries get the body in this file; `-` is the standard input.
    #[arg(long, value_name = "FILE")]
    answer: Option<PathBuf>,
    /// The answer's status.
    #[arg(long, requires = "answer", default_value = "200")]
    status: StatusCode,
    /// The answer's content type.
    #[arg(long, requires = "answer", default_value = "application/json")]
    content_type: HeaderValue,
}

#[derive(Debug, Args)]
struct PurgeArgs {
    #[command(flatten)]
    filter: RecordFilter,
    /// Does it.
    #[arg(long)]
    yes: bool,
}

impl KeysCommand {
    /// Does what was asked for.
    pub(crate) async fn run(self) -> Result<ExitCode, Box<dyn Error>> {
        let (store, policy) = self.place.open()?;
        let scope = policy.scope.clone();
        let operator = Operator::new(crate::store::open(&store)?, policy)?;
        let mut printer = OutputWriter::new(self.json);
        match self.call {
            KeysSubcommand::ListArgs(list) => list.run(&operator, &mut printer).await?,
            KeysSubcommand::ShowArgs(show) => {
                let id = show.selector.resolve_id(&operator, &scope).await?;
                let (entry, seen) = (operator.entry(&id).await?, operator.lookup(&id).await?);
                let (Some(entry), Some(seen)) = (entry, seen) else { return Err(ABSENT.into()) };
                printer.record(&entry, &seen, show.body)?;
            }
            KeysSubcommand::ResolveArgs(resolve) => {
                let id = resolve.selector.resolve_id(&operator, &scope).await?;
                let action =
                    if resolve.release { OperatorAction::Release } else { OperatorAction::Answer };
                operator.resolve(&id, resolve.resolution(&operator)?).await?;
                printer.done(&id, action)?;
            }
            KeysSubcommand::Forget(selector) => {
                let id = selector.resolve_id(&operator, &scope).await?;
                operator.forget(&id).await?;
                printer.done(&id, OperatorAction::Forget)?;
            }
            KeysSubcommand::PurgeArgs(purge) => purge.run(&operator, &mut printer).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl StoreLocation {
    /// The store, and the policy.
    fn open(&self) -> Result<(Store, Policy), Box<dyn Error>> {
        let (store, policy) = match (&self.config, &self.store) {
            (Some(file), _) => self.configured(file)?,
            (None, Some(url)) => {
                let policy = Policy::from_json(self.profile, &self.policy)?;
                let variable = |name: &str| std::env::var(name).ok();
                (Store::new(crate::config::expanded(url, &variable)?), policy)
            }
            (None, None) => return Err("give --config or --store".into()),
        };
        if store.url.starts_with("memory:") {
            return Err("the records of `memory:` are in the gateway's own process: use its \
                        admin listener"
                .into());
        }
        // Whoever mistypes a path wants to hear of it, not to have an empty store.
        let path = store.url.strip_prefix("sqlite:").map(|path| path.trim_start_matches("//"));
        if let Some(path) = path.and_then(|path| path.split('?').next())
            && !Path::new(path).exists()
        {
            return Err(format!("there is no file {path}").into());
        }
        Ok((store, policy))
    }

    fn configured(&self, file: &Path) -> Result<(Store, Policy), Box<dyn Error>> {
        let config = Config::load(file)?;
        let wanted = |name: &str| self.route.as_ref().is_none_or(|route| route == name);
        let routes = config.routes.iter().filter(|route| wanted(&route.name));
        let policy = routes.filter_map(|route| route.policy()).max_by_key(|policy| policy.retain);
        let policy = policy.ok_or("there is no protected route of that name")?;
        // A command asks once: nothing is worth to be held at hand.
        Ok((Store { near: None, ..config.store.clone() }, policy.clone()))
    }
}

impl RecordFilter {
    /// `None` if nothing was said.
    fn query(&self, otherwise: Query) -> Result<Query, Box<dyn Error>> {
        let query = match self.state.as_slice() {
            [] => otherwise,
            [one] if one == "all" => Query::all(),
            [one] if one == "in-flight" => Query::in_flight(),
            [one] if one == "in-doubt" => Query::in_doubt(),
            states => Query::of(
                states
                    .iter()
                    .map(|state| state.parse())
                    .collect::<Result<Vec<RecordStatus>, _>>()?,
            ),
        };
        Ok(query.idle_for(self.idle.unwrap_or_default()))
    }
}

impl ListArgs {
    async fn run(
        self,
        operator: &Operator<AnyStore>,
        printer: &mut OutputWriter,
    ) -> Result<(), Box<dyn Error>> {
        let query = self.filter.query(Query::in_flight())?;
        let (mut entries, mut unreadable) = (Vec::new(), Vec::new());
        let mut after = self.after;
        loop {
            let rest = self.limit.saturating_sub(entries.len());
            let page = operator.list(&query.clone().limit(rest).after(after)).await?;
            entries.extend(page.entries);
            unreadable.extend(page.unreadable);
            after = page.next;
            if after.is_none() || entries.len() >= self.limit {
                break;
            }
        }
        Ok(printer.list(&entries, &unreadable, after.as_ref())?)
    }
}

impl RecordSelector {
    /// The id of the record that is meant.
    async fn resolve_id(
        &self,
        operator: &Operator<AnyStore>,
        rule: &Option<ScopeRule>,
    ) -> Result<RecordId, Box<dyn Error>> {
        if let Some(id) = self.id {
            return Ok(id);
        }
        let line = HeaderValue::from_str(self.key.as_deref().unwrap_or_default())?;
        let key = Key::from_lines([&line], KeySyntax::Lenient, KEY_BYTES_MAX)?;
        let key = key.ok_or("give an id or --key")?;
        let scope = match rule {
            Some(ScopeRule::Bind(_) | ScopeRule::Shared) => Scope::shared(),
            _ if self.scope.is_empty() => return Err(WHOSE.into()),
            _ => Scope::new(&self.scope),
        };
        let ids = operator.ids(&scope, &key, Some((&self.method, &self.path)));
        // Not by a lookup: what does not open has to be found as well, to be forgotten.
        for id in ids {
            if operator.entry(&id).await?.is_some() {
                return Ok(id);
            }
        }
        Err(ABSENT.into())
    }
}

impl ResolveArgs {
    fn resolution(&self, operator: &Operator<AnyStore>) -> Result<Resolution, Box<dyn Error>> {
        let Some(file) = &self.answer else { return Ok(Resolution::Release) };
        let body = match file.as_os_str() == "-" {
            true => io::read_to_string(io::stdin())?.into(),
            false => Bytes::from(std::fs::read(file)?),
        };
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, self.content_type.clone())]);
        Ok(operator.response(self.status, &headers, body).into())
    }
}

impl PurgeArgs {
    async fn run(
        self,
        operator: &Operator<AnyStore>,
        printer: &mut OutputWriter,
    ) -> Result<(), Box<dyn Error>> {
        let settled = Query::of([
            RecordStatus::Completed,
            RecordStatus::NotReplayable,
            RecordStatus::ResponseExpired,
        ]);
        let mut purge = operator.purge(self.filter.query(settled)?);
        let report = match self.yes {
            true => purge.run().await?,
            false => purge.dry_run().run().await?,
        };
        Ok(printer.purged(&report, self.yes)?)
    }
}

/// `90s`, `15m`, `2h`, `30d`.
fn time(text: &str) -> Result<Duration, &'static str> {
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

const ABSENT: &str = "there is no such record: it was never there, was released, or has expired";
const WHOSE: &str = "whose key is it? give --scope, as the policy takes it from the request";
/// As a policy allows at most.
const KEY_BYTES_MAX: usize = 1024;
