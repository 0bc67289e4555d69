"""The compiled half by itself: steps, the store in memory, and tokens."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref

import pytest
from exchange_helpers import ANSWER, BODY, HANG_SECONDS, begin, perform, rules, run
from idemptx import _idemptx as core
from idemptx._idemptx import Leases, MemoryStore, Step

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
    assert settle.update() is not None
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
    exchange = begin(rules())
    perform(exchange, MemoryStore())
    exchange.responded(200, [], b"")
    step.find(exchange.step().record())
    assert step.verdict == core.CORRUPT


def test_a_step_refuses_what_is_not_its_own():
    look, watch = Step.lookup(bytes(32)), Step.watch(bytes(32))
    for wrong in (
        look.grant,
        look.record,
        watch.record,
        lambda: watch.hold(1),
        lambda: look.retain,
    ):
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


def test_a_result_in_this_process_is_replayed_without_a_claim():
    made, store = rules(), MemoryStore()
    run(begin(made), store)

    def reads(body, memory, key=b"k-1"):
        exchange = made.begin("POST", b"/orders", b"", [(b"idempotency-key", key), ANSWER[0]])
        assert exchange.read(body[:3], True, memory) == core.READ_BODY
        return exchange, exchange.read(body[3:], False, memory)

    retry, action = reads(BODY, store)
    assert (action, retry.answer, retry.outcome) == (core.ANSWER, core.REPLAY, ("replayed", ""))
    assert (retry.replay()[2], retry.deferred()) == (b"made", None)
    # What it decides nothing about is left to a claim: no record, another body, another store.
    for body, memory, key in [(BODY, store, b"k-2"), (b"{}", store, b"k-1"), (BODY, None, b"k-1")]:
        exchange, action = reads(body, memory, key)
        assert action == core.STORE
        perform(exchange, store)
    held, action = reads(BODY, store, b"k-2")
    assert (action, perform(held, store)) == (core.STORE, core.ANSWER)
    assert held.outcome == ("refused", "in-progress")


def test_a_lookup_knows_the_claim_it_was_told_of():
    store, made = MemoryStore(), rules()
    exchange = begin(made)
    claim = exchange.step()
    store.perform(claim)
    look = Step.lookup(claim.id)
    store.perform(look)
    assert look.is_held_as(claim.update())
    other = begin(made, key=b"other")
    store.perform(other.step())
    assert not look.is_held_as(other.step().update())
    assert 0 < look.remaining <= made.lease


def test_the_end_of_a_watched_claim_is_told_once():
    store, made = MemoryStore(), rules()
    exchange = begin(made)
    perform(exchange, store)
    rung = []
    watch = store.watch(exchange.id, lambda: rung.append(threading.get_ident()))
    dropped = store.watch(exchange.id, lambda: rung.append("dropped"))
    del dropped
    marked = Step.watch(exchange.id)
    store.perform(marked)
    assert marked.verdict == core.OK
    assert rung == []
    exchange.failed()
    settler = threading.Thread(target=perform, args=(exchange, store))
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
    exchange = begin(made)
    perform(exchange, store)
    watch = store.watch(exchange.id, lambda: 1 / 0)
    exchange.failed()
    assert perform(exchange, store) == core.ANSWER
    assert [it.exc_type for it in unraised] == [ZeroDivisionError]
    del watch


def test_a_wake_up_may_use_the_store_and_the_step():
    store, made = MemoryStore(), rules()
    exchange = begin(made)
    perform(exchange, store)
    exchange.failed()
    step, found = exchange.step(), []

    def wake():
        look = Step.lookup(exchange.id)
        store.perform(look)
        found.append((look.verdict, step.verdict))

    watch = store.watch(exchange.id, wake)
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
    exchange = begin(made)
    step = exchange.step()
    store.perform(step)
    assert step.verdict == core.FULL
    assert exchange.done(step) == core.ANSWER
    assert exchange.refusal().code == "store-unavailable"
    assert exchange.deferred() is None


def test_the_store_counts_its_records_and_gives_back_what_expired():
    made, store = rules(retain_ms=1, key_retain_ms=1), MemoryStore()
    run(begin(made), store)
    assert len(store) == 1
    assert store.bytes > 0
    deadline = time.monotonic() + HANG_SECONDS
    while len(store):
        assert time.monotonic() < deadline
        time.sleep(0.002)
        store.maintain()
    assert store.bytes == 0


def test_threads_share_a_store_and_rules():
    made, store = rules(), MemoryStore()
    executed = []

    def work():
        for number in range(200):
            exchange = begin(made, key=b"%d" % number)
            if perform(exchange, store) == core.EXECUTE:
                executed.append(number)
                exchange.responded(200, [], b"")
                perform(exchange, store)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS)
    assert sorted(executed) == list(range(200))


# Tokens


def tokens(made, count):
    exchanges = [begin(made, key=b"%d" % number) for number in range(count)]
    store = MemoryStore()
    for exchange in exchanges:
        perform(exchange, store)
    return [exchange.token for exchange in exchanges]


def test_the_lease_of_a_handler_that_has_ended_wakes_the_renewing_thread_only_once():
    """Else each short handler would cost two switches between threads."""
    made, store, leases = rules(lease_ms=60_000), MemoryStore(), Leases()
    shorter = rules(lease_ms=3_000)

    def holds(key, made=made):
        exchange = begin(made, key)
        perform(exchange, store)
        return exchange

    first, second, third = holds(b"1"), holds(b"2"), holds(b"3", shorter)
    assert leases.plan() is None
    assert leases.add(first, object())
    leases.remove(first)
    assert 1 < leases.plan() <= 20
    assert not leases.add(second, object())
    assert leases.add(third, object())
    assert leases.plan() <= 1
    leases.remove(third)
    assert 1 < leases.plan() <= 20


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
