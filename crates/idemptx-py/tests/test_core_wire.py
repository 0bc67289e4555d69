"""The compiled half by itself: what goes over a connection to Redis, byte for byte."""

from __future__ import annotations

import gc
import weakref

import pytest
from exchange_helpers import Promise, begin, rules
from idemptx import _idemptx as core
from idemptx._idemptx import (
    Channel,
    ClientCommands,
    Layout,
    PubSubReader,
    RedisReplyError,
    Step,
    Transaction,
)

NOSCRIPT = b"-NOSCRIPT No matching script. Please use EVAL.\r\n"


REPLIES = (
    b"$-1\r\n+PONG\r\n*4\r\n:-7\r\n$3\r\na\r\n\r\n*1\r\n*-1\r\n-ERR inside\r\n"
    b"$0\r\n\r\n-NOAUTH first\r\n*0\r\n"
)


def feed_in_pieces(pieces):
    channel, exchange = Channel(Layout("test:")), begin(rules())
    claim = Promise()
    commands = [Promise() for _ in range(5)]
    assert channel.perform(exchange.step(), claim)
    for promise in commands:
        assert not channel.command([b"PING"], promise)
    assert channel.waiting == 6
    assert channel.take_output().endswith(b"*1\r\n$4\r\nPING\r\n" * 5)
    for piece in pieces:
        assert channel.feed(piece) is False
    assert (channel.waiting, claim.done(), claim.result) == (0, True, None)
    assert exchange.step().verdict == core.GRANTED
    pong, series, empty, error, nothing = commands
    assert (pong.result, empty.result, nothing.result) == (b"PONG", b"", [])
    *values, inside = series.result
    assert values == [-7, b"a\r\n", [None]]
    assert (type(inside), str(inside)) == (RedisReplyError, "ERR inside")
    assert (type(error.error), str(error.error)) == (RedisReplyError, "NOAUTH first")


def test_replies_are_read_wherever_they_are_cut():
    feed_in_pieces([REPLIES])
    feed_in_pieces(bytes([byte]) for byte in REPLIES)
    for at in range(len(REPLIES) + 1):
        feed_in_pieces([REPLIES[:at], REPLIES[at:]])
        feed_in_pieces([REPLIES[:at], b"", REPLIES[at : at + 3], REPLIES[at + 3 :]])


def test_a_long_reply_comes_in_many_pieces():
    channel, promise = Channel(Layout("test:")), Promise()
    channel.command([b"GET", b"x"], promise)
    body = bytes(range(256)) * 4096
    reply = b"$%d\r\n%b\r\n" % (len(body), body)
    for at in range(0, len(reply), 1000):
        assert not promise.done()
        channel.feed(reply[at : at + 1000])
    assert promise.result == body


@pytest.mark.parametrize(
    "reply",
    [
        b"%1\r\n+a\r\n+b\r\n",
        b"hello\r\n",
        b"$3\r\nabcd\r\n",
        b"$-2\r\n",
        b"$x\r\n",
        b":1.5\r\n",
        b":\r\n",
        b"+OK\n",
        b"$99999999999999\r\n",
        b"*5000\r\n",
        b"*1\r\n" * 20,
        b"+" + b"x" * 70_000,
        b"*3000\r\n" + b"*1000\r\n" * 3,
        b"*2\r\n$1\r\na\r\n$536870912\r\n",
        b"\r\n",
        b"\x00" * 9,
        b":99999999999999999999\r\n",
    ],
)
def test_what_is_not_the_protocol_is_a_value_error(reply):
    channel, promise = Channel(Layout("test:")), Promise()
    channel.command([b"PING"], promise)
    with pytest.raises(ValueError, match="Redis protocol"):
        channel.feed(reply)
    channel.lose("it spoke in tongues")
    assert isinstance(promise.error, ConnectionError)
    with pytest.raises(ValueError, match="Redis protocol"):
        PubSubReader().feed(reply)


def test_replies_before_a_malformed_one_still_count():
    channel, promise = Channel(Layout("test:")), Promise()
    channel.command([b"PING"], promise)
    with pytest.raises(ValueError, match="nobody asked"):
        channel.feed(b"+PONG\r\n+PONG\r\n")
    assert promise.result == b"PONG"


def test_an_unknown_script_is_sent_whole_and_the_follow_up_is_told():
    channel, promise, step = Channel(Layout("test:")), Promise(), Step.lookup(bytes(32))
    assert channel.perform(step, promise)
    assert b"EVALSHA" in channel.take_output()
    assert channel.feed(NOSCRIPT)
    assert (channel.waiting, promise.done()) == (1, False)
    assert b"$4\r\nEVAL\r\n" in channel.take_output()
    assert channel.feed(b"$-1\r\n") is False
    assert (step.verdict, promise.done()) == (core.ABSENT, True)


def test_an_error_reply_is_a_steps_failure():
    for reply, verdict in ((b"-WRONGTYPE x", core.CORRUPT), (b"-OOM x", core.REFUSED)):
        channel, promise, step = Channel(Layout("test:")), Promise(), Step.lookup(bytes(32))
        channel.perform(step, promise)
        channel.feed(reply + b"\r\n")
        assert (step.verdict, promise.done()) == (verdict, True)
        assert reply[1:].decode() in step.failure


def test_a_future_that_is_done_is_left_alone_and_so_is_its_step():
    channel, gone, waiting = Channel(Layout("test:")), Promise(), Promise()
    given_up, looked = Step.lookup(bytes(32)), Step.lookup(bytes(32))
    channel.perform(given_up, gone)
    channel.perform(looked, waiting)
    gone.is_done = True
    given_up.fail(core.UNAVAILABLE, "too slow")
    assert channel.feed(NOSCRIPT + b"$-1\r\n") is False
    assert (given_up.verdict, given_up.failure) == (core.UNAVAILABLE, "too slow")
    assert (looked.verdict, waiting.done()) == (core.ABSENT, True)


def test_losing_the_connection_ends_everything_that_waits():
    channel, step, late = Channel(Layout("test:")), Step.lookup(bytes(32)), Step.lookup(bytes(32))
    promises = [Promise() for _ in range(5)]
    channel.perform(step, promises[0])
    channel.command([b"PING"], promises[1])
    channel.command([b"PING"], promises[2])
    promises[2].is_done = True
    assert channel.waited() >= 0
    channel.lose("the peer reset it")
    assert (step.verdict, step.failure) == (core.UNAVAILABLE, "the peer reset it")
    assert promises[0].done()
    assert isinstance(promises[1].error, ConnectionError)
    assert (channel.waiting, channel.waited(), channel.take_output()) == (0, 0.0, b"")
    assert channel.perform(late, promises[3]) is False
    assert (late.verdict, promises[3].done()) == (core.UNAVAILABLE, True)
    assert channel.command([b"PING"], promises[4]) is False
    assert isinstance(promises[4].error, ConnectionError)
    channel.lose("again")
    assert channel.feed(b"+what was still on its way\r\n") is False


def test_a_claim_lost_on_the_way_is_released_behind_and_one_refused_is_not():
    channel, exchange = Channel(Layout("test:")), begin(rules())
    channel.perform(exchange.step(), Promise())
    channel.lose("gone")
    assert exchange.done(exchange.step()) == core.ANSWER
    assert exchange.deferred().kind == core.RELEASE
    refused = begin(rules())
    channel.perform(refused.step(), Promise())
    assert refused.done(refused.step()) == core.ANSWER
    assert (refused.refusal().code, refused.deferred()) == ("store-unavailable", None)


def test_a_claim_refused_by_the_server_has_nothing_to_release():
    channel, exchange = Channel(Layout("test:")), begin(rules())
    channel.perform(exchange.step(), Promise())
    channel.feed(b"-READONLY x\r\n")
    assert exchange.step().verdict == core.REFUSED
    assert exchange.done(exchange.step()) == core.ANSWER
    assert (exchange.refusal().code, exchange.deferred()) == ("store-unavailable", None)


def test_a_claim_refused_after_a_lost_answer_may_still_be_in_force():
    layout, exchange = Layout("test:"), begin(rules())
    step, lost, channel = exchange.step(), Channel(layout), Channel(layout)
    lost.perform(step, Promise())
    lost.lose("gone")
    step.reset()
    channel.perform(step, Promise())
    channel.feed(b"-READONLY x\r\n")
    assert step.verdict == core.UNAVAILABLE
    assert exchange.done(step) == core.ANSWER
    assert exchange.deferred().kind == core.RELEASE


def test_a_refusal_through_a_client_that_may_repeat_commands_is_not_certain():
    exchange = begin(rules())
    ClientCommands(Layout("test:"), exchange.step()).error("READONLY x")
    assert exchange.step().verdict == core.UNAVAILABLE


def test_a_future_may_use_the_channel_while_it_is_told():
    channel, inner = Channel(Layout("test:")), Promise()

    class Eager(Promise):
        def set_result(self, result):
            super().set_result(result)
            channel.command([b"PING"], inner)

    channel.command([b"PING"], Eager())
    channel.take_output()
    channel.feed(b"+PONG\r\n")
    assert channel.waiting == 1
    channel.feed(b"+AGAIN\r\n")
    assert inner.result == b"AGAIN"


def test_one_faulty_future_does_not_spoil_the_others():
    channel, step = Channel(Layout("test:")), Step.lookup(bytes(32))
    channel.perform(step, object())
    promise = Promise()
    channel.command([b"PING"], promise)
    with pytest.raises(AttributeError):
        channel.feed(b"$-1\r\n+PONG\r\n")
    assert promise.result == b"PONG"


def test_a_command_is_a_series_of_bytes():
    channel = Channel(Layout("test:"))
    with pytest.raises(ValueError, match="at least a name"):
        channel.command([], Promise())
    for wrong in ("PING", b"PING", ["PING"], 7):
        with pytest.raises(TypeError):
            channel.command(wrong, Promise())
    assert channel.command((b"", b"\r\n"), Promise())
    assert channel.take_output() == b"*2\r\n$0\r\n\r\n$2\r\n\r\n\r\n"
    assert channel.take_output() == b""


def test_a_channel_that_its_futures_refer_to_is_collected():
    channel, promise = Channel(Layout("test:")), Promise()
    promise.channel = channel
    channel.command([b"PING"], promise)
    left = weakref.ref(promise)
    del channel, promise
    gc.collect()
    assert left() is None


def test_messages_are_told_from_confirmations():
    messages = PubSubReader()
    received = (
        b"+OK\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"
        b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n"
    )
    expected = [(b"c", b""), (b"c", b"hi")]
    assert messages.feed(received) == expected
    pieces = [messages.feed(bytes([byte])) for byte in received]
    assert [message for piece in pieces for message in piece] == expected
    with pytest.raises(RedisReplyError, match="NOPERM"):
        messages.feed(b"-NOPERM no\r\n")
    with pytest.raises(ValueError, match="message"):
        messages.feed(b"*1\r\n$7\r\nmessage\r\n")


# Other clients


def settled_record():
    """Returns the stored record of an exchange with the key of `begin`."""
    exchange = begin(rules())
    exchange.step().grant()
    exchange.done(exchange.step())
    exchange.responded(200, [], b"x")
    return exchange.step().record()


def test_a_dialogue_takes_replies_as_clients_give_them():
    record = settled_record()
    for reply in (
        [b"settled", record, None],
        ("settled", record, None),
        [b"settled", record, False],
    ):
        step = Step.lookup(record[3:35])
        commands = ClientCommands(Layout("test:"), step)
        assert commands.command[0] == b"EVALSHA"
        commands.error("NOSCRIPT none")
        assert commands.command[0] == b"EVAL"
        commands.reply(reply)
        assert commands.command is None
        assert step.verdict == core.SETTLED
    for wrong in (1.5, object(), {1: 2}, [object()]):
        with pytest.raises(TypeError, match="Redis client"):
            ClientCommands(Layout("test:"), Step.lookup(bytes(32))).reply(wrong)
    nested = []
    for _ in range(50):
        nested = [nested]
    with pytest.raises(ValueError, match="nested"):
        ClientCommands(Layout("test:"), Step.lookup(bytes(32))).reply(nested)
    with pytest.raises(OverflowError):
        ClientCommands(Layout("test:"), Step.lookup(bytes(32))).reply(2**70)


def test_a_transaction_that_was_refused_starts_over():
    exchange = begin(rules())
    step = exchange.step()
    transaction = Transaction(Layout("test:"), step)
    [[name, *_]] = transaction.decide(None, -2, None, 5)
    assert (name, step.verdict) == (b"SET", core.GRANTED)
    step.reset()
    assert step.verdict == core.PENDING
    assert transaction.decide(settled_record(), -1, None, 6) == []
    assert step.verdict == core.SETTLED
