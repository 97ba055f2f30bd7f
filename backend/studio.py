"""What one web process works with: settings, database, files and the doorbell, made once and handed to both faces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy.orm import Session

from backend.db import Database
from backend.failpoints import fp
from backend.queue import Doorbell
from backend.rubbish import DAY_S
from backend.settings import Settings
from backend.storage import Storage
from backend.uploads import Darkroom


@dataclass(frozen=True)
class Studio:
    """Handed to ``frontend.mount`` and kept at ``app.state.studio``."""

    settings: Settings
    database: Database
    storage: Storage
    doorbell: Doorbell
    darkroom: Darkroom

    @classmethod
    def open(cls, settings: Settings) -> Studio:
        """Everything that the settings name; the database must have its tables already (``backend.migrate``)."""
        storage = Storage(settings.storage_dir, settings.low_water_bytes)
        storage.sweep_staging(DAY_S)
        return cls(
            settings, Database(settings.database), storage, Doorbell(settings), Darkroom(storage, settings)
        )

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that never commits."""
        with self.database.read() as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction; when it has committed, the jobs that were enqueued in it are rung."""
        with self.database.write() as session:
            yield session
        fp("accept.after_commit")
        self.doorbell.ring(session.info.get("hints", ()))

    def close(self) -> None:
        self.darkroom.close()
        self.database.close()
