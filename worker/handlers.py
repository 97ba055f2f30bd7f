"""What each kind of job does: spec and local files in, one call of the science, files out.

No database, no credentials, no queue; paths come with the job.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from backend.failpoints import fp
from backend.schemas.bases import BaseDescription, JudgesDescription
from backend.schemas.compressions import CompressSpec, Similarity
from backend.schemas.evaluations import EvaluateSpec
from backend.schemas.executor import Checkpointed, Preview, Ready, RunJob, Succeeded
from backend.schemas.generations import GenerateSpec
from backend.schemas.methods import CARDS
from backend.schemas.trainings import PinnedConcept, TrainSpec
from worker import device, prior_library
from worker.bases import keep_description, kept_description
from worker.counted_run import CountedRun
from worker.drawing import draw_alone, draw_together
from worker.evaluations import KeptSights, evaluate
from worker.executor import Ended, JobFailed, JobStopped
from worker.made_weights import made
from worker.merging import merge_weights
from worker.ml.calibration import calibrated, parts_of
from worker.ml.comparison import LOOKS, compared
from worker.ml.compression import compress
from worker.ml.concept_weights import ConceptWeights
from worker.ml.errors import BaseUnusable, InputInvalid, JudgesUnusable, MLError, PromptTooLong
from worker.ml.evaluation.panel import Panel, describe_panel, load_panel
from worker.ml.families import DiffusionModel, describe_base
from worker.ml.methods import METHODS, ConceptExamples
from worker.ml.run import REQUESTS, Cancelled, FinishRequested, PreviewImage, Released
from worker.ml.training.checkpoint import Checkpoint, load_newest, save_checkpoint
from worker.ml.training.loop import train
from worker.ml.training.retrieval import LIBRARY
from worker.model_cache import ModelCache
from worker.pipe_run import PHASES, Reporter
from worker.presence import draw_and_look
from worker.prior_library import Limits
from worker.work_clock import WorkClock

OF_CONCEPT = "photo_loss/"
LAST_STEPS = 50
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PipeRun:
    """A ``worker.ml.run.Run`` that reports over the pipe and keeps checkpoints in the job's directory."""

    def __init__(self, job: RunJob, reporter: Reporter) -> None:
        self._job = job
        self._reporter = reporter
        self._checkpoints = Path(job.checkpoints)
        self.clock = WorkClock()
        self.gradient_accumulation = 1
        self._told_disk_full = False
        self._losses: dict[str, deque[float]] = {}

    @property
    def checkpoint_s(self) -> float:
        return self._job.checkpoint_s

    def step(self, unit: str, done: int, total: int, **metrics: float) -> None:
        self.clock.ended(unit, count=int(unit != "preview"))
        phase = PHASES.get(unit, "training")
        if "loss" in metrics:
            fp("train.step")
            self._reporter.loss(done, metrics["loss"])
            self.gradient_accumulation = int(metrics.get("gradient_accumulation", 1))
            for name in (name for name in metrics if name.startswith(OF_CONCEPT)):
                self._losses.setdefault(name.removeprefix(OF_CONCEPT), deque(maxlen=LAST_STEPS)).append(
                    metrics[name]
                )
        if unit != "preview":
            self._reporter.progress(phase, done, total)
        if (asked := self._reporter.asked) is not None:
            self._reporter.flush()
            raise REQUESTS[asked]

    def preview(self, unit: str, step: int, images: Sequence[PreviewImage]) -> None:
        for image in images:
            file = self._reporter.staging / f"preview-{unit}-{step}-{image.index}.png"
            Image.fromarray(image.pixels).save(file)
            self._reporter.send(
                Preview(
                    **self._reporter.tag, step=step, index=image.index, prompt=image.prompt, file=file.name
                )
            )
        self.clock.ended("preview")

    def checkpoint(self, unit: str, state: Checkpoint) -> None:
        fp("checkpoint.before_write")
        try:
            save_checkpoint(self._checkpoints / unit, state, lambda file: fp(f"checkpoint.{file}"))
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            if not self._told_disk_full:
                self._told_disk_full = True
                self.note(
                    "checkpoint_not_written",
                    "The disk is full: a checkpoint was not written; the one before is kept.",
                )
            return
        fp("checkpoint.after_write")
        self._reporter.send(Checkpointed(**self._reporter.tag, step=state.step))

    def resume(self, unit: str) -> Checkpoint | None:
        found, discarded = load_newest(self._checkpoints / unit)
        for name in discarded:
            step = name.removeprefix("ckpt-")
            self.note("checkpoint_discarded", f"The checkpoint of step {step} was damaged and was not used.")
        if found is not None:
            self.note("resumed", f"Resumed after step {found.step}.")
        return found

    def note(self, code: str, message: str) -> None:
        self._reporter.note(code, message)

    def facts(self) -> dict[str, Any]:
        """For the report; ``photo_loss``: of each concept of a joint training, over the last steps."""
        parts = self.gradient_accumulation
        losses = {token: sum(kept) / len(kept) for token, kept in self._losses.items()}
        return {
            **({"gradient_accumulation": parts} if parts > 1 else {}),
            **({"photo_loss": losses} if losses else {}),
        }


class Workshop:
    """The handlers of this installation, with the resident base model."""

    def __init__(self) -> None:
        self._models = ModelCache()
        self._prior_folder: Path | None = None
        self._picture_limits = Limits()
        self._kinds: dict[str, Callable[[RunJob, Reporter], Succeeded]] = {
            "train": self._train,
            "generate": self._generate,
            "compress": self._compress,
            "merge": self._merge,
            "evaluate": self._evaluate,
        }
        self._judges: list[Path] = []

    def start(self, config: dict[str, Any]) -> Ready:
        """Set the device up, try it, and describe every base model that can be used."""
        name = device.prepare(int(config["threads"]))
        cache = self._models.cache_dir = Path(config["cache"])
        self._prior_folder = Path(config["prior_folder"]) if config.get("prior_folder") else None
        self._picture_limits = Limits(**config.get("picture_limits", {}))
        self._judges = [Path(folder) for folder in config["judges"]]
        bases, folders = [], {}
        for folder in map(Path, config["base_folders"]):
            try:
                described = kept_description(folder, cache, self._judges) or self._described(folder)
            except BaseUnusable as unusable:
                device.log.warning("base model %s is not used: %s", folder.name, unusable)
                continue
            keep_description(folder, cache, described, self._judges)
            if described.id not in folders:
                bases.append(described)
                folders[described.id] = str(folder)
        return Ready(device=name, bases=bases, base_folders=folders)

    def handle(self, job: RunJob, reporter: Reporter) -> Succeeded:
        """Raises JobStopped, or whatever went wrong."""
        device.reset_peak()
        try:
            return self._kinds[job.kind](job, reporter)
        except Cancelled as cancelled:
            raise JobStopped("cancelled") from cancelled
        except Released as released:
            raise JobStopped("released") from released

    def handle_together(self, reporters: Sequence[Reporter], ended: Ended) -> None:
        """Generations on one base model."""
        device.reset_peak()
        draw_together(self._models.get(Path(reporters[0].job.base_folder)), reporters, ended)

    def verdict(self, error: BaseException) -> JobFailed:
        """Code, sentence and whether another try may help."""
        if isinstance(error, MLError):
            return JobFailed(error.code, str(error), retryable=error.retryable)
        if (fault := device.classify(error)) is not None:
            return JobFailed(fault.code, fault.message, retryable=fault.retryable, sticky=fault.sticky)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return JobFailed(
                "storage_full", "The worker's disk is full. Free some space and try again.", retryable=True
            )
        return JobFailed("internal", "Something in the worker went wrong; the log says more.")

    def _described(self, folder: Path) -> BaseDescription:
        """The base with its judges; without any where those that are registered cannot serve."""
        described = describe_base(folder)
        try:
            judges = describe_panel(folder, self._judges)
        except JudgesUnusable as unusable:
            device.log.warning("registered judges are not used: %s", unusable)
            return described
        return described.model_copy(update={"judges": judges})

    # ---- kinds

    def _train(self, job: RunJob, reporter: Reporter) -> Succeeded:
        spec = TrainSpec.model_validate(job.spec)
        run = PipeRun(job, reporter)
        model = self._models.get(Path(job.base_folder))
        method = METHODS.get(spec.method)
        if method is None:
            raise JobFailed("method_unsupported", f"The method {spec.method} is not known to this worker.")
        concepts = _examples(job, spec.concepts)
        run.clock.ended("loading")
        reporter.progress("preparing", 0, 0)
        prior_dir = Path(job.cache) / "prior"
        if spec.params.get("prior") == "folder" and self._prior_folder is not None:
            prior_library.prepare(self._prior_folder, prior_dir / LIBRARY, self._picture_limits, run)
        trainee = method.trainee(
            model,
            concepts,
            CARDS[spec.method].params_type.model_validate(spec.params),
            seed=spec.seed,
            prior_dir=prior_dir,
            previews=spec.previews,
            run=run,
        )
        [weights] = train(model, [trainee], run)
        weights, found = self._calibrated(job, spec, weights, model=model, concepts=concepts, run=run)
        reporter.progress("saving", weights.manifest.steps, weights.manifest.steps)
        report = {"steps": weights.manifest.steps, **run.facts(), **found}
        done = made(model, weights, reporter, report)
        run.clock.ended("saving")
        return done.model_copy(update={"spent": run.clock.spent})

    def _calibrated(
        self,
        job: RunJob,
        spec: TrainSpec,
        weights: ConceptWeights,
        *,
        model: DiffusionModel,
        concepts: Sequence[ConceptExamples],
        run: PipeRun,
    ) -> tuple[ConceptWeights, dict[str, Any]]:
        """With what the report says of it. What was learned is never lost to it: without an answer the scale is 1."""
        if spec.calibration is None:
            return weights, {}
        drawn = CountedRun(run, parts_of(len(concepts)), unit="calibration")
        try:
            panel = self._panel(Path(job.base_folder), spec.calibration)
            weights, found = calibrated(model, panel, spec.calibration, weights, concepts, run=drawn)
        except (JudgesUnusable, InputInvalid) as unable:
            run.note("not_calibrated", f"The scale stays 1. {unable}")
        except FinishRequested:
            run.note("not_calibrated", "The scale stays 1: finished on request.")
        else:
            return weights, {"calibration": found.model_dump(mode="json")}
        return weights, {}

    def _generate(self, job: RunJob, reporter: Reporter) -> Succeeded:
        check = GenerateSpec.model_validate(job.spec).check
        panel = self._panel(Path(job.base_folder), check.judges) if check else None
        model = self._models.get(Path(job.base_folder))
        if panel is not None:
            return draw_and_look(model, panel, reporter, PipeRun(job, reporter))
        return draw_alone(model, reporter, PipeRun(job, reporter))

    def _panel(self, folder: Path, pinned: JudgesDescription) -> Panel:
        """The judges that a job was promised. Raises JudgesUnusable."""
        described = describe_panel(folder, self._judges)
        if described is None or described.hash != pinned.hash:
            raise JudgesUnusable("The judges of this studio have changed since. Ask for it again.")
        return load_panel(folder, self._judges, device.torch_name())

    def _compress(self, job: RunJob, reporter: Reporter) -> Succeeded:
        spec = CompressSpec.model_validate(job.spec)
        [parent] = spec.weights
        weights = ConceptWeights.load(Path(job.inputs[parent.file.storage_key]))
        model = self._models.get(Path(job.base_folder))
        run = PipeRun(job, reporter)
        smaller = compress(model, weights, spec.compression, parent.file.id, run)
        seen = self._compared(job, spec, weights, smaller.weights, model=model, run=run)
        reporter.progress("saving", 1, 1)
        told = smaller.report.model_copy(update={"similarity": seen})
        report = {"steps": weights.manifest.steps, "compression": told.model_dump(mode="json")}
        return made(model, smaller.weights, reporter, report)

    def _compared(
        self,
        job: RunJob,
        spec: CompressSpec,
        before: ConceptWeights,
        after: ConceptWeights,
        *,
        model: DiffusionModel,
        run: PipeRun,
    ) -> Similarity | None:
        """What the judges see of both. The smaller weights are never lost to it: a note says why nobody compared."""
        if spec.judges is None:
            return None
        concepts = _examples(job, spec.concepts)
        drawn = CountedRun(run, parts_of(len(concepts), LOOKS), unit="comparison")
        try:
            panel = self._panel(Path(job.base_folder), spec.judges)
            return compared(
                model,
                panel,
                spec.judges,
                before=before,
                after=after,
                concepts=concepts,
                known=spec.known,
                run=drawn,
            )
        except (JudgesUnusable, InputInvalid, PromptTooLong) as unable:
            run.note("not_compared", f"Nobody compared pictures from before and after. {unable}")
            return None

    def _merge(self, job: RunJob, reporter: Reporter) -> Succeeded:
        model = self._models.get(Path(job.base_folder))
        return merge_weights(model, reporter, PipeRun(job, reporter))

    def _evaluate(self, job: RunJob, reporter: Reporter) -> Succeeded:
        spec = EvaluateSpec.model_validate(job.spec)
        folder = Path(job.base_folder)
        panel = self._panel(folder, spec.judges)
        model = self._models.get(folder)

        def made(parts: int) -> None:
            reporter.send(Checkpointed(**reporter.tag, step=parts))
            fp("evaluate.part")

        kept = KeptSights(Path(job.checkpoints), made)
        if earlier := kept.count():
            reporter.note("resumed", f"Resumed after {earlier} of the drawings.")
        report = evaluate(spec, job.inputs, model, panel, run=PipeRun(job, reporter), kept=kept)
        return Succeeded(
            **reporter.tag,
            files={},
            report=report.model_dump(mode="json"),
            peak_memory_bytes=device.peak_bytes(),
        )


def _examples(job: RunJob, concepts: Sequence[PinnedConcept]) -> list[ConceptExamples]:
    """The concepts with their photos as files here."""
    return [
        ConceptExamples(
            each.token,
            each.class_noun,
            each.kind,
            [Path(job.inputs[photo.storage_key]) for photo in each.photos],
        )
        for each in concepts
    ]


def handlers() -> Workshop:
    """What ``worker.executor`` asks this module for."""
    return Workshop()
