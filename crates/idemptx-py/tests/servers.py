"""A Redis and an application of our own, each a real process on a free loopback port."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import redis

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 60.0
HANDLER_SECONDS_MAX = 50.0
# uvicorn closes a connection after five idle seconds, and a request must not meet that.
KEPT_SECONDS_MAX = 2.0
POLL_SECONDS = 0.02

# A busy disk may stall a write for longer than a step of a store may take.
MEMORY_DISK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

APPS = Path(__file__).parent / "apps"


class ReservedPort:
    """A loopback port kept for one server, also while that server is down.

    The socket is bound but does not listen: the system gives the port to no other process that asks
    for a free one, refuses connections to it, and lets the server bind it.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number = int(self._socket.getsockname()[1])

    def __enter__(self) -> int:
        return self.number

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        self._socket.close()


class RedisServer:
    """A redis-server with a temporary folder; may be stalled, killed and started again."""

    def __init__(self, *arguments: str, password: str | None = None) -> None:
        self._port = ReservedPort()
        self.directory = tempfile.TemporaryDirectory(prefix="idemptx-redis-", dir=MEMORY_DISK)
        self.socket_path = str(Path(self.directory.name) / "redis.sock")
        self.password = password
        self._arguments = [*arguments, *(["--requirepass", password] if password else [])]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def port(self) -> int:
        return self._port.number

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command(), stdout=subprocess.DEVNULL)
        try:
            with contextlib.closing(self.connect()) as client:
                _await(lambda: self._answers(client), "redis-server does not answer")
        except BaseException:
            self.close()
            raise

    def connect(self) -> redis.Redis:
        return redis.Redis(
            host="127.0.0.1", port=self.port, password=self.password, socket_timeout=60
        )

    def commands(self, *names: str) -> int:
        """Returns the number of commands since `CONFIG RESETSTAT`; of these names, if any."""
        with contextlib.closing(self.connect()) as client:
            stats = client.info("commandstats")
        counted = {name.removeprefix("cmdstat_"): int(row["calls"]) for name, row in stats.items()}
        return sum(calls for name, calls in counted.items() if not names or name in names)

    def reset_statistics(self) -> None:
        with contextlib.closing(self.connect()) as client:
            client.config_resetstat()

    def flush(self) -> None:
        with contextlib.closing(self.connect()) as client:
            client.flushall()

    def stall(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_SECONDS_MAX)
            self._process = None

    def close(self) -> None:
        self.kill()
        self.directory.cleanup()
        self._port.release()

    def _command(self) -> list[str]:
        return [
            *("redis-server", "--bind", "127.0.0.1", "--port", str(self.port)),
            *("--dir", self.directory.name, "--save", "", "--daemonize", "no"),
            *("--unixsocket", self.socket_path, *self._arguments),
        ]

    def _answers(self, client: redis.Redis) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "redis-server ended at its start"
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


class Servers:
    """Starts servers, and stops them together."""

    def __init__(self) -> None:
        self._started: list[RedisServer] = []
        self._ports = contextlib.ExitStack()

    def __call__(self, *arguments: str, password: str | None = None) -> RedisServer:
        self._started.append(RedisServer(*arguments, password=password))
        return self._started[-1]

    def sentinel_of(self, server: RedisServer) -> RedisServer:
        """A sentinel that knows the server as `main`."""
        self._started.append(Sentinel(server))
        return self._started[-1]

    def reserve_port(self) -> int:
        """Returns a port that stays free."""
        return self._ports.enter_context(ReservedPort())

    def close(self) -> None:
        for server in self._started:
            server.close()
        self._ports.close()


class Sentinel(RedisServer):
    """Watches over a server."""

    def __init__(self, server: RedisServer) -> None:
        self._watched = server
        super().__init__()

    def _command(self) -> list[str]:
        settings = Path(self.directory.name) / "sentinel.conf"
        settings.write_text(f"sentinel monitor main 127.0.0.1 {self._watched.port} 1\n")
        return ["redis-server", str(settings), "--sentinel", "--port", str(self.port)]


class AppServer:
    """uvicorn with one of the applications in `apps`, listening once this is made."""

    def __init__(
        self,
        app: str,
        redis_server: RedisServer,
        *,
        workers: int = 1,
        loop: str = "asyncio",
        python_path: Path | None = None,
        arguments: tuple[str, ...] = (),
        **settings: Any,
    ) -> None:
        self._port = ReservedPort()
        self._redis = redis_server
        environment = {
            **os.environ,
            "TEST_REDIS_PORT": str(redis_server.port),
            "TEST_SETTINGS": json.dumps(settings),
        }
        if python_path is not None:
            environment["PYTHONPATH"] = str(python_path)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", app, "--app-dir", str(APPS)),
                *("--host", "127.0.0.1", "--port", str(self.port), "--loop", loop),
                *("--workers", str(workers), "--no-access-log", "--log-level", "error"),
                *arguments,
            ],
            env=environment,
        )
        try:
            self.pids = sorted(self._await_start() for _ in range(workers))
            _await(self._listens, f"{app} does not listen")
        except BaseException:
            self.close()
            raise

    @property
    def port(self) -> int:
        return self._port.number

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, **options: Any) -> httpx.Client:
        options.setdefault("limits", httpx.Limits(keepalive_expiry=KEPT_SECONDS_MAX))
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def connect_async(self, **options: Any) -> httpx.AsyncClient:
        limits = httpx.Limits(
            max_connections=64, max_keepalive_connections=64, keepalive_expiry=KEPT_SECONDS_MAX
        )
        return httpx.AsyncClient(base_url=self.url, timeout=60, limits=limits, **options)

    def memory_peak(self) -> int:
        """Returns the peak memory of the only worker, in bytes."""
        (pid,) = self.pids
        return memory_peak(pid)

    def kill(self) -> None:
        """Kills all processes at once, as the kernel's out-of-memory killer does."""
        for pid in {*self.pids, self._process.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(STOP_SECONDS_MAX)

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        return self._process.wait(START_SECONDS_MAX)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_SECONDS_MAX)
        self._port.release()

    def _await_start(self) -> int:
        """The process id of a worker whose application has started."""
        with contextlib.closing(self._redis.connect()) as client:
            deadline = time.monotonic() + START_SECONDS_MAX
            while time.monotonic() < deadline:
                if (started := client.blpop(["test:started"], timeout=0.5)) is not None:
                    return int(started[1])
                assert self._process.poll() is None, "the application ended at its start"
        message = "the application does not start"
        raise AssertionError(message)

    def _listens(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return True
        return False


class Effects:
    """The effects of handlers, counted in Redis: across processes, which may be killed."""

    def __init__(self, server: RedisServer) -> None:
        self._client = server.connect()

    def of(self, key: str) -> int:
        return sum(1 for effect in self.all() if effect == key)

    def all(self) -> list[str]:
        return [effect.decode() for effect in self._client.lrange("test:effects", 0, -1)]

    def await_begin(self, key: str) -> None:
        """Until a handler with this key has begun (once per begin)."""
        begun = self._client.blpop([f"test:begun:{key}"], timeout=HANDLER_SECONDS_MAX)
        assert begun is not None, f"no handler began with {key}"

    def finish(self, key: str, times: int = 1) -> None:
        """Lets handlers end that were asked to hold."""
        self._client.rpush(f"test:finish:{key}", *["go"] * times)

    def await_end(self, key: str) -> None:
        ended = self._client.blpop([f"test:ended:{key}"], timeout=HANDLER_SECONDS_MAX)
        assert ended is not None, f"no handler ended with {key}"

    def close(self) -> None:
        self._client.close()


def memory_peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    message = "the kernel does not tell the peak"
    raise AssertionError(message)


def eventually(condition: Any, complaint: str) -> None:
    """Waits for a condition that is not announced: the state of another process."""
    _await(condition, complaint)


def _await(condition: Any, complaint: str) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(POLL_SECONDS)
