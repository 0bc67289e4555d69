"""The compiled half by itself: exchanges taken by hand."""

from __future__ import annotations

import gzip
import json
import time

import pytest
from exchange_helpers import ANSWER, HANG_SECONDS, begin, perform, rules, run
from idemptx import _idemptx as core
from idemptx._idemptx import MemoryStore, Step


def test_the_first_request_executes_and_a_retry_gets_the_same_answer():
    made, store = rules(), MemoryStore()
    first = run(begin(made), store)
    assert (first.answer, first.stored, first.attempt) == (core.OWN, True, 1)
    assert first.deferred() is None
    assert first.marked(ANSWER) == ANSWER
    retry = begin(made)
    assert perform(retry, store) == core.ANSWER
    assert (retry.answer, retry.stored) == (core.REPLAY, True)
    status, headers, body = retry.replay()
    marks = [(b"idempotent-replayed", b"true"), (b"content-length", b"4")]
    assert (status, headers, body) == (201, ANSWER + marks, b"made")


def test_a_body_that_was_compressed_again_is_the_same():
    made, store, coding = rules(), MemoryStore(), [(b"content-encoding", b"gzip")]
    run(begin(made, body=gzip.compress(b"{}", mtime=1), headers=coding), store)
    for body, expected in ((b"{}", core.REPLAY), (b"[]", core.REFUSE)):
        retry = begin(made, body=gzip.compress(body, mtime=2), headers=coding)
        perform(retry, store)
        assert retry.answer == expected


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
    exchange = run(begin(rules("idemptx")), MemoryStore())
    lines = [
        (b"X-Idempotency-Status", b"mine"),
        (b"Idempotency-Outcome", b"store"),
        (b"Set-Cookie", b"a=1"),
        (b"Set-Cookie", b"b=2"),
    ]
    marked = exchange.marked(lines)
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
    assert second.deferred() is None
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
    assert waiting.woken(settle.update()) == core.ANSWER
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
    assert claim.update().is_held
    told = begin(made)
    assert told.claim_shared(claim.update()) == core.ANSWER
    assert (told.refusal().code, told.deferred()) == ("in-progress", None)


def test_a_failure_that_was_only_told_leaves_nothing_behind():
    made = rules()
    first = begin(made)
    claim = first.step()
    claim.retain  # noqa: B018 - as a store does that is about to take it
    claim.fail(core.UNAVAILABLE, "gone")
    assert (claim.verdict, claim.failure) == (core.UNAVAILABLE, "gone")
    update = claim.update()
    assert first.done(claim) == core.ANSWER
    assert first.refusal().code == "store-unavailable"
    assert first.deferred().kind == core.RELEASE
    told = begin(made)
    assert told.claim_shared(update) == core.ANSWER
    assert told.refusal().code == "store-unavailable"
    assert told.deferred() is None


@pytest.mark.parametrize("verdict", [core.UNAVAILABLE, core.INTERNAL, core.FULL])
def test_a_claim_that_no_store_was_asked_for_leaves_nothing_behind(verdict):
    exchange = begin(rules())
    step = exchange.step()
    step.fail(verdict)
    assert step.failure is None
    assert exchange.done(step) == core.ANSWER
    assert exchange.deferred() is None


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
        lambda exchange: exchange.responded(500, [], b"oops"),
        lambda exchange: exchange.responded(200, [(b"idempotency-outcome", b"release")], b""),
        lambda exchange: exchange.failed(),
    ):
        exchange = begin(made)
        assert perform(exchange, store) == core.EXECUTE
        assert end(exchange) == core.STORE
        assert exchange.step().kind == core.RELEASE
        assert perform(exchange, store) == core.ANSWER
        assert not exchange.stored
    assert exchange.refusal().code == "handler-failed"
    assert (b"idempotency-stored", b"false") in exchange.refusal().headers
    assert len(store) == 0


def test_an_unstored_answer_says_so():
    exchange = run(begin(rules()), MemoryStore(), status=503)
    assert exchange.marked([]) == [(b"idempotency-stored", b"false")]


@pytest.mark.parametrize(
    ("policy", "end"),
    [
        ({}, lambda exchange: exchange.streamed(200, [(b"location", b"/orders/17")])),
        (
            {"response_bytes_max": 3},
            lambda exchange: exchange.responded(200, [(b"location", b"/orders/17")], b"four"),
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


def test_an_unconfirmed_result_goes_on_behind():
    store, made = MemoryStore(), rules()
    first = begin(made)
    perform(first, store)
    first.responded(200, [], b"x")
    settle = first.step()
    settle.fail(core.UNAVAILABLE, "no answer")
    assert settle.update() is None
    assert first.done(settle) == core.ANSWER
    assert (first.answer, first.stored) == (core.OWN, False)
    behind = first.deferred()
    assert (behind.kind, behind.verdict) == (core.SETTLE, core.PENDING)
    assert behind.record() == settle.record()
    renewal = first.renewal()
    store.perform(renewal)
    assert renewal.verdict == core.OK
    store.perform(behind)
    retry = begin(made)
    perform(retry, store)
    assert retry.replay()[2] == b"x"


def test_a_lease_can_be_renewed_while_the_answers_lines_are_read():
    store = MemoryStore()
    exchange = begin(rules())
    perform(exchange, store)

    def lines():
        renewal = exchange.renewal()
        store.perform(renewal)
        assert renewal.verdict == core.OK
        yield (b"x-a", b"b")

    assert exchange.responded(200, lines(), b"") == core.STORE


def test_an_unconfirmed_release_goes_on_behind():
    store, made = MemoryStore(), rules()
    first = begin(made)
    perform(first, store)
    first.failed()
    step = first.step()
    step.fail(core.INTERNAL)
    first.done(step)
    assert first.deferred().kind == core.RELEASE


def orphaned(store, **policy):
    """Returns rules, and an exchange whose claim under them lapsed without a result."""
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
        look.reset()


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
    assert asking.orphan_attempt == 1
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


def test_shadow_mode_leaves_a_failure_to_the_application():
    made, store = rules(mode="shadow"), MemoryStore()
    first = begin(made)
    assert perform(first, store) == core.EXECUTE
    assert first.failed() == core.STORE
    assert perform(first, store) == core.ANSWER
    # The driver raises the application's own exception; without one its server reports a failure.
    assert (first.answer, first.refusal().code) == (core.REFUSE, "handler-failed")
    assert len(store) == 0


def secret(number):
    return {"id": number, "secret": f"secret number {number} of sixteen bytes"}


def test_a_record_keeps_its_name_while_secrets_rotate():
    store = MemoryStore()
    before = begin(rules(secrets=[secret(1)]))
    run(before, store, body=b"old")
    made = rules(secrets=[secret(2), secret(1)])
    retry = begin(made)
    assert retry.id == before.id
    assert perform(retry, store) == core.ANSWER
    assert retry.replay()[2] == b"old"
    fresh = begin(made, key=b"fresh")
    assert perform(fresh, store) == core.EXECUTE


def test_leaving_while_secrets_rotate_names_the_record_that_is_released():
    store = MemoryStore()
    leaving = begin(rules(secrets=[secret(2), secret(1)]))
    store.perform(leaving.step())
    deferred = leaving.abandon()
    assert (deferred.kind, deferred.id) == (core.RELEASE, leaving.id)


def test_new_keys_are_metered_for_each_scope():
    made, store = rules(scope={"header": "x-tenant"}, new_keys_per_minute_max=2), MemoryStore()

    def fresh(key, tenant):
        exchange = begin(made, key=key, headers=[(b"x-tenant", tenant)])
        return exchange, perform(exchange, store)

    # The minute may turn over once in between.
    ends = [fresh(b"%d" % number, b"a") for number in range(5)]
    refused = [exchange for exchange, action in ends if action == core.STORE]
    assert refused
    assert perform(refused[0], store) == core.ANSWER
    assert refused[0].refusal().code == "too-many-keys"
    assert fresh(b"5", b"b")[1] == core.EXECUTE


def test_what_does_not_belong_to_the_action_is_a_runtime_error():
    store, made = MemoryStore(), rules()
    exchange = begin(made)
    for misplaced in (
        lambda: exchange.feed(b""),
        exchange.end_body,
        exchange.body_too_large,
        exchange.body_failed,
        lambda: exchange.wait,
        lambda: exchange.holder,
        lambda: exchange.woken(None),
        exchange.wait_over,
        exchange.waiters_full,
        lambda: exchange.orphan_attempt,
        lambda: exchange.probed(None),
        lambda: exchange.attempt,
        lambda: exchange.token,
        lambda: exchange.fence,
        exchange.renewal,
        lambda: exchange.responded(200, [], b""),
        lambda: exchange.streamed(200, []),
        exchange.failed,
        lambda: exchange.stored,
        exchange.deferred,
        lambda: exchange.marked([]),
        exchange.replay,
        exchange.refusal,
        lambda: exchange.answer,
        lambda: exchange.done(Step.lookup(bytes(32))),
        lambda: exchange.done(exchange.step()),
    ):
        with pytest.raises(RuntimeError):
            misplaced()
    assert perform(exchange, store) == core.EXECUTE
    with pytest.raises(ValueError, match="HTTP status"):
        exchange.responded(99, [], b"")
    with pytest.raises(RuntimeError, match="EXECUTE"):
        exchange.step()
    exchange.responded(200, [], b"")
    assert perform(exchange, store) == core.ANSWER
    for missing in (exchange.replay, exchange.refusal):
        with pytest.raises(RuntimeError, match="answer"):
            missing()


def test_a_replay_of_no_content_has_no_length():
    made, store = rules(), MemoryStore()
    run(begin(made), store, status=204, headers=[], body=b"")
    retry = begin(made)
    perform(retry, store)
    assert retry.replay() == (204, [(b"idempotent-replayed", b"true")], b"")
