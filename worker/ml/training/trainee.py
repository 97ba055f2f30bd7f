"""Trainee: what a method hands to the training loop. Data and four functions; there is no base class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt
from worker.ml.installation import Untouched
from worker.ml.run import PreviewImage, Run

OptimiserName = Literal["adamw", "adamw-8bit"]


@dataclass(frozen=True, eq=False)
class Group:
    """Trainable leaf tensors with one learning rate. AdamW decay pulls each tensor towards zero."""

    tensors: Mapping[str, Tensor]
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True, eq=False)
class Rows:
    """One step's rows of the denoiser's batch.

    latents [B, C, h, w]; masks [B, 1, h, w] in {0, 1}, the cells that count; ``prompts``: the distinct texts;
    ``prompt_of_row`` [B] indexes them; ``prior`` [B]: the row belongs to the prior term. ``untouched``: the targets of
    the prior rows are what this model predicts for them, and not the noise that was drawn. ``tokens`` [B]: the concept
    that a row teaches or preserves; empty for a collage of several, and all of it where a training is of one.
    ``sides``: of the rows that are collages of photos, the tokens that stand left and right.
    """

    latents: Tensor
    masks: Tensor
    prompts: Sequence[Prompt]
    prompt_of_row: Sequence[int]
    prior: Sequence[bool]
    untouched: Untouched | None = None
    tokens: Sequence[str] = ()
    sides: Mapping[int, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Trainee:
    """One concept, or several that share their matrices, on its way through the loop.

    ``unit`` names it to the `Run`. ``rows(step)`` is a pure function of the step. ``fingerprint`` says what
    its checkpoints belong to: seed, parameters, photos, base. ``preview(run)`` draws with the tensors as they
    stand. ``result(steps)`` packs them. ``installed()`` is open during training, for trainees whose tensors
    are the denoiser's own. ``constrain()`` runs after every optimiser step; ``measures()`` are further numbers
    to report with it. ``trains_text_encoder``: text states change from step to step. ``followers`` are tensors without
    a gradient that ``constrain`` changes: with the trained ones they are what a checkpoint holds (ADR 7). For
    ``optimiser`` see `worker.ml.training.optimiser`, for ``unmix_weight`` `worker.ml.training.unmix`.
    """

    unit: str
    seed: int
    steps: int
    groups: Sequence[Group]
    rows: Callable[[int], Rows]
    result: Callable[[int], ConceptWeights]
    preview: Callable[[Run], list[PreviewImage]]
    preview_every: int
    fingerprint: str
    prior_weight: float = 1.0
    unmix_weight: float = 0.0
    max_grad_norm: float = 1.0
    min_snr_gamma: float | None = None
    detach_first: bool = True
    installed: Callable[[], AbstractContextManager[None]] = nullcontext
    trains_text_encoder: bool = False
    constrain: Callable[[], None] = lambda: None
    measures: Callable[[], Mapping[str, float]] = dict
    followers: Mapping[str, Tensor] = field(default_factory=dict)
    optimiser: OptimiserName = "adamw"

    @property
    def alone(self) -> bool:
        """Nothing else can share the denoiser while this trains."""
        return self.installed is not nullcontext

    def tensors(self) -> dict[str, Tensor]:
        """All trainable tensors by name."""
        return {name: tensor for group in self.groups for name, tensor in group.tensors.items()}
