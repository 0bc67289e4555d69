"""Exchanges taken by hand, on the compiled half alone."""

from __future__ import annotations

import json

from idemptx import _idemptx as core
from idemptx._idemptx import Rules

BODY = b'{"item":"tea"}'
ANSWER = [(b"content-type", b"application/json"), (b"x-order", b"17")]
HANG_SECONDS = 30


def rules(profile="draft", **policy):
    return Rules(profile, json.dumps(policy))


def begin(made, key=b"k-1", body=BODY, headers=(), path=b"/orders", **more):
    """Returns an exchange whose next step is the claim."""
    lines = [(b"Idempotency-Key", key), (b"content-type", b"application/json"), *headers]
    exchange = made.begin("POST", path, b"", lines, **more)
    assert exchange.action == core.READ_BODY
    assert exchange.feed(body)
    assert exchange.end_body() == core.STORE
    return exchange


def take(exchange, perform):
    """The exchange's step, performed and handed back."""
    step = exchange.step()
    perform(step)
    return exchange.done(step)


def perform(exchange, store):
    return take(exchange, store.perform)


def run(exchange, store, status=201, headers=ANSWER, body=b"made"):
    """From the claim to the answer of an exchange that executes."""
    assert perform(exchange, store) == core.EXECUTE
    assert exchange.responded(status, headers, body) == core.STORE
    assert perform(exchange, store) == core.ANSWER
    return exchange


class Promise:
    """The part of a future's interface that a channel needs."""

    def __init__(self):
        self.is_done = False
        self.result = self.error = None

    def done(self):
        return self.is_done

    def set_result(self, result):
        assert not self.is_done
        self.is_done, self.result = True, result

    def set_exception(self, error):
        assert not self.is_done
        self.is_done, self.error = True, error
