"""Runs migrations on the database of MOONGATE_DATABASE_URL (or the data directory), or the one the caller names."""

from __future__ import annotations

from alembic import context

from backend.db import Database
from backend.models import Base
from backend.settings import Settings


def database_url() -> str:
    """The caller's database, else that of the environment."""
    given = context.config.attributes.get("url")
    if given:
        return str(given)
    settings = Settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return settings.database


def run() -> None:
    database = Database(database_url())
    try:
        with database.engine.connect() as connection:
            if database.sqlite:
                connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
            connection.commit()
            context.configure(
                connection=connection,
                target_metadata=Base.metadata,
                render_as_batch=database.sqlite,
                transaction_per_migration=True,
            )
            with context.begin_transaction():
                context.run_migrations()
            connection.commit()
    finally:
        database.close()


run()
