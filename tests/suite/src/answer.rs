//! A response, and what a test may say of it.

use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, LINK};
use hyper::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::Difference;

/// A whole response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The response's status.
    pub status: StatusCode,
    /// The response's fields, as bytes, in order, with their repeats.
    pub headers: HeaderMap,
    /// The response's body.
    pub body: Bytes,
}

impl Answer {
    /// The first value of a field, if it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns the values of a field, in order.
    #[must_use]
    pub fn header_lines(&self, name: &str) -> Vec<&[u8]> {
        self.headers.get_all(name).iter().map(|value| value.as_bytes()).collect()
    }

    /// The body as JSON.
    ///
    /// # Panics
    ///
    /// If it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("the body is no JSON ({error}): {self:?}"))
    }

    /// The serial number of the execution that gave this answer.
    ///
    /// # Panics
    ///
    /// If the answer has none.
    #[must_use]
    pub fn n(&self) -> String {
        match self.json().get("n") {
            Some(Value::String(n)) => n.clone(),
            _ => panic!("no execution gave this answer: {self:?}"),
        }
    }

    /// Returns whether it is marked as a replay.
    #[must_use]
    pub fn is_replay(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }

    /// Returns whether it is marked as not stored.
    #[must_use]
    pub fn is_unstored(&self) -> bool {
        self.header("idempotency-stored") == Some("false")
    }

    /// The code of the problem that it is, or an empty string.
    #[must_use]
    pub fn code(&self) -> String {
        let problem = serde_json::from_slice::<Value>(&self.body).unwrap_or_default();
        problem.get("code").and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// Asserts that an execution gave it, just now, and that a retry will get it too.
    #[track_caller]
    pub fn assert_fresh(&self, status: u16) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(!self.is_replay() && !self.is_unstored(), "{self:?}");
    }

    /// Asserts that an execution gave it, just now, and that it says a retry will not get it.
    #[track_caller]
    pub fn assert_unstored(&self, status: u16) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(!self.is_replay() && self.is_unstored(), "{self:?}");
    }

    /// Asserts that it repeats another answer: its status and its body, byte for byte.
    #[track_caller]
    pub fn assert_replay_of(&self, first: &Self) {
        assert_eq!((self.status, &self.body), (first.status, &first.body), "{self:?}");
        assert!(self.is_replay() && !self.is_unstored(), "{self:?}");
    }

    /// Asserts that it stands for a handler that broke down, and that it says, if it says anything
    /// about a retry, whether one would execute.
    #[track_caller]
    pub fn assert_failed(&self, retryable: bool) {
        let lost = Difference::BrokenAnswersAreLost.applies();
        let (status, code) = if lost { (502, "upstream-failed") } else { (500, "handler-failed") };
        assert_eq!(self.status, status, "{self:?}");
        assert!(!self.is_replay(), "{self:?}");
        if Difference::FrameworkAnswersForFailures.applies() {
            assert_eq!(self.code(), "", "{self:?}");
            return;
        }
        assert!(self.is_unstored(), "{self:?}");
        assert_eq!(self.code(), code);
        let problem = self.assert_problem();
        assert_eq!(
            (&problem["retryable"], &problem["safe_new_key"]),
            (&retryable.into(), &false.into())
        );
    }

    /// Asserts that it is the refusal of that code, complete as the specification wants it, and
    /// returns its document.
    #[track_caller]
    pub fn assert_refused(&self, status: u16, code: &str) -> Value {
        assert_eq!((self.status.as_u16(), self.code()), (status, code.to_owned()), "{self:?}");
        assert!(!self.is_replay() && !self.is_unstored(), "{self:?}");
        self.assert_problem()
    }

    /// Asserts that it is a well-formed problem document, and returns it.
    #[track_caller]
    pub fn assert_problem(&self) -> Value {
        let problem = self.json();
        assert_eq!(self.header(CONTENT_TYPE.as_str()), Some("application/problem+json"));
        assert_eq!(self.header(CACHE_CONTROL.as_str()), Some("no-store"), "{self:?}");
        let kind = problem["type"].as_str().expect("a type");
        let link = self.header(LINK.as_str()).expect("a Link");
        assert!(link.contains(&format!("<{kind}>")), "{link} does not lead to {kind}");
        assert!(link.contains("rel=\"describedby\""), "{link}");
        assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()), "{problem}");
        assert_eq!(problem["status"], self.status.as_u16(), "{problem}");
        assert!(problem["retryable"].is_boolean(), "{problem}");
        assert!(problem["safe_new_key"].is_boolean(), "{problem}");
        problem
    }

    /// Asserts that neither a field nor the body holds `secret`.
    #[track_caller]
    pub fn assert_silent_about(&self, secret: &str) {
        let shows =
            |bytes: &[u8]| bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
        assert!(!shows(&self.body), "{secret} is in the body: {self:?}");
        let told = self.headers.iter().find(|(_, value)| shows(value.as_bytes()));
        assert!(told.is_none(), "{secret} is in a field: {self:?}");
    }
}

/// Asserts that one of these is a success, just executed, and that the others are its replays.
///
/// # Panics
///
/// If it is otherwise.
#[track_caller]
pub fn assert_one_success(answers: &[Answer]) {
    let own: Vec<_> = answers.iter().filter(|answer| !answer.is_replay()).collect();
    let [first] = own.as_slice() else {
        panic!("{} answers are no replays: {own:#?}", own.len());
    };
    first.assert_fresh(201);
    for answer in answers.iter().filter(|answer| answer.is_replay()) {
        answer.assert_replay_of(first);
    }
}
