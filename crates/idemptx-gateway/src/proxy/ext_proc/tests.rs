//! Calls with messages in any order: none panics, none lets a request go on unprotected, and nothing
//! is executed twice.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::test_runner::Config as ProptestConfig;
use prost::Message as _;
use tokio::sync::mpsc;

use super::Dialogue;
use super::grpc::{Reply, Status};
use super::messages::{
    BodySendMode, HeaderMap, HeaderValue, HttpBody, HttpHeaders, HttpTrailers, Kind,
    ProcessingRequest, ProcessingResponse, ProtocolConfiguration, Received, Sent, Struct, Value,
};
use super::processor::Processor;
use crate::config::Config;
use crate::metrics::CurrentValues;
use crate::proxy::RoutingTable;
use crate::recorder::{RecordedStore, Recorder};

#[derive(Clone, Debug)]
enum Step {
    RequestHeaders { end_of_stream: bool },
    RequestBody { body: u8, end_of_stream: bool },
    ResponseHeaders { status: u16, details: Option<&'static str>, end_of_stream: bool },
    ResponseBody { end_of_stream: bool },
    RequestTrailers,
    ResponseTrailers,
    Nothing,
}

impl Step {
    fn message(&self) -> ProcessingRequest {
        let body = |body: &'static [u8], end_of_stream: bool| HttpBody {
            body: Bytes::from_static(body),
            end_of_stream,
        };
        let headers = |lines: &[(&str, &str)], end_of_stream| {
            let headers = lines.iter().map(|(key, value)| HeaderValue {
                key: (*key).to_owned(),
                value: String::new(),
                raw_value: Bytes::copy_from_slice(value.as_bytes()),
            });
            let headers = Some(HeaderMap { headers: headers.collect() });
            HttpHeaders { headers, end_of_stream }
        };
        let mut message = ProcessingRequest {
            protocol_config: Some(ProtocolConfiguration {
                request_body_mode: BodySendMode::Buffered.into(),
                response_body_mode: BodySendMode::BufferedPartial.into(),
            }),
            ..ProcessingRequest::default()
        };
        message.request = Some(match *self {
            Self::RequestHeaders { end_of_stream } => {
                let lines = [
                    (":method", "POST"),
                    (":path", "/orders"),
                    (":authority", "shop"),
                    ("idempotency-key", "k"),
                ];
                Received::RequestHeaders(headers(&lines, end_of_stream))
            }
            Self::RequestBody { body: number, end_of_stream } => {
                let text: &[u8] = if number == 0 { b"tea" } else { b"coffee" };
                Received::RequestBody(body(text, end_of_stream))
            }
            Self::ResponseHeaders { status, details, end_of_stream } => {
                let attempts = if details == Some(BEFORE) { 0.0 } else { 1.0 };
                let of = |name: &str, kind| (name.to_owned(), Value { kind: Some(kind) });
                let fields = details.map(|details| {
                    [
                        of("response.code_details", Kind::Text(details.to_owned())),
                        of("upstream.request_attempt_count", Kind::Number(attempts)),
                    ]
                });
                let attributes = Struct { fields: fields.into_iter().flatten().collect() };
                message.attributes.insert("envoy.filters.http.ext_proc".to_owned(), attributes);
                let status = status.to_string();
                let lines = [(":status", &*status), ("transfer-encoding", "chunked")];
                Received::ResponseHeaders(headers(&lines, end_of_stream))
            }
            Self::ResponseBody { end_of_stream } => {
                Received::ResponseBody(body(b"made", end_of_stream))
            }
            Self::RequestTrailers => Received::RequestTrailers(HttpTrailers {}),
            Self::ResponseTrailers => Received::ResponseTrailers(HttpTrailers {}),
            Self::Nothing => {
                message.request = None;
                return message;
            }
        });
        message
    }

    /// Returns whether this head says that nothing was done.
    fn gives_up(&self) -> bool {
        let Self::ResponseHeaders { status, details, .. } = self else { return false };
        *details == Some(BEFORE) || *details == Some("via_upstream") && *status == 503
    }
}

fn step() -> impl Strategy<Value = Step> {
    let details = [Some("via_upstream"), Some(BEFORE), Some("response_timeout"), None];
    let head = (0..3_usize, 0..details.len(), any::<bool>()).prop_map(
        move |(status, detail, end_of_stream)| Step::ResponseHeaders {
            status: [201, 503, 99][status],
            details: details[detail],
            end_of_stream,
        },
    );
    prop_oneof![
        4 => any::<bool>().prop_map(|end_of_stream| Step::RequestHeaders { end_of_stream }),
        4 => (0..2_u8, any::<bool>())
            .prop_map(|(body, end_of_stream)| Step::RequestBody { body, end_of_stream }),
        6 => head,
        3 => any::<bool>().prop_map(|end_of_stream| Step::ResponseBody { end_of_stream }),
        1 => Just(Step::RequestTrailers),
        1 => Just(Step::ResponseTrailers),
        1 => Just(Step::Nothing),
    ]
}

/// A call as Envoy would have it, from which others differ by chance.
fn usual() -> impl Strategy<Value = Vec<Step>> {
    let rest = proptest::collection::vec(step(), 0..4);
    (any::<bool>(), rest).prop_map(|(end_of_stream, rest)| {
        let mut steps = vec![Step::RequestHeaders { end_of_stream }];
        if !end_of_stream {
            steps.push(Step::RequestBody { body: 0, end_of_stream: true });
        }
        steps.extend(rest);
        steps
    })
}

fn calls() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let call = prop_oneof![3 => usual(), 1 => proptest::collection::vec(step(), 0..6)];
    proptest::collection::vec(call, 1..6)
}

/// The end of a call, and the answers that Envoy got in it.
struct Seen {
    status: Status,
    sent: Vec<Sent>,
}

async fn run(processor: &Processor, table: &RoutingTable, steps: &[Step]) -> Seen {
    let (messages, inbound) = mpsc::channel(steps.len().max(1));
    for step in steps {
        messages.send(step.message()).await.unwrap();
    }
    let (replies, mut sent) = mpsc::channel(64);
    let dialogue = Dialogue::new(inbound, replies);
    let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let process = processor.process(&dialogue, table, peer);
    let mut process = std::pin::pin!(process);
    // Envoy leaves when it has sent everything and has heard what there is to hear.
    let status = tokio::select! {
        biased;
        status = process.as_mut() => status,
        () = quiet(&messages) => {
            drop(messages);
            process.await
        }
    };
    let mut all = Vec::new();
    while let Ok(reply) = sent.try_recv() {
        let Reply::Message(mut bytes) = reply else { continue };
        bytes.advance(5);
        all.push(ProcessingResponse::decode(bytes).unwrap().response.unwrap());
    }
    Seen { status, sent: all }
}

/// Resolves when all messages have been taken.
async fn quiet(messages: &mpsc::Sender<ProcessingRequest>) {
    while messages.capacity() < messages.max_capacity() {
        tokio::task::yield_now().await;
    }
}

/// Returns whether the request went to the service, by the processor's leave.
fn was_let_go(steps: &[Step], sent: &[Sent]) -> bool {
    match steps.first() {
        Some(Step::RequestHeaders { end_of_stream: true }) => {
            sent.iter().any(|it| matches!(it, Sent::RequestHeaders(_)))
        }
        _ => sent.iter().any(|it| matches!(it, Sent::RequestBody(_))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn messages_in_any_order_neither_panic_nor_execute_twice(calls in calls()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (processor, table) = processor();
            let mut is_final = false;
            for steps in &calls {
                let Seen { status, sent } = run(&processor, &table, steps).await;
                let is_protected = matches!(steps.first(), Some(Step::RequestHeaders { .. }));
                let answered = sent.iter().any(|it| matches!(it, Sent::ImmediateResponse(_)));
                let let_go = is_protected && was_let_go(steps, &sent);
                let has_head = steps.iter().any(|it| matches!(it, Step::ResponseHeaders { .. }));
                assert!(
                    !is_protected || !status.is_ok() || answered || let_go || has_head,
                    "unprotected: {calls:?} {steps:?} {sent:?}"
                );
                assert!(!(let_go && is_final), "twice: {calls:?} {steps:?} {sent:?}");
                if let_go {
                    let request = if sent.iter().any(|it| matches!(it, Sent::RequestBody(_))) {
                        2
                    } else {
                        1
                    };
                    let mut after = steps.iter().filter(|it| {
                        !matches!(it, Step::RequestTrailers | Step::ResponseTrailers)
                    });
                    is_final = !after.nth(request).is_some_and(Step::gives_up);
                }
            }
        });
    }
}

#[tokio::test]
async fn what_is_answered_or_passed_without_the_engine_is_counted() {
    let (processor, table) = processor();
    for (path, count) in
        [("/a//b", "own_answers_total{code=\"ambiguous-path\"} 1"), ("/free", PASSED)]
    {
        let mut message = Step::RequestHeaders { end_of_stream: true }.message();
        let Some(Received::RequestHeaders(head)) = &mut message.request else { panic!() };
        for line in &mut head.headers.as_mut().unwrap().headers {
            if line.key == ":path" {
                line.raw_value = Bytes::from_static(path.as_bytes());
            }
        }
        let (messages, inbound) = mpsc::channel(1);
        messages.send(message).await.unwrap();
        drop(messages);
        let dialogue = Dialogue::new(inbound, mpsc::channel(4).0);
        processor.process(&dialogue, &table, IpAddr::V4(Ipv4Addr::LOCALHOST)).await;
        let metrics = table.store.recorder().metrics().unwrap();
        let text = metrics.text(&CurrentValues::default()).unwrap();
        assert!(text.contains(&format!("idemptx_{count}\n")), "{count} in\n{text}");
    }
}

fn processor() -> (Processor, RoutingTable) {
    let text = "[ext_proc]\naddress = '127.0.0.1:0'\n\
                [[route]]\nname = 'free'\npath = '/free'\nupstream = 'shop'\nprotect = false\n\
                [[route]]\nupstream = 'shop'\n[store]\nurl = 'memory:'\n";
    let config = Config::parse("test.toml", text, |_| None).unwrap().into_ext_proc().unwrap();
    let store = crate::store::open(&config.store).unwrap();
    let recorder = Arc::new(Recorder::with_admin(config.log));
    let store = Arc::new(RecordedStore::new(store, recorder));
    let table = RoutingTable::new(&config, store, None).unwrap();
    (Processor::new(config.ext_proc.unwrap()), table)
}

const PASSED: &str =
    "requests_total{route=\"free\",outcome=\"passed\",reason=\"unprotected-route\"} 1";
const BEFORE: &str = "rbac_access_denied_matched_policy[none]";
