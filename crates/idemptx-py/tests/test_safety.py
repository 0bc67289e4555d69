"""A store's promises, as found over each transport."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from idemptx.backend import RedisBackend

pytestmark = pytest.mark.anyio


async def test_every_transport_finds_the_same_of_a_server(redis_server: Any) -> None:
    class OwnClient(redis.Redis):
        """A client whose behaviour cannot be read from its settings."""

    decoding = OwnClient.from_url(redis_server.url, decode_responses=True)
    backends = [
        RedisBackend(redis_server.url),
        RedisBackend(OwnClient.from_url(redis_server.url)),
        RedisBackend(decoding),
    ]
    assert [backend.transport for backend in backends] == ["in-loop", "client", "client"]
    reports = [await backend.check() for backend in backends]
    found = [
        (report.guarantee.partition(":")[2], [finding.text for finding in report.findings])
        for report in reports
    ]
    assert found[0] == found[1] == found[2]
    assert reports[0].guarantee.startswith("redis ")
