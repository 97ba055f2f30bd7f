"""SQLite has one writer at a time: who waits for the turn gets it, however busy the others are."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from backend import db
from backend.db import Database
from backend.turns import Turns

WRITERS, HOLD_S, BUSY_S = 8, 0.02, 5.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    database = Database(f"sqlite:///{tmp_path / 'x.sqlite3'}")
    with database.write() as session:
        session.execute(text("CREATE TABLE counters (n integer)"))
        session.execute(text("INSERT INTO counters VALUES (0)"))
    database.close()
    return tmp_path / "x.sqlite3"


@pytest.fixture
def database(file: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{file}", pool_size=WRITERS)
    yield database
    database.close()


def write_all_the_time(database: Database, until: float, waits: list[float]) -> None:
    while (asked := time.monotonic()) < until:
        with database.write() as session:
            session.execute(text("UPDATE counters SET n = n + 1"))
            waits.append(time.monotonic() - asked)
            time.sleep(HOLD_S)


@pytest.mark.parametrize("queues", [1, 3], ids=["one process", "three processes"])
def test_eight_busy_writers_take_turns(file: Path, tmp_path: Path, queues: int) -> None:
    """Another path to the same file is another queue, as another process has."""
    paths = [file]
    for number in range(1, queues):
        (tmp_path / str(number)).symlink_to(tmp_path)
        paths.append(tmp_path / str(number) / file.name)
    databases = [Database(f"sqlite:///{path}", pool_size=WRITERS) for path in paths]
    waits: list[list[float]] = [[] for _ in range(WRITERS)]
    until = time.monotonic() + BUSY_S
    threads = [
        threading.Thread(target=write_all_the_time, args=(databases[number % queues], until, mine))
        for number, mine in enumerate(waits)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for database in databases:
        database.close()
    with Database(f"sqlite:///{file}").read() as session:
        assert session.scalar(text("SELECT n FROM counters")) == sum(map(len, waits))
    assert min(map(len, waits)) >= 3, [len(mine) for mine in waits]
    assert max(map(max, waits)) < BUSY_S * 0.8


def test_a_database_that_stays_locked_is_told_and_the_turn_goes_on(
    database: Database, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "LOCKED_AFTER_S", 0.3)
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(OperationalError, match="locked"), database.write() as session:
            session.execute(text("UPDATE counters SET n = 1"))
        assert time.monotonic() - started < 5
    holder.rollback()
    holder.close()
    with database.write() as session:
        session.execute(text("UPDATE counters SET n = 1"))


def test_turns_come_in_the_order_they_were_asked_for() -> None:
    turns, served = Turns(), []
    assert turns.take(1)
    assert not turns.take(0.01)  # nobody gave it

    def ask(number: int) -> None:
        assert turns.take(10)
        served.append(number)
        turns.give()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    turns.give()
    for thread in threads:
        thread.join()
    assert served == list(range(5))
    assert turns.take(0)
