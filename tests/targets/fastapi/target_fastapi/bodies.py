"""Bodies: random, streamed, and broken."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from target_fastapi.run import Run


def noise(seed: str, length: int) -> bytes:
    """Returns `length` bytes, which differ with `seed`."""
    return random.Random(seed).randbytes(length)  # noqa: S311 - no two alike is all that is asked


async def chunks(run: Run, line: str, count: int, gap_ms: int) -> AsyncIterator[bytes]:
    """`line`, `count` times with a pause between two of them."""
    for sent in range(count):
        if sent > 0 and gap_ms > 0:
            await asyncio.sleep(gap_ms / 1000)
        yield line.encode()
    await run.end(None)


async def half() -> AsyncIterator[bytes]:
    """Sends `HALF_BYTES` bytes, and then fails."""
    yield b"x" * HALF_BYTES
    # So that the half is on its way when the rest fails.
    await asyncio.sleep(0)
    message = "the body breaks off, as it was asked to"
    raise RuntimeError(message)


HALF_BYTES = 512
"""The bytes that `/abort` sends before it fails: half of what it declares."""
