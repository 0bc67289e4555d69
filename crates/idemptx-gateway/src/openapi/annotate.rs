//! Adds the annotations, after removing those of an earlier run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use http::header::AUTHORIZATION;
use http::{Method, StatusCode, Uri};
use idemptx::{Code, Policy, Rejection};
use idemptx_core::policy::{OnLargeBody, OnOrphan, OnPanic, ProblemFormat, ScopeRule};
use idemptx_core::problem::Problem;

use super::node::Node;

/// A summary for the user.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct MergeSummary {
    operations: usize,
    /// Responses that are references, which other operations may share.
    referred: usize,
}

impl fmt::Display for MergeSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.operations {
            1 => f.write_str("1 operation takes keys")?,
            count => write!(f, "{count} operations take keys")?,
        }
        match self.referred {
            0 => Ok(()),
            1 => f.write_str("; 1 response is a reference, which was left as it is"),
            count => write!(f, "; {count} responses are references, which were left as they are"),
        }
    }
}

/// Annotates every operation that has a policy.
pub(super) fn annotate<'a>(
    document: &mut Node,
    promise: impl Fn(&Method, &str) -> Option<&'a Policy>,
) -> Result<MergeSummary, &'static str> {
    let version = document.get("openapi").and_then(Node::as_str).unwrap_or_default();
    if !version.starts_with("3.") {
        return Err("not an OpenAPI 3 document: `openapi: 3.…` is missing");
    }
    let before = base_path(document);
    let parameters = document.get("components").and_then(|it| it.get("parameters")).cloned();
    let Some(paths) = document.get_mut("paths") else { return Err("the document has no `paths`") };
    let (mut added, mut used) = (MergeSummary::default(), BTreeMap::<_, BTreeSet<_>>::new());
    for (path, item) in paths.members_mut() {
        let shared = item.get("parameters").cloned();
        for (name, method) in METHODS {
            let Some(operation) = item.get_mut(name) else { continue };
            remove_generated(operation);
            let Some(policy) = promise(&method, &format!("{before}{path}")) else { continue };
            added.operations += 1;
            let elsewhere = [shared.as_ref(), parameters.as_ref()];
            add_key_parameter(operation, policy, &elsewhere);
            added.referred += mark_replays(operation, policy);
            add_problems(operation, policy);
            let names = policy.problem.codes.values().map(ToString::to_string);
            used.entry(policy.problem.format.as_str()).or_default().extend(names);
            operation.set("x-idempotency", specification(policy));
        }
    }
    let components = document.entry("components", Node::Object(Vec::new()));
    let schemas = components.and_then(|it| it.entry("schemas", Node::Object(Vec::new())));
    if let Some(schemas) = schemas {
        schemas.retain(is_not_generated);
        for (format, names) in &used {
            if *format == ProblemFormat::Flat.as_str() {
                schemas.set(FLAT_SCHEMA, flat_schema(names));
            } else {
                schemas.set(SCHEMA, problem_schema(names));
            }
        }
    }
    Ok(added)
}

/// The path of the first server, a prefix of the operations' paths.
fn base_path(document: &Node) -> String {
    let url = document.get("servers").and_then(|it| it.items().first()?.get("url")?.as_str());
    let path = url.and_then(|url| url.parse::<Uri>().ok()).map(|uri| uri.path().to_owned());
    path.unwrap_or_default().trim_end_matches('/').to_owned()
}

/// Removes the annotations of an earlier run.
fn remove_generated(operation: &mut Node) {
    operation.remove("x-idempotency");
    if let Some(parameters) = operation.get_mut("parameters") {
        parameters.retain(is_not_generated);
        if parameters.items().is_empty() {
            operation.remove("parameters");
        }
    }
    let Some(responses) = operation.get_mut("responses") else { return };
    responses.retain(is_not_generated);
    for (_, response) in responses.members_mut() {
        for part in ["content", "headers"] {
            let Some(members) = response.get_mut(part) else { continue };
            members.retain(is_not_generated);
            if members.members().is_empty() {
                response.remove(part);
            }
        }
    }
}

/// Returns whether a node was written by hand.
fn is_not_generated(node: &Node) -> bool {
    node.get(MARK).is_none()
}

/// Adds the header parameter, unless the document has it.
fn add_key_parameter(operation: &mut Node, policy: &Policy, elsewhere: &[Option<&Node>]) {
    let Some(name) = policy.header_names.first() else { return };
    let name = title_case(name.as_str());
    let [shared, components] = elsewhere else { return };
    let is_it = |parameter: &Node| {
        let referred = parameter.get("$ref").and_then(Node::as_str);
        let referred = referred.and_then(|it| it.strip_prefix("#/components/parameters/"));
        let target = referred.and_then(|it| components.and_then(|all| all.get(it)));
        let parameter = target.unwrap_or(parameter);
        let named = parameter.get("name").and_then(Node::as_str);
        named.is_some_and(|it| it.eq_ignore_ascii_case(&name))
            && parameter.get("in").and_then(Node::as_str) == Some("header")
    };
    let own = operation.get("parameters").map(Node::items).unwrap_or_default();
    let shared = shared.map(Node::items).unwrap_or_default();
    if own.iter().chain(shared).any(is_it) {
        return;
    }
    let parameter = Node::object([
        ("name", Node::text(&name)),
        ("in", Node::text("header")),
        ("required", Node::Bool(policy.required)),
        ("description", Node::text(PARAMETER)),
        (
            "schema",
            Node::object([
                ("type", Node::text("string")),
                ("minLength", Node::Unsigned(1)),
                // Two more for the quotes.
                ("maxLength", Node::Unsigned(policy.key_bytes_max as u64 + 2)),
            ]),
        ),
        ("example", Node::text("\"8e03978e-40d5-43dd-bc93-6894a57f9324\"")),
        (MARK, Node::Bool(true)),
    ]);
    if let Some(Node::List(parameters)) = operation.entry("parameters", Node::List(Vec::new())) {
        parameters.push(parameter);
    }
}

/// Documents the replay header; returns the number of responses that are references.
fn mark_replays(operation: &mut Node, policy: &Policy) -> usize {
    let mut referred = 0;
    let Some(responses) = operation.get_mut("responses") else { return 0 };
    let is_stored = |status: &str| {
        let status = status.replace("XX", "00").parse();
        status.is_ok_and(|status: StatusCode| {
            policy.store_statuses.contains(status) && !policy.release_statuses.contains(status)
        })
    };
    for (_, response) in responses.members_mut().iter_mut().filter(|(it, _)| is_stored(it)) {
        if response.get("$ref").is_some() {
            referred += 1;
            continue;
        }
        let Some(headers) = response.entry("headers", Node::Object(Vec::new())) else { continue };
        if headers.get(REPLAYED).is_none() {
            let header = Node::object([
                ("description", Node::text("On a retry that gets the first answer again.")),
                ("schema", Node::object([("type", Node::text("boolean"))])),
                (MARK, Node::Bool(true)),
            ]);
            headers.set(REPLAYED, header);
        }
    }
    referred
}

/// Adds a problem response for each status of a refusal.
fn add_problems(operation: &mut Node, policy: &Policy) {
    let mut by_status: BTreeMap<u16, Vec<Rejection>> = BTreeMap::new();
    for rejection in refusals(policy) {
        by_status.entry(rejection.status.as_u16()).or_default().push(rejection);
    }
    let Some(responses) = operation.entry("responses", Node::Object(Vec::new())) else { return };
    let (media_type, schema) = match policy.problem.format {
        ProblemFormat::Flat => (JSON, FLAT_SCHEMA),
        _ => (PROBLEM_JSON, SCHEMA),
    };
    for (status, rejections) in by_status {
        let path = format!("#/components/schemas/{schema}");
        let media = Node::object([
            ("schema", Node::object([("$ref", Node::text(path))])),
            ("x-idempotency-codes", codes(&rejections)),
            (MARK, Node::Bool(true)),
        ]);
        let status = status.to_string();
        let Some(response) = responses.get_mut(&status) else {
            responses.set(&status, problem_response(&rejections, media_type, media));
            continue;
        };
        if response.get("$ref").is_none()
            && let Some(content) = response.entry("content", Node::Object(Vec::new()))
            && content.get(media_type).is_none()
        {
            content.set(media_type, media);
        }
    }
}

fn problem_response(rejections: &[Rejection], media_type: &str, media: Node) -> Node {
    let titles: Vec<_> = rejections.iter().map(|it| Problem::from(it).title()).collect();
    let mut response = Node::object([("description", Node::text(titles.join("; ")))]);
    if rejections.iter().any(|rejection| rejection.retry_after.is_some()) {
        let header = Node::object([
            ("description", Node::text("When the same request makes sense again, in seconds.")),
            ("schema", Node::object([("type", Node::text("integer"))])),
        ]);
        response.set("headers", Node::object([("Retry-After", header)]));
    }
    response.set("content", Node::object([(media_type, media)]));
    response.set(MARK, Node::Bool(true));
    response
}

/// The refusals that are possible under a policy.
fn refusals(policy: &Policy) -> Vec<Rejection> {
    let can_happen = |code: &Code| match code {
        Code::MissingKey => policy.required,
        Code::ScopeUnresolved => {
            matches!(
                policy.scope,
                Some(ScopeRule::Header(_) | ScopeRule::Cookie(_) | ScopeRule::Custom)
            )
        }
        Code::BodyTooLarge => policy.on_large_body != OnLargeBody::Skip,
        Code::OutcomeUnknown => {
            policy.on_orphan != OnOrphan::Reexecute || policy.on_panic == OnPanic::Quarantine
        }
        Code::KeyExpired => policy.key_retain > policy.retain,
        Code::TooManyKeys => policy.new_keys_per_minute_max.is_some(),
        // An error of the upstream, which the document describes on its own.
        Code::HandlerFailed => false,
        _ => true,
    };
    let refusal = |code| {
        let mut rejection = Rejection::new(code, policy);
        let by_credential = match &policy.scope {
            Some(ScopeRule::Header(name)) => *name == AUTHORIZATION,
            Some(ScopeRule::Cookie(_) | ScopeRule::Custom) => true,
            _ => false,
        };
        if code == Code::ScopeUnresolved && by_credential {
            rejection.status = StatusCode::UNAUTHORIZED;
        }
        rejection
    };
    Code::ALL.into_iter().filter(can_happen).map(refusal).collect()
}

fn codes(rejections: &[Rejection]) -> Node {
    Node::List(rejections.iter().map(|it| Node::text(Problem::from(it).code())).collect())
}

/// The specification that the draft asks for.
fn specification(policy: &Policy) -> Node {
    let names = policy.header_names.iter().map(|name| Node::text(title_case(name.as_str())));
    Node::object([
        ("specification", Node::text(DRAFT)),
        ("headers", Node::List(names.collect())),
        ("required", Node::Bool(policy.required)),
        ("key_bytes_max", Node::Unsigned(policy.key_bytes_max as u64)),
        ("response_retained_seconds", Node::Unsigned(policy.retain.as_secs())),
        ("key_retained_seconds", Node::Unsigned(policy.key_retain.as_secs())),
    ])
}

/// The schema of codes, with the names that policies give them.
fn code_schema(names: &BTreeSet<String>) -> Node {
    let codes = Code::ALL.iter().map(|code| code.as_str());
    let codes = codes.chain(names.iter().map(String::as_str)).map(Node::text);
    Node::object([("type", Node::text("string")), ("enum", Node::List(codes.collect()))])
}

fn flat_schema(names: &BTreeSet<String>) -> Node {
    let text = || Node::object([("type", Node::text("string"))]);
    Node::object([
        ("type", Node::text("object")),
        ("description", Node::text("A refusal.")),
        ("required", Node::List(["type", "code", "message"].map(Node::text).into())),
        (
            "properties",
            Node::object([("type", text()), ("code", code_schema(names)), ("message", text())]),
        ),
        (MARK, Node::Bool(true)),
    ])
}

fn problem_schema(names: &BTreeSet<String>) -> Node {
    let kind = |kind: &str| Node::object([("type", Node::text(kind))]);
    Node::object([
        ("type", Node::text("object")),
        ("description", Node::text("A refusal, after RFC 9457.")),
        ("required", Node::List(["type", "title", "status", "code"].map(Node::text).into())),
        (
            "properties",
            Node::object([
                (
                    "type",
                    Node::object([("type", Node::text("string")), ("format", Node::text("uri"))]),
                ),
                ("title", kind("string")),
                ("status", kind("integer")),
                ("detail", kind("string")),
                ("code", code_schema(names)),
                ("retryable", kind("boolean")),
                ("safe_new_key", kind("boolean")),
                ("retry_after", kind("integer")),
                ("request_id", kind("string")),
            ]),
        ),
        (MARK, Node::Bool(true)),
    ])
}

/// Formats `idempotency-key` in its usual spelling.
fn title_case(name: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    };
    name.split('-').map(word).collect::<Vec<_>>().join("-")
}

const METHODS: [(&str, Method); 8] = [
    ("get", Method::GET),
    ("put", Method::PUT),
    ("post", Method::POST),
    ("delete", Method::DELETE),
    ("options", Method::OPTIONS),
    ("head", Method::HEAD),
    ("patch", Method::PATCH),
    ("trace", Method::TRACE),
];
/// Marks all additions.
const MARK: &str = "x-idempotency-generated";
const REPLAYED: &str = "Idempotent-Replayed";
const PROBLEM_JSON: &str = "application/problem+json";
const SCHEMA: &str = "IdempotencyProblem";
const FLAT_SCHEMA: &str = "IdempotencyError";
const JSON: &str = "application/json";
const PARAMETER: &str = "Names the operation: unique for each, the same on every retry of it. A \
     retry gets the first answer again, and nothing is executed twice.";
const DRAFT: &str =
    "https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header";
