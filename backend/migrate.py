"""Brings the database to the newest schema, with a backup of an existing SQLite file first."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url

from backend.db import Database
from backend.settings import Settings

ROOT = Path(__file__).resolve().parent.parent


def configuration(url: str) -> Config:
    """Alembic's configuration for a database, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.attributes["url"] = url
    return config


def upgrade(settings: Settings) -> None:
    """Migrate to head; the first migration brings the local owner. Safe to call at every start."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    config = configuration(settings.database)
    present = current(settings)
    if present != _head(config):
        if settings.embedded and present is not None:
            backup(Path(make_url(settings.database).database or ""), present)
        command.upgrade(config, "head")


def current(settings: Settings) -> str | None:
    """The revision of the database; None for an empty one."""
    database = Database(settings.database)
    try:
        with database.engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        database.close()


def require_current(settings: Settings) -> None:
    """Migrate an embedded database. RuntimeError when a server's database was not migrated (``make migrate``)."""
    if settings.embedded:
        upgrade(settings)
    elif current(settings) != _head(configuration(settings.database)):
        raise RuntimeError("The database is not at this version's schema. Run `make migrate` first.")


def backup(database: Path, revision: str) -> Path:
    """A copy of a SQLite database beside it, made with SQLite's own backup."""
    import sqlite3

    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    target = database.with_name(f"{database.name}.{revision}.{stamp}.backup")
    source, copy = sqlite3.connect(database), sqlite3.connect(target)
    try:
        source.backup(copy)
    finally:
        copy.close()
        source.close()
    shutil.copymode(database, target)
    return target


def _head(config: Config) -> str | None:
    return ScriptDirectory.from_config(config).get_current_head()
