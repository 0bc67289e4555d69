"""A PostgreSQL of our own: a real server on a free loopback port."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import psycopg
from servers import MEMORY_DISK, STOP_SECONDS_MAX, ReservedPort, eventually


class PostgresServer:
    """May be killed, stopped and started again; the superuser `postgres` needs no password."""

    _template: ClassVar[tempfile.TemporaryDirectory[str] | None] = None

    def __init__(self, *configuration: str, starts: bool = True) -> None:
        self._port = ReservedPort()
        self._directory = tempfile.TemporaryDirectory(prefix="idemptx-postgres-", dir=MEMORY_DISK)
        self.folder = Path(self._directory.name)
        self.folder.chmod(0o755)
        self._user = _stand_in()
        self._process: subprocess.Popen[bytes] | None = None
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        data = self.folder / "data"
        self._copy_template(data)
        lines = [
            f"listen_addresses = '127.0.0.1'\nport = {self.port}",
            f"unix_socket_directories = '{self.folder}'\nshared_buffers = 16MB",
            "logging_collector = off\nlog_min_messages = fatal",
            *configuration,
        ]
        with (data / "postgresql.conf").open("a") as file:
            file.write("\n".join(lines) + "\n")
        if starts:
            self.start()

    @property
    def port(self) -> int:
        return self._port.number

    @property
    def url(self) -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        with (self.folder / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                [_path_of("postgres"), "-D", str(self.folder / "data")],
                cwd=self.folder,
                stderr=log,
                **self._identity(),
            )
        eventually(self._answers, "postgres does not answer")

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, autocommit=True, **options)

    def ask(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            answer = connection.execute(sql, parameters)
            return answer.fetchall() if answer.description else []

    def cut_sessions(self) -> None:
        """Ends every session but the one that asks."""
        self.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stops the server; by default at once, as a crash does."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(how)
            self._process.wait(STOP_SECONDS_MAX)
            self._process = None

    def close(self) -> None:
        self.stop()
        self._directory.cleanup()
        self._port.release()

    def _copy_template(self, data: Path) -> None:
        """Makes the data folder from this process's template, because `initdb` takes seconds."""
        cls = type(self)
        if cls._template is None:
            made = tempfile.TemporaryDirectory(prefix="idemptx-postgres-template-")
            Path(made.name).chmod(0o755)
            if self._user is not None:
                os.chown(made.name, self._user.pw_uid, self._user.pw_gid)
            self._check(
                *("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8"),
                *("--locale=C", "--no-sync", "--no-instructions", "--pgdata", f"{made.name}/data"),
            )
            cls._template = made
        self._check("cp", "-a", f"{cls._template.name}/data", str(data))

    def _check(self, program: str, *arguments: str) -> None:
        done = self._run(program, *arguments)
        assert done.returncode == 0, done.stderr

    def _answers(self) -> bool:
        assert self._process is not None
        log = (self.folder / "server.log").read_text()
        assert self._process.poll() is None, f"postgres ended at its start: {log}"
        with contextlib.suppress(psycopg.OperationalError):
            self.connect(connect_timeout=5).close()
            return True
        return False

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [_path_of(program), *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            **self._identity(),
        )

    def _identity(self) -> dict[str, Any]:
        """The server refuses to be run by root."""
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}


def is_installed() -> bool:
    return Path(_path_of("postgres")).exists()


def _path_of(program: str) -> str:
    """Finds a program, also where Debian keeps those of each version in a separate folder."""
    versions = Path("/usr/lib/postgresql").glob(f"*/bin/{program}")
    newest = sorted(versions, key=lambda path: int(path.parts[4]))
    return str(newest[-1]) if newest else shutil.which(program) or program


def _stand_in() -> pwd.struct_passwd | None:
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")
