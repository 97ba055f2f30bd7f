"""Removing what nobody refers to any more: files, folders of finished jobs, rows of workers that are long gone.

Never anything younger than a day, except the folders of jobs that have ended.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from datetime import timedelta
from itertools import islice
from pathlib import Path

import structlog
from sqlalchemy import delete, select
from sqlalchemy.orm import InstrumentedAttribute

from backend.db import Database
from backend.models import Artifact, ConceptWeights, Image, Job, Photo, Worker, now
from backend.schemas.jobs import TERMINAL
from backend.settings import Settings
from backend.storage import Storage

_log = structlog.get_logger(__name__)
DAY_S = 86_400.0
_BATCH = 500
_KEY_COLUMNS: tuple[InstrumentedAttribute[str], ...] = (
    Artifact.storage_key, ConceptWeights.storage_key, Image.storage_key, Image.thumbnail_key,
    Photo.storage_key, Photo.thumbnail_key,
)  # fmt: skip


def collect_rubbish(
    settings: Settings, database: Database, storage: Storage, older_than_s: float = DAY_S
) -> int:
    """One round; returns how many files and folders were removed."""
    removed = storage.sweep_staging(older_than_s)
    removed += _unreferenced(database, storage, older_than_s)
    removed += _folders(settings.work_dir / "checkpoints", database, older_than_s)
    removed += _folders(settings.work_dir / "staging", database, older_than_s)
    with database.write() as session:
        gone = now() - timedelta(seconds=7 * DAY_S)
        held = select(Job.worker_id).where(Job.state == "running")
        session.execute(delete(Worker).where(Worker.seen_at < gone, Worker.id.not_in(held)))
    if removed:
        _log.info("rubbish_removed", count=removed)
    return removed


def _unreferenced(database: Database, storage: Storage, older_than_s: float) -> int:
    keys, removed = storage.keys(older_than_s), 0
    while batch := list(islice(keys, _BATCH)):
        with database.read() as session:
            known = {
                key
                for column in _KEY_COLUMNS
                for key in session.scalars(select(column).where(column.in_(batch)))
            }
        for key in set(batch) - known:
            storage.delete(key)
            removed += 1
    return removed


def _folders(parent: Path, database: Database, older_than_s: float) -> int:
    """Folders named by jobs that have ended, or that are unknown and old."""
    removed = 0
    for folder in _subfolders(parent):
        with database.read() as session:
            state = session.scalar(select(Job.state).where(Job.id == folder.name))
        old = time.time() - folder.stat().st_mtime > older_than_s
        if state in TERMINAL or (state is None and old):
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed


def _subfolders(parent: Path) -> Iterable[Path]:
    return [folder for folder in parent.iterdir() if folder.is_dir()] if parent.is_dir() else []
