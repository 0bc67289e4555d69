"""The engine's core, compiled: it decides and never waits.

A `Passage` is one request's way through the protocol.
It says in `action` what is to be done next; the driver does it and tells it how that ended.
Whatever the store has to do is a `Step`; a store performs it and leaves a verdict in it.
Nothing here opens a socket or knows an event loop.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias, final

# Passage.action: what is to be done next.
READ_BODY: Final = 0
"""Feed the request's body, then `end_body`."""
STORE: Final = 1
"""Perform `step()`, then hand it back to `done`."""
WAIT: Final = 2
"""Wait for the holder of `id`, then `woken`, `wait_over` or `waiters_full`."""
PROBE: Final = 3
"""Ask the application about the orphan, then `probed`."""
EXECUTE: Final = 4
"""Run the handler at once, then `responded`, `streamed` or `broken`."""
ANSWER: Final = 5
"""It is over: `answer` says how."""

# Passage.answer: how it ended.
PASS: Final = 0
"""Run the handler as if this engine were not there; add `marks`."""
REPLAY: Final = 1
"""Send `replay()`."""
OWN: Final = 2
"""Send what the handler answered, with `marked`."""
REFUSE: Final = 3
"""Send `refusal()`; after a broken handler its own exception is as good."""

# Step.kind.
CLAIM: Final = 0
LOOKUP: Final = 1
RENEW: Final = 2
RELEASE: Final = 3
SETTLE: Final = 4
WATCH: Final = 5
"""Mark the claim as awaited, so that its end is published: OK, or ABSENT if nobody claims it."""

# Step.verdict.
PENDING: Final = -1
OK: Final = 0
GRANTED: Final = 1
HELD: Final = 2
SETTLED: Final = 3
ABSENT: Final = 4
UNAVAILABLE: Final = 5
FENCED: Final = 6
CORRUPT: Final = 7
FULL: Final = 8
INVALID: Final = 9
INTERNAL: Final = 10

Headers: TypeAlias = list[tuple[bytes, bytes]]

def check_token_source() -> None:
    """Raises OSError if the system has no randomness to make tokens from."""

@final
class Rules:
    """A policy made ready."""

    def __new__(cls, profile: str, policy: str) -> Rules:
        """The profile's defaults with a JSON object laid over; ValueError says what is wrong."""

    @property
    def profile(self) -> str: ...
    @property
    def required(self) -> bool: ...
    @property
    def asks_for_scope(self) -> bool:
        """Whether `begin` must be told the scope, because the policy leaves it to a function."""
    @property
    def is_shadow(self) -> bool:
        """Whether duplicates are executed, and only reported."""
    @property
    def fails_open(self) -> bool: ...
    @property
    def request_bytes_max(self) -> int: ...
    @property
    def response_bytes_max(self) -> int: ...
    @property
    def waiters_max(self) -> int: ...
    @property
    def waiters_total_max(self) -> int: ...
    @property
    def retain(self) -> float:
        """Seconds, as all durations here."""
    @property
    def lease(self) -> float: ...
    @property
    def claim_timeout(self) -> float: ...
    @property
    def settle_timeout(self) -> float: ...
    @property
    def drain(self) -> float: ...
    @property
    def refuses_unsafe_stores(self) -> bool: ...
    def with_custom_scope(self) -> Rules:
        """The same policy with the scope left to the adapter's function (`ScopeRule::Custom`)."""
    def to_json(self) -> str:
        """The effective policy, secrets left out."""
    def begin(
        self,
        method: str,
        path: bytes,
        query: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        scope: str | None = None,
        accepts: Callable[[str], bool] | None = None,
    ) -> Passage | None:
        """Begins with a request's head; None if it passes untouched and unmarked.

        `path` is the raw path as the client sent it, without the query.
        Bytes that no URI may have are percent-encoded, header lines that HTTP forbids left out.
        A body that declares to be too large is not asked for.
        An exception that `accepts` raises is passed on.
        """

@final
class Passage:
    """One request's way through the protocol.

    A method that belongs to another action than the current one raises RuntimeError.
    """

    @property
    def action(self) -> int: ...
    @property
    def answer(self) -> int:
        """How it ended; RuntimeError before it has."""
    @property
    def id(self) -> bytes:
        """The record's name, 32 bytes: the one that is dealt with now.

        RuntimeError if the request was refused for want of a valid key; so is `key`.
        """
    @property
    def key(self) -> str:
        """The client's key, quotes and escapes undone."""
    @property
    def fingerprint(self) -> str | None:
        """The request's signature in hex, once its body is known and if fingerprints are on."""

    # READ_BODY
    def feed(self, chunk: bytes) -> bool:
        """Takes a part of the body; False if it is now larger than the policy allows."""
    def end_body(self) -> int:
        """The body is whole; returns the next action, as the methods below do."""
    def body_too_large(self) -> int: ...
    def body_failed(self) -> int: ...

    # STORE
    def step(self) -> Step:
        """What the store has to do now; the same object until it is done."""
    def done(self, step: Step) -> int:
        """Takes the verdict of the step just performed."""
    @property
    def commits(self) -> bool:
        """SETTLE: what the handler did in its transaction is to be committed along with it.

        Otherwise, and before a RELEASE, such a transaction is rolled back first.
        """
    @property
    def keeps(self) -> bool:
        """SETTLE: a result, not that nothing is known of it."""
    def uncommitted(self) -> int:
        """SETTLE: the transaction that should have settled was rolled back, or nobody knows."""
    def confirmed(self, looked: Step) -> int:
        """SETTLE: takes for a settlement in the application's transaction what a LOOKUP found."""
    def told(self, news: News) -> int:
        """Takes for a claim what another request was told."""

    # WAIT
    @property
    def wait(self) -> float:
        """How long, in seconds."""
    @property
    def holder(self) -> News:
        """Whose claim it is."""
    def woken(self, news: News | None) -> int:
        """The record may have changed; `news` is what it is now, if that is known."""
    def wait_over(self) -> int: ...
    def waiters_full(self) -> int: ...

    # PROBE
    @property
    def vanished_attempt(self) -> int: ...
    def probed(
        self,
        happened: bool | None,
        status: int = 0,
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes = b"",
    ) -> int:
        """What the application knows: it happened, with this answer; it did not; or None."""

    # EXECUTE
    @property
    def attempt(self) -> int: ...
    @property
    def token(self) -> str:
        """Of the lease, in hex."""
    @property
    def fence(self) -> int: ...
    def derive(self, label: str) -> str:
        """A key for a call to another system: the same in every attempt."""
    def recovery(self, label: str) -> Recovery:
        """A step of the handler by its label; ValueError if that cannot name one."""
    def settlement(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> Step | None:
        """A SETTLE with this response, for the application's own transaction.

        None if the response cannot be kept.
        """
    def renewal(self) -> Step:
        """A step that renews the lease; may be made and performed again and again."""
    def responded(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> int:
        """The handler answered with a whole body.

        Obeys and takes note of an `Idempotency-Outcome` header.
        """
    def streamed(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> int:
        """The handler answered with a body that cannot be kept."""
    def broken(self) -> int:
        """The handler raised, or its body broke off."""

    # ANSWER
    @property
    def stored(self) -> bool:
        """Whether a retry will get this answer."""
    def behind(self) -> Step | None:
        """What goes on without the client: a RELEASE or a SETTLE, to be retried."""
    def marked(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """The response's header lines with ours added, and `Idempotency-Outcome` taken away."""
    def replay(self) -> tuple[int, Headers, bytes]:
        """Status, header lines with our marks and Content-Length, and body."""
    def refusal(self) -> Refusal: ...
    def abandon(self) -> Step | None:
        """The client left before the handler was started: ends the passage.

        Gives what must go on all the same: a RELEASE of a claim whose verdict nobody heard, or the
        RELEASE or SETTLE that was under way.
        A claim that no store was asked for leaves nothing.
        Nothing happens afterwards, whatever is called; None when called again.
        """

@final
class Recovery:
    """A step of a handler whose result outlives it: looked for, then kept."""

    def lookups(self) -> list[Step]:
        """What to look for: one or more records."""
    def looked(self, step: Step) -> bool:
        """Whether a LOOKUP found the result; ValueError if it belongs to another request."""
    @property
    def found(self) -> bytes | None:
        """The result as JSON, once it was found."""
    def keep(self, json: bytes) -> Step | None:
        """Begins to keep a result, with a CLAIM; None if it is too large."""
    def kept(self, step: Step) -> Step | None:
        """What is to be done after that, and so on; None when a result is kept.

        That is somebody else's if `found` says so.
        """
    @property
    def is_contended(self) -> bool:
        """Whether to wait a little before the step that `kept` gave: it begins anew."""

@final
class Refusal:
    """A problem document (RFC 9457)."""

    @property
    def code(self) -> str:
        """Its stable name, such as `key-reused`."""
    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Headers:
        """With our marks and Content-Length."""
    @property
    def body(self) -> bytes: ...
    @property
    def detail(self) -> str: ...
    @property
    def retry_after(self) -> int | None: ...

@final
class News:
    """What became of a record: a holder, a result, or a failure to find out."""

    @property
    def is_held(self) -> bool: ...

@final
class Step:
    """One step of a store, and its verdict."""

    @staticmethod
    def lookup(record: bytes, /) -> Step: ...
    @staticmethod
    def watch(record: bytes, /) -> Step: ...
    @property
    def kind(self) -> int: ...
    @property
    def id(self) -> bytes: ...
    @property
    def verdict(self) -> int: ...
    @property
    def failure(self) -> str | None:
        """What went wrong, for the log."""
    def fail(self, verdict: int, failure: str = "") -> None:
        """There is no result: UNAVAILABLE, INTERNAL or FULL; replaces whatever there is."""
    def again(self) -> None:
        """Back to PENDING, to be performed once more."""
    @property
    def is_unheard(self) -> bool:
        """A RELEASE: whether of a claim of which it is not known that it was granted."""
    def news(self) -> News | None:
        """What others with the same record are to be told; None if they have to ask again.

        After a grant the holder, after a settled step the result.
        """
    def is_held_as(self, news: News) -> bool:
        """Whether a LOOKUP found the very claim that `news` told of, its lease alive."""
    @property
    def remaining(self) -> float:
        """What is left of the lease that was found, in seconds."""

    # For stores written in Python, which know only locks and values.
    def grant(self) -> None:
        """A CLAIM: nobody else has it."""
    def hold(self, remaining: float) -> None:
        """A CLAIM or LOOKUP: somebody unknown has it, taken for the same request."""
    def find(self, record: bytes) -> None:
        """A CLAIM or LOOKUP: a settled record; CORRUPT if it is none of this id."""
    def succeed(self) -> None:
        """Any other kind: OK; a LOOKUP: ABSENT."""
    def record(self) -> bytes:
        """A SETTLE: the record to be kept."""
    @property
    def retain(self) -> float:
        """A CLAIM or SETTLE: how long it is to be kept, in seconds.

        Whoever reads it is about to do so: from then on a claim may be in force, as it may once it
        was given to one of the stores and dialogues below.
        """

@final
class MemoryStore:
    """Records in this process; every step is done at once."""

    def __new__(cls, bytes_max: int | None = None) -> MemoryStore: ...
    def perform(self, step: Step) -> None: ...
    def watch(self, record: bytes, wake: Callable[[], object], /) -> Watch:
        """Calls `wake`, from whatever thread, once the claim has ended.

        Not after the watch was dropped.
        """
    def maintain(self) -> None:
        """Gives back what has expired."""
    def __len__(self) -> int:
        """How many records there are, expired ones that are not given back yet included."""
    @property
    def bytes(self) -> int: ...

@final
class Watch:
    """Watches as long as it is referred to."""

@final
class Depot:
    """A durable store of one process, shared by its event loops; opened when first needed.

    Used in a child made by fork, it raises RuntimeError: make another one.
    """

    @staticmethod
    def sqlite(path: str, timeout: float | None = None) -> Depot: ...
    @staticmethod
    def postgres(
        url: str,
        *,
        schema: str | None = None,
        table: str | None = None,
        migrate: bool = True,
        pooled: bool = False,
        sessions: int | None = None,
        synchronous_commit: str | None = None,
        timeout: float | None = None,
        ca_certificates: bytes | None = None,
    ) -> Depot:
        """Without connecting; ValueError says what is wrong with a setting."""

    def schema_sql(self) -> str:
        """PostgreSQL: the SQL that makes the tables."""
    def settle_statement(
        self, step: Step, style: str, transaction: str | None
    ) -> tuple[str, tuple[object, ...]]:
        """PostgreSQL: a SETTLE as a statement for the application's own transaction.

        `style` is `numeric` ($1) or `pyformat` (%(p1)s). A row says that it will be settled when
        that is committed. `transaction` is its pg_current_xact_id, if somebody could have ended it.
        """

@final
class Desk:
    """Where one event loop leaves steps for a durable store.

    The store's threads never touch Python: they make a descriptor readable, and the loop collects.
    """

    def __new__(cls, depot: Depot) -> Desk: ...
    def fileno(self) -> int:
        """What becomes readable when there is something to collect."""
    def expect(self, claim_timeout: float, settle_timeout: float) -> None:
        """How long steps may take from now on, in seconds: never longer than before."""
    def perform(self, step: Step, future: Any) -> bool:
        """Begins a step; `future.set_result(None)` is called once it has its verdict.

        True if it has it already: the future is then left alone.
        A done or cancelled future is left alone, and so is its step.
        """
    def watch(self, record: bytes, future: Any, wake: Callable[[], object]) -> None:
        """Resolves to a Vigil, or to None if the end of the claim cannot be told.

        Calls `wake` once it has ended, not after the Vigil was dropped.
        """
    def check(self, future: Any) -> None:
        """Resolves to a guarantee, and what was found, as `Layout.evaluate` has them.

        OSError if the store cannot be opened or reached.
        """
    def collect(self) -> None:
        """Takes what came of whatever has rung."""
    def renew(self, steps: Sequence[Step]) -> None:
        """Performs renewals from any thread, and waits for them without the interpreter's lock."""
    def close(self) -> None:
        """Lets go of the store: every step becomes UNAVAILABLE, every check an OSError."""

@final
class Vigil:
    """Watches as long as it is referred to."""

@final
class Layout:
    """How records are laid out in Redis, and the server's clock."""

    def __new__(cls, prefix: str) -> Layout: ...
    @property
    def channel(self) -> bytes:
        """Where the ends of awaited claims are published, as `id_from_text` reads them."""
    def moment(self) -> int:
        """The moment at which TIME is asked, for `learn_time`."""
    def learn_time(self, seconds: int, micros: int, asked: int) -> None:
        """Takes the server's answer to TIME, which was asked at that moment."""
    @staticmethod
    def questions() -> list[list[bytes]]:
        """What to ask a server about itself."""
    def evaluate(
        self, answers: Sequence[object], is_overheard: bool
    ) -> tuple[str, list[tuple[int, str]]]:
        """What the answers amount to: a guarantee, and what was found, gravest first.

        An answer that is an error is the exception with the server's text. What was found comes
        with its severity: 0 a note, 1 a warning, 2 unsafe, 3 fatal. ConnectionError if an answer
        is an error that says nothing about the server.
        """
    @staticmethod
    def id_from_text(text: bytes, /) -> bytes | None: ...

@final
class Channel:
    """One connection's commands and replies, in order; whoever has the socket moves the bytes."""

    def __new__(cls, layout: Layout) -> Channel: ...
    def perform(self, step: Step, future: Any) -> bool:
        """Queues the step's command; `future.set_result(None)` is called once it has its verdict.

        A done or cancelled future is left alone, and so is its step.
        After `lose` the step is UNAVAILABLE at once, and with too many that wait it is FULL.
        True if the output was empty before: it is time to plan a flush.
        """
    def command(self, arguments: Sequence[bytes], future: Any) -> bool:
        """Queues any command; its reply (None, int, bytes, list) becomes the future's result.

        A reply that is an error becomes the exception RedisReplyError.
        """
    def take_output(self) -> bytes: ...
    def feed(self, data: bytes) -> bool:
        """Takes what came in; True if that led to further output.

        ValueError if it is not the Redis protocol: the connection is of no more use.
        """
    @property
    def waiting(self) -> int:
        """How many commands have no reply yet."""
    def waited(self) -> float:
        """For how long the oldest of them has waited, in seconds; 0 if there is none."""
    def lose(self, failure: str) -> None:
        """The connection is gone.

        Every step becomes UNAVAILABLE, every command a ConnectionError.
        """

class RedisReplyError(Exception):
    """A reply that is an error; its text begins with the server's code, such as NOAUTH."""

@final
class Messages:
    """What a subscribed connection receives."""

    def __new__(cls) -> Messages: ...
    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The (channel, payload) of each message; confirmations come as (channel, b"").

        ValueError if it is not the Redis protocol, RedisReplyError for an error reply.
        """

@final
class Dialogue:
    """A step as commands for somebody else's Redis client, one after the other."""

    def __new__(cls, layout: Layout, step: Step) -> Dialogue: ...
    @property
    def command(self) -> list[bytes] | None:
        """What to send now; None once the step has its verdict."""
    def reply(self, reply: object) -> None:
        """Takes the reply as Redis clients give it: None, bool, int, bytes, str, list, tuple."""
    def error(self, text: str) -> None:
        """Takes an error reply, code first as the server sent it."""

@final
class Transaction:
    """A step for a Redis client without scripts: read under WATCH, decide, write in MULTI."""

    def __new__(cls, layout: Layout, step: Step) -> Transaction: ...
    @property
    def keys(self) -> tuple[bytes, bytes]:
        """The record's key and that of a response kept apart: watch both."""
    def decide(
        self, record: bytes | None, pttl: int, response: bytes | None, micros: int
    ) -> list[list[bytes]]:
        """What to write; if that is nothing, or was written, the verdict stands.

        `pttl` is the record's, `micros` the server's clock since the epoch.
        If the write is refused because something changed, `Step.again` and start over.
        """
