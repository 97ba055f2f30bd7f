"""Plays the supervisor through the real services: registers a base, claims jobs, publishes what they would make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from backend.models import ConceptWeights, Job
from backend.schemas.bases import BaseDescription, JudgesDescription, SamplingDefaults
from backend.schemas.calibration import CalibrationPoint
from backend.schemas.compressions import (
    CompressionReport,
    CompressSpec,
    Similarity,
    SiteCompression,
    SizeAndError,
)
from backend.schemas.evaluations import ConceptReport, EvaluateSpec, EvaluationReport, Measure
from backend.schemas.executor import Unit
from backend.schemas.generations import GenerateSpec, GuidedAttention
from backend.schemas.merges.requests import MergeReport, MergeSpec
from backend.schemas.presence import Presence
from backend.schemas.trainings import PinnedConcept
from backend.schemas.weights import TaughtToken, WeightsManifest
from backend.services import leases, publishing, workers
from backend.services.publishing import NewImage, NewWeights
from backend.studio import Studio
from tests.backend.pictures import encoded, scene
from worker.recipes import image_recipe

TOKEN_WIDTH = 6
JUDGES = JudgesDescription(name="two judges", hash="cd" * 32)
SPENT = {
    work: {"seconds": seconds, "count": count}
    for work, (seconds, count) in {
        "loading": (0.5, 1), "prior": (16.0, 40), "train": (30.0, 15), "preview": (3.0, 3), "calibration": (9.0, 336)
    }.items()
}  # fmt: skip
"""Where the seconds of a training went."""
TEXT_SITES = {
    f"mid_block.attentions.0.transformer_blocks.0.attn2.to_{part}": [4, TOKEN_WIDTH] for part in "kv"
}


def word_tokenizer() -> str:
    """One token a word or letter, with a start and an end token, as CLIP's frame has."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    words = ["a photo of dog in the snow on moon red blue teddy bear"] * 5
    tokenizer.train_from_iterator(
        words, BpeTrainer(special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    )
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return str(tokenizer.to_str())


def base(name: str = "toy", **changes: Any) -> BaseDescription:
    """A base model as a worker would describe it."""
    fields: dict[str, Any] = {
        "id": name, "family": "toyworld", "title": "Toy", "resolution": 64, "size_multiple": 8, "max_size": 128,
        "hash": "ab" * 32, "methods": ["custom-diffusion"], "defaults": SamplingDefaults(),
        "prompt_limit_tokens": 40, "tokenizer_json": word_tokenizer(),
        "example_prompts": ["a photo of {} on the moon"], "class_nouns": ["dog"], "text_sites": TEXT_SITES,
        "token_width": TOKEN_WIDTH, "judges": JUDGES,
    }  # fmt: skip
    return BaseDescription(**{**fields, **changes})


def merge_report(spec: MergeSpec, **changes: Any) -> MergeReport:
    """What a merge that went well says of itself."""
    site = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    told: dict[str, Any] = {
        "merge": spec.method, "verified": True, "residual": 3e-8, "residual_of_change": 4e-7, "drift": 0.021,
        "drift_predicted": 0.021, "drift_held_out": 0.024, "inconsistency": 0.0, "rank": 6, "constraint_rows": 6,
        "condition": 812.0, "captions": 1000, "stationarity": 1e-9, "seconds": 0.42,
        "inputs": [{"id": w.file.id, "scale": w.scale, "tokens": w.tokens} for w in spec.weights],
        "sites": [{"site": site, "change": 0.5, "residual": 3e-8, "drift": 0.021, "drift_predicted": 0.021}],
    }  # fmt: skip
    return MergeReport.model_validate(told | changes)


def similarity(spec: CompressSpec) -> Similarity:
    """What the judges of a compression would say: a little was lost."""
    assert spec.judges is not None
    at = spec.known.scale if spec.known else 1.0
    return Similarity(
        before=CalibrationPoint(scale=at, subject_similarity=0.82, prompt_similarity=0.95),
        after=CalibrationPoint(scale=at, subject_similarity=0.79, prompt_similarity=0.97),
        known_before=spec.known is not None, prompts=["a", "b", "c", "d"], image_seeds=[11, 12], judges=spec.judges,
    )  # fmt: skip


@dataclass
class Workshop:
    """One supervisor that the test steers by hand."""

    studio: Studio
    worker_id: str = ""

    def open(self, *bases: BaseDescription) -> None:
        """Register as a live worker that serves these bases (one toy base when none is given)."""
        with self.studio.writing() as session:
            self.worker_id = workers.hello(session, f"slot-{self.worker_id or 'a'}", "test device")
            workers.register_bases(session, self.worker_id, bases or (base(),))
            workers.beat(session, self.worker_id, "ready")

    def claim(self) -> Job:
        """Take the best waiting job."""
        with self.studio.writing() as session:
            job = leases.claim(
                session,
                self.worker_id,
                queues=("gen_any", "train_any", "cpu"),
                kinds={"train": 1, "generate": 1, "compress": 1, "merge": 1, "evaluate": 1},
                base_hashes=["ab" * 32],
            )
        assert job is not None
        return job

    def train(
        self,
        *,
        report: dict[str, Any] | None = None,
        content: bytes = b"not really safetensors",
        **manifest_changes: Any,
    ) -> str:
        """Claim a training and publish its weights; their id. ``content`` is the file, ``manifest_changes`` are other
        fields of the manifest.
        """
        job = self.claim()
        unit = Unit(job=job.id, fence=job.fence)
        pinned = [PinnedConcept.model_validate(each) for each in job.spec["concepts"]]
        manifest = WeightsManifest(
            method=job.spec["method"], side="text", base=job.base, base_family="toyworld", base_hash=job.base_hash,
            prediction_type="epsilon", params=job.spec["params"], seed=job.spec["seed"], steps=3, code_version="test",
            tokens=[TaughtToken(token=each.token, class_noun=each.class_noun, kind=each.kind) for each in pinned],
        ).model_copy(update=manifest_changes)  # fmt: skip
        preview = self.studio.storage.put(encoded(scene(1), "WEBP"))
        weights = self.studio.storage.put(content)
        with self.studio.writing() as session:
            assert publishing.publish_preview(session, unit, preview, step=0, index=0, prompt="a dog")
        with self.studio.writing() as session:
            new = NewWeights(
                manifest=manifest, analysis=None, report=report or {}, file=weights, concepts=pinned
            )
            assert publishing.succeed(
                session,
                unit,
                result={"report": report or {}},
                metrics={"run_s": 2.0, "spent": SPENT},
                weights=new,
            )
        return self.job(job.id).result["weights"]  # type: ignore[index,no-any-return]

    def merge(self, **report: Any) -> str:
        """Claim a merge and publish its weights with a report that was verified; their id."""
        job = self.claim()
        unit, spec = Unit(job=job.id, fence=job.fence), MergeSpec.model_validate(job.spec)
        manifest = WeightsManifest(
            method="custom-diffusion", side="text", base=job.base, base_family="toyworld", base_hash=job.base_hash,
            prediction_type="epsilon", params={}, seed=0, steps=0, code_version="test", merge=spec.method,
            parents=[each.file.id for each in spec.weights],
            tokens=[TaughtToken(token=e.token, class_noun=e.class_noun, kind=e.kind) for e in spec.concepts],
        )  # fmt: skip
        told = {"merge": merge_report(spec, **report).model_dump(mode="json")}
        file = self.studio.storage.put(b"merged, and not really safetensors")
        with self.studio.writing() as session:
            new = NewWeights(manifest, None, told, file, spec.concepts, sketch={"made": "up"})
            assert publishing.succeed(session, unit, result={}, metrics={"run_s": 0.5}, weights=new)
        return self.job(job.id).result["weights"]  # type: ignore[index,no-any-return]

    def compress(self) -> str:
        """Claim a compression and publish a copy of the file as the smaller weights; their id."""
        job = self.claim()
        unit, spec = Unit(job=job.id, fence=job.fence), CompressSpec.model_validate(job.spec)
        [parent] = spec.weights
        with self.studio.reading() as session:
            old = WeightsManifest.model_validate(session.get_one(ConceptWeights, parent.file.id).manifest)
        manifest = old.model_copy(update={"compression": spec.compression, "parents": [parent.file.id]})
        report = CompressionReport(
            criterion=spec.compression.criterion, value=spec.compression.value, precision=spec.compression.precision,
            bytes_before=1_500_000, bytes_after=300_000, discarded_energy=0.01, relative_error=0.1,
            sites=[SiteCompression(site="site.mid_block.attn2.to_k", shape=[4, 6], full_rank=4, rank=2, form="factors",
                                   bytes=240, discarded_energy=0.01, relative_error=0.1)],
            one_rank=SizeAndError(bytes=290_000, relative_error=0.2),
            curve=[SizeAndError(bytes=5000, relative_error=1.0), SizeAndError(bytes=900_000, relative_error=0.02)],
            similarity=similarity(spec) if spec.judges else None,
        )  # fmt: skip
        file = self.studio.storage.put(self.studio.storage.path(parent.file.storage_key).read_bytes())
        with self.studio.writing() as session:
            new = NewWeights(
                manifest=manifest,
                analysis=None,
                report={"compression": report.model_dump(mode="json")},
                file=file,
                concepts=spec.concepts,
            )
            assert publishing.succeed(session, unit, result={}, metrics={"run_s": 1.0}, weights=new)
        return self.job(job.id).result["weights"]  # type: ignore[index,no-any-return]

    def draw(self, presence: Sequence[Presence] = (), attention: GuidedAttention | None = None) -> list[str]:
        """Claim a generation and publish its images, each with what was seen in it and where its attention was guided;
        their ids.
        """
        job = self.claim()
        unit, spec = Unit(job=job.id, fence=job.fence), GenerateSpec.model_validate(job.spec)
        for index in range(spec.num_images):
            recipe = image_recipe(spec, index, presence=presence, attention=attention)
            picture = self.studio.storage.put(encoded(scene(index, (64, 64)), "PNG"))
            thumbnail = self.studio.storage.put(encoded(scene(index, (64, 64)), "WEBP"))
            with self.studio.writing() as session:
                new = NewImage(index=index, recipe=recipe, file=picture, thumbnail=thumbnail)
                assert publishing.publish_image(session, unit, new)
        with self.studio.writing() as session:
            assert publishing.succeed(session, unit, result={}, metrics={})
        return list(self.job(job.id).result["images"])  # type: ignore[index]

    def evaluate(self, value: float | None = 0.7) -> str:
        """Claim an evaluation and publish its report with this value in every measure; its id."""
        job = self.claim()
        spec = EvaluateSpec.model_validate(job.spec)
        measure = Measure(
            value=value, deviation=value and 0.02, half_width_95=value and 0.05, per_seed=[value] if value else [],
            raw=0.5, zero=0.1, one=0.9,
        )  # fmt: skip
        report = EvaluationReport(
            judges=spec.judges, prompts=[*spec.prompts, *spec.style_prompts], num_images=spec.num_images,
            num_inference_steps=20, concepts=[
                ConceptReport(weights=weights.file.id, concept=concept, subject_similarity=measure,
                              prompt_similarity=measure, drift=measure)
                for weights in spec.weights for concept in weights.concepts
            ],
        )  # fmt: skip
        with self.studio.writing() as session:
            assert publishing.succeed(
                session, Unit(job=job.id, fence=job.fence), result={}, metrics={}, evaluation=report
            )
        return self.job(job.id).result["evaluation"]  # type: ignore[index,no-any-return]

    def job(self, job_id: str) -> Job:
        with self.studio.reading() as session:
            return session.get_one(Job, job_id)
