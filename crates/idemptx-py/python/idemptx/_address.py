"""The address of a Redis server, read from a URL or from the settings of a redis-py client."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Address", "address_of_client", "address_of_url", "needs_compiled_store"]


@dataclass(frozen=True)
class Address:
    """A Redis server and its credentials."""

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    database: int = 0
    username: str | bytes | None = None
    password: str | bytes | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The address for messages, without credentials."""
        if self.path is not None:
            return f"unix:{self.path}/{self.database}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}/{self.database}"

    @property
    def is_overheard(self) -> bool:
        """True if records and passwords cross a network in plain text."""
        return (
            self.path is None
            and self.tls is None
            and self.host not in ("localhost", "::1")
            and not self.host.startswith("127.")
        )


def address_of_url(url: str) -> Address:
    """Reads `redis://[user[:password]@]host[:port][/database]`, `rediss://…` or `unix:///path`.

    Each of them may have `db`, `user` and `pass` in its query, as for the compiled store.
    `ValueError` says what to change, and shows no password.
    """
    try:
        parts = urlsplit(url)
        port = 6379 if parts.port is None else parts.port
    except ValueError:
        raise ValueError(FORMS) from None
    query = {
        name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()
    }
    credentials: dict[str, Any] = {
        "username": unquote(parts.username) if parts.username else query.pop("user", None),
        "password": unquote(parts.password) if parts.password else query.pop("pass", None),
    }
    database = query.pop("db", None)
    if parts.scheme in UNIX:
        path = unquote(parts.path)
        if not path or parts.netloc:
            raise ValueError(FORMS)
        address = Address(path=path, database=_database(database or "0"), **credentials)
    elif parts.scheme in TCP:
        # As redis-py does.
        database = database or parts.path.strip("/") or "0"
        address = Address(
            host=parts.hostname or "localhost",
            port=port,
            database=_database(database),
            tls=ssl.create_default_context() if parts.scheme in TLS else None,
            **credentials,
        )
    else:
        raise ValueError(FORMS)
    if query or parts.fragment:
        unknown = sorted(query) or [f"#{parts.fragment}"]
        message = f"the Redis URL has {unknown[0]!r}, which means nothing here; {FORMS}"
        raise ValueError(message)
    return address


def needs_compiled_store(url: str) -> bool:
    """True if a URL has settings that the compiled store alone knows."""
    query = url.partition("?")[2].partition("#")[0]
    return not COMPILED.isdisjoint(pair.partition("=")[0] for pair in query.split("&"))


def address_of_client(client: Any) -> Address | None:
    """Returns the server of a redis-py client; `None` if its settings do not determine it."""
    if not _is_exactly(client, "Redis") or getattr(client, "connection", None) is not None:
        return None
    pool = client.connection_pool
    if not _is_exactly(pool, "ConnectionPool", "BlockingConnectionPool"):
        return None
    kind = pool.connection_class
    settings: Mapping[str, Any] = pool.connection_kwargs
    if kind.__module__ not in CONNECTIONS or any(
        settings.get(name) is not None for name in OWN_WAYS
    ):
        return None
    common: dict[str, Any] = {
        "database": int(settings.get("db") or 0),
        "username": settings.get("username"),
        "password": settings.get("password"),
    }
    if kind.__name__ == "UnixDomainSocketConnection":
        return Address(path=settings.get("path", ""), **common)
    if kind.__name__ not in ("Connection", "SSLConnection"):
        return None
    tls = None
    if kind.__name__ == "SSLConnection":
        tls = _tls_of(settings)
        if tls is None:
            return None
    return Address(
        host=settings.get("host") or "localhost",
        port=int(settings.get("port") or 6379),
        tls=tls,
        **common,
    )


def _tls_of(settings: Mapping[str, Any]) -> ssl.SSLContext | None:
    """Builds the TLS context that redis-py would; `None` for unknown settings."""
    given = {name: value for name, value in settings.items() if name.startswith("ssl_")}
    if any(value for name, value in given.items() if name not in TLS_SETTINGS):
        return None
    context = ssl.create_default_context(
        cafile=given.get("ssl_ca_certs"),
        capath=given.get("ssl_ca_path"),
        cadata=given.get("ssl_ca_data"),
    )
    required = given.get("ssl_cert_reqs", "required")
    levels = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
    level = levels.get(required.lower()) if isinstance(required, str) else required
    if level is None:
        level = ssl.CERT_NONE
    if not given.get("ssl_check_hostname", True) or level == ssl.CERT_NONE:
        context.check_hostname = False
    context.verify_mode = ssl.VerifyMode(level)
    if given.get("ssl_certfile"):
        context.load_cert_chain(
            given["ssl_certfile"], given.get("ssl_keyfile"), given.get("ssl_password")
        )
    return context


def _is_exactly(instance: Any, *names: str) -> bool:
    """True for redis-py's own classes, false for subclasses and test doubles."""
    kind = type(instance)
    return kind.__name__ in names and kind.__module__ in CLIENTS


def _database(text: str) -> int:
    if not text.isdecimal():
        message = f"the database of the Redis URL must be a number, not {text!r}"
        raise ValueError(message)
    return int(text)


CLIENTS = frozenset(
    {"redis.client", "redis.connection", "redis.asyncio.client", "redis.asyncio.connection"}
)
CONNECTIONS = frozenset({"redis.connection", "redis.asyncio.connection"})
OWN_WAYS = (
    "credential_provider",
    "redis_connect_func",
    "parser_class_override",
    "event_dispatcher",
)
TLS_SETTINGS = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_data",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
        "ssl_password",
    }
)
COMPILED = frozenset(
    {
        "ca_file",
        "cert_file",
        "connect_timeout_ms",
        "failover_grace_ms",
        "key_file",
        "password_command",
        "password_file",
        "prefix",
        "timeout_ms",
        "wait_aof",
        "wait_replicas",
    }
)
UNIX = frozenset({"unix", "redis+unix", "valkey+unix"})
TLS = frozenset({"rediss", "valkeys"})
TCP = frozenset({"redis", "valkey"}) | TLS
FORMS = (
    "a Redis URL is redis://[user[:password]@]host[:port][/database], the same with rediss:// for "
    "TLS, or unix:///path?db=number&user=name&pass=password"
)
