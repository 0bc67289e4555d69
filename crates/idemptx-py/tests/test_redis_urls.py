"""Parts of a Redis URL, on each of the transports that read one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
from idemptx.backend import from_url
from protected import KEY, protected

BY_TRANSPORT = {"in-loop": "", "compiled": "&timeout_ms=5000"}
"""What is added to a query, so that it is read by one or the other."""


@pytest.mark.anyio
@pytest.mark.parametrize("transport", BY_TRANSPORT)
async def test_database_user_and_password_may_stand_in_the_query(
    connect: Any, own_redis: Any, transport: str
) -> None:
    server = own_redis(password="p@ss:w/rd")
    query = "db=3&user=default&pass=p%40ss%3Aw%2Frd" + BY_TRANSPORT[transport]
    backend = from_url(f"redis://127.0.0.1:{server.port}/1?{query}")
    assert backend.transport == transport

    @protected(backend)
    async def app() -> Any:
        return {}

    async with connect(app) as client:
        answers = [await client.post("/orders", headers=KEY) for _ in range(2)]
    assert [it.headers.get("x-idempotency-status") for it in answers] == ["new", "hit"]
    await backend.aclose()
    with redis.Redis(port=server.port, password="p@ss:w/rd", db=3) as there:
        assert there.dbsize() > 0


@pytest.mark.parametrize("transport", BY_TRANSPORT)
def test_port_0_is_no_other_port(transport: str) -> None:
    backend = from_url("redis://127.0.0.1:0?db=0" + BY_TRANSPORT[transport])
    with pytest.raises(OSError, match=r"127\.0\.0\.1:0/0"):
        asyncio.run(backend.check())


def test_a_setting_without_a_value_is_refused_as_any_other() -> None:
    with pytest.raises(ValueError, match="'tiemout_ms'"):
        from_url("redis://127.0.0.1?tiemout_ms=")
