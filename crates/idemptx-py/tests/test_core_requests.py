"""The compiled half by itself: rules, and what they make of a request's head and body."""

from __future__ import annotations

import gzip
import json

import pytest
from exchange_helpers import BODY, begin, rules
from idemptx import _idemptx as core
from idemptx._idemptx import Exchange, MemoryStore, Rules


def test_a_request_without_a_key_passes_untouched():
    made = rules()
    assert made.begin("POST", b"/orders", b"", []) is None
    assert made.begin("GET", b"/orders", b"", [(b"idempotency-key", b"k")]) is None


def test_a_key_that_is_ignored_is_marked_where_the_status_is_exposed():
    exchange = rules(expose=["status"]).begin("GET", b"/", b"", [(b"idempotency-key", b"k")])
    assert (exchange.action, exchange.answer) == (core.ANSWER, core.PASS)
    assert exchange.marked([(b"a", b"b")]) == [(b"a", b"b"), (b"idempotency-status", b"ignored")]


def test_a_missing_key_is_refused_where_it_is_required():
    exchange = rules(required=True).begin("POST", b"/", b"", [])
    assert (exchange.action, exchange.answer) == (core.ANSWER, core.REFUSE)
    assert exchange.refusal().code == "missing-key"
    with pytest.raises(RuntimeError, match="no valid key"):
        _ = exchange.key


def test_a_decompression_bomb_is_too_large():
    lines = [(b"Idempotency-Key", b"k"), (b"content-encoding", b"gzip")]
    exchange = rules().begin("POST", b"/orders", b"", lines)
    assert exchange.feed(gzip.compress(bytes(10_000_000)))
    assert exchange.end_body() == core.ANSWER
    assert exchange.refusal().code == "body-too-large"


def test_a_body_beyond_the_limit_is_refused_or_passed():
    for policy, answer in (({}, core.REFUSE), ({"on_large_body": "skip"}, core.PASS)):
        made = rules(request_bytes_max=4, **policy)
        exchange = made.begin("POST", b"/", b"", [(b"idempotency-key", b"k")])
        assert exchange.feed(b"four")
        assert not exchange.feed(b"!")
        assert exchange.body_too_large() == core.ANSWER
        assert exchange.answer == answer
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
    assert (b"www-authenticate", b'Bearer realm="api"') in nobody.refusal().headers
    assert len(store) == 0


def test_the_applications_own_check_of_a_key():
    made, asked = rules(), []

    def accepts(key):
        asked.append(key)
        return False

    lines = [(b"idempotency-key", b'"a key"')]
    exchange = made.begin("POST", b"/", b"", lines, accepts=accepts)
    assert asked == ["a key"]
    assert exchange.refusal().code == "invalid-key"

    def fails(key):
        raise LookupError(key)

    with pytest.raises(LookupError, match="a key"):
        made.begin("POST", b"/", b"", lines, accepts=fails)
    assert begin(made, accepts=lambda key: key == "k-1").key == "k-1"


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"orders",
        b"*",
        b"/a b",
        b"/\xff\xfe",
        b"/caf\xc3\xa9",
        b"/a?b#c",
        b"/\x00",
        b"/" * 9000,
    ],
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
        "stripe",
        required=True,
        retain_ms=2500,
        lease_ms=1500,
        on_store_error="fail_open",
        store_timeout_ms={"claim": 250, "settle": 750},
        waiters_max=3,
        waiters_total_max=4,
        request_bytes_max=5,
        response_bytes_max=6,
        drain_ms=1000,
        on_unsafe_store="refuse",
    )
    assert (made.profile, made.required, made.asks_for_scope) == ("stripe", True, False)
    assert (made.retain, made.lease, made.drain) == (2.5, 1.5, 1.0)
    assert (made.claim_timeout, made.settle_timeout) == (0.25, 0.75)
    assert (made.waiters_max, made.waiters_total_max) == (3, 4)
    assert (made.request_bytes_max, made.response_bytes_max) == (5, 6)
    assert made.fails_open
    assert made.refuses_unsafe_stores
    assert json.loads(made.to_json())["retain_ms"] == 2500


def test_a_passage_cannot_be_made_by_hand():
    with pytest.raises(TypeError):
        Exchange()
