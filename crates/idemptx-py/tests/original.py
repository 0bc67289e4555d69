"""The original package in a separate process, so that it and ours never mix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ORIGINAL = "0.2.2"
"""The version whose surface is kept and whose defects were measured."""


class Original:
    """Runs scenarios with the original package, one after the other."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("scenarios.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(path)},
        )
        assert self._read() == {"is_ours": False}, "the original package was not imported"

    def observe(self, scenario: str, port: int) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([scenario, port]) + "\n")
        self._process.stdin.flush()
        observed = self._read()
        if isinstance(observed, dict) and "broke" in observed:
            raise AssertionError(observed["broke"])
        return observed

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process with the original package ended"
        return json.loads(line)
