//! Refusals: nothing runs, and the client learns what to do.

use serde_json::json;
use target_tests::{Answer, Difference, Request, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_missing_key_is_refused_where_one_is_required() {
    let target = Target::with_policy(json!({ "required": true })).await;
    let problem = target.post("/count").send().await.assert_refused(400, "missing-key");
    assert_eq!((&problem["retryable"], &problem["safe_new_key"]), (&json!(false), &json!(true)));
    assert_eq!(target.journal.entries(), []);
    target.post("/count").key("k").send().await.assert_fresh(201);
}

#[tokio::test]
async fn a_malformed_key_is_refused_and_never_repeated() {
    let target = Target::start().await;
    let too_long = "k".repeat(256);
    let too_long_in_quotes = format!("\"{too_long}\"");
    let malformed: [&[u8]; 15] = [
        b"",
        b"\"\"",
        b"\"hunter2",
        b"hunter2\"",
        b"\"hunter2\" \"b\"",
        b"\"hunter2\", \"b\"",
        b"hunter2, b",
        b"hunter2;b",
        b"hunter2 b",
        b"hunter2\\b",
        b"\"hunter2\\b\"",
        b"hunter2-caf\xe9",
        b"\"hunter2-caf\xc3\xa9\"",
        too_long.as_bytes(),
        too_long_in_quotes.as_bytes(),
    ];
    for line in malformed {
        let answer = target.post("/count").header("idempotency-key", line).send().await;
        let problem = answer.assert_refused(400, "invalid-key");
        assert_eq!(
            (&problem["retryable"], &problem["safe_new_key"]),
            (&json!(false), &json!(true))
        );
        answer.assert_silent_about("hunter2");
        answer.assert_silent_about("kkkk");
    }
    assert_eq!(target.journal.entries(), []);
}

#[tokio::test]
async fn the_longest_key_is_measured_without_its_quotes_and_escapes() {
    let target = Target::start().await;
    let longest = "k".repeat(255);
    let first = target.post("/count").key(&longest).send().await;
    first.assert_fresh(201);
    target.post("/count").key(&format!("\"{longest}\"")).send().await.assert_replay_of(&first);
    let escaped = "\\\"".repeat(255);
    target.post("/count").key(&format!("\"{escaped}\"")).send().await.assert_fresh(201);
}

#[tokio::test]
async fn two_keys_on_one_request_are_refused() {
    let target = Target::start().await;
    let answer = target.post("/count").key("a").key("b").send().await;
    answer.assert_refused(400, "invalid-key");
    target.post("/count").key("a").key("a").send().await.assert_refused(400, "invalid-key");
    assert_eq!(target.journal.entries(), []);
}

#[tokio::test]
async fn a_key_that_was_used_for_another_request_is_refused() {
    let target = Target::start().await;
    let key = "a-key-nobody-may-see";
    let original = target.post("/echo?ms=0").key(key).json(r#"{"amount":1}"#);
    let first = original.send().await;
    first.assert_fresh(200);
    let echo = || target.post("/echo?ms=0").key(key);
    let others = [
        echo().json(r#"{"amount":2}"#),
        echo().json(r#"{"amount": 1}"#),
        echo().json(""),
        echo().body(r#"{"amount":1}"#),
        echo().header("content-type", "text/plain").body(r#"{"amount":1}"#),
        target.post("/echo?ms=1").key(key).json(r#"{"amount":1}"#),
        target.post("/echo").key(key).json(r#"{"amount":1}"#),
        target.post("/count").key(key).json(r#"{"amount":1}"#),
        original.clone().credential("Bearer other"),
    ];
    for other in others {
        let answer = other.send().await;
        let problem = answer.assert_refused(422, "key-reused");
        assert_eq!(
            (&problem["retryable"], &problem["safe_new_key"]),
            (&json!(false), &json!(true))
        );
        answer.assert_silent_about(key);
    }
    original.send().await.assert_replay_of(&first);
    target.journal.assert_executions(key, 1, 1);
}

#[tokio::test]
async fn another_method_is_another_request() {
    let target = Target::start().await;
    target.post("/count").key("k").send().await.assert_fresh(201);
    let patch = target.request(hyper::Method::PATCH, "/count").key("k");
    patch.send().await.assert_refused(422, "key-reused");
}

#[tokio::test]
async fn another_credential_learns_of_a_request_only_what_it_knows() {
    let target = Target::start().await;
    let mine = target.post("/count").key("k").credential("Bearer mine");
    let first = mine.send().await;
    first.assert_fresh(201);
    let other_request = target.post("/count?ms=1").key("k");
    let mine_again = other_request.clone().credential("Bearer mine").send().await;
    let theirs = other_request.clone().credential("Bearer theirs").send().await;
    // But for the id of the request, where the front door names it.
    let told = |answer: &Answer| {
        let mut problem = answer.assert_refused(422, "key-reused");
        problem.as_object_mut().unwrap().remove("request_id");
        problem
    };
    for answer in [&mine_again, &theirs, &other_request.send().await] {
        assert_eq!(told(answer), told(&mine_again), "the refusals can be told apart");
    }
    // The whole request, to the byte: its sender may have renewed the credential.
    for answer in [
        target.post("/count").key("k").credential("Bearer theirs").send().await,
        target.post("/count").key("k").send().await,
    ] {
        let problem = answer.assert_refused(422, "key-reused");
        assert!(problem["detail"].to_string().contains("credential"), "{problem}");
        answer.assert_silent_about("mine");
    }
    mine.send().await.assert_replay_of(&first);
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_duplicate_of_a_running_request_is_refused_at_once() {
    let target = Target::start().await;
    let key = "a-key-nobody-may-see";
    let slow = target.post("/slow?ms=5000").key(key);
    let running = slow.start();
    target.journal.started(key, 1).await;
    let duplicate = slow.send().await;
    let problem = duplicate.assert_refused(409, "in-progress");
    assert_eq!((&problem["retryable"], &problem["safe_new_key"]), (&json!(true), &json!(false)));
    assert!(seconds(&duplicate) >= 1, "{duplicate:?}");
    duplicate.assert_silent_about(key);
    target.post("/count").key(key).send().await.assert_refused(422, "key-reused");
    target.journal.assert_executions(key, 1, 0);
    let first = running.await.expect("an answer");
    slow.send().await.assert_replay_of(&first);
    target.journal.assert_executions(key, 1, 1);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_one_at_the_limit_is_not() {
    let target = Target::start().await;
    let limit = 1 << 20;
    let fits = target.post("/echo").key("fits").body(vec![7; limit]);
    let first = fits.send().await;
    first.assert_fresh(200);
    fits.send().await.assert_replay_of(&first);
    let exceeds = target.post("/echo").key("exceeds").alone().body(vec![7; limit + 1]);
    let problem = answered(&exceeds).await.assert_refused(413, "body-too-large");
    assert_eq!((&problem["retryable"], &problem["safe_new_key"]), (&json!(false), &json!(true)));
    target.journal.assert_executions("exceeds", 0, 0);
    // The refused request has left nothing behind.
    target.post("/count").key("exceeds").send().await.assert_fresh(201);
}

#[tokio::test]
async fn a_declared_body_of_64_mib_is_refused_without_being_read() {
    let target = Target::start().await;
    target.post("/echo").key("warm").body(vec![7; 1 << 20]).send().await;
    let before = target.resident_bytes();
    let head = format!("Content-Length: {}\r\n", 64 << 20);
    let piece = vec![b'x'; 1 << 16];
    let answer = upload(&target, &head, &piece, (64 << 20) / piece.len()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    // A client that pools connections must not send its next request on this one.
    assert!(answer.to_ascii_lowercase().contains("\r\nconnection: close\r\n"), "{answer}");
    let grown = target.resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "the process has grown by {grown} bytes");
    target.journal.assert_executions("large", 0, 0);
}

#[tokio::test]
async fn a_chunked_body_of_64_mib_is_refused_without_being_kept() {
    let target = Target::start().await;
    target.post("/echo").key("warm").body(vec![7; 1 << 20]).send().await;
    let before = target.resident_bytes();
    let mut piece = b"10000\r\n".to_vec();
    piece.extend(vec![b'x'; 0x1_0000]);
    piece.extend(b"\r\n");
    let answer = upload(&target, "Transfer-Encoding: chunked\r\n", &piece, 1024).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    // A client that pools connections must not send its next request on this one.
    assert!(answer.to_ascii_lowercase().contains("\r\nconnection: close\r\n"), "{answer}");
    let grown = target.resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "the process has grown by {grown} bytes");
    target.journal.assert_executions("large", 0, 0);
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_the_key_free() {
    let target = Target::start().await;
    let mut stream = TcpStream::connect(target.address()).await.expect("it listens");
    let head = "POST /echo HTTP/1.1\r\nHost: it\r\nIdempotency-Key: k\r\nContent-Length: 9\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("it reads");
    stream.write_all(b"half").await.expect("it reads");
    drop(stream);
    target.post("/echo").key("k").body("something else").send().await.assert_fresh(200);
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_body_that_is_still_on_its_way_holds_no_key() {
    let target = Target::start().await;
    let mut stream = TcpStream::connect(target.address()).await.expect("it listens");
    let head = "POST /echo HTTP/1.1\r\nHost: it\r\nIdempotency-Key: k\r\nContent-Length: 9\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("it reads");
    stream.write_all(b"half").await.expect("it reads");
    let quicker = target.post("/echo").key("k").body("123456789");
    let first = quicker.send().await;
    first.assert_fresh(200);
    stream.write_all(b"-done").await.expect("it reads");
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.expect("an answer");
    assert!(answer[..length].starts_with(b"HTTP/1.1 422"), "another body, another request");
    quicker.send().await.assert_replay_of(&first);
    target.journal.assert_executions("k", 1, 1);
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_before_it_sends() {
    let target = Target::start().await;
    let mut stream = TcpStream::connect(target.address()).await.expect("it listens");
    let head = "POST /echo HTTP/1.1\r\nHost: it\r\nIdempotency-Key: k\r\n\
        Content-Length: 67108864\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("it reads");
    if Difference::ServerAsksForEachBody.applies() {
        let mut asked = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
        stream.read_exact(&mut asked).await.expect("an answer");
        assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    }
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.expect("an answer");
    assert!(answer[..length].starts_with(b"HTTP/1.1 413"), "it was told to go on");
    target.journal.assert_executions("k", 0, 0);
}

#[tokio::test]
async fn no_key_is_ever_told_on_stderr() {
    let target = Target::with_policy(json!({ "lease_ms": 500 })).await;
    for path in ["/count", "/raise", "/abort", "/status/500", "/outcome?o=unknown", "/slow"] {
        target.post(path).alone().key("hunter2").credential("Bearer hunter2").send().await;
    }
    target.post("/count").key("\"hunter2").send().await;
    target.post("/raise").alone().key("last").send().await;
    let said = target.said();
    assert!(!said.contains("hunter2"), "{said}");
}

fn seconds(answer: &Answer) -> u64 {
    let value =
        answer.header("retry-after").unwrap_or_else(|| panic!("no Retry-After: {answer:?}"));
    value.parse().expect("whole seconds")
}

/// Sends a request that is refused unread until its answer arrives: a connection that is closed
/// while the body is still being written may take the answer with it.
async fn answered(request: &Request) -> Answer {
    for _ in 1..ATTEMPTS_MAX {
        if let Ok(answer) = request.try_send().await {
            return answer;
        }
    }
    request.send().await
}

/// Sends a body piece by piece for as long as it is wanted, and returns the answer's beginning.
async fn upload(target: &Target, framing: &str, piece: &[u8], pieces: usize) -> String {
    let stream = TcpStream::connect(target.address()).await.expect("it listens");
    let (mut answers, mut requests) = stream.into_split();
    let head =
        format!("POST /echo HTTP/1.1\r\nHost: it\r\nIdempotency-Key: large\r\n{framing}\r\n");
    requests.write_all(head.as_bytes()).await.expect("it reads");
    let sending = async {
        for _ in 0..pieces {
            // It need not read what it has refused.
            if requests.write_all(piece).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let mut answer = vec![0; 4096];
    tokio::select! {
        length = answers.read(&mut answer) => answer.truncate(length.expect("an answer")),
        () = sending => {}
        () = tokio::time::sleep(target_tests::PATIENCE) => panic!("no answer"),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

const ATTEMPTS_MAX: usize = 10;
