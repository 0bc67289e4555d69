"""The compiled half by itself: what handlers say of their outcome."""

from __future__ import annotations

import pytest
from exchange_helpers import begin, perform, rules, run
from idemptx import _idemptx as core
from idemptx._idemptx import MemoryStore


def test_an_unknown_outcome_is_kept_without_a_response():
    store, made = MemoryStore(), rules()
    first = run(begin(made), store, headers=[(b"Idempotency-Outcome", b"unknown")])
    assert not first.stored
    retry = begin(made)
    perform(retry, store)
    assert retry.refusal().code == "outcome-unknown"


@pytest.mark.parametrize("said", [b"Unknown", b"nonsense", b"", b"store, release", b"\xff"])
def test_an_outcome_that_cannot_be_read_is_unknown(said):
    store, made = MemoryStore(), rules()
    run(begin(made), store, status=502, headers=[(b"Idempotency-Outcome", said)])
    retry = begin(made)
    perform(retry, store)
    assert retry.refusal().code == "outcome-unknown"


@pytest.mark.parametrize("on_panic", ["release", "quarantine"])
@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"store", "result-unavailable"),
        (b"unknown", "outcome-unknown"),
        (b"stoer", "outcome-unknown"),
        (b"release", None),
    ],
)
def test_what_was_decided_counts_although_the_handler_fails(said, code, on_panic):
    store, made = MemoryStore(), rules(on_panic=on_panic)
    first = begin(made)
    perform(first, store)
    first.failed([(b"Idempotency-Outcome", said)])
    perform(first, store)
    assert first.refusal().code == "handler-failed"
    retry = begin(made)
    if code is None:
        assert perform(retry, store) == core.EXECUTE
    else:
        perform(retry, store)
        assert retry.refusal().code == code


@pytest.mark.parametrize("on_panic", ["release", "quarantine"])
@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"store", "result-unavailable"),
        (b"unknown", "outcome-unknown"),
        (b"stoer", "outcome-unknown"),
        # As if it had said nothing: as the policy says.
        (b"release", None),
        (b" Release ", None),
    ],
)
def test_what_a_response_says_that_breaks_off_counts_but_for_a_release(said, code, on_panic):
    store, made = MemoryStore(), rules(on_panic=on_panic)
    first = begin(made)
    perform(first, store)
    first.broke_off([(b"Idempotency-Outcome", said)])
    perform(first, store)
    retry = begin(made)
    if code is None and on_panic == "release":
        assert perform(retry, store) == core.EXECUTE
    else:
        perform(retry, store)
        assert retry.refusal().code == (code or "outcome-unknown")


def test_an_outcome_is_compared_without_case():
    store, made = MemoryStore(), rules()
    run(begin(made), store, status=502, headers=[(b"Idempotency-Outcome", b"STORE")])
    retry = begin(made)
    perform(retry, store)
    assert retry.answer == core.REPLAY
