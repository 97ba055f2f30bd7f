"""Engine and session scopes, for SQLite and Postgres alike.

SQLite: WAL, ``synchronous=FULL``, foreign keys on, and every write transaction begins with ``BEGIN IMMEDIATE``, so that
two writers wait for each other instead of failing half way (reliability 2.8). The driver's own implicit begin is off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

_WRITES = "moongate_writes"


class Database:
    """Owns the engine. ``read()`` and ``write()`` are the only ways to a session."""

    def __init__(self, url: str, pool_size: int = 10) -> None:
        self.url = url
        self.doubtful = False
        """A write has failed; set to False by whoever has seen one that takes space succeed (``services.health``)."""
        self.sqlite = url.startswith("sqlite")
        if self.sqlite:
            self.engine = create_engine(
                url, connect_args={"timeout": 10, "check_same_thread": False}, pool_size=pool_size
            )
            _prepare_sqlite(self.engine)
        else:
            self.engine = create_engine(
                url,
                pool_size=pool_size,
                max_overflow=10,
                pool_pre_ping=True,
                connect_args={
                    "connect_timeout": 5,
                    "keepalives_idle": 10,
                    "options": "-c statement_timeout=5000 -c lock_timeout=2000 "
                    "-c idle_in_transaction_session_timeout=15000",
                },
            )
        self._writer = self.engine.execution_options(**{_WRITES: True})

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that never commits."""
        with Session(self.engine, expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction: committed when the block ends, rolled back when it raises. Keep it under 50 ms."""
        try:
            with Session(self._writer, expire_on_commit=False) as session, session.begin():
                yield session
        except DBAPIError as error:
            self.doubtful |= not isinstance(error, IntegrityError)
            raise

    def close(self) -> None:
        self.engine.dispose()


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
