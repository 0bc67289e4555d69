"""The client transport: a step through the application's own redis-py client.

It serves clients whose server only the client can reach: clusters, sentinels, test doubles,
subclasses. The same state machine decides; the client carries the commands.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ._idemptx import (
    CLAIM,
    INTERNAL,
    PENDING,
    REFUSED,
    UNAVAILABLE,
    ClientCommands,
    Layout,
    RedisReplyError,
    Transaction,
)
from ._redis_asyncio import TIMEOUT
from ._safety import Finding, SafetyReport, Severity, check_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ._idemptx import Rules, Step

__all__ = ["STARVES", "RedisClientStore", "is_asynchronous", "resends"]


class RedisClientStore:
    """Records in Redis, reached through the application's client."""

    def __init__(self, client: Any, layout: Layout) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._layout = layout
        self._timeout = TIMEOUT
        self._knows_time = False
        self._scripts = True
        self._asynchronous = is_asynchronous(client)
        self._resends = resends(client)
        self._threads: ThreadPoolExecutor | None = None
        if not self._asynchronous:
            self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="idemptx-redis")

    def perform(self, step: Step) -> Awaitable[None]:
        """Performs a step with the client, in a thread if it would block."""
        return self._perform(step)

    async def _perform(self, step: Step) -> None:
        try:
            await asyncio.wait_for(self._take(step), self._timeout)
        except (asyncio.TimeoutError, TimeoutError):
            step.fail(UNAVAILABLE, f"the Redis client gave no answer within {self._timeout} s")
        except Exception as error:  # noqa: BLE001 - clients raise what they like
            text = _reply_error(error) or ""
            is_refusal = not self._resends and text.partition(" ")[0] in REFUSALS
            step.fail(
                REFUSED if is_refusal else UNAVAILABLE, text or f"{type(error).__name__}: {error}"
            )
        if step.verdict == PENDING:
            step.fail(INTERNAL, "the Redis client did nothing")

    async def _take(self, step: Step) -> None:
        if self._asynchronous:
            await _drive(self._turns(step))
            return
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, _drive_blocking, self._turns(step))

    def _turns(self, step: Step) -> Turns:
        """The step's calls to the client, one after the other; each is sent its result."""
        if step.kind == CLAIM and not self._knows_time:
            yield from self._learn_time()
        if self._scripts:
            yield from self._talk(step)
            if self._scripts:
                return
            step.reset()
        yield from self._transact(step)

    def _talk(self, step: Step) -> Turns:
        commands = ClientCommands(self._layout, step, self._resends)
        while (command := commands.command) is not None:
            try:
                reply = yield functools.partial(self._execute, *command)
            except Exception as error:
                text = _reply_error(error)
                if text is None:
                    raise
                if _has_no_scripts(text):
                    self._scripts = False
                    return
                commands.error(text)
            else:
                commands.reply(reply)

    def _transact(self, step: Step) -> Turns:
        """Performs a step without scripts: reads under WATCH, decides, writes in MULTI."""
        transaction = Transaction(self._layout, step)
        for _ in range(CONTENTION_MAX):
            pipe = self._client.pipeline(transaction=True)
            try:
                yield from self._attempt(transaction, pipe)
                return  # noqa: TRY300 - it reads as what it is: the end
            except Exception as error:
                if type(error).__name__ != "WatchError":
                    raise
                step.reset()
            finally:
                yield pipe.reset
        step.fail(UNAVAILABLE, "the record changed again and again while it was looked at")

    @staticmethod
    def _attempt(transaction: Transaction, pipe: Any) -> Turns:
        key, response_key = transaction.keys
        yield lambda: pipe.watch(key, response_key)
        record = yield lambda: pipe.execute_command("GET", key, NEVER_DECODE=True)
        pttl = yield lambda: pipe.execute_command("PTTL", key)
        response = yield lambda: pipe.execute_command("GET", response_key, NEVER_DECODE=True)
        writes = transaction.decide(record, int(pttl), response, time.time_ns() // 1000)
        if writes:
            pipe.multi()
            for name, *arguments in writes:
                pipe.execute_command(name.decode(), *arguments)
            yield pipe.execute

    def _learn_time(self) -> Turns:
        self._knows_time = True
        asked = self._layout.moment()
        seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
        # A cluster has a clock for each node, and a double none: ours is as good there.
        with suppress(Exception):
            told = yield lambda: self._client.execute_command("TIME")
            if isinstance(told, list | tuple):
                seconds, micros = (int(part) for part in told)
        self._layout.learn_time(seconds, micros, asked)

    def _execute(self, name: bytes, *arguments: bytes) -> Any:
        options: dict[str, Any] = {"NEVER_DECODE": True}
        if name == b"SET":
            # Its reply is the old value, which redis-py would otherwise take for a yes.
            options["get"] = True
        return self._client.execute_command(name.decode(), *arguments, **options)

    def renew(self, steps: Sequence[Step]) -> None:
        """Renews at once with a client that blocks; another one has to wait for its loop."""
        for step in steps:
            if not self._asynchronous:
                _drive_blocking(self._turns(step))
                continue
            running = asyncio.run_coroutine_threadsafe(self._perform(step), self._loop)
            running.result(self._timeout)

    async def retry(self, step: Step) -> None:
        """The client has its own connections, and its own retries."""

    async def watch(self, record: bytes, wake: Callable[[], None]) -> object:
        """Returns `None`: waiters poll, because a subscription would occupy the client."""
        del record, wake
        return None

    def expect(self, rules: Rules) -> None:
        """The shortest time-out of all rules counts."""
        self._timeout = min(self._timeout, rules.claim_timeout)

    async def check(self) -> SafetyReport:
        """Queries the server's configuration through the client."""

        def turns(question: list[bytes]) -> Turns:
            return (yield lambda: self._execute(*question))

        async def ask(question: list[bytes]) -> Any:
            try:
                if self._asynchronous:
                    return _as_sent(await _drive(turns(question)))
                loop = asyncio.get_running_loop()
                return _as_sent(
                    await loop.run_in_executor(self._threads, _drive_blocking, turns(question))
                )
            except Exception as error:
                text = _reply_error(error)
                if text is None:
                    raise
                return RedisReplyError(text)

        own = [Finding(Severity.UNSAFE, STARVES)] if self._asynchronous else []
        try:
            report = await check_server(self._layout, ask, is_overheard=False)
        except Exception as error:  # noqa: BLE001 - clusters and doubles answer in their own ways
            text = f"what the server promises could not be found out through its client: {error}"
            return SafetyReport("unknown", [*own, Finding(Severity.WARNING, text)])
        findings = sorted([*report.findings, *own], key=lambda it: -it.severity)
        return SafetyReport(report.guarantee, findings)

    async def close(self) -> None:
        """Stops the threads; the client belongs to the application."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)


async def _drive(turns: Turns) -> Any:
    send, value = turns.send, None
    while True:
        try:
            call = send(value)
        except StopIteration as end:
            return end.value
        try:
            value = call()
            if inspect.isawaitable(value):
                value = await value
            send = turns.send
        except Exception as error:  # noqa: BLE001 - theirs to deal with
            value, send = error, turns.throw


def _drive_blocking(turns: Turns) -> Any:
    send, value = turns.send, None
    while True:
        try:
            call = send(value)
        except StopIteration as end:
            return end.value
        try:
            value = call()
            send = turns.send
        except Exception as error:  # noqa: BLE001 - theirs to deal with
            value, send = error, turns.throw


def is_asynchronous(client: Any) -> bool:
    """True if a client's commands must be awaited."""
    return inspect.iscoroutinefunction(getattr(type(client), "execute_command", None)) or (
        "asyncio" in type(client).__module__ or "aioredis" in type(client).__module__
    )


def resends(client: Any) -> bool:
    """True if a client may send a command again by itself, or does not say."""
    try:
        settings = client.get_connection_kwargs()
    except AttributeError:  # a cluster's, which follows its nodes
        return True
    if settings.get("retry_on_timeout") or settings.get("retry_on_error"):
        return True
    retry = settings.get("retry")
    return retry is not None and getattr(retry, "_retries", 1) != 0


def _reply_error(error: Exception) -> str | None:
    """The text of an error reply, its code restored; `None` for any other error."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    text = str(error)
    for kind in kinds:
        # redis-py takes some codes away and makes classes of them.
        code = CODES.get(kind)
        if code is not None:
            return text if text.startswith(code) else f"{code} {text}"
    if "ResponseError" not in kinds:
        return None
    return text if text.partition(" ")[0].isupper() else f"ERR {text}"


def _as_sent(reply: Any) -> Any:
    """Restores the server's reply from the dictionary that redis-py made of INFO or CONFIG GET."""
    if not isinstance(reply, dict):
        return reply
    if any("redis_version" in str(name) for name in reply):
        return "\n".join(f"{name}:{value}" for name, value in reply.items())
    return [part for pair in reply.items() for part in pair]


def _has_no_scripts(text: str) -> bool:
    text = text.lower()
    return "unknown command" in text or "error running script" in text or "user_script" in text


if TYPE_CHECKING:
    from collections.abc import Generator

    Turns = Generator[Callable[[], Any], Any, Any]

CODES = {
    "AskError": "ASK",
    "AuthenticationError": "NOAUTH",
    "BusyLoadingError": "LOADING",
    "ClusterDownError": "CLUSTERDOWN",
    "ExecAbortError": "EXECABORT",
    "MasterDownError": "MASTERDOWN",
    "MovedError": "MOVED",
    "NoPermissionError": "NOPERM",
    "NoScriptError": "NOSCRIPT",
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "TryAgainError": "TRYAGAIN",
}
REFUSALS = frozenset(
    {"ASK", "BUSY", "CLUSTERDOWN", "EXECABORT", "LOADING", "MASTERDOWN", "MISCONF", "MOVED"}
    | {"NOREPLICAS", "OOM", "READONLY", "TRYAGAIN"}
)
"""The errors of a server that has executed nothing."""
STARVES = (
    "leases are renewed through an asynchronous client object, which needs its event loop: a "
    "handler that blocks the loop for longer than its lease is executed again elsewhere; use a "
    "URL, a client whose settings can be read, or a synchronous client"
)
THREADS_MAX = 32
CONTENTION_MAX = 64
