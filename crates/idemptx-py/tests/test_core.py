"""The compiled half by itself: passages taken by hand, and the store in memory."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
import weakref

import pytest

from idemptx import _idemptx as core
from idemptx._idemptx import MemoryStore, Passage, Rules, Step

BODY = b'{"item":"tea"}'
ANSWER = [(b"content-type", b"application/json"), (b"x-order", b"17")]
HANG_SECONDS = 30


def rules(profile="draft", **policy):
    return Rules(profile, json.dumps(policy))


def begin(made, key=b"k-1", body=BODY, headers=(), path=b"/orders", **more):
    """A passage that is about to claim."""
    lines = [(b"Idempotency-Key", key), (b"content-type", b"application/json"), *headers]
    passage = made.begin("POST", path, b"", lines, **more)
    assert passage.action == core.READ_BODY
    assert passage.feed(body)
    assert passage.end_body() == core.STORE
    return passage


def perform(passage, store):
    step = passage.step()
    store.perform(step)
    return passage.done(step)


def run(passage, store, status=201, headers=ANSWER, body=b"made"):
    """From the claim to the answer of a passage that executes."""
    assert perform(passage, store) == core.EXECUTE
    assert passage.responded(status, headers, body) == core.STORE
    assert perform(passage, store) == core.ANSWER
    return passage


def test_the_first_request_executes_and_a_retry_gets_the_same_answer():
    made, store = rules(), MemoryStore()
    first = run(begin(made), store)
    assert (first.answer, first.stored, first.attempt) == (core.OWN, True, 1)
    assert first.behind() is None
    assert first.marked(ANSWER) == ANSWER
    retry = begin(made)
    assert perform(retry, store) == core.ANSWER
    assert (retry.answer, retry.stored) == (core.REPLAY, True)
    status, headers, body = retry.replay()
    marks = [(b"idempotent-replayed", b"true"), (b"content-length", b"4")]
    assert (status, headers, body) == (201, ANSWER + marks, b"made")


def test_another_request_under_the_key_is_refused():
    made, store = rules(), MemoryStore()
    run(begin(made), store)
    other = begin(made, body=b"{}")
    assert perform(other, store) == core.ANSWER
    assert other.answer == core.REFUSE
    refusal = other.refusal()
    assert (refusal.code, refusal.status, refusal.retry_after) == ("key-reused", 422, None)
    document = json.loads(refusal.body)
    assert (document["code"], document["detail"]) == ("key-reused", refusal.detail)
    headers = dict(refusal.headers)
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"content-length"] == str(len(refusal.body)).encode()


def test_a_request_without_a_key_passes_untouched():
    made = rules()
    assert made.begin("POST", b"/orders", b"", []) is None
    assert made.begin("GET", b"/orders", b"", [(b"idempotency-key", b"k")]) is None


def test_a_key_that_is_ignored_is_marked_where_the_status_is_exposed():
    passage = rules(expose=["status"]).begin("GET", b"/", b"", [(b"idempotency-key", b"k")])
    assert (passage.action, passage.answer) == (core.ANSWER, core.PASS)
    assert passage.marked([(b"a", b"b")]) == [(b"a", b"b"), (b"idempotency-status", b"ignored")]


def test_a_missing_key_is_refused_where_it_is_required():
    passage = rules(required=True).begin("POST", b"/", b"", [])
    assert (passage.action, passage.answer) == (core.ANSWER, core.REFUSE)
    assert passage.refusal().code == "missing-key"
    with pytest.raises(RuntimeError, match="no valid key"):
        _ = passage.key


def test_the_original_profile_exposes_key_status_and_signature():
    made, store = rules("idemptx"), MemoryStore()
    first = run(begin(made), store)
    marks = dict(first.marked([]))
    assert marks == {
        b"x-idempotency-status": b"new",
        b"idempotency-key": b"k-1",
        b"x-idempotency-signature": first.fingerprint.encode(),
    }
    retry = begin(made)
    perform(retry, store)
    assert dict(retry.replay()[1])[b"x-idempotency-status"] == b"hit"


def test_marks_take_the_place_of_what_has_their_names():
    passage = run(begin(rules("idemptx")), MemoryStore())
    lines = [
        (b"X-Idempotency-Status", b"mine"),
        (b"Idempotency-Outcome", b"store"),
        (b"Set-Cookie", b"a=1"),
        (b"Set-Cookie", b"b=2"),
    ]
    marked = passage.marked(lines)
    assert marked[:2] == lines[2:]
    names = [name.lower() for name, _ in marked]
    assert names.count(b"x-idempotency-status") == 1
    assert b"idempotency-outcome" not in names


def test_a_claim_in_force_refuses_at_once_or_lets_wait():
    store, made = MemoryStore(), rules()
    assert perform(begin(made), store) == core.EXECUTE
    second = begin(made)
    assert perform(second, store) == core.ANSWER
    assert second.refusal().code == "in-progress"
    assert second.refusal().retry_after >= 1
    assert second.behind() is None
    patient = begin(rules(wait_ms=5000))
    assert perform(patient, store) == core.WAIT
    assert 4 < patient.wait <= 5
    assert patient.holder.is_held
    assert patient.wait_over() == core.ANSWER
    assert patient.refusal().code == "in-progress"


def test_whoever_waits_gets_the_result_it_is_told():
    store, made = MemoryStore(), rules(wait_ms=5000)
    first = begin(made)
    assert perform(first, store) == core.EXECUTE
    waiting, asking = begin(made), begin(made)
    assert perform(waiting, store) == perform(asking, store) == core.WAIT
    first.responded(200, [], b"x")
    settle = first.step()
    store.perform(settle)
    first.done(settle)
    assert waiting.woken(settle.news()) == core.ANSWER
    assert waiting.replay()[2] == b"x"
    assert asking.woken(None) == core.STORE
    assert perform(asking, store) == core.ANSWER
    assert asking.answer == core.REPLAY


def test_too_many_waiters_are_refused():
    store, made = MemoryStore(), rules(wait_ms=5000)
    perform(begin(made), store)
    waiting = begin(made)
    assert perform(waiting, store) == core.WAIT
    assert waiting.waiters_full() == core.ANSWER
    assert waiting.refusal().code == "in-progress"


def test_a_claim_can_be_told_what_another_request_heard():
    store, made = MemoryStore(), rules()
    first = begin(made)
    claim = first.step()
    store.perform(claim)
    first.done(claim)
    assert claim.news().is_held
    told = begin(made)
    assert told.told(claim.news()) == core.ANSWER
    assert (told.refusal().code, told.behind()) == ("in-progress", None)


def test_a_failure_that_was_only_told_leaves_nothing_behind():
    made = rules()
    first = begin(made)
    claim = first.step()
    claim.retain  # noqa: B018 - as a store does that is about to take it
    claim.fail(core.UNAVAILABLE, "gone")
    assert (claim.verdict, claim.failure) == (core.UNAVAILABLE, "gone")
    news = claim.news()
    assert first.done(claim) == core.ANSWER
    assert first.refusal().code == "store-unavailable"
    assert first.behind().kind == core.RELEASE
    told = begin(made)
    assert told.told(news) == core.ANSWER
    assert told.refusal().code == "store-unavailable"
    assert told.behind() is None


@pytest.mark.parametrize("verdict", [core.UNAVAILABLE, core.INTERNAL, core.FULL])
def test_a_claim_that_no_store_was_asked_for_leaves_nothing_behind(verdict):
    passage = begin(rules())
    step = passage.step()
    step.fail(verdict)
    assert step.failure is None
    assert passage.done(step) == core.ANSWER
    assert passage.behind() is None


def test_a_client_that_leaves_takes_its_claim_with_it():
    store, made = MemoryStore(), rules()
    leaving = begin(made)
    store.perform(leaving.step())
    behind = leaving.abandon()
    assert (behind.kind, behind.id) == (core.RELEASE, leaving.id)
    assert leaving.abandon() is None
    store.perform(behind)
    assert behind.verdict == core.OK
    assert perform(begin(made), store) == core.EXECUTE
    with pytest.raises(RuntimeError, match="abandoned"):
        leaving.step()
    with pytest.raises(RuntimeError, match="abandoned"):
        _ = leaving.answer


def test_who_leaves_without_having_asked_the_store_leaves_nothing():
    store, made = MemoryStore(), rules()
    unasked = begin(made)
    assert unasked.abandon() is None
    handed_out = begin(made)
    handed_out.step()
    assert handed_out.abandon() is None
    perform(begin(made), store)
    refused = begin(made)
    store.perform(refused.step())
    assert refused.abandon() is None
    answered = run(begin(made, key=b"other"), store)
    assert answered.abandon() is None


def test_failures_release_the_key():
    store, made = MemoryStore(), rules()
    for end in (
        lambda passage: passage.responded(500, [], b"oops"),
        lambda passage: passage.responded(200, [(b"idempotency-outcome", b"release")], b""),
        lambda passage: passage.broken(),
    ):
        passage = begin(made)
        assert perform(passage, store) == core.EXECUTE
        assert end(passage) == core.STORE
        assert passage.step().kind == core.RELEASE
        assert perform(passage, store) == core.ANSWER
        assert not passage.stored
    assert passage.refusal().code == "handler-failed"
    assert (b"idempotency-stored", b"false") in passage.refusal().headers
    assert len(store) == 0


def test_an_unstored_answer_says_so():
    passage = run(begin(rules()), MemoryStore(), status=503)
    assert passage.marked([]) == [(b"idempotency-stored", b"false")]


@pytest.mark.parametrize(
    ("policy", "end"),
    [
        ({}, lambda passage: passage.streamed(200, [(b"location", b"/orders/17")])),
        (
            {"response_bytes_max": 3},
            lambda passage: passage.responded(200, [(b"location", b"/orders/17")], b"four"),
        ),
    ],
)
def test_an_answer_that_cannot_be_kept_leaves_its_head(policy, end):
    store, made = MemoryStore(), rules(**policy)
    first = begin(made)
    perform(first, store)
    assert end(first) == core.STORE
    perform(first, store)
    assert (first.answer, first.stored) == (core.OWN, False)
    retry = begin(made)
    perform(retry, store)
    refusal = retry.refusal()
    assert refusal.code == "result-unavailable"
    assert (b"location", b"/orders/17") in refusal.headers
    assert json.loads(refusal.body)["original_status"] == 200


def test_an_unknown_outcome_is_kept_without_a_response():
    store, made = MemoryStore(), rules()
    first = run(begin(made), store, headers=[(b"Idempotency-Outcome", b"unknown")])
    assert not first.stored
    retry = begin(made)
    perform(retry, store)
    assert retry.refusal().code == "outcome-unknown"


def test_an_unconfirmed_result_goes_on_behind():
    store, made = MemoryStore(), rules()
    first = begin(made)
    perform(first, store)
    first.responded(200, [], b"x")
    settle = first.step()
    settle.fail(core.UNAVAILABLE, "no answer")
    assert settle.news() is None
    assert first.done(settle) == core.ANSWER
    assert (first.answer, first.stored) == (core.OWN, False)
    behind = first.behind()
    assert (behind.kind, behind.verdict) == (core.SETTLE, core.PENDING)
    assert behind.record() == settle.record()
    renewal = first.renewal()
    store.perform(renewal)
    assert renewal.verdict == core.OK
    store.perform(behind)
    retry = begin(made)
    perform(retry, store)
    assert retry.replay()[2] == b"x"


def test_an_unconfirmed_release_goes_on_behind():
    store, made = MemoryStore(), rules()
    first = begin(made)
    perform(first, store)
    first.broken()
    step = first.step()
    step.fail(core.INTERNAL)
    first.done(step)
    assert first.behind().kind == core.RELEASE


def orphaned(store, **policy):
    """A record whose executor vanished, and the rules it was claimed under."""
    made = rules(lease_ms=100, **policy)
    vanished = begin(made)
    assert perform(vanished, store) == core.EXECUTE
    deadline = time.monotonic() + HANG_SECONDS
    look = Step.lookup(vanished.id)
    while True:
        store.perform(look)
        if look.remaining == 0:
            return made, vanished
        assert time.monotonic() < deadline
        time.sleep(look.remaining)
        look.again()


def test_an_orphan_is_taken_over_and_the_late_settle_is_fenced():
    store = MemoryStore()
    made, vanished = orphaned(store)
    heir = begin(made)
    assert perform(heir, store) == core.STORE
    assert perform(heir, store) == core.EXECUTE
    assert heir.attempt == 2
    assert heir.fence > vanished.fence
    assert heir.token != vanished.token
    assert heir.derive("charge") == vanished.derive("charge") != heir.derive("mail")
    vanished.responded(200, [], b"late")
    assert perform(vanished, store) == core.STORE
    assert vanished.step().kind == core.LOOKUP
    heir.responded(200, [], b"heir")
    perform(heir, store)
    assert perform(vanished, store) == core.ANSWER
    assert vanished.replay()[2] == b"heir"


@pytest.mark.parametrize(
    ("probed", "action"),
    [((None,), core.ANSWER), ((False,), core.STORE), ((True, 200, ANSWER, b"did"), core.STORE)],
)
def test_a_probe_decides_about_an_orphan(probed, action):
    store = MemoryStore()
    made, _ = orphaned(store, on_orphan="probe")
    asking = begin(made)
    assert perform(asking, store) == core.PROBE
    assert asking.vanished_attempt == 1
    assert asking.probed(*probed) == action
    if action == core.ANSWER:
        assert asking.refusal().code == "outcome-unknown"
    elif probed[0]:
        assert perform(asking, store) == core.STORE
        assert asking.step().kind == core.SETTLE
        assert perform(asking, store) == core.ANSWER
        assert asking.replay()[2] == b"did"
    else:
        assert perform(asking, store) == core.EXECUTE


def test_an_orphan_in_quarantine_is_refused():
    store = MemoryStore()
    made, _ = orphaned(store, on_orphan="quarantine")
    asking = begin(made)
    assert perform(asking, store) == core.ANSWER
    assert asking.refusal().code == "outcome-unknown"


def test_shadow_mode_only_reports():
    made, store = rules(mode="shadow"), MemoryStore()
    run(begin(made), store)
    retry = begin(made)
    assert perform(retry, store) == core.ANSWER
    assert retry.answer == core.PASS
    assert retry.marked([]) == [(b"idempotency-status", b"would-replay")]
    other = begin(made, body=b"{}")
    perform(other, store)
    assert other.marked([]) == [(b"idempotency-status", b"would-refuse-key-reused")]


def secret(number):
    return {"id": number, "secret": f"secret number {number} of sixteen bytes"}


def test_records_of_an_older_secret_stay_in_force_while_secrets_rotate():
    store = MemoryStore()
    run(begin(rules(secrets=[secret(1)])), store, body=b"old")
    made = rules(secrets=[secret(2), secret(1)])
    retry = begin(made)
    first_id = retry.id
    assert perform(retry, store) == core.STORE
    assert retry.step().kind == core.LOOKUP
    assert retry.id == retry.step().id != first_id
    assert perform(retry, store) == core.STORE
    assert (retry.step().kind, retry.id) == (core.RELEASE, first_id)
    assert perform(retry, store) == core.ANSWER
    assert retry.replay()[2] == b"old"
    fresh = begin(made, key=b"fresh")
    assert perform(fresh, store) == core.STORE
    assert perform(fresh, store) == core.EXECUTE


def test_leaving_between_two_secrets_names_the_record_that_is_released():
    store, made = MemoryStore(), rules(secrets=[secret(2), secret(1)])
    leaving = begin(made)
    first_id = leaving.id
    assert perform(leaving, store) == core.STORE
    behind = leaving.abandon()
    assert (behind.kind, behind.id, leaving.id) == (core.RELEASE, first_id, first_id)


def test_new_keys_are_metered_for_each_scope():
    made, store = rules(scope={"header": "x-tenant"}, new_keys_per_minute_max=2), MemoryStore()

    def fresh(key, tenant):
        passage = begin(made, key=key, headers=[(b"x-tenant", tenant)])
        return passage, perform(passage, store)

    # The minute may turn over once in between.
    ends = [fresh(b"%d" % number, b"a") for number in range(5)]
    refused = [passage for passage, action in ends if action == core.STORE]
    assert refused
    assert perform(refused[0], store) == core.ANSWER
    assert refused[0].refusal().code == "too-many-keys"
    assert fresh(b"5", b"b")[1] == core.EXECUTE


def test_a_body_beyond_the_limit_is_refused_or_passed():
    for policy, answer in (({}, core.REFUSE), ({"on_large_body": "skip"}, core.PASS)):
        made = rules(request_bytes_max=4, **policy)
        passage = made.begin("POST", b"/", b"", [(b"idempotency-key", b"k")])
        assert passage.feed(b"four")
        assert not passage.feed(b"!")
        assert passage.body_too_large() == core.ANSWER
        assert passage.answer == answer
        unheeded = made.begin("POST", b"/", b"", [(b"idempotency-key", b"k")])
        unheeded.feed(b"five!")
        assert unheeded.end_body() == core.ANSWER
        assert unheeded.answer == answer
    broken = rules().begin("POST", b"/", b"", [(b"idempotency-key", b"k")])
    assert broken.body_failed() == core.ANSWER
    assert broken.refusal().code == "body-unreadable"


def test_the_body_is_one_however_it_is_cut():
    made = rules(expose=["signature"])
    whole = begin(made)
    cut = made.begin("POST", b"/orders", b"", [(b"idempotency-key", b"k-1")])
    again = made.begin("POST", b"/orders", b"", [(b"idempotency-key", b"k-1")])
    for byte in BODY:
        cut.feed(bytes([byte]))
    again.feed(BODY)
    assert cut.fingerprint is None
    assert cut.end_body() == again.end_body() == core.STORE
    assert cut.fingerprint == again.fingerprint != whole.fingerprint
    assert begin(rules(fingerprint=False)).fingerprint is None


def test_the_adapters_scope_separates_keys_and_none_is_refused():
    made, store = rules("payments", scope="shared").with_custom_scope(), MemoryStore()
    assert made.asks_for_scope
    ids = {begin(made, scope=scope).id for scope in ("a", "b", "a")}
    assert len(ids) == 2
    nobody = made.begin("POST", b"/", b"", [(b"idempotency-key", b"k")])
    assert (nobody.refusal().code, nobody.refusal().status) == ("scope-unresolved", 401)
    assert len(store) == 0


def test_the_applications_own_check_of_a_key():
    made, asked = rules(), []

    def accepts(key):
        asked.append(key)
        return False

    lines = [(b"idempotency-key", b'"a key"')]
    passage = made.begin("POST", b"/", b"", lines, accepts=accepts)
    assert asked == ["a key"]
    assert passage.refusal().code == "invalid-key"

    def fails(key):
        raise LookupError(key)

    with pytest.raises(LookupError, match="a key"):
        made.begin("POST", b"/", b"", lines, accepts=fails)
    assert begin(made, accepts=lambda key: key == "k-1").key == "k-1"


@pytest.mark.parametrize(
    "path",
    [b"", b"orders", b"*", b"/a b", b"/\xff\xfe", b"/caf\xc3\xa9", b"/a?b#c", b"/\x00", b"/" * 9000],
)
def test_any_path_is_a_path(path):
    made = rules(key_space="route")
    lines = [(b"idempotency-key", b"k")]
    one, same = (made.begin("POST", path, b"q=\xff <>#?", lines) for _ in range(2))
    other = made.begin("POST", path + b"x", b"q=\xff <>#?", lines)
    assert one.id == same.id != other.id


def test_a_path_that_no_uri_can_hold_is_a_value_error():
    with pytest.raises(ValueError, match="too long"):
        rules().begin("POST", b"/" * 70_000, b"", [])


def test_lines_that_http_forbids_are_left_out():
    lines = [(b"bad name", b"x"), (b"x-a", b"line\nbreak"), [b"idempotency-key", b"k"]]
    assert rules().begin("POST", b"/", b"", lines).key == "k"
    assert rules().begin("BAD METHOD", b"/", b"", lines) is None
    for wrong in ([("idempotency-key", "k")], [(b"a",)], [None], 7):
        with pytest.raises(TypeError):
            rules().begin("POST", b"/", b"", wrong)


@pytest.mark.parametrize(
    ("profile", "policy", "text"),
    [
        ("nonesuch", "{}", "profile"),
        ("draft", "[]", "policy"),
        ("draft", '{"retain": 5}', "retain_ms"),
        ("draft", '{"on_large_body": "stream"}', "gateway"),
        ("payments", "{}", "scope"),
    ],
)
def test_a_wrong_policy_is_a_value_error(profile, policy, text):
    with pytest.raises(ValueError, match=text):
        Rules(profile, policy)


def test_the_rules_tell_what_a_driver_needs():
    made = rules(
        "stripe", required=True, retain_ms=2500, lease_ms=1500, on_store_error="fail_open",
        store_timeout_ms={"claim": 250, "settle": 750}, waiters_max=3, waiters_total_max=4,
        request_bytes_max=5, response_bytes_max=6, drain_ms=1000, on_unsafe_store="refuse",
    )
    assert (made.profile, made.required, made.asks_for_scope) == ("stripe", True, False)
    assert (made.retain, made.lease, made.drain) == (2.5, 1.5, 1.0)
    assert (made.claim_timeout, made.settle_timeout) == (0.25, 0.75)
    assert (made.waiters_max, made.waiters_total_max) == (3, 4)
    assert (made.request_bytes_max, made.response_bytes_max) == (5, 6)
    assert made.fails_open
    assert made.refuses_unsafe_stores
    assert json.loads(made.to_json())["retain_ms"] == 2500


def test_what_does_not_belong_to_the_action_is_a_runtime_error():
    store, made = MemoryStore(), rules()
    passage = begin(made)
    for misplaced in (
        lambda: passage.feed(b""), passage.end_body, passage.body_too_large, passage.body_failed,
        lambda: passage.wait, lambda: passage.holder, lambda: passage.woken(None),
        passage.wait_over, passage.waiters_full, lambda: passage.vanished_attempt,
        lambda: passage.probed(None), lambda: passage.attempt, lambda: passage.token,
        lambda: passage.fence, passage.renewal, lambda: passage.responded(200, [], b""),
        lambda: passage.streamed(200, []), passage.broken, lambda: passage.stored,
        passage.behind, lambda: passage.marked([]), passage.replay, passage.refusal,
        lambda: passage.answer, lambda: passage.done(Step.lookup(bytes(32))),
        lambda: passage.done(passage.step()),
    ):
        with pytest.raises(RuntimeError):
            misplaced()
    assert perform(passage, store) == core.EXECUTE
    with pytest.raises(ValueError, match="HTTP status"):
        passage.responded(99, [], b"")
    with pytest.raises(RuntimeError, match="EXECUTE"):
        passage.step()
    passage.responded(200, [], b"")
    assert perform(passage, store) == core.ANSWER
    for missing in (passage.replay, passage.refusal):
        with pytest.raises(RuntimeError, match="answer"):
            missing()


def test_a_replay_of_no_content_has_no_length():
    made, store = rules(), MemoryStore()
    run(begin(made), store, status=204, headers=[], body=b"")
    retry = begin(made)
    perform(retry, store)
    assert retry.replay() == (204, [(b"idempotent-replayed", b"true")], b"")


# Steps, for stores written in Python


def test_a_store_of_locks_and_values_can_carry_out_every_step():
    made = rules()
    first = begin(made)
    claim = first.step()
    assert claim.retain == pytest.approx(24 * 3600)
    claim.grant()
    assert claim.verdict == core.GRANTED
    assert first.done(claim) == core.EXECUTE
    assert first.attempt == 1
    assert first.fence > 1_600_000_000_000_000
    renewal = first.renewal()
    renewal.succeed()
    assert renewal.verdict == core.OK
    first.responded(200, [], b"kept")
    settle = first.step()
    record = settle.record()
    settle.succeed()
    assert settle.news() is not None
    assert first.done(settle) == core.ANSWER
    held = begin(made)
    held.step().hold(3.5)
    assert (held.step().verdict, held.step().remaining) == (core.HELD, 3.5)
    assert held.done(held.step()) == core.ANSWER
    assert held.refusal().code == "in-progress"
    found = begin(made)
    found.step().find(record)
    assert found.done(found.step()) == core.ANSWER
    assert found.replay()[2] == b"kept"


def test_a_found_record_must_be_a_settled_one_of_this_id():
    step = Step.lookup(bytes(32))
    step.find(b"nonsense")
    assert (step.verdict, "short" in step.failure) == (core.CORRUPT, True)
    passage = begin(rules())
    perform(passage, MemoryStore())
    passage.responded(200, [], b"")
    step.find(passage.step().record())
    assert step.verdict == core.CORRUPT


def test_a_step_refuses_what_is_not_its_own():
    look, watch = Step.lookup(bytes(32)), Step.watch(bytes(32))
    for wrong in (look.grant, look.record, watch.record, lambda: watch.hold(1), lambda: look.retain):
        with pytest.raises(RuntimeError):
            wrong()
    with pytest.raises(RuntimeError):
        begin(rules()).step().succeed()
    for verdict in (core.PENDING, core.OK, core.FENCED, 99):
        with pytest.raises(ValueError, match="UNAVAILABLE"):
            look.fail(verdict)
    for size in (0, 31, 33):
        with pytest.raises(ValueError, match="32 bytes"):
            Step.lookup(bytes(size))
    for remaining in (float("nan"), -1, float("inf"), 1e300):
        look.hold(remaining)
        assert 0 <= look.remaining < 4e9
    look.succeed()
    assert look.verdict == core.ABSENT


# The store in memory


def test_a_lookup_knows_the_claim_it_was_told_of():
    store, made = MemoryStore(), rules()
    passage = begin(made)
    claim = passage.step()
    store.perform(claim)
    look = Step.lookup(claim.id)
    store.perform(look)
    assert look.is_held_as(claim.news())
    other = begin(made, key=b"other")
    store.perform(other.step())
    assert not look.is_held_as(other.step().news())
    assert 0 < look.remaining <= made.lease


def test_the_end_of_a_watched_claim_is_told_once():
    store, made = MemoryStore(), rules()
    passage = begin(made)
    perform(passage, store)
    rung = []
    watch = store.watch(passage.id, lambda: rung.append(threading.get_ident()))
    dropped = store.watch(passage.id, lambda: rung.append("dropped"))
    del dropped
    marked = Step.watch(passage.id)
    store.perform(marked)
    assert marked.verdict == core.OK
    assert rung == []
    passage.broken()
    settler = threading.Thread(target=perform, args=(passage, store))
    settler.start()
    settler.join(HANG_SECONDS)
    assert rung == [settler.ident]
    store.perform(marked)
    assert marked.verdict == core.ABSENT
    del watch


def test_a_wake_up_that_raises_harms_nobody(monkeypatch):
    unraised = []
    monkeypatch.setattr("sys.unraisablehook", unraised.append)
    store, made = MemoryStore(), rules()
    passage = begin(made)
    perform(passage, store)
    watch = store.watch(passage.id, lambda: 1 / 0)
    passage.broken()
    assert perform(passage, store) == core.ANSWER
    assert [it.exc_type for it in unraised] == [ZeroDivisionError]
    del watch


def test_a_wake_up_may_use_the_store_and_the_step():
    store, made = MemoryStore(), rules()
    passage = begin(made)
    perform(passage, store)
    passage.broken()
    step, found = passage.step(), []

    def wake():
        look = Step.lookup(passage.id)
        store.perform(look)
        found.append((look.verdict, step.verdict))

    watch = store.watch(passage.id, wake)
    store.perform(step)
    assert found == [(core.ABSENT, core.PENDING)]
    del watch


def test_a_watch_that_refers_to_itself_is_collected():
    class Owner:
        pass

    store, owner = MemoryStore(), Owner()
    owner.watch = store.watch(bytes(32), lambda owner=owner: owner)
    left = weakref.ref(owner)
    del owner
    gc.collect()
    assert left() is None


def test_a_full_store_refuses_new_keys_for_certain():
    made, store = rules(), MemoryStore(bytes_max=0)
    passage = begin(made)
    step = passage.step()
    store.perform(step)
    assert step.verdict == core.FULL
    assert passage.done(step) == core.ANSWER
    assert passage.refusal().code == "store-unavailable"
    assert passage.behind() is None


def test_the_store_counts_its_records_and_gives_back_what_expired():
    made, store = rules(retain_ms=1, key_retain_ms=1), MemoryStore()
    run(begin(made), store)
    assert len(store) == 1
    assert store.bytes > 0
    deadline = time.monotonic() + HANG_SECONDS
    while len(store):
        assert time.monotonic() < deadline
        time.sleep(0.002)
        store.tend()
    assert store.bytes == 0


def test_threads_share_a_store_and_rules():
    made, store = rules(), MemoryStore()
    executed = []

    def work():
        for number in range(200):
            passage = begin(made, key=b"%d" % number)
            if perform(passage, store) == core.EXECUTE:
                executed.append(number)
                passage.responded(200, [], b"")
                perform(passage, store)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS)
    assert sorted(executed) == list(range(200))


# Tokens


def tokens(made, count):
    passages = [begin(made, key=b"%d" % number) for number in range(count)]
    store = MemoryStore()
    for passage in passages:
        perform(passage, store)
    return [passage.token for passage in passages]


def test_tokens_are_never_drawn_twice():
    made = rules()
    drawn = tokens(made, 2000) + tokens(made, 2000) + tokens(rules(), 100)
    assert len(set(drawn)) == len(drawn)
    assert {len(token) for token in drawn} == {32}
    core.check_token_source()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_draws_other_tokens():
    made = rules()
    tokens(made, 1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, "\n".join(tokens(made, 50)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    mine = set(tokens(made, 50))
    with os.fdopen(reader) as pipe:
        theirs = set(pipe.read().split())
    os.waitpid(child, 0)
    assert len(theirs) == 50
    assert not mine & theirs


def test_a_passage_cannot_be_made_by_hand():
    with pytest.raises(TypeError):
        Passage()
