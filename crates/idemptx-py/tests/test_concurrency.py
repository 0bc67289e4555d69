"""Duplicates at once, in one process and in several, and what ends under them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from typing import Any

import pytest
from load import Answer, send_duplicates
from protocol import PATIENT
from servers import Effects, eventually

KEYS = int(os.environ.get("IDEMPTX_KEYS", "150"))
"""How many keys a load has; the measurements in the documentation were made with 1500."""
DUPLICATES = 9
AT_ONCE = 6
ATTEMPTS = 20
"""How often what a race has to bring about is tried."""

OF_THE_ORIGINAL = {"wait_timeout": 20}
WAITING = {**OF_THE_ORIGINAL, "policy": PATIENT}


@pytest.mark.parametrize(
    ("backend", "workers", "loop"),
    [
        ("async", 1, "uvloop"),
        ("sync", 1, "asyncio"),
        ("async", 2, "asyncio"),
        ("sync", 2, "uvloop"),
    ],
)
def test_nine_duplicates_of_each_key_are_one_execution(
    serve: Any, effects: Any, backend: str, workers: int, loop: str
) -> None:
    server = serve(workers=workers, loop=loop, backend=backend, options=WAITING)
    answers = _load(server)
    counted = Counter(effects.all())
    assert len(counted) == KEYS
    assert set(counted.values()) == {1}
    for key, seen in answers.items():
        assert [answer.status for answer in seen] == [201] * DUPLICATES, key
        assert len({answer.body for answer in seen}) == 1, key
        marks = Counter(answer.headers["x-idempotency-status"] for answer in seen)
        assert marks == {"new": 1, "hit": DUPLICATES - 1}, key


def test_the_middleware_executes_once_across_workers(serve: Any, effects: Any) -> None:
    server = serve("layered:app", workers=2, options=WAITING)
    answers = _load(server)
    assert set(Counter(effects.all()).values()) == {1}
    assert all(len({answer.body for answer in seen}) == 1 for seen in answers.values())


def test_without_waiting_duplicates_are_refused_and_still_one_execution(
    serve: Any, effects: Any
) -> None:
    answers = _load(serve(workers=2, options={"policy": PATIENT}))
    assert set(Counter(effects.all()).values()) == {1}
    statuses = Counter(answer.status for seen in answers.values() for answer in seen)
    assert set(statuses) <= {201, 409}
    assert statuses[201] >= KEYS


def test_the_original_executes_keys_twice_with_two_workers(
    serve: Any, effects: Any, original_path: Any
) -> None:
    """So the load finds what the tests around this one say is not there."""
    server = serve(workers=2, python_path=original_path, options=OF_THE_ORIGINAL)
    for attempt in range(ATTEMPTS):
        _load(server, attempt)
        if max(Counter(effects.all()).values()) > 1:
            return
    pytest.fail("the processes never met")


def test_the_memory_backend_executes_once_in_each_worker(serve: Any, effects: Any) -> None:
    """The backend cannot know of other processes; within one, the original ran some keys twice."""
    server = serve(workers=2, backend="memory", options=WAITING)
    answers = _load(server)
    for key, seen in answers.items():
        executed = [answer for answer in seen if answer.headers["x-idempotency-status"] == "new"]
        workers = {answer.json()["pid"] for answer in seen}
        assert len(executed) == len(workers) == effects.of(key)
        assert workers <= set(server.pids)


def _load(server: Any, attempt: int = 0) -> dict[str, list[Answer]]:
    keys = [f"key-{attempt}-{number}" for number in range(KEYS)]
    sending = send_duplicates(
        server.port, "/orders?ms=2", keys, duplicates=DUPLICATES, at_once=AT_ONCE
    )
    return asyncio.run(sending)


def test_waiters_in_another_process_are_woken_and_do_not_poll_fast(
    serve: Any, effects: Any, redis_server: Any
) -> None:
    """One process holds the claim, all waiters are in the other."""
    holder, other = serve(options=WAITING), serve(options=WAITING)

    async def play() -> tuple[Any, list[Any], float]:
        headers = {"Idempotency-Key": "k"}
        async with holder.connect_async() as first, other.connect_async() as second:
            holding = asyncio.create_task(first.post("/orders?hold=true", headers=headers))
            await asyncio.to_thread(effects.await_begin, "k")
            redis_server.reset_statistics()
            began = time.monotonic()
            waiting = [
                asyncio.create_task(second.post("/orders?hold=true", headers=headers))
                for _ in range(16)
            ]
            await asyncio.sleep(1.5)
            assert not any(task.done() for task in waiting)
            spent = redis_server.commands("get", "set", "eval", "evalsha", "pttl", "subscribe")
            spent_each_second = spent / (time.monotonic() - began)
            effects.finish("k")
            return await holding, list(await asyncio.gather(*waiting)), spent_each_second

    first, others, spent_each_second = asyncio.run(play())
    assert first.status_code == 201
    assert {answer.content for answer in others} == {first.content}
    assert effects.of("k") == 1
    # Sixteen that poll each 100 ms would spend 160.
    assert spent_each_second < 40


def test_a_waiter_in_another_process_takes_over_from_a_failure(serve: Any, effects: Any) -> None:
    holder, other = serve(options=WAITING), serve(options=WAITING)

    async def play() -> list[int]:
        headers = {"Idempotency-Key": "k"}
        async with holder.connect_async() as first, other.connect_async() as second:
            # The status is no part of the operation for this test, so both send the same URL.
            url = "/orders?hold=true&status=503"
            holding = asyncio.create_task(first.post(url, headers=headers))
            await asyncio.to_thread(effects.await_begin, "k")
            waiting = asyncio.create_task(second.post(url, headers=headers))
            await asyncio.sleep(0.3)
            effects.finish("k")
            status = (await holding).status_code
            await asyncio.to_thread(effects.await_begin, "k")
            effects.finish("k")
            return [status, (await waiting).status_code]

    assert asyncio.run(play()) == [503, 503]
    assert effects.of("k") == 2


@pytest.mark.parametrize(("app", "loop"), [("orders:app", "uvloop"), ("layered:app", "asyncio")])
def test_a_client_that_leaves_ends_neither_handler_nor_record(
    serve: Any, effects: Any, app: str, loop: str
) -> None:
    server = serve(app, loop=loop, options=WAITING)

    async def play() -> Any:
        headers = {"Idempotency-Key": "k"}
        async with server.connect_async() as client:
            leaving = asyncio.create_task(client.post("/orders?hold=true", headers=headers))
            await asyncio.to_thread(effects.await_begin, "k")
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
        async with server.connect_async() as client:
            retry = asyncio.create_task(client.post("/orders?hold=true", headers=headers))
            effects.finish("k")
            return await retry

    answer = asyncio.run(play())
    assert answer.status_code == 201
    assert answer.headers["idempotent-replayed"] == "true"
    assert effects.of("k") == 1


@pytest.mark.parametrize("app", ["orders:app", "layered:app"])
def test_a_terminated_server_finishes_what_it_has_begun(serve: Any, effects: Any, app: str) -> None:
    server = serve(app, options=WAITING)
    headers = {"Idempotency-Key": "k"}

    async def play() -> Any:
        async with server.connect_async() as client:
            sending = asyncio.create_task(client.post("/orders?hold=true", headers=headers))
            await asyncio.to_thread(effects.await_begin, "k")
            server.terminate()
            effects.finish("k")
            return await sending

    answer = asyncio.run(play())
    assert answer.status_code == 201
    assert server.wait() in {0, -15}
    with serve(app, options=WAITING).connect() as client:
        again = client.post("/orders?hold=true", headers=headers)
    assert again.content == answer.content
    assert effects.of("k") == 1


def test_a_terminated_server_finishes_a_handler_whose_client_has_left(
    serve: Any, effects: Any
) -> None:
    server = serve("layered:app", options=WAITING)
    headers = {"Idempotency-Key": "k"}

    async def leave() -> None:
        async with server.connect_async() as client:
            sending = asyncio.create_task(client.post("/orders?hold=true", headers=headers))
            await asyncio.to_thread(effects.await_begin, "k")
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    asyncio.run(leave())
    server.terminate()
    effects.finish("k")
    effects.await_end("k")
    assert server.wait() in {0, -15}
    with serve("layered:app", options=WAITING).connect() as client:
        again = client.post("/orders?hold=true", headers=headers)
    assert again.status_code == 201
    assert again.headers["idempotent-replayed"] == "true"
    assert effects.of("k") == 1


def test_a_long_handler_keeps_its_lease_across_processes(serve: Any, effects: Any) -> None:
    lease = 1.5
    options = {"policy": {**PATIENT, "lease_ms": round(lease * 1000)}}
    holder, other = serve(options=options), serve(options=options)
    headers = {"Idempotency-Key": "k"}

    async def play() -> list[int]:
        async with holder.connect_async() as first, other.connect_async() as second:
            holding = asyncio.create_task(first.post("/orders?hold=true", headers=headers))
            await asyncio.to_thread(effects.await_begin, "k")
            statuses = []
            until = time.monotonic() + 1.3 * lease
            while time.monotonic() < until:
                await asyncio.sleep(0.1)
                answer = await second.post("/orders?hold=true", headers=headers)
                statuses.append(answer.status_code)
            effects.finish("k")
            assert (await holding).status_code == 201
            return statuses

    assert set(asyncio.run(play())) == {409}
    assert effects.of("k") == 1


def test_an_owner_that_was_stopped_does_not_overwrite_who_took_over(
    serve: Any, effects: Any
) -> None:
    """SIGSTOP is what a long garbage collection or a suspended machine looks like."""
    options = {"policy": {**PATIENT, "lease_ms": 1000}}
    stopped, other = serve(options=options), serve(options=options)
    headers = {"Idempotency-Key": "k"}

    async def play() -> tuple[Any, Any, Any]:
        async with stopped.connect_async() as first, other.connect_async() as second:
            late = asyncio.create_task(first.post("/orders?hold=true", headers=headers))
            await asyncio.to_thread(effects.await_begin, "k")
            (pid,) = stopped.pids
            os.kill(pid, signal.SIGSTOP)
            try:
                taking = await _until_begun(second, effects, headers)
                effects.finish("k", 2)
                winner = await taking
            finally:
                os.kill(pid, signal.SIGCONT)
            return winner, await late, await second.post("/orders?hold=true", headers=headers)

    winner, late, again = asyncio.run(play())
    assert winner.status_code == 201
    assert again.content == winner.content
    # The late owner's client gets the one answer there is, or none: never another success.
    assert late.status_code == 409 or late.content == winner.content
    assert effects.of("k") == 2


async def _until_begun(client: Any, effects: Any, headers: dict[str, str]) -> Any:
    """Sends until one request executes, and returns that."""
    beginning = asyncio.create_task(asyncio.to_thread(effects.await_begin, "k"))
    while True:
        sending = asyncio.create_task(client.post("/orders?hold=true", headers=headers))
        await asyncio.wait({sending, beginning}, return_when=asyncio.FIRST_COMPLETED)
        if beginning.done():
            beginning.result()
            return sending
        assert (await sending).status_code == 409
        await asyncio.sleep(0.1)


def test_a_redis_that_restarts_under_load_leads_to_no_second_execution(
    serve: Any, own_redis: Any
) -> None:
    """Claims survive in the append-only file; a request without a verdict is refused, not run."""
    notes, records = own_redis(), own_redis("--appendonly", "yes", "--appendfsync", "always")
    server = serve(on=notes, workers=2, options=OF_THE_ORIGINAL, records_port=records.port)
    counter = Effects(notes)

    async def play() -> None:
        async with server.connect_async() as client:

            async def until_created(number: int) -> None:
                headers = {"Idempotency-Key": f"key-{number}"}
                for _ in range(200):
                    answer = await client.post("/orders?ms=5", headers=headers)
                    if answer.status_code == 201:
                        return
                    assert answer.status_code in {409, 503}, answer.text
                    await asyncio.sleep(0.05)
                message = f"key-{number} was never answered"
                raise AssertionError(message)

            sending = [asyncio.create_task(until_created(n % 40)) for n in range(120)]
            await asyncio.to_thread(
                eventually, lambda: len(counter.all()) >= 3, "nothing was executed"
            )
            records.kill()
            await asyncio.to_thread(records.start)
            await asyncio.gather(*sending)

    asyncio.run(play())
    counted = Counter(counter.all())
    counter.close()
    assert len(counted) == 40
    assert set(counted.values()) == {1}
