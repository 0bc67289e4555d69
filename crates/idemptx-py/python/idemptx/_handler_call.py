"""A decorated handler's call, and the replies that its route sends."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.background import BackgroundTasks
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from . import _fastapi
from ._capture import Capture, without_shortcuts
from ._context_variables import ContextVariables
from ._execution import current_execution
from ._idemptx import OWN, REPLAY, Exchange
from .exceptions import for_refusal
from .transaction import IdempotentTransaction, PendingTransaction

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from contextvars import Context

    from starlette.requests import Request
    from starlette.types import Receive, Send
    from starlette.types import Scope as ASGIScope

    from ._driver import Driver
    from ._execution import ExecutionTransaction
    from ._idemptx import Refusal, Rules
    from ._signature import Signature

__all__ = ["HandlerCall", "Reply", "other_answer"]

logger = logging.getLogger("idemptx")


class HandlerCall:
    """A handler's call, as the driver runs it."""

    __slots__ = (
        "_args",
        "_background",
        "_capture",
        "_context",
        "_is_produced",
        "_kwargs",
        "_raised",
        "_response",
        "_signature",
        "_stacks",
        "_tasks",
        "_variables",
        "request",
    )

    def __init__(
        self,
        signature: Signature,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        request: Request,
        *,
        response: Response | None,
        tasks: BackgroundTasks | None,
    ) -> None:
        self._signature = signature
        self._args = args
        self._kwargs = kwargs
        self.request = request
        self._response = response
        self._tasks = tasks
        self._capture: Capture | None = None
        self._is_produced = False
        self._context: Context | None = None
        self._variables: ContextVariables | None = None
        self._background: Any = None
        self._raised: Exception | None = None
        self._stacks: _fastapi.ExitStacks | None = None

    async def plainly(self, of: Exchange | Rules) -> Any:
        """Runs the handler unprotected: of an exchange that passes, or without one."""
        exchange = of if isinstance(of, Exchange) else None
        if current_execution() is None and any(map(_is_pending, self._kwargs.values())):
            refusal = of.without_execution(http_version(self.request))
            if refusal is None:
                raise TypeError(NO_KEY_APPLIES)
            return refused(refusal, self.request)
        result = await self._handle()
        if exchange is not None:
            for name, value in exchange.marked(()):
                target = result if isinstance(result, Response) else self._response
                if target is not None:
                    target.raw_headers.append((name, value))
        return result

    async def run(self, driver: Driver) -> None:
        """Runs the handler under a claim."""
        error: BaseException | None = None
        try:
            await self._run(driver)
        except BaseException as raised:
            error = raised
            raise
        finally:
            if self._capture is not None and not self._is_produced:
                await self._capture.ended()
            if self._stacks is not None:
                await self._close(self._stacks, error)
        if driver.client_left:
            await self._run_background()

    async def _close(self, stacks: _fastapi.ExitStacks, error: BaseException | None) -> None:
        left = await stacks.unwind(error)
        if left is not None and left is not error:
            logger.error("a dependency failed after its client had left", exc_info=left)

    async def _run_background(self) -> None:
        background, self._background = self._background, None
        if background is not None:
            await background()

    async def _run(self, driver: Driver) -> None:
        request = self.request
        # Not None, or FastAPI adds those of dependencies, which an exception leaves undone.
        tasks: BackgroundTasks | None = BackgroundTasks()
        try:
            result = await self._handle()
            if isinstance(result, Response):
                response = result
            else:
                response = await _fastapi.render(
                    request, result, self._response, is_async=self._signature.is_async
                )
            # Dependencies add tasks to the same object.
            tasks = self._tasks
        except Exception as error:  # noqa: BLE001 - the application's own handlers decide
            response = await self._answer_to(error, driver)
        self._background = tasks if response.background is None else response.background
        self._capture = capture = Capture(driver, self)
        if _is_plain(response):
            await capture.whole(response.status_code, response.raw_headers, bytes(response.body))
            return
        response.background = None
        sending = response(without_shortcuts(request.scope), self._receive, capture.send)
        if driver.is_detached:
            await sending
        else:
            await self._produce(sending, capture, driver)

    async def _produce(
        self, sending: Coroutine[Any, Any, None], capture: Capture, driver: Driver
    ) -> None:
        """Has a separate task make the body: this one reads it, where it is live."""
        self._is_produced = True

        async def produce() -> None:
            try:
                await sending
            except asyncio.CancelledError:
                capture.abandon()  # It may be live by now, and nobody reads it.
                raise
            finally:
                await capture.ended()

        concluded = asyncio.ensure_future(capture.concluded().wait())
        producing = driver.engine.spawn(produce())
        try:
            await asyncio.wait({producing, concluded}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            producing.cancel()
            raise
        finally:
            concluded.cancel()
        if producing.done():
            producing.result()
        else:
            driver.continues_in(producing)

    async def end_function_scope(self) -> None:
        if self._stacks is not None:
            await self._stacks.close_function_scope()

    async def _answer_to(self, error: Exception, driver: Driver) -> Response:
        """Returns the application's response to an exception, once dependencies have seen it."""
        scope = self.request.scope
        if self._stacks is not None:
            stacks, self._stacks = self._stacks, None
            error = _exception(await stacks.unwind(error), error)
        elif _fastapi.is_handled(scope, error, by_default=True):
            if _fastapi.ExitStacks.are_shown(scope):
                # In the task that entered them, as they would have.
                left = await driver.in_client(lambda: _fastapi.ExitStacks.take(scope).unwind(error))
                error = _exception(left, error)
            else:
                self._raised = error
        response = await _fastapi.answer_to(self.request, error)
        if response is None:
            raise error
        return response

    async def _handle(self) -> Any:
        handler = self._signature.handler
        opened: ExecutionTransaction | None = None
        self._variables = ContextVariables()
        for name, value in self._kwargs.items():
            if isinstance(value, PendingTransaction):
                opened = await self._begin(name, value.transaction)
                break
        try:
            if self._signature.is_async:
                result = await handler(*self._args, **self._kwargs)
            else:
                result = await run_in_threadpool(handler, *self._args, **self._kwargs)
        finally:
            self._context = copy_context()
        if opened is not None:
            await opened.flush()
        return result

    async def _begin(
        self, name: str, transaction: IdempotentTransaction
    ) -> ExecutionTransaction | None:
        """Replaces a pending transaction in the handler's arguments by an open one."""
        execution = current_execution()
        if execution is None:
            return None
        self._kwargs[name] = await transaction.begin(execution)
        return execution.transaction

    async def _receive(self) -> Any:
        capture = self._capture
        assert capture is not None  # noqa: S101 - it is what the response is sent to
        return await capture.receive(self.request.receive)

    def copy_context_back(self) -> None:
        """Sets the handler's context variables in the caller's context."""
        variables, self._variables = self._variables, None
        context, self._context = self._context, None
        if variables is not None and context is not None:
            variables.copy_from(context)

    async def defer(self, driver: Driver) -> Response | None:
        """Returns the reply that concludes when nothing can fail before it any more.

        `None` if it has been concluded. A route that is not FastAPI's has no dependencies, and what
        stands around the handler may make another response of this one, which is then never sent.
        """
        assert self._capture is not None  # noqa: S101 - there is a response
        if self._raised is not None:
            # Dependencies have to see it on its way out, so this reply will not be sent.
            await driver.settle()
            return None
        reply = OwnReply(self._capture, driver, self)
        scope = self.request.scope
        if _fastapi.is_route(scope):
            _fastapi.when_dependencies_have_ended(scope, reply.dependencies_ended)
        else:
            await reply.conclude()
        return reply

    def abandon(self) -> None:
        """Lets a live body end whose response is not sent."""
        if self._capture is not None:
            self._capture.abandon()

    def reply(self, driver: Driver) -> Response:
        """Returns the handler's response for the route."""
        assert self._capture is not None  # noqa: S101 - there is an own answer
        if self._raised is not None:
            # Dependencies of a FastAPI that does not show them have to see it on its way out; the
            # application answers it once more.
            _fastapi.add_headers(self._raised, driver.exchange.marked(()))
            raise self._raised
        return OwnReply(self._capture, driver, self)

    def outlive_request(self, driver: Driver) -> None:
        """Takes the exit stacks over from a cancelled request, so that the handler keeps them."""
        stacks = _fastapi.ExitStacks.take(self.request.scope)
        if driver.pending is not None:
            driver.engine.spawn(self._conclude_alone(driver, stacks))
        else:
            self._stacks = stacks

    async def _conclude_alone(self, driver: Driver, stacks: _fastapi.ExitStacks) -> None:
        error: BaseException | None = None
        try:
            await stacks.close_function_scope()
        except Exception as raised:
            error = raised
            logger.exception("a dependency failed after its client had left")
        await driver.settle(failed=error is not None)
        with suppress(Exception):  # the driver has taken note of it
            await driver.finished()
        await self._close(stacks, error)
        if error is None:
            await self._run_background()

    @property
    def background(self) -> Any:
        """The background tasks of the response."""
        return self._background


def _is_pending(value: object) -> bool:
    return isinstance(value, PendingTransaction)


def _exception(left: BaseException | None, error: Exception) -> Exception:
    return left if isinstance(left, Exception) else error


class Reply(Response):
    """A response with known header lines and body."""

    def __init__(  # pyright: ignore[reportMissingSuperCall]
        self, status: int, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> None:
        self.status_code = status
        self.raw_headers = headers
        self.body = body
        # Not None, or FastAPI adds the tasks of dependencies: those are the first request's.
        self.background = BackgroundTasks()


class OwnReply(Response):
    """The response of a handler that may still be running: its body flows, or is closing.

    It is settled after the dependencies whose end may still fail, or else when it is sent.
    """

    def __init__(  # pyright: ignore[reportMissingSuperCall]
        self, capture: Capture, driver: Driver, call: HandlerCall
    ) -> None:
        self._capture = capture
        self._driver = driver
        self._call = call
        self.status_code = capture.status
        self.raw_headers = list(capture.headers)
        self.body = capture.body
        self.background = call.background
        self._instead: Reply | None = None
        if driver.pending is None:
            self.raw_headers = driver.exchange.marked(self.raw_headers)

    async def dependencies_ended(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> bool:
        """Concludes after the function's dependencies, as the last `__aexit__` of their stack."""
        del kind, trace
        if error is None:
            await self.conclude()
        elif isinstance(error, Exception):
            self._call.abandon()
            await self._driver.settle(failed=True)
        else:
            self._call.abandon()
            self._driver.settle_alone(failed=True)
        return False

    async def conclude(self) -> None:
        """Settles, unless that was done; a result that is another execution's is sent instead."""
        driver = self._driver
        if driver.pending is None:
            return
        await driver.settle()
        if driver.exchange.answer == OWN:
            self.raw_headers = driver.exchange.marked(self.raw_headers)
        else:
            self._call.abandon()
            self._instead = other_answer(driver.exchange, self._call.request)

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        await self.conclude()
        if self._instead is not None:
            await self._instead(scope, receive, send)
            return
        # What stands around the route may have changed them, as it may change a replay.
        self._capture.status, self._capture.body = self.status_code, bytes(self.body)
        try:
            await self._capture.send_to(send, self.raw_headers)
            await self._driver.finished()
        except BaseException:
            if self.background is not None and self._driver.error is None:
                # The operation has happened; what belongs to it does not depend on its client.
                self._driver.engine.spawn(self.background())
            raise
        if self.background is not None:
            await self.background()

    def __del__(self) -> None:
        """Counts as failed where it was never sent: an end of a dependency raised."""
        driver, call = self._driver, self._call
        is_unsettled = driver.pending is not None
        if (is_unsettled or self._capture.is_live) and not driver.engine.loop.is_closed():
            driver.engine.loop.call_soon_threadsafe(call.abandon)
            if is_unsettled:
                driver.engine.loop.call_soon_threadsafe(partial(driver.settle_alone, failed=True))


def other_answer(exchange: Exchange, request: Request) -> Reply:
    """The reply without the handler's own response: a replay or a refusal."""
    if exchange.answer == REPLAY:
        return Reply(*exchange.replay())
    return refused(exchange.refusal(http_version(request)), request)


def refused(refusal: Refusal, request: Request) -> Reply:
    """The reply of a refusal, unless the application has a handler for its exception."""
    exception = for_refusal(refusal)
    if _fastapi.is_handled(request.scope, exception, by_default=False):
        raise exception
    return Reply(refusal.status, refusal.headers, refusal.body)


def http_version(request: Request) -> str:
    """The version of HTTP that the request came by."""
    version: str = request.scope.get("http_version", "1.1")
    return version


def _is_plain(response: Response) -> bool:
    return type(response).__call__ is Response.__call__ and isinstance(
        getattr(response, "body", None), bytes | memoryview
    )


NO_KEY_APPLIES = (
    "there is no transaction for a request that keys are not for: see `methods` in the policy"
)
