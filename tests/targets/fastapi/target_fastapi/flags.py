"""The flags that every target takes."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Flags:
    """The flags of the command line."""

    listen: tuple[str, int]
    store: str
    profile: str
    policy: dict[str, Any]
    journal: str | None
    unprotected: bool

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Flags:
        """Ends the process with status 2 and a line on stderr if they cannot be meant."""
        parser = argparse.ArgumentParser(
            prog="target-fastapi",
            description="The target application of the black-box suite.",
            allow_abbrev=False,
        )
        parser.add_argument(
            "--listen",
            type=_address,
            default=("127.0.0.1", 8080),
            help="where to accept connections; port 0 is a free one",
        )
        parser.add_argument("--store", default="memory:", help="the store's URL")
        parser.add_argument(
            "--profile",
            choices=["draft", "stripe", "payments", "idemptx", "acp", "ucp", "iceberg"],
            default="draft",
            help="the policy to start from",
        )
        parser.add_argument(
            "--policy", type=_policy, default={}, help="a JSON object laid over the profile"
        )
        parser.add_argument(
            "--journal",
            help="a file to append one line to for the start and the end of every execution",
        )
        parser.add_argument("--unprotected", action="store_true", help="leave idemptx out")
        return cls(**vars(parser.parse_args(arguments)))


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdecimal()):
        message = f"{text!r} is no HOST:PORT"
        raise argparse.ArgumentTypeError(message)
    if int(port) > PORT_MAX:
        message = f"{port} is no port: the highest is {PORT_MAX}"
        raise argparse.ArgumentTypeError(message)
    return host.strip("[]"), int(port)


def _policy(text: str) -> dict[str, Any]:
    try:
        policy = json.loads(text)
    except ValueError as error:
        message = f"it is no JSON: {error}"
        raise argparse.ArgumentTypeError(message) from error
    if not isinstance(policy, dict):
        message = "it is no JSON object"
        raise argparse.ArgumentTypeError(message)
    return policy


PORT_MAX = 65_535
