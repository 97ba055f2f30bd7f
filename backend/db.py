"""Engine and session scopes, for SQLite and Postgres alike.

SQLite: WAL, ``synchronous=FULL``, foreign keys on, and every write transaction begins with ``BEGIN IMMEDIATE``, so that
two writers wait for each other instead of failing half way (reliability 2.8). The driver's own implicit begin is off.

SQLite serves waiting writers in no order: its waits grow to a tenth of a second, so that who has waited long looks
seldom, and who has just committed is back before anybody. Eight busy writers starved some of them beyond the ten
seconds after which the database counts as locked. Here the writers of a process queue (``backend.turns``), and the
first of each process looks every few milliseconds however long it has waited: between processes chance decides.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from backend.turns import Turns, turns_of

LOCKED_AFTER_S = 10.0
LOOK_S = (0.001, 0.005)
"""Between two looks of a waiting writer, seconds, drawn evenly."""
_WRITES = "moongate_writes"
_TURN = "moongate_turn"


class Database:
    """Owns the engine. ``read()`` and ``write()`` are the only ways to a session."""

    def __init__(self, url: str, pool_size: int = 10) -> None:
        self.url = url
        self.doubtful = False
        """A write has failed; set to False by whoever has seen one that takes space succeed (``services.health``)."""
        self.sqlite = url.startswith("sqlite")
        if self.sqlite:
            self.engine = create_engine(
                url,
                connect_args={"timeout": LOCKED_AFTER_S, "check_same_thread": False},
                pool_size=pool_size,
            )
            _prepare_sqlite(self.engine, turns_of(url))
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


def _prepare_sqlite(engine: Engine, turns: Turns) -> None:
    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", _PATIENT):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        if not connection.get_execution_options().get(_WRITES):
            connection.exec_driver_sql("BEGIN")
            return
        deadline = time.monotonic() + LOCKED_AFTER_S
        connection.info[_TURN] = turns.take(LOCKED_AFTER_S)
        _begin_immediate(connection, deadline)

    @event.listens_for(engine, "checkin")
    def _checkin(_connection: Any, record: Any) -> None:
        if record.info.pop(_TURN, False):
            turns.give()


_PATIENT, _AT_ONCE = f"busy_timeout={LOCKED_AFTER_S * 1000:.0f}", "busy_timeout=0"


def _begin_immediate(connection: Connection, deadline: float) -> None:
    """Look again and again until ``deadline`` on the monotonic clock. Raises OperationalError then."""
    driver: Any = connection.connection.dbapi_connection
    driver.execute(f"PRAGMA {_AT_ONCE}")
    try:
        while time.monotonic() < deadline:
            try:
                driver.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    break
            time.sleep(random.uniform(*LOOK_S))
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # for SQLAlchemy's own words of what is wrong
    finally:
        driver.execute(f"PRAGMA {_PATIENT}")
