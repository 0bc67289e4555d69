"""Passages taken by hand, on the compiled half alone."""

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
    """A passage that is about to claim."""
    lines = [(b"Idempotency-Key", key), (b"content-type", b"application/json"), *headers]
    passage = made.begin("POST", path, b"", lines, **more)
    assert passage.action == core.READ_BODY
    assert passage.feed(body)
    assert passage.end_body() == core.STORE
    return passage


def take(passage, perform):
    """The passage's step, performed and handed back."""
    step = passage.step()
    perform(step)
    return passage.done(step)


def perform(passage, store):
    return take(passage, store.perform)


def run(passage, store, status=201, headers=ANSWER, body=b"made"):
    """From the claim to the answer of a passage that executes."""
    assert perform(passage, store) == core.EXECUTE
    assert passage.responded(status, headers, body) == core.STORE
    assert perform(passage, store) == core.ANSWER
    return passage


class Promise:
    """As much of a future as a channel needs."""

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
