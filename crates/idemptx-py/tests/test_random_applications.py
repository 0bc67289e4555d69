"""Random applications behave as without protection, execute once and replay what was stored.

`IDEMPTX_APPS` says how many are drawn, `IDEMPTX_SEED` with which seed the first.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from typing import Any

import httpx
import pytest
from idemptx import drain
from random_apps import Application, Plan

APPS = int(os.environ.get("IDEMPTX_APPS", "300"))
FIRST = int(os.environ.get("IDEMPTX_SEED", "0"))
PARTS = 3
TRIES = 4
TURNS_MAX = 60
"""The loop's turns after which a client leaves, at most: about as many as a request takes."""
KEY = {"Idempotency-Key": "k"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("part", range(PARTS))
def test_random_applications_execute_once_and_answer_as_without_protection(part: int) -> None:
    for seed in range(FIRST + part, FIRST + APPS, PARTS):
        try:
            asyncio.run(asyncio.wait_for(_play(Plan.drawn(seed)), 60))
        except BaseException as error:
            error.add_note(f"IDEMPTX_SEED={seed} IDEMPTX_APPS=1: {Plan.drawn(seed)}")
            raise


async def _play(plan: Plan) -> None:
    if plan.is_eager and sys.version_info >= (3, 12):
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    draw = random.Random(plan.seed + 1)
    protected = Application(plan, is_protected=True)
    oracle = Application(plan, is_protected=False)
    stored: httpx.Response | None = None
    for _ in range(TRIES):
        if stored is None and draw.random() < 0.2:
            await _send_two(plan, protected, oracle)
        before = len(protected.log), len(oracle.log), protected.handled
        leaves = draw.random() < 0.3
        turns = draw.randint(0, TURNS_MAX) if leaves else None
        answer = await _send(plan, protected, turns)
        assert await drain(20), "something is left to be done"
        has_run = protected.handled > before[2]
        assert protected.handled - before[2] <= 1, "two executions of one request"
        assert protected.at_once <= 1, "two executions at once"
        if stored is not None:
            assert not has_run, "executed again though its answer was stored"
        if answer is None:
            # Its client left: what is known is known from the next try.
            if has_run:
                await _send(plan, oracle, None)
            continue
        if answer.headers.get("idempotent-replayed") == "true":
            _is_replay_of(answer, stored)
            stored = stored or answer
            continue
        if plan.layer == "decorator" and not has_run and plan.fails_at("exit"):
            continue  # A replay, in whose place a dependency answered at its end.
        unprotected = await _send(plan, oracle, None)
        assert unprotected is not None
        assert (answer.status_code, answer.content) == (
            unprotected.status_code,
            unprotected.content,
        )
        assert protected.log[before[0] :] == oracle.log[before[1] :]
        if _is_stored(plan, answer, has_run=has_run):
            stored = answer
    if stored is None:
        return
    for _ in range(2):
        handled = protected.handled
        answer = await _send(plan, protected, None)
        assert answer is not None
        if answer.headers.get("idempotent-replayed") == "true":
            _is_replay_of(answer, stored)
        else:
            # A dependency failed before the decorator had its turn.
            assert plan.layer == "decorator"
            assert plan.fails_at("enter") or plan.fails_at("exit")
        assert protected.handled == handled


async def _send_two(plan: Plan, protected: Application, oracle: Application) -> None:
    """Sends two duplicates at once, of which no more than one may be executed and stored."""
    handled = protected.handled
    both = await asyncio.gather(*(_send(plan, protected, None) for _ in range(2)))
    assert await drain(20), "something is left to be done"
    assert protected.at_once <= 1, "two executions at once"
    kept = 0
    for answer in both:
        assert answer is not None
        is_execution = "idempotent-replayed" not in answer.headers
        is_problem = answer.headers.get("content-type") == "application/problem+json"
        if is_execution and not is_problem and _is_stored(plan, answer, has_run=True):
            kept += 1
    assert kept <= 1 or plan.fails_at("enter"), "two executions were stored"
    for _ in range(protected.handled - handled):
        await _send(plan, oracle, None)  # It counts along.


async def _send(plan: Plan, app: Application, turns: int | None) -> httpx.Response | None:
    """Sends a request; `None` if its client left after so many turns of the loop."""
    transport: Any = httpx.ASGITransport(
        app.asgi, raise_app_exceptions=False, root_path=plan.root_path
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        sending = asyncio.ensure_future(client.post(plan.path, headers=KEY))
        if turns is None:
            return await sending
        for _ in range(turns):
            await asyncio.sleep(0)
        if sending.done():
            return sending.result()
        sending.cancel()
        await asyncio.wait({sending})
        return None if sending.cancelled() else sending.result()


def _is_stored(plan: Plan, answer: httpx.Response, *, has_run: bool) -> bool:
    """True if the answer says, by saying nothing, that a retry gets it again."""
    if plan.layer == "decorator" and (not has_run or plan.fails_at("exit")):
        return False  # The answer may be the application's own, which has no mark.
    return answer.status_code != 500 and "idempotency-stored" not in answer.headers


def _is_replay_of(answer: httpx.Response, stored: httpx.Response | None) -> None:
    if stored is not None:
        assert (answer.status_code, answer.content) == (stored.status_code, stored.content)
