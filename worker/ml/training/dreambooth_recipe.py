"""How DreamBooth teaches (Ruiz et al. 2023, section 3; methods.md 2), whichever weights learn: photos captioned
"photo of a V* dog" with V* a rare token's row, and lambda times as much of pictures of the class by the base model.

LoRA, DreamBooth and SVDiff differ in what they train and what they store. The rest is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel
from torch import Tensor

from backend.schemas.methods.card import MethodCard
from backend.schemas.methods.prior_source import Prior
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import TextEdit
from worker.ml.families.base import DiffusionModel
from worker.ml.run import Run
from worker.ml.taught_words import token_tensors
from worker.ml.training.companions import companion_texts
from worker.ml.training.lessons import (
    ConceptExamples,
    Lesson,
    check_distinct,
    check_texts,
    collage_texts,
    deal_lessons,
    plain_captions,
    prepare_lessons,
)
from worker.ml.training.preview import draw_previews
from worker.ml.training.provenance import check_served, fingerprint, manifest_of, taught_tokens
from worker.ml.training.trainee import Group, Trainee


class RecipeParams(Protocol):
    """The parameters that the recipe reads; a method's own come beside them."""

    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def text_encoder(self) -> bool: ...
    @property
    def prior(self) -> Prior: ...
    @property
    def prior_weight(self) -> float: ...
    @property
    def prior_images(self) -> int: ...
    @property
    def prior_steps(self) -> int: ...
    @property
    def flip(self) -> bool: ...
    @property
    def unmasked_weight(self) -> float: ...
    @property
    def collages(self) -> float: ...
    @property
    def unmix_weight(self) -> float: ...
    @property
    def companions(self) -> float: ...
    @property
    def max_grad_norm(self) -> float: ...
    @property
    def preview_every(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Recipe:
    """One training by the recipe, before it is known what learns. ``params`` is a `RecipeParams`, and of the card's
    ``params_type``.
    """

    card: MethodCard
    model: DiffusionModel
    concepts: Sequence[ConceptExamples]
    params: RecipeParams
    seed: int
    previews: Sequence[str]

    def check(self) -> None:
        """Raises `MethodUnsupported`, and `InputInvalid` where two concepts have one token."""
        check_served(self.card, self.model)
        check_distinct(self.concepts)

    def lessons(self, edit: TextEdit, prior_dir: Path, run: Run) -> list[Lesson]:
        """Texts checked, photos encoded, prior images made or found (none at lambda 0). Raises `PromptTooLong`,
        `InputInvalid`, and what `Run.step` raises.
        """
        params = self.params
        texts = plain_captions(self.concepts, augment=False) + collage_texts(self.concepts, params.collages)
        texts += companion_texts(self.model, self.concepts, params.companions)
        check_texts(self.model, edit, (*texts, *self.previews))
        return prepare_lessons(
            self.model,
            self.concepts,
            augment=False,
            flip=params.flip,
            prior=params.prior,
            prior_images=params.prior_images if params.prior_weight > 0 else 0,
            prior_steps=params.prior_steps,
            seed=self.seed,
            prior_dir=prior_dir,
            run=run,
            companions=params.companions,
            unmasked_weight=params.unmasked_weight,
        )

    def trainee(
        self,
        edit: TextEdit,
        lessons: Sequence[Lesson],
        groups: Sequence[Group],
        learned: Callable[[], Mapping[str, Tensor]],
        installed: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Trainee:
        """``groups`` without tensors are left out; ``learned()`` are the tensors of the file beside the words'."""
        params, model = self.params, self.model
        assert isinstance(params, BaseModel)

        def result(steps: int) -> ConceptWeights:
            tokens = taught_tokens(self.concepts)
            manifest = manifest_of(self.card, model, tokens, params, seed=self.seed, steps=steps)
            return ConceptWeights(manifest, {**learned(), **token_tensors(edit.tokens)})

        return Trainee(
            unit="train",
            seed=self.seed,
            steps=params.steps,
            groups=tuple(group for group in groups if group.tensors),
            rows=lambda step: deal_lessons(
                lessons,
                batch_size=params.batch_size,
                seed=self.seed,
                step=step,
                edit=edit,
                collages=params.collages,
                companions=params.companions,
            ),
            result=result,
            preview=lambda run: draw_previews(model, self.previews, edit, self.seed, run),
            preview_every=params.preview_every,
            fingerprint=fingerprint(self.card.name, model, self.concepts, params, self.seed),
            prior_weight=params.prior_weight,
            unmix_weight=params.unmix_weight,
            max_grad_norm=params.max_grad_norm,
            detach_first=False,
            installed=installed,
            trains_text_encoder=params.text_encoder,
        )
