"""The compiled core of the engine: it decides and never waits.

An `Exchange` is the state machine of one request.
Its `action` names the next thing to do; the driver does it and reports the result.
An operation on the store is a `Step`; a store performs it and leaves a verdict in it.
Nothing here opens a socket or knows an event loop.
"""

from asyncio import Future
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal, TypeAlias, final

from ._lease_renewer import LeaseHolder
from ._outcomes import Outcome

# Exchange.action: the next thing to do.
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
"""The exchange has ended: see `answer`."""

# Exchange.answer: the kind of answer.
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
"""Mark the claim as awaited, so that its end is published: OK, or ABSENT without a claim."""

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
REFUSED: Final = 11

Headers: TypeAlias = list[tuple[bytes, bytes]]

def check_token_source() -> None:
    """Raises OSError if the system has no randomness to make tokens from."""

def is_live(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """True for a response that flows to the client while it is made, and is never replayed."""

@final
class Rules:
    """A policy made ready."""

    def __new__(cls, profile: str, policy: str, namespace: str = "") -> Rules:
        """The profile's defaults with a JSON object laid over; ValueError says what is wrong."""

    @property
    def profile(self) -> str: ...
    @property
    def required(self) -> bool: ...
    @property
    def asks_for_scope(self) -> bool:
        """True if `begin` needs the scope, because the policy leaves it to a function."""
    @property
    def is_shadow(self) -> bool:
        """True if duplicates are executed, and only reported."""
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
    def store_check(self) -> float: ...
    @property
    def refuses_unsafe_stores(self) -> bool: ...
    def with_custom_scope(self) -> Rules:
        """Returns the policy with the scope left to a function (`ScopeRule::Custom`)."""
    def to_json(self) -> str:
        """The effective policy, secrets left out."""
    def without_execution(self, http_version: str = "1.1") -> Refusal | None:
        """The refusal of a request without a key by a handler that cannot do without it."""
    def begin(
        self,
        method: str,
        path: bytes,
        query: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        scope: str | None = None,
        accepts: Callable[[str], bool] | None = None,
    ) -> Exchange | None:
        """Begins with a request's head; None if it passes untouched and unmarked.

        `path` is the raw path as the client sent it, without the query.
        Bytes that no URI may have are percent-encoded, header lines that HTTP forbids left out.
        A body that declares to be too large is not asked for.
        An exception that `accepts` raises is passed on.
        """

@final
class Exchange:
    """The state machine of one request.

    A method that belongs to another action than the current one raises RuntimeError.
    """

    @property
    def action(self) -> int: ...
    @property
    def answer(self) -> int:
        """The kind of answer; RuntimeError before the exchange has ended."""
    @property
    def id(self) -> bytes:
        """The id of the current record, 32 bytes.

        RuntimeError if the request was refused for want of a valid key; so is `key`.
        """
    @property
    def key(self) -> str:
        """The client's key, quotes and escapes undone."""
    @property
    def concern(self) -> Literal["placeholder", "session", "outcome"] | None:
        """What an operator should know: a key that a client failed to fill in and the policy
        accepts, a session in a cookie to which no key is bound, or an unreadable outcome.
        """
    @property
    def fingerprint(self) -> str | None:
        """The request's signature in hex, once its body is known and if fingerprints are on."""

    # READ_BODY
    def feed(self, chunk: bytes) -> bool:
        """Takes a part of the body; False if it is now larger than the policy allows."""
    def end_body(self) -> int:
        """The body is whole; returns the next action, as the methods below do."""
    def read(self, chunk: bytes, more: bool, memory: MemoryStore | None) -> int:
        """Takes a part of the body, the last one without `more`; returns the next action.

        If the result is in `memory`, that is ANSWER at once: nothing is claimed.
        """
    def body_too_large(self) -> int: ...
    def body_failed(self) -> int: ...

    # STORE
    def step(self) -> Step:
        """Returns the current store step; the same object until `done`."""
    def done(self, step: Step) -> int:
        """Takes the verdict of the step just performed."""
    @property
    def commits(self) -> bool:
        """SETTLE: true if the handler's transaction is committed together with the settlement.

        Otherwise, and before a RELEASE, such a transaction is rolled back first.
        """
    @property
    def keeps(self) -> bool:
        """SETTLE: true for a result, false for an unknown outcome."""
    def uncommitted(self) -> int:
        """SETTLE: the settling transaction was rolled back, or its end is unknown."""
    def confirmed(self, looked: Step) -> int:
        """SETTLE: concludes a settlement in the application's transaction from a LOOKUP."""
    def claim_shared(self, update: Update) -> int:
        """CLAIM: takes the claim result that another request of this process shares."""

    # WAIT
    @property
    def wait(self) -> float:
        """The time to wait, in seconds."""
    @property
    def holder(self) -> Update:
        """The holder of the claim."""
    def woken(self, update: Update | None) -> int:
        """Continues because the record may have changed; `update` is its state, if known."""
    def wait_over(self) -> int: ...
    def waiters_full(self) -> int: ...

    # PROBE
    @property
    def orphan_attempt(self) -> int: ...
    def probed(
        self,
        happened: bool | None,
        status: int = 0,
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes = b"",
    ) -> int:
        """Takes the application's knowledge: happened, with this answer; not happened; or None."""

    # EXECUTE
    @property
    def attempt(self) -> int: ...
    @property
    def token(self) -> str:
        """The token of the lease, in hex."""
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
        """Takes the handler's response with a whole body.

        Obeys an `Idempotency-Outcome` header.
        """
    def streamed(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> int:
        """Takes the handler's response with a body that flows to the client, and is not stored."""
    def failed(self, headers: Iterable[tuple[bytes, bytes]] = ()) -> int:
        """Reports that the handler raised.

        Obeys an `Idempotency-Outcome` header: what the handler had decided before.
        """
    def broke_off(self, headers: Iterable[tuple[bytes, bytes]]) -> int:
        """Reports that the handler's response broke off, which had begun with these headers."""

    # ANSWER
    @property
    def outcome(self) -> tuple[Outcome, str]:
        """The outcome and its reason, as in `RequestOutcome`."""
    @property
    def stored(self) -> bool:
        """True if a retry will get this answer."""
    def deferred(self) -> Step | None:
        """Returns the step that continues without the client: a RELEASE or SETTLE."""
    @property
    def flows(self) -> bool:
        """True if the claim is kept, and the lease to be renewed, until `body_ended`."""
    def body_ended(self, whole: bool) -> Step:
        """Returns the step that gives the claim up after the body: a RELEASE or SETTLE.

        Not `whole` is a body that broke off, or was given up with its client.
        """
    def marked(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """The response's header lines with ours added, and `Idempotency-Outcome` taken away."""
    def replay(self) -> tuple[int, Headers, bytes]:
        """Status, header lines with our marks and Content-Length, and body."""
    def refusal(self, http_version: str = "1.1") -> Refusal:
        """The refusal, for a client that speaks this version of HTTP."""
    def without_execution(self, http_version: str = "1.1") -> Refusal | None:
        """The refusal of a PASS by a handler that cannot do without its execution.

        None where no key is meant to be.
        """
    def abandon(self) -> Step | None:
        """Ends the exchange because the client left before the handler was started.

        Returns the step that must continue: a RELEASE of a claim whose verdict is unknown, or the
        RELEASE or SETTLE in progress.
        A claim that no store was asked for leaves nothing.
        Later calls have no effect and return None.
        """

@final
class Recovery:
    """A recoverable step of a handler: its result is looked up, then stored."""

    def lookups(self) -> list[Step]:
        """Returns the LOOKUP steps for the result: one or more records."""
    def looked(self, step: Step) -> bool:
        """Returns true if a LOOKUP found the result; ValueError if it is another request's."""
    @property
    def found(self) -> bytes | None:
        """The result as JSON, once it was found."""
    def keep(self, json: bytes) -> Step | None:
        """Begins to keep a result, with a CLAIM; None if it is too large."""
    def keep_none(self) -> Step:
        """Begins to keep that the step has run and has no result that can be kept."""
    def kept(self, step: Step) -> Step | None:
        """Returns the next step after one is done; None when a result is stored.

        The stored result is another execution's if `found` or `is_unkept` is set.
        """
    @property
    def is_unkept(self) -> bool:
        """True if an earlier attempt ran the step and could not keep its result."""
    @property
    def is_contended(self) -> bool:
        """True if the step from `kept` starts over and should be delayed."""

@final
class Refusal:
    """A problem document (RFC 9457)."""

    @property
    def code(self) -> str:
        """The stable name, such as `key-reused`."""
    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Headers:
        """The header lines, with idempotency headers and Content-Length."""
    @property
    def body(self) -> bytes: ...
    @property
    def detail(self) -> str: ...
    @property
    def retry_after(self) -> int | None: ...

@final
class Update:
    """The state of a record: a holder, a result, or a failure to read it."""

    @property
    def is_held(self) -> bool: ...

@final
class Step:
    """A store step and its verdict."""

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
        """The error text, for the log."""
    def fail(self, verdict: int, failure: str = "") -> None:
        """Replaces the verdict by UNAVAILABLE, INTERNAL, REFUSED or FULL."""
    def reset(self) -> None:
        """Resets the verdict to PENDING, so that the step can be repeated."""
    def update(self) -> Update | None:
        """Returns the state to share with other requests; None if they must ask again.

        That is the holder after a grant, and the result after a settlement.
        """
    def is_held_as(self, update: Update) -> bool:
        """Returns true if a LOOKUP found the same claim as `update`, its lease alive."""
    @property
    def remaining(self) -> float:
        """The remaining time of the lease that was found, in seconds."""

    # For stores written in Python, which know only locks and values.
    def grant(self) -> None:
        """CLAIM: grants it."""
    def hold(self, remaining: float) -> None:
        """CLAIM or LOOKUP: an unknown holder has the record, assumed to be the same request."""
    def replaces(self, record: bytes) -> bool:
        """True for a CLAIM that takes the key over from this settled record."""
    def find(self, record: bytes) -> None:
        """CLAIM or LOOKUP: a settled record; CORRUPT if it is not a record of this id."""
    def succeed(self) -> None:
        """LOOKUP: ABSENT; other kinds: OK."""
    def record(self) -> bytes:
        """SETTLE: returns the record to be stored."""
    @property
    def retain(self) -> float:
        """CLAIM or SETTLE: the retention in seconds.

        Reading it counts as sending the step: from then on a claim may be in force.
        """

@final
class Coordinator:
    """What the requests of one event loop share: single flight, and unconfirmed steps.

    An update is `None` where a request has to ask the store.
    """

    def __new__(cls, create_future: Callable[[], Future[Update | None]]) -> Coordinator: ...
    def enter(self, step: Step) -> Update | Future[Update | None] | None:
        """Enters with a request for a record.

        Returns `None` to the request that leads, which alone asks the store and completes; to
        others the holder, or a future of the leader's result.
        """
    def announce(self, step: Step) -> None:
        """Shares the leader's granted claim with those who asked and those who will ask."""
    def complete(self, record: bytes, update: Update | None) -> None:
        """Forgets a record; those who listen get the update."""
    def conclude(self, step: Step) -> None:
        """Forgets a step's record; those who listen get its state after the step."""
    def wait(self, exchange: Exchange) -> Waiter | None:
        """Waits for the end of another's claim; `None` if a limit of the policy is reached."""
    def is_awaited(self, record: bytes) -> bool:
        """Returns true while any request waits for the record."""
    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
    def admit(self, step: Step) -> Confirmation | None:
        """Admits a RELEASE or SETTLE that is to be repeated until it is confirmed.

        `None` if there are too many claims that may never have been granted: this one lapses.
        """
    @property
    def unconfirmed(self) -> int:
        """The number of steps that a drain waits for."""
    @property
    def is_full(self) -> bool:
        """True while so much is unconfirmed that no new claim may be made."""

@final
class Waiter:
    """A place among the requests that wait."""

    @property
    def update(self) -> Future[Update | None]:
        """Resolves with the record's final state."""
    @property
    def watches(self) -> bool:
        """True if the caller watches the store for all who wait, and completes."""
    def leave(self) -> None:
        """Gives the place back, whether an update came or not."""

@final
class Confirmation:
    """The repetition of a step until the store confirms or refuses it."""

    AT_ONCE_MAX: Final[int]
    """The number of steps that are with the store at a time; the others wait."""
    def attempted(self, step: Step) -> float | None:
        """Takes the step's verdict; returns the pause before the next attempt, or None."""
    def close(self) -> None:
        """Counts the step out, once those who wait for the record have its state."""

@final
class Leases:
    """The leases of running handlers, for the thread that renews them."""

    def __new__(cls) -> Leases: ...
    def add(self, exchange: Exchange, holder: LeaseHolder) -> bool:
        """Adds the lease of an exchange; true if it is due before the thread plans to look."""
    def remove(self, exchange: Exchange) -> None:
        """Removes it, if it is there."""
    def plan(self) -> float | None:
        """Returns the seconds until the thread looks next, which is the plan from now on.

        Without leases it looks as it had planned; `None` once that is over.
        """
    def take_due(self) -> list[tuple[LeaseHolder, Step]]:
        """Returns the renewals to perform now."""
    def renewed(self, step: Step) -> LeaseHolder | None:
        """Takes a renewal's verdict; returns the holder of a lease that is lost."""
    def __len__(self) -> int:
        """Returns the number of leases."""

@final
class MemoryStore:
    """Records in this process; every step is done at once."""

    def __new__(cls, bytes_max: int | None = None) -> MemoryStore: ...
    def perform(self, step: Step) -> None: ...
    def watch(self, record: bytes, wake: Callable[[], object], /) -> Watch:
        """Calls `wake`, from any thread, once the claim has ended.

        A dropped watch never calls it.
        """
    def maintain(self) -> None:
        """Removes expired records."""
    def __len__(self) -> int:
        """Returns the number of records, including expired ones not removed yet."""
    @property
    def bytes(self) -> int: ...

@final
class Watch:
    """A watch that ends when this object is dropped."""

@final
class NativeStore:
    """A durable store of one process, shared by its event loops; opened when first used.

    Raises RuntimeError in a child made by fork, which needs another store.
    """

    @staticmethod
    def sqlite(path: str, timeout: float | None = None) -> NativeStore: ...
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
    ) -> NativeStore:
        """Creates the store without connecting; ValueError says what is wrong with a setting."""

    @staticmethod
    def redis(url: str, prefix: str, timeout: float | None = None) -> NativeStore:
        """Creates the store without connecting; ValueError says what is wrong with the URL."""

    def schema_sql(self) -> str:
        """PostgreSQL: the SQL that makes the tables."""
    def settle_statement(
        self, step: Step, style: str, transaction: str | None
    ) -> tuple[str, tuple[object, ...]]:
        """PostgreSQL: returns a SETTLE as a statement for the application's own transaction.

        `style` is `numeric` ($1) or `pyformat` (%(p1)s). A row says that it will be settled when
        that is committed. `transaction` is its pg_current_xact_id, if the handler may have ended
        it.
        """

@final
class LoopHandle:
    """One event loop's connection to a durable store.

    The store's threads never touch Python: they make a descriptor readable, and the loop then
    collects the finished steps.
    """

    def __new__(cls, native_store: NativeStore) -> LoopHandle: ...
    def fileno(self) -> int:
        """Returns the descriptor that is readable when there is something to collect."""
    def expect(self, claim_timeout: float, settle_timeout: float) -> None:
        """Limits the time of steps, in seconds; a limit only gets shorter."""
    def perform(self, step: Step, future: Any) -> bool:
        """Begins a step; `future.set_result(None)` is called once it has its verdict.

        True if it has it already: the future is then left alone.
        A done or cancelled future is left alone, and so is its step.
        """
    def watch(self, record: bytes, future: Any, wake: Callable[[], object]) -> None:
        """Resolves to a WatchHandle, or to None if the end of the claim cannot be signalled.

        Calls `wake` once the claim has ended; a dropped WatchHandle never calls it.
        """
    def check(self, future: Any) -> None:
        """Resolves to a guarantee and findings, as `Layout.evaluate` returns them.

        OSError if the store cannot be opened or reached.
        """
    def collect(self) -> None:
        """Polls the woken steps and resolves their futures."""
    def renew(self, steps: Sequence[Step]) -> None:
        """Performs renewals from any thread, and waits for them without the interpreter's lock."""
    def close(self) -> None:
        """Releases the store: every step becomes UNAVAILABLE, every check an OSError."""

@final
class WatchHandle:
    """A watch that ends when this object is dropped."""

@final
class Layout:
    """The layout of records in Redis, and the server's clock."""

    def __new__(cls, prefix: str) -> Layout: ...
    @property
    def channel(self) -> bytes:
        """The channel for ends of awaited claims; `id_from_text` reads its payloads."""
    def moment(self) -> int:
        """Returns the current moment, for `learn_time`."""
    def learn_time(self, seconds: int, micros: int, asked: int) -> None:
        """Takes the server's answer to TIME and the moment at which TIME was sent."""
    @staticmethod
    def questions() -> list[list[bytes]]:
        """Returns the commands that query a server's configuration."""
    def rights_questions(self) -> list[list[bytes]]:
        """Returns the commands that find out what the user may not run."""
    def evaluate(
        self, answers: Sequence[object], allowed: Sequence[object], is_overheard: bool
    ) -> tuple[str, list[tuple[int, str]]]:
        """Evaluates the answers: a guarantee, and the findings, gravest first.

        An error reply is passed as an exception with the server's text. A finding has a severity:
        0 a note, 1 a warning, 2 unsafe, 3 fatal. ConnectionError if an answer is an error that
        says nothing about the server.
        """
    @staticmethod
    def id_from_text(text: bytes, /) -> bytes | None: ...

@final
class Channel:
    """The commands and replies of one connection; the owner of the socket moves the bytes."""

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
    def is_demoted(self) -> bool:
        """True once the server has said that it is a replica: another one takes writes."""
    @property
    def waiting(self) -> int:
        """The number of commands without a reply."""
    def waited(self) -> float:
        """The waiting time of the oldest command, in seconds; 0 without one."""
    def lose(self, failure: str) -> None:
        """Reports that the connection is lost.

        Every step becomes UNAVAILABLE, every command a ConnectionError.
        """

class RedisReplyError(Exception):
    """A reply that is an error; its text begins with the server's code, such as NOAUTH."""

@final
class PubSubReader:
    """Reads the messages of a subscribed connection."""

    def __new__(cls) -> PubSubReader: ...
    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The (channel, payload) of each message; confirmations come as (channel, b"").

        ValueError if it is not the Redis protocol, RedisReplyError for an error reply.
        """

@final
class ClientCommands:
    """A step as a sequence of commands for the application's Redis client."""

    def __new__(cls, layout: Layout, step: Step, resends: bool = True) -> ClientCommands:
        """Begins a step.

        A client that `resends` commands by itself may have lost the answer to an earlier one, so
        that a refusal of the server is in doubt.
        """
    @property
    def command(self) -> list[bytes] | None:
        """The command to send; None once the step has its verdict."""
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
        """Returns the commands to write; the verdict stands if there are none, or they succeed.

        `pttl` is the record's, `micros` the server's clock since the epoch.
        If the write is refused because something changed, `Step.reset` and start over.
        """
