"""Models equal migrations on both databases, up and down; an existing SQLite file is backed up first."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, select

from backend import migrate
from backend.db import Database
from backend.models import LOCAL_OWNER, Base, Owner
from backend.settings import Settings
from tests.servers import Servers


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.servers)])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of an empty database."""
    url = ""
    if request.param == "postgres":
        servers: Servers = request.getfixturevalue("servers")
        url = servers.fresh_database()
    return Settings(data_dir=tmp_path / "data", database_url=url)


def test_models_equal_migrations(empty: Settings) -> None:
    migrate.upgrade(empty)
    database = Database(empty.database)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    with database.read() as session:
        assert session.scalars(select(Owner.id)).all() == [LOCAL_OWNER]
    database.close()


def test_up_down_and_up_again(empty: Settings) -> None:
    migrate.upgrade(empty)
    command.downgrade(migrate.configuration(empty.database), "base")
    database = Database(empty.database)
    assert inspect(database.engine).get_table_names() == ["alembic_version"]
    database.close()
    migrate.upgrade(empty)
    migrate.upgrade(empty)
    migrate.require_current(empty)


def test_constraints_are_the_same_on_both(empty: Settings) -> None:
    migrate.upgrade(empty)
    database = Database(empty.database)
    found = inspect(database.engine)
    for table in Base.metadata.sorted_tables:
        expected = {index.name for index in table.indexes}
        assert {index["name"] for index in found.get_indexes(table.name)} >= expected
        checks = {constraint["name"] for constraint in found.get_check_constraints(table.name)}
        assert checks == {c.name for c in table.constraints if type(c).__name__ == "CheckConstraint"}
    database.close()


def test_an_existing_sqlite_database_is_backed_up_before_it_changes(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    migrate.upgrade(settings)
    assert not list(tmp_path.glob("*.backup"))
    with sqlite3.connect(tmp_path / "moongate.sqlite3") as older:
        older.execute("UPDATE owners SET name = 'kept'")
    copy = migrate.backup(tmp_path / "moongate.sqlite3", "0001")
    with sqlite3.connect(copy) as kept:
        assert kept.execute("SELECT name FROM owners").fetchone() == ("kept",)
    assert ".0001." in copy.name


@pytest.mark.servers
def test_a_server_that_was_not_migrated_says_what_to_do(servers: Servers, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url=servers.fresh_database())
    with pytest.raises(RuntimeError, match="make migrate"):
        migrate.require_current(settings)
