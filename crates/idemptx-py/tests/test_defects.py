"""Defects of the original package, each shown there and gone here.

`both` puts one scenario to either package; what only shows between processes runs under uvicorn.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest
from protocol import PATIENT
from servers import APPS

MIB = 1024 * 1024
TRIES = 15


def test_the_readmes_first_example_executes_once(both: Any) -> None:
    ours, original = both("quick_start")
    assert ours == {"statuses": [200, 200, 200], "effects": 1}
    assert original == {"statuses": [500, 500, 500], "effects": 3}


def test_a_handler_with_a_response_model_executes_once(both: Any) -> None:
    ours, original = both("response_model")
    assert ours == {"statuses": [200, 200, 200], "bodies": ['{"total":5}'], "effects": 1}
    assert original["statuses"] == [500, 500, 500]
    assert original["effects"] == 3


def test_a_plain_function_executes_once_and_in_a_thread(both: Any) -> None:
    ours, original = both("plain_function")
    assert ours == {"statuses": [201, 201, 201], "effects": 1, "on_the_loops_thread": False}
    assert original == {"statuses": [500, 500, 500], "effects": 3, "on_the_loops_thread": True}


def test_text_and_empty_answers_are_replayed(both: Any) -> None:
    ours, original = both("plain_text_and_no_content")
    assert ours == {
        "statuses": [200, 200, 200, 204, 204, 204],
        "marks": ["new", "hit", "hit", "new", "hit", "hit"],
        "effects": 2,
    }
    assert original["marks"] == ["new"] * 6
    assert original["effects"] == 6


def test_a_retry_may_differ_in_headers_that_say_nothing_about_the_operation(both: Any) -> None:
    ours, original = both("retry_with_other_headers")
    assert ours == dict.fromkeys(ours, 201)
    assert original == dict.fromkeys(original, 500)


def test_refusals_have_their_own_statuses_without_exception_handlers(both: Any) -> None:
    ours, original = both("refusals_without_handlers")
    assert ours == {"missing": 400, "in progress": 409, "mismatch": 422}
    assert original == {"missing": 500, "in progress": 500, "mismatch": 500}


def test_forms_uploads_and_binary_bodies_work(both: Any) -> None:
    ours, original = both("other_bodies")
    assert ours == {"statuses": [200] * 6, "effects": ["binary", "form", "upload"]}
    assert original == {"statuses": [500] * 6, "effects": []}


def test_a_handler_longer_than_the_ttl_is_not_run_beside_itself(both: Any) -> None:
    ours, original = both("longer_than_the_ttl")
    assert ours == {"answers": [409, 0, 0], "executions": 1}
    assert original == {"answers": [1, 0, 0], "executions": 2}


def test_nobody_gives_back_the_lock_of_another(both: Any) -> None:
    ours, original = both("lock_of_another")
    assert ours == {"executions": 2, "at_once": 1}
    assert original == {"executions": 3, "at_once": 2}


@pytest.mark.parametrize("backend", ["async", "sync"])
def test_a_killed_worker_blocks_its_key_for_one_lease_only(
    serve: Any, effects: Any, redis_server: Any, backend: str
) -> None:
    options = {"policy": {**PATIENT, "lease_ms": 700}}
    statuses = _kill_in_the_handler(serve, effects, backend=backend, options=options)
    assert statuses[-1] == 201
    assert set(statuses[:-1]) <= {409}
    assert effects.of("k") == 2


def test_the_original_blocks_the_key_of_a_killed_worker_for_the_whole_ttl(
    serve: Any, effects: Any, redis_server: Any, original_path: Any
) -> None:
    statuses = _kill_in_the_handler(serve, effects, python_path=original_path)
    assert set(statuses) == {500}
    assert effects.of("k") == 1
    with redis_server.connect() as client:
        (lock,) = client.keys("*:lock")
        assert client.ttl(lock) > 250


def _kill_in_the_handler(serve: Any, effects: Any, **settings: Any) -> list[int]:
    """The statuses of retries after a restart, until one is a success or enough are none."""
    key = {"Idempotency-Key": "k"}
    first = serve(**settings)

    async def send_and_kill() -> None:
        async with first.connect_async() as client:
            sending = asyncio.create_task(client.post("/orders?hold=true", headers=key))
            await asyncio.to_thread(effects.await_begin, "k")
            first.kill()
            await asyncio.wait([sending])
            assert sending.exception() is not None

    asyncio.run(send_and_kill())
    statuses: list[int] = []
    effects.finish("k")
    with serve(**settings).connect() as client:
        while 201 not in statuses and len(statuses) < TRIES:
            statuses.append(client.post("/orders?hold=true", headers=key).status_code)
            if statuses[-1] != 201:
                asyncio.run(asyncio.sleep(0.1))
    return statuses


def test_a_full_store_after_the_effect_does_not_repeat_it(both: Any) -> None:
    ours, original = both("store_full_after_the_effect")
    assert ours == {"first": 201, "second": 201, "later": '{"n":1}', "effects": 1}
    assert original["first"] == 201
    assert original["effects"] == 2


def test_a_store_that_dies_after_the_effect_does_not_hide_it(both: Any) -> None:
    ours, original = both("store_dies_after_the_effect")
    assert ours == {"first": 201, "marked": "false", "later": 201, "effects": 1}
    assert original["first"] == 500
    assert original["later"] == 500


def test_a_waiter_takes_over_from_an_owner_that_fails(both: Any) -> None:
    ours, original = both("waiter_of_a_failure")
    assert ours == {"waits": True, "statuses": [503, 201], "effects": 2}
    assert original == {"waits": True, "statuses": [503, 500], "effects": 1}


def test_waiters_do_not_poll_the_store(both: Any) -> None:
    ours, original = both("two_hundred_waiters")
    assert ours["statuses"] == [201]
    assert ours["commands"] < 40
    assert original["commands"] > 20 * ours["commands"]


def test_a_stalled_store_does_not_stall_the_loop_of_a_sync_client(both: Any) -> None:
    ours, original = both("store_stalls_sync")
    assert ours == {"seen": ["health", "order", "redis"], "status": 503}
    assert original["seen"][0] == "redis"


def test_a_stalled_store_times_out_with_an_async_client(both: Any) -> None:
    ours, original = both("store_stalls_async")
    assert ours == {"seen": ["health", "order", "redis"], "status": 503}
    assert original["seen"] == ["health", "redis", "order"]


@pytest.mark.parametrize("app", ["orders:app", "layered:app"])
def test_a_huge_body_is_refused_before_it_is_kept(serve: Any, redis_server: Any, app: str) -> None:
    status, growth = _send_64_mib(serve(app))
    assert status == 413
    assert growth < 16 * MIB


def test_the_original_keeps_a_huge_body_whole(
    serve: Any, redis_server: Any, original_path: Any
) -> None:
    status, growth = _send_64_mib(serve(python_path=original_path))
    assert status != 413
    assert growth > 64 * MIB


def _send_64_mib(server: Any) -> tuple[int, int]:
    def chunks() -> Any:
        for _ in range(64):
            yield b"\x20" * MIB

    with server.connect() as client:
        # Chunked, so that the limit must be found while reading.
        client.post("/orders", headers={"Idempotency-Key": "small"}, content=b" ")
        before = server.memory_peak()
        answer = client.post("/orders", headers={"Idempotency-Key": "k"}, content=chunks())
        return answer.status_code, server.memory_peak() - before


def test_expired_keys_are_given_back(original_path: Any) -> None:
    ours = _grow_by_many_keys("ours")
    original = _grow_by_many_keys("original", original_path)
    assert original > 10 * MIB
    assert 2 * ours < original


def _grow_by_many_keys(package: str, python_path: Any = None) -> int:
    """Returns the number of bytes that a process has grown by."""
    environment = {**os.environ, **({"PYTHONPATH": str(python_path)} if python_path else {})}
    done = subprocess.run(
        [sys.executable, str(APPS / "many_keys.py"), package],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    return int(done.stdout)


def test_a_store_that_evicts_keys_can_be_refused(both: Any) -> None:
    ours, original = both("evicting_store")
    assert ours == {"statuses": [503], "effects": 0}
    assert original["statuses"] == [201]
    assert original["effects"] > 60


def test_cookies_go_to_the_first_caller_only_and_all_of_them(both: Any) -> None:
    ours, original = both("two_cookies")
    assert ours == [["session", "device"], []]
    assert original == [["session", "device"], ["session"]]


def test_json_is_replayed_byte_for_byte(both: Any) -> None:
    ours, original = both("json_bytes")
    kept = {"status": 200, "same bytes": True, "whole": True}
    assert ours == {"/pretty": kept, "/nan": kept}
    assert original["/pretty"] == {"status": 200, "same bytes": False, "whole": False}
    assert original["/nan"]["status"] == 500


def test_keys_and_paths_do_not_collide(both: Any) -> None:
    ours, original = both("colliding_keys")
    assert ours == {"X:lock": 201, "/a:b": "/a:b"}
    assert original == {"X:lock": 500, "/a:b": "/a"}


def test_one_tenant_does_not_get_the_answer_of_another(both: Any) -> None:
    ours, original = both("two_tenants")
    assert ours == {"status": 422, "leaked": False}
    assert original == {"status": 200, "leaked": True}


def test_an_application_timeout_does_not_repeat_the_effect(both: Any) -> None:
    ours, original = both("application_timeout")
    assert ours == {"statuses": [504, 409, 409], "later": 201, "effects": 1}
    assert original["statuses"] == [504, 504, 504]
    assert original["effects"] > 2


def test_a_huge_key_is_refused(both: Any) -> None:
    assert both("huge_key") == (400, 201)
