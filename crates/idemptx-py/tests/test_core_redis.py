"""The compiled half's dialogues with Redis: over bytes, over clients, and as transactions."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from contextlib import closing
from types import SimpleNamespace

import fakeredis
import pytest
import redis
from exchange_helpers import HANG_SECONDS, Promise, begin, rules, take
from idemptx import _idemptx as core
from idemptx._idemptx import (
    Channel,
    ClientCommands,
    Layout,
    PubSubReader,
    Step,
    Transaction,
)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    path = str(tmp_path_factory.mktemp("redis") / "socket")
    command = ["redis-server", "--port", "0", "--unixsocket", path, "--save", ""]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + HANG_SECONDS
    with closing(redis.Redis(unix_socket_path=path)) as client:
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    yield SimpleNamespace(socket_path=path)
    server.terminate()
    server.wait(HANG_SECONDS)


class OverChannel:
    """Performs steps over a connection whose bytes are moved here."""

    def __init__(self, layout, path):
        self.channel = Channel(layout)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(HANG_SECONDS)
        self.socket.connect(path)
        asked = layout.moment()
        layout.learn_time(*map(int, self.command(b"TIME")), asked)

    def __call__(self, step):
        promise = Promise()
        assert self.channel.perform(step, promise)
        self.finish(promise)

    def command(self, *words):
        promise = Promise()
        assert self.channel.command(words, promise)
        self.finish(promise)
        return promise.result

    def finish(self, promise):
        self.socket.sendall(self.channel.take_output())
        while not promise.done():
            if self.channel.feed(self.socket.recv(65536)):
                self.socket.sendall(self.channel.take_output())
        assert self.channel.waiting == 0

    def close(self):
        self.socket.close()


class OverDialogue:
    """Performs steps through a client of redis-py."""

    def __init__(self, layout, client):
        self.layout, self.client = layout, client

    def __call__(self, step):
        commands = ClientCommands(self.layout, step)
        while (command := commands.command) is not None:
            options = {"get": True} if command[0] == b"SET" else {}
            try:
                commands.reply(self.client.execute_command(*command, **options))
            except redis.exceptions.NoScriptError as error:
                commands.error(f"NOSCRIPT {error}")
            except redis.ResponseError as error:
                # redis-py takes this code away.
                text = str(error)
                commands.error(text if text.partition(" ")[0].isupper() else f"ERR {text}")
        with pytest.raises(RuntimeError, match="verdict"):
            commands.reply(None)

    def close(self):
        self.client.close()


class OverTransaction(OverDialogue):
    """Performs steps without scripts."""

    def __call__(self, step):
        transaction = Transaction(self.layout, step)
        key, response = transaction.keys
        with self.client.pipeline() as pipe:
            pipe.watch(key, response)
            record = pipe.get(key)
            now = time.time_ns() // 1000
            writes = transaction.decide(record, pipe.pttl(key), pipe.get(response), now)
            pipe.multi()
            for command in writes:
                pipe.execute_command(*command)
            pipe.execute()


def performers(layout, path):
    """Every way to perform a step; the last one on a double, which runs no scripts."""
    return {
        "channel": OverChannel(layout, path),
        "commands": OverDialogue(layout, redis.Redis(unix_socket_path=path)),
        "transaction": OverTransaction(layout, redis.Redis(unix_socket_path=path)),
        "double": OverTransaction(layout, fakeredis.FakeRedis(server=fakeredis.FakeServer())),
    }


WAYS = ["channel", "commands", "transaction", "double"]


@pytest.fixture
def ways(redis_server):
    with closing(redis.Redis(unix_socket_path=redis_server.socket_path)) as client:
        client.flushall()
    made = performers(Layout("test:"), redis_server.socket_path)
    yield made
    for way in made.values():
        way.close()


def outcome(step, perform):
    perform(step)
    return step.verdict


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("apart", [False, True])
def test_every_way_to_perform_steps_gives_the_same_verdicts(ways, way, apart):
    perform = ways[way]
    made = rules(retain_ms=60_000, key_retain_ms=120_000 if apart else 60_000)
    assert outcome(Step.lookup(begin(made).id), perform) == core.ABSENT
    assert outcome(Step.watch(begin(made).id), perform) == core.ABSENT
    first = begin(made)
    assert take(first, perform) == core.EXECUTE
    assert first.attempt == 1
    assert abs(first.fence - time.time() * 1e6) < 3600e6
    second = begin(made)
    assert take(second, perform) == core.ANSWER
    assert second.refusal().code == "in-progress"
    look = Step.lookup(first.id)
    assert outcome(look, perform) == core.HELD
    assert 0 < look.remaining <= made.lease
    assert outcome(Step.watch(first.id), perform) == core.OK
    assert outcome(first.renewal(), perform) == core.OK
    first.responded(200, [(b"x-a", b"\xff")], bytes(range(256)))
    settle = first.step()
    assert outcome(settle, perform) == core.OK
    settle.reset()
    assert outcome(settle, perform) == core.OK
    assert first.done(settle) == core.ANSWER
    assert outcome(first.renewal(), perform) == core.FENCED
    retry = begin(made)
    assert take(retry, perform) == core.ANSWER
    assert retry.replay()[2] == bytes(range(256))
    assert outcome(Step.lookup(first.id), perform) == core.SETTLED
    other = begin(made, key=b"other")
    assert take(other, perform) == core.EXECUTE
    other.failed()
    release = other.step()
    assert outcome(release, perform) == core.OK
    release.reset()
    assert outcome(release, perform) == core.OK
    assert outcome(other.renewal(), perform) == core.FENCED
    assert outcome(Step.lookup(other.id), perform) == core.ABSENT


@pytest.mark.parametrize("way", WAYS)
def test_every_way_takes_an_orphan_over(ways, way):
    perform, made = ways[way], rules(lease_ms=100)
    vanished = begin(made)
    assert take(vanished, perform) == core.EXECUTE
    look = Step.lookup(vanished.id)
    deadline = time.monotonic() + HANG_SECONDS
    while outcome(look, perform) == core.HELD and look.remaining > 0:
        assert time.monotonic() < deadline
        time.sleep(look.remaining)
    heir = begin(made)
    assert take(heir, perform) == core.STORE
    assert take(heir, perform) == core.EXECUTE
    assert heir.attempt == 2
    assert heir.fence > vanished.fence
    vanished.responded(200, [], b"")
    assert take(vanished, perform) == core.STORE
    assert vanished.step().kind == core.LOOKUP


@pytest.mark.parametrize("way", WAYS)
def test_every_way_leaves_alone_what_is_no_record(ways, way, redis_server):
    perform, exchange = ways[way], begin(rules())
    path = redis_server.socket_path
    client = perform.client if way == "double" else redis.Redis(unix_socket_path=path)
    key = Transaction(Layout("test:"), exchange.step()).keys[0]
    client.set(key, b"somebody else's")
    step = exchange.step()
    perform(step)
    assert step.verdict == core.CORRUPT
    assert step.failure
    assert exchange.done(step) == core.ANSWER
    assert (exchange.refusal().code, exchange.deferred()) == ("outcome-unknown", None)
    assert client.get(key) == b"somebody else's"
    client.close()


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("writer", ["channel", "commands", "transaction"])
def test_a_record_reads_back_whoever_wrote_it(ways, writer, apart):
    made = rules(retain_ms=60_000, key_retain_ms=120_000 if apart else 60_000)
    first = begin(made)
    assert take(first, ways[writer]) == core.EXECUTE
    for reader in ("channel", "commands", "transaction"):
        assert outcome(begin(made).step(), ways[reader]) == core.HELD
    first.responded(201, [(b"location", b"/orders/17")], b"made")
    assert take(first, ways[writer]) == core.ANSWER
    answers = set()
    for reader in ("channel", "commands", "transaction"):
        retry = begin(made)
        assert take(retry, ways[reader]) == core.ANSWER
        status, headers, body = retry.replay()
        answers.add((status, tuple(headers), body))
    assert len(answers) == 1
    assert answers.pop()[2] == b"made"


def test_the_end_of_an_awaited_claim_is_published(ways, redis_server):
    layout, perform, made = Layout("test:"), ways["channel"], rules()
    exchange = begin(made)
    take(exchange, perform)
    messages = PubSubReader()
    with closing(socket.socket(socket.AF_UNIX)) as subscriber:
        subscriber.settimeout(HANG_SECONDS)
        subscriber.connect(redis_server.socket_path)
        subscriber.sendall(
            b"*2\r\n$9\r\nSUBSCRIBE\r\n$%d\r\n%b\r\n" % (len(layout.channel), layout.channel)
        )
        assert heard(messages, subscriber) == [(layout.channel, b"")]
        assert outcome(Step.watch(exchange.id), perform) == core.OK
        exchange.failed()
        take(exchange, perform)
        [(channel, payload)] = heard(messages, subscriber)
    assert (channel, Layout.id_from_text(payload)) == (layout.channel, exchange.id)


def heard(messages, subscriber):
    while True:
        received = subscriber.recv(4096)
        assert received
        if found := messages.feed(received):
            return found


def test_the_layout_names_keys_and_channel():
    layout, step = Layout("test:"), Step.lookup(bytes(32))
    text = b"0" * 32 + b":" + b"0" * 32
    assert layout.channel == b"test:wake"
    assert Transaction(layout, step).keys == (
        b"test:{" + text + b"}",
        b"test:{" + text + b"}:response",
    )
    assert Layout.id_from_text(text) == bytes(32)
    for wrong in (b"", b"\xff", text[1:], text.replace(b"0", b"g"), text + b"0"):
        assert Layout.id_from_text(wrong) is None


def test_fences_follow_the_servers_clock():
    layout, exchange = Layout("test:"), begin(rules())
    layout.learn_time(5_000_000_000, 17, layout.moment())
    channel, promise = Channel(layout), Promise()
    channel.perform(exchange.step(), promise)
    channel.feed(b"$-1\r\n")
    assert exchange.done(exchange.step()) == core.EXECUTE
    assert 0 <= exchange.fence - 5_000_000_000_000_017 < HANG_SECONDS * 1_000_000
    layout.learn_time(2**64 - 1, 2**64 - 1, 0)


def test_however_late_the_answer_is_heard_fences_are_not_behind_the_servers_clock():
    layout, exchange = Layout("test:"), begin(rules())
    asked = layout.moment()
    while layout.moment() < asked + 20_000:
        pass
    layout.learn_time(5_000_000_000, 0, asked)
    channel, promise = Channel(layout), Promise()
    channel.perform(exchange.step(), promise)
    channel.feed(b"$-1\r\n")
    assert exchange.done(exchange.step()) == core.EXECUTE
    assert exchange.fence >= 5_000_000_000_020_000
