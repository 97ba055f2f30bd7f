"""Commits that outlast a restart of the database, but never the lease of the job they are about."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
    """``commit`` for the attempts that are held."""

    def __init__(self, database: Database, lease_s: float) -> None:
        self._database = database
        self._limit_s = lease_s * 2 / 3
        self._attempts: Sequence[Attempt] = ()

    def hold(self, attempts: Sequence[Attempt]) -> None:
        """From now on commits are about these attempts, or about none; their leases are renewed together."""
        self._attempts = attempts

    def commit(self, write: Callable[[Session], Result]) -> Result:
        """Run ``write`` in a transaction, again while the database is away. Raises LeaseLost; without
        attempts it tries once.
        """
        while True:
            try:
                with self._database.write() as session:
                    return write(session)
            except OperationalError as error:
                _log.warning("database_away", error=type(error.orig).__name__)
                renewed = [attempt.renewed_at for attempt in self._attempts if not attempt.lost]
                if not renewed:
                    raise
                if boot_clock() - min(renewed) > self._limit_s:
                    raise LeaseLost from error
                time.sleep(_PAUSE_S)
