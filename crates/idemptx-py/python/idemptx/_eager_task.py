"""Tasks that run at once until they wait for something.

A handler that waits for nothing has then ended before its client's task waits for it, and a whole
framework's objects need not live through a turn of the loop. With a turn's requests alive at once,
Python's garbage collector takes them for a growing heap: that costs more than the turn.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task
    from collections.abc import Callable, Coroutine
    from contextvars import Context

__all__ = ["start_task"]

R = TypeVar("R")

if sys.version_info >= (3, 12):

    def start_task(loop: AbstractEventLoop, coroutine: Coroutine[Any, Any, R]) -> Task[R]:
        """Starts a task from the loop's thread; it may have ended when this returns."""
        return asyncio.Task(coroutine, loop=loop, eager_start=True)

else:
    from asyncio.tasks import _enter_task, _leave_task

    def start_task(loop: AbstractEventLoop, coroutine: Coroutine[Any, Any, R]) -> Task[R]:
        """Starts a task from the loop's thread; it may have ended when this returns."""
        if "call_soon" in getattr(loop, "__dict__", ("call_soon",)):
            return loop.create_task(coroutine)  # Such a loop cannot be asked as below.
        call_soon = loop.call_soon
        first: tuple[Callable[[], object], Context | None] | None = None

        def catch(callback: Any, *args: Any, context: Context | None = None) -> Any:
            nonlocal first
            task = getattr(callback, "__self__", None)
            if isinstance(task, asyncio.Task) and task.get_coro() is coroutine:
                first = callback, context
                return None
            # An object that is collected just now may plan something, too.
            return call_soon(callback, *args, context=context)

        # A task plans its first step when it is made; that step is taken here instead.
        loop.call_soon = catch  # type: ignore[assignment]
        try:
            task = asyncio.Task(coroutine, loop=loop)
        finally:
            del loop.call_soon
        if first is not None:
            step, context = first
            caller = asyncio.current_task(loop)
            if caller is not None:
                _leave_task(loop, caller)
            try:
                context.run(step) if context is not None else step()
            finally:
                if caller is not None:
                    _enter_task(loop, caller)
        return task
