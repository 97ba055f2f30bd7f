"""An installation in an empty folder, its supervisor as a real process, and short ways to ask and to wait."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from backend.db import Database
from backend.identifiers import new_id
from backend.models import LOCAL_OWNER, Base, Concept, ConceptWeights, Image, Job, JobEvent, Owner
from backend.queue import Doorbell
from backend.schemas.generations import GenerateSpec
from backend.schemas.jobs import TERMINAL
from backend.schemas.strict import Strict
from backend.schemas.trainings import PinnedConcept, PinnedFile, TrainSpec
from backend.services import generations, jobs
from backend.settings import Settings
from backend.storage import Storage

ROOT = Path(__file__).resolve().parent.parent.parent
SHORT = {"lease_s": 2.0, "heartbeat_s": 0.4, "sweep_s": 0.4, "checkpoint_s": 0.5, "doorbell_s": 0.2}
DRILL = [sys.executable, "-m", "tests.worker.drill"]
Result = TypeVar("Result")


class Installation:
    """Tables, one owner, and a concept with one photo. ``settings`` have a lease of two seconds."""

    def __init__(
        self,
        folder: Path,
        database_url: str = "",
        base: str = "drill",
        base_hash: str = "d" * 64,
        **more: Any,
    ) -> None:
        empty = folder / "no-base-models"
        empty.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.settings = Settings(
            data_dir=folder / "data",
            database_url=database_url,
            **{"shipped_base_models": empty, **SHORT, **more},
        )
        self.base, self.base_hash = base, base_hash
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        self.database = Database(self.settings.database)
        self.storage = Storage(self.settings.storage_dir)
        self.doorbell = Doorbell(self.settings)
        Base.metadata.create_all(self.database.engine)
        with self.database.write() as session:
            session.add(Owner(id=LOCAL_OWNER, name="local"))
        self.processes: list[subprocess.Popen[bytes]] = []

    # ---- processes

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MOONGATE_")}
        told = {
            f"MOONGATE_{name.upper()}": str(value)
            for name, value in self.settings.model_dump(exclude_unset=True).items()
            if not isinstance(value, list)
        }
        bases = ":".join(map(str, self.settings.base_models))
        judges = ":".join(map(str, self.settings.judges))
        lists = {"MOONGATE_BASE_MODELS": bases, "MOONGATE_JUDGES": judges}
        return {**kept, **told, **lists, "PYTHONUNBUFFERED": "1", **more}

    def start(self, command: list[str] = DRILL, **environment: str) -> subprocess.Popen[bytes]:
        """A supervisor process, in a session of its own."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment(**environment),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def freeze(self, process: subprocess.Popen[bytes]) -> None:
        """SIGSTOP outside of a transaction: SQLite's file has one lock for all writers, and who is stopped while it
        holds it keeps everybody out for as long.
        """
        path = self.database.engine.url.database
        assert self.database.engine.dialect.name == "sqlite"
        assert path is not None

        def stopped() -> bool:
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.05)
            with closing(sqlite3.connect(path, timeout=0.2)) as other:
                try:
                    other.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError:
                    process.send_signal(signal.SIGCONT)
                    return False
                other.rollback()
            return True

        self.until(stopped)

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        """End every process that is left, and check that none leaves children."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.database.close()

    # ---- asking

    def _enqueue(self, kind: str, spec: Strict, **more: Any) -> str:
        with self.database.write() as session:
            job = jobs.enqueue(
                session, owner_id=LOCAL_OWNER, kind=kind, queue="train_any" if kind == "train" else "gen_any",
                request={}, spec=spec, base=self.base, base_hash=self.base_hash, **more,
            )  # fmt: skip
        self.doorbell.ring(session.info.get("hints", ()))
        return job.id

    def train(
        self,
        photos: list[bytes] | None = None,
        *,
        seed: int = 7,
        previews: list[str] | None = None,
        **params: Any,
    ) -> str:
        """Enqueue a training of a fresh concept; its id."""
        stored = [(new_id(), self.storage.put(photo)) for photo in photos or []]
        with self.database.write() as session:
            concept = Concept(
                owner_id=LOCAL_OWNER,
                name="Stark",
                kind="subject",
                class_noun="dog",
                token=f"stark{new_id()[-12:]}",
            )
            session.add(concept)
        pinned = PinnedConcept(
            id=concept.id, token="stark", class_noun="dog", kind="subject",
            photos=[PinnedFile(id=name, storage_key=file.key, sha256=file.sha256) for name, file in stored],
        )  # fmt: skip
        return self._enqueue("train", TrainSpec(
            concepts=[pinned], method="custom-diffusion", base=self.base, base_hash=self.base_hash, params=params,
            seed=seed, previews=previews or [],
        ))  # fmt: skip

    def generate(
        self,
        prompt: str = "a dog",
        num_images: int = 2,
        size: int = 64,
        *,
        needs: Sequence[str] = (),
        **more: Any,
    ) -> str:
        spec = GenerateSpec(**{
            "prompt": prompt, "text": "a dog", "negative_prompt": "", "base": self.base, "base_hash": self.base_hash,
            "weights": [], "num_images": num_images, "seed": 5, "num_inference_steps": 2, "guidance_scale": 2.0,
            "scheduler": "ddim", "width": size, "height": size, **more,
        })  # fmt: skip
        return self._enqueue("generate", spec, batch_key=generations.batch_key(spec, ()), needs=needs)

    def cancel(self, job_id: str) -> None:
        with self.database.write() as session:
            jobs.request_cancel(session, LOCAL_OWNER, job_id)
        self.doorbell.ring(session.info.get("hints", ()))

    # ---- looking

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            return session.get_one(Job, job_id)

    def events(self, job_id: str) -> list[JobEvent]:
        """All of them; fails unless they are numbered without gaps."""
        with self.database.read() as session:
            found = jobs.events_after(session, LOCAL_OWNER, [job_id], {}, 10_000)
        assert [event.seq for event in found] == list(range(1, len(found) + 1))
        return found

    def notes(self, job_id: str) -> list[str]:
        return [event.data["code"] for event in self.events(job_id) if event.type == "note"]

    def images(self, job_id: str) -> list[Image]:
        with self.database.read() as session:
            return session.query(Image).filter_by(job_id=job_id).order_by(Image.index).all()

    def weights_of(self, job_id: str) -> list[ConceptWeights]:
        with self.database.read() as session:
            return session.query(ConceptWeights).filter_by(job_id=job_id).all()

    # ---- waiting

    def until(self, look: Callable[[], Result], within_s: float = 30.0) -> Result:
        """The first truthy answer; fails with the log after ``within_s`` seconds."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if found := look():
                return found
            time.sleep(0.02)
        raise AssertionError(f"nothing within {within_s} s\n{self.log()[-4000:]}")

    def ended(self, job_id: str, within_s: float = 30.0) -> Job:
        """The job when it is over."""
        return self.until(lambda: job if (job := self.job(job_id)).state in TERMINAL else None, within_s)  # type: ignore[return-value]

    def at_step(self, job_id: str, step: int, within_s: float = 30.0) -> Job:
        """The job when it runs and has made so many steps."""
        return self.until(  # type: ignore[return-value]
            lambda: job if (job := self.job(job_id)).state == "running" and job.step >= step else None,
            within_s,
        )


@contextmanager
def installation(folder: Path, **more: Any) -> Iterator[Installation]:
    """Closed afterwards, with everything it started."""
    made = Installation(folder, **more)
    try:
        yield made
    finally:
        made.close()
