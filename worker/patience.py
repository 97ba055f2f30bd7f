"""Commits that outlast a restart of the database, but never the lease of the job they are about."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from backend.db import Database
from worker.attempt import Attempt
from worker.pipe_run import boot_clock

Result = TypeVar("Result")
_log = structlog.get_logger(__name__)
_PAUSE_S = 0.5


class LeaseLost(Exception):
    """The database was away for so long that the job may have gone to somebody else."""


class Patience:
    """``commit`` for the attempt that is held."""

    def __init__(self, database: Database, lease_s: float) -> None:
        self._database = database
        self._limit_s = lease_s * 2 / 3
        self._attempt: Attempt | None = None

    def hold(self, attempt: Attempt | None) -> None:
        """From now on commits are about this attempt, or about none."""
        self._attempt = attempt

    def commit(self, write: Callable[[Session], Result]) -> Result:
        """Run ``write`` in a transaction, again while the database is away. Raises LeaseLost; without an
        attempt it tries once.
        """
        while True:
            try:
                with self._database.write() as session:
                    return write(session)
            except OperationalError as error:
                _log.warning("database_away", error=type(error.orig).__name__)
                if self._attempt is None:
                    raise
                if boot_clock() - self._attempt.renewed_at > self._limit_s:
                    raise LeaseLost from error
                time.sleep(_PAUSE_S)
