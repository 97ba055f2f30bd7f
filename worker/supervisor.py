"""The supervisor: claims jobs, keeps their leases, has the executor compute them, publishes what comes back.

One long-lived thread does everything in turns: it waits for the doorbell, the executor or the next clock, then looks
after each. It owns database and storage and never touches a tensor. In a bad moment:

- the executor dies: its jobs go back to the queue with a note and resume in a new executor, in seconds;
- the database is away: it tries again; after two thirds of a lease without success the executor stops by itself;
- the lease is lost: the executor is stopped and nothing is published;
- it is told to stop: the job writes a checkpoint and goes back to the queue, its attempt not counted.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from dataclasses import dataclass
from typing import TypedDict

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from backend.db import Database
from backend.failpoints import fp
from backend.models import Job
from backend.schemas.executor import FromExecutor, Ready, RenewLease, RunJob, RunTogether, Unit
from backend.services import leases, publishing, workers
from backend.services.job_events import note
from backend.settings import Settings
from backend.storage import Storage
from worker.attempt import Attempt
from worker.bases import base_folders, kept_description
from worker.executor_process import Died, ExecutorProcess
from worker.inputs import InputInvalid, verified_inputs
from worker.lease_keeper import LeaseKeeper
from worker.outcomes import LAST_WORDS, Outcomes
from worker.patience import LeaseLost, Patience
from worker.prior_library import prior_config
from worker.slot import Slot, device_name

_log = structlog.get_logger(__name__)
SERVER_LOOK_S = 15.0
STICKY_FAULTS, STICKY_WITHIN_S = 3, 600.0
JOBS_PER_EXECUTOR = 200
RSS_SHARE = 0.6
"""An executor that keeps more than this share of the machine's memory between jobs is replaced."""


GIVES_WAY = frozenset({"train", "evaluate"})
GIVES_WAY_AFTER_S = 10.0
"""Of work in an attempt; the time to prepare again shall stay a small part."""
GIVE_WAY_LOOK_S = 1.0
PAUSED = note("paused", "Paused to draw pictures that somebody waits for; it goes on afterwards.")


class Able(TypedDict):
    """Arguments of ``leases.claim``."""

    queues: tuple[str, ...]
    kinds: dict[str, int]
    base_hashes: dict[str, str]


@dataclass(frozen=True)
class Trade:
    """What an executor of this installation can do: its handlers module, and the newest spec of each kind."""

    handlers: str
    kinds: dict[str, int]


STUDIO = Trade("worker.handlers", {"train": 1, "generate": 1, "compress": 1, "merge": 1, "evaluate": 1})


def executor_threads(settings: Settings) -> int:
    """One fewer than the cores, and one where there are two: more is ten times slower there."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return settings.torch_threads or (max(1, cores - 1) if cores > 2 else 1)


class Supervisor:
    """``run`` in one thread until ``stop`` from any other. ``wake`` makes it look at the table now."""

    def __init__(
        self, settings: Settings, trade: Trade = STUDIO, queues: tuple[str, ...] | None = None
    ) -> None:
        self._settings = settings
        self._trade = trade
        self._slot = Slot(settings.work_dir / "slots", device_name())
        self._queues = queues or ("gen_any", "train_any", "cpu", f"slot_{device_name()}")
        self._database = Database(settings.database, pool_size=2)
        self._storage = Storage(settings.storage_dir, settings.low_water_bytes)
        self._cache = settings.work_dir / "cache"
        self._folders = base_folders(settings.shipped_base_models, settings.base_models)
        self._executor = ExecutorProcess(
            {
                "handlers": trade.handlers,
                "threads": executor_threads(settings),
                "cache": str(self._cache),
                "base_folders": [str(folder) for folder in self._folders],
                **prior_config(settings),
                "judges": [str(folder) for folder in settings.judges],
            },
            [trade.handlers],
            executor_threads(settings),
        )
        self._patience = Patience(self._database, settings.lease_s)
        self._keeper = LeaseKeeper(self._database, self._executor, settings)
        self._outcomes = Outcomes(self._patience, self._storage, settings)
        self._stopping = threading.Event()
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._look_s = settings.doorbell_s if not settings.redis_url else SERVER_LOOK_S
        self._look_at = 0.0
        self._beat_at = 0.0
        self._worker_id = ""
        self._ready: Ready | None = None
        self._news: Ready | None = None  # not yet registered
        self._attempts: list[Attempt] = []  # several only where their jobs share calls of the denoiser
        self._spoilt = False
        self._faults: list[float] = []
        self._jobs_done = 0

    # ---- from other threads

    def wake(self) -> None:
        """A hint arrived."""
        with contextlib.suppress(BlockingIOError):  # full: it is awake
            os.write(self._wake_w, b"!")

    def stop(self) -> None:
        """Give the job back and end. Returns at once; ``run`` returns when it is done."""
        self._stopping.set()
        self.wake()

    # ---- the thread

    def run(self, doorbell: int | None = None) -> None:
        """Serve until told to stop. ``doorbell``: a descriptor that becomes readable when there may be work.

        Raises SlotTaken when another supervisor holds the device.
        """
        self._slot.take()
        try:
            self._begin()
            while not self._stopping.is_set() or self._attempts:
                self._turn(doorbell)
            self._say_goodbye()
        finally:
            self._executor.close()
            self._database.close()
            self._slot.leave()

    def _begin(self) -> None:
        """Register, and take back at once what an earlier supervisor of this slot left running: the lock that is held
        now says that it is gone, and its executor went with it."""
        while not self._stopping.is_set():
            try:
                with self._database.write() as session:
                    self._worker_id = workers.hello(session, self._slot.name, device_name())
                    for unit in leases.abandoned(session, self._slot.name, self._worker_id):
                        self._take_back(session, unit)
                    judges = self._settings.judges
                    known = [kept_description(folder, self._cache, judges) for folder in self._folders]
                    workers.register_bases(session, self._worker_id, [base for base in known if base])
                return
            except OperationalError as error:
                _log.warning("database_away", error=type(error.orig).__name__)
                self._stopping.wait(1.0)

    def _take_back(self, session: Session, unit: Unit) -> None:
        cause = note("worker_lost", "The worker that ran this job was killed; another has taken over.")
        state = leases.requeue_after_death(session, unit, cause, self._settings.max_deaths)
        _log.warning("job_rescued", job=unit.job, state=state)

    def _turn(self, doorbell: int | None) -> None:
        self._executor.ensure()
        if self._wait(doorbell):
            self._look_at = 0.0
            self._keeper.look_now()
        try:
            for message in self._executor.poll():
                self._receive(message)
            self._beat()
            self._tend()
            self._claim()
        except LeaseLost:
            self._give_up()
        except OperationalError as error:
            _log.warning("database_away", error=type(error.orig).__name__)
            self._stopping.wait(0.5)

    def _wait(self, doorbell: int | None) -> bool:
        """Until something happens, at most a moment; whether somebody rang."""
        at = time.monotonic()
        pause = min(self._look_at, self._beat_at) - at
        if self._attempts:
            pause = min(pause, 0.1)
        bells = [self._wake_r] + ([doorbell] if doorbell is not None else [])
        ready = select.select([*bells, *self._executor.descriptors], [], [], min(max(pause, 0.0), 0.5))[0]
        rung = [bell for bell in bells if bell in ready]
        for bell in rung:
            os.read(bell, 65536)
        return bool(rung)

    def _beat(self) -> None:
        """Tell the database that this worker lives, and what it does."""
        at = time.monotonic()
        if at < self._beat_at:
            return
        self._beat_at = at + self._settings.heartbeat_s
        with self._database.write() as session:
            if self._news is not None:
                workers.register_bases(session, self._worker_id, self._news.bases)
            workers.beat(
                session, self._worker_id, self._state(), memory={"rss_bytes": self._executor.rss_bytes()}
            )
        self._news = None

    def _state(self) -> str:
        if self._defunct():
            return "defunct"
        if self._ready is None:
            return "starting"
        return "busy" if self._attempts else "ready"

    def _defunct(self) -> bool:
        """Three device faults in ten minutes: better claim nothing than spoil every job."""
        recent = [at for at in self._faults if time.monotonic() - at < STICKY_WITHIN_S]
        return len(recent) >= STICKY_FAULTS

    # ---- the current jobs

    def _tend(self) -> None:
        if self._stopping.is_set():
            for attempt in self._attempts:
                self._keeper.release(attempt)
        for attempt in self._keeper.tend(self._attempts, self._worker_id):
            self._executor.send(RenewLease(job=attempt.unit.job, fence=attempt.unit.fence))
        for attempt in self._attempts:
            if attempt.due() and not attempt.lost:
                self._outcomes.write(attempt)
            self._give_way(attempt)

    def _give_way(self, attempt: Attempt) -> None:
        """A training or evaluation that has got somewhere steps aside when a picture waits, and resumes afterwards."""
        at = time.monotonic()
        began = attempt.work_began_at
        if (
            attempt.kind not in GIVES_WAY
            or began is None
            or at - began < GIVES_WAY_AFTER_S
            or at < self._look_at
        ):
            return
        self._look_at = at + min(self._look_s, GIVE_WAY_LOOK_S)
        with self._database.read() as session:
            if leases.more_urgent(session, attempt.priority, **self._able()):
                self._keeper.release(attempt, PAUSED)

    def _receive(self, message: FromExecutor | Died) -> None:
        if isinstance(message, Ready):
            self._executor.healthy()
            self._ready = self._news = message
            self._jobs_done = 0
            self._look_at = self._beat_at = 0.0
            _log.info("executor_ready", device=message.device, bases=[base.id for base in message.bases])
            return
        if isinstance(message, Died):
            _log.warning("executor_died", how=message.words, jobs=[each.unit.job for each in self._attempts])
            self._ready = None
            self._beat_at = 0.0
        for attempt in self._attempts:
            attempt.heard()  # while one of them computes, the others are not silent but waiting
        concerned = [each for each in self._attempts if isinstance(message, Died) or _same(message, each)]
        if isinstance(message, LAST_WORDS):
            for attempt in concerned:
                attempt.computing = False
        for attempt in concerned:
            if self._outcomes.take(attempt, message):
                self._over(attempt)

    def _give_up(self) -> None:
        """The database was away for longer than the lease allows: stop with a checkpoint, publish nothing."""
        for attempt in list(self._attempts):
            _log.warning("lease_lost", job=attempt.unit.job)
            attempt.lost = True
            self._keeper.release(attempt)
            if not attempt.computing:
                self._over(attempt)

    def _over(self, attempt: Attempt) -> None:
        self._attempts.remove(attempt)
        self._jobs_done += 1
        if attempt.lost:
            attempt.sweep(checkpoints=False)
        self._spoilt |= attempt.spoilt_device
        if self._attempts:
            return
        self._look_at = self._beat_at = 0.0
        spoilt, self._spoilt = self._spoilt, False
        if spoilt:
            self._faults.append(time.monotonic())
        spent = (
            self._jobs_done >= JOBS_PER_EXECUTOR or self._executor.rss_bytes() > RSS_SHARE * _memory_bytes()
        )
        if spoilt or spent:
            self._ready = None
            self._executor.kill()

    def _claim(self) -> None:
        at = time.monotonic()
        idle = not self._attempts and self._ready is not None
        if not idle or at < self._look_at or self._stopping.is_set() or self._defunct():
            return
        self._look_at = at + self._look_s
        able = self._able()
        with self._database.write() as session:
            first = leases.claim(session, self._worker_id, **able)
            if first is None:
                return
            found = [first, *leases.claim_beside(session, self._worker_id, first, **able)]
            done = {job.id: publishing.image_indices(session, job.id) for job in found}
        fp("claim.after_commit")
        self._attempts = [Attempt.of(job, self._settings.work_dir) for job in found]
        self._patience.hold(self._attempts)
        runs = [
            run
            for attempt, job in zip(list(self._attempts), found, strict=True)
            if (run := self._begun(attempt, job, done[job.id], able["base_hashes"].get(job.base_hash, "")))
        ]
        for attempt in self._attempts:
            attempt.computing = True
        if runs:
            self._executor.send(runs[0] if len(runs) == 1 else RunTogether(jobs=runs))

    def _begun(self, attempt: Attempt, job: Job, done: list[int], base_folder: str) -> RunJob | None:
        """What the executor shall do for the job; None where an input is not what was accepted."""
        _log.info(
            "job_claimed", job=job.id, kind=job.kind, attempt=job.attempt, fence=job.fence, shared=job.shared
        )
        self._outcomes.begin(attempt, job)
        try:
            inputs = verified_inputs(self._storage, job.kind, job.spec)
        except InputInvalid as invalid:
            self._outcomes.refuse(attempt, "input_invalid", str(invalid))
            self._over(attempt)
            return None
        return RunJob(
            job=job.id,
            fence=job.fence,
            kind=job.kind,
            spec=job.spec,
            inputs=inputs,
            staging=str(attempt.staging),
            checkpoints=str(attempt.checkpoints),
            cache=str(self._cache),
            base_folder=base_folder,
            done_indices=done,
            checkpoint_s=self._settings.checkpoint_s,
            lease_s=self._settings.lease_s * 2 / 3,
        )

    def _able(self) -> Able:
        """What this worker can claim now; the values of ``base_hashes`` are the folders."""
        ready = self._ready
        bases = {base.hash: ready.base_folders[base.id] for base in ready.bases} if ready is not None else {}
        return {"queues": self._queues, "kinds": self._trade.kinds, "base_hashes": bases}

    def _say_goodbye(self) -> None:
        try:
            with self._database.write() as session:
                workers.goodbye(session, self._worker_id)
        except OperationalError:
            _log.warning("goodbye_unheard")


def _same(message: Unit, attempt: Attempt) -> bool:
    return (message.job, message.fence) == (attempt.unit.job, attempt.unit.fence)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
