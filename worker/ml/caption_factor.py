"""The captions whose keys and values a merge holds still, as one triangular factor of their text states (methods.md
6.3, 6.4), kept for every merge on the same text encoder.

Rows of C_reg: every position from the first word to the first end-of-text of each caption; as switches the start
token, which draws most of the attention, and a few paddings. Every tenth caption is held out: what a merge does to
texts nobody held is measured there.

Kept in ``model.derived`` for the process, and on the disk where the model has a ``cache_dir``: named by a hash of the
text encoder's weights, of the ids of the captions (so of tokenizer and corpus), and of the switches. A kept file is
believed if its triangles have the right shape and are finite; it appears by a rename.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from worker.ml.errors import InputInvalid, PromptTooLong
from worker.ml.families.base import DiffusionModel
from worker.ml.least_change import Held, held, triangle_of
from worker.ml.run import Run
from worker.ml.text_statistics import ENCODED_AT_ONCE, caption_corpus

HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class HeldTexts:
    """Which captions and positions are held, and the ridge (`worker.ml.least_change.held`)."""

    captions: int = 1000
    start_token: bool = True
    padding: int = 4
    ridge: float = 1e-8


@dataclass(frozen=True, eq=False)
class CaptionFactor:
    """``held`` of the captions that are held still, ``held_out`` [d, d] the triangle of the others. ``captions`` and
    ``rows`` are counts of the former.
    """

    held: Held
    held_out: Tensor
    captions: int
    rows: int


def caption_factor(model: DiffusionModel, wanted: HeldTexts, run: Run) -> CaptionFactor:
    """Found or made. ``run.step("captions", ...)`` while captions are encoded; raises what it raises, `InputInvalid`
    where the captions are too few. What `corpus_notes` has to say is noted either way.
    """
    for told in corpus_notes(model):
        run.note("no_captions", told)
    known = model.derived.get(wanted)
    if isinstance(known, CaptionFactor):
        return known
    ids = caption_ids(model, wanted.captions, run)
    path = _path(model, wanted, ids)
    factor = _read(path) if path is not None else None
    if factor is None:
        factor = _made(model, wanted, ids, run)
        if path is not None:
            _keep(path, factor)
    model.derived[wanted] = factor
    return factor


def corpus_notes(model: DiffusionModel) -> list[str]:
    """A sentence where the captions are not the base's own, for a report; else nothing."""
    if model.captions:
        return []
    description = model.description
    nouns = "its class nouns" if description.class_nouns else "common nouns"
    return [
        f"{description.title} brings no captions.txt, so sentences made of {nouns} stand for all other texts: how far "
        "texts of another kind move is neither held nor measured."
    ]


def caption_ids(model: DiffusionModel, captions: int, run: Run) -> list[list[int]]:
    """Ids of the captions of the corpus that fit the text encoder: so many as are to be held and a tenth more."""
    ids, left_out = [], 0
    corpus = caption_corpus(model, captions * HELD_OUT_EVERY // (HELD_OUT_EVERY - 1))
    for text in corpus:
        try:
            ids.append(model.token_ids(text, {}))
        except PromptTooLong:
            left_out += 1
    if left_out:
        run.note(
            "captions_too_long", f"{left_out} captions are too long for the text encoder and were left out."
        )
    if len(ids) < HELD_OUT_EVERY:
        raise InputInvalid("The base model's captions are too few to hold anything still.")
    return ids


@torch.no_grad()
def held_states(
    model: DiffusionModel, ids: Sequence[list[int]], wanted: HeldTexts
) -> Iterator[tuple[int, Tensor]]:
    """(captions so far, rows of C_reg [m, d] float64 on the CPU) for each batch of captions."""
    end = model.token_ids("", {})[1]
    for first in range(0, len(ids), ENCODED_AT_ONCE):
        chunk = torch.tensor(ids[first : first + ENCODED_AT_ONCE])
        last = (chunk == end).long().argmax(dim=1)[:, None]
        chunk = chunk[:, : int(last.max()) + wanted.padding + 1]  # the encoder reads from left to right
        states = model.encode_prompts(chunk, None).states.double().cpu()
        places = torch.arange(chunk.shape[1])
        chosen = (places >= (0 if wanted.start_token else 1)) & (places <= last + wanted.padding)
        yield first + len(chunk), states[chosen]


def _made(model: DiffusionModel, wanted: HeldTexts, ids: Sequence[list[int]], run: Run) -> CaptionFactor:
    out = list(ids[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    kept = [each for place, each in enumerate(ids) if (place + 1) % HELD_OUT_EVERY]
    width = model.cross_attention()[0].key.weight.shape[1]
    rows = 0

    def told() -> Iterator[Tensor]:
        nonlocal rows
        for done, states in held_states(model, kept, wanted):
            rows += len(states)
            run.step("captions", done, len(kept))
            yield states

    triangle = triangle_of(told(), width)
    if not wanted.ridge and float(triangle.diagonal().abs().min()) <= 1e-12 * float(triangle.abs().max()):
        raise InputInvalid(
            "The captions do not span all text states: hold more of them, or let the merge have a ridge."
        )
    return CaptionFactor(
        held=held(triangle, wanted.ridge),
        held_out=triangle_of((states for _, states in held_states(model, out, wanted)), width),
        captions=len(kept),
        rows=rows,
    )


def _path(model: DiffusionModel, wanted: HeldTexts, ids: Sequence[list[int]]) -> Path | None:
    if model.cache_dir is None:
        return None
    digest = hashlib.sha256(repr((wanted, ids)).encode())
    for name, tensor in sorted(model.text_encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return model.cache_dir / "captions" / f"{digest.hexdigest()[:32]}.safetensors"


def _read(path: Path) -> CaptionFactor | None:
    """What is kept, or None where it is missing or damaged."""
    try:
        found = safetensors.torch.load(path.read_bytes())
        states, whitener, out, counts = (found[name] for name in ("states", "whitener", "held_out", "counts"))
        ridge = float(found["ridge"])
    except (OSError, KeyError, ValueError, safetensors.SafetensorError):
        return None
    triangles = (states, whitener, out)
    square = all(each.shape == states.shape == (len(each), len(each)) for each in triangles)
    if not square or not all(bool(torch.isfinite(each).all()) for each in triangles) or counts.shape != (2,):
        return None
    return CaptionFactor(Held(states, whitener, ridge), out, int(counts[0]), int(counts[1]))


def _keep(path: Path, factor: CaptionFactor) -> None:
    """Atomic: readers see the whole file or none. On a full disk nothing is kept."""
    content = safetensors.torch.save(
        {
            "states": factor.held.states.contiguous(),
            "whitener": factor.held.whitener.contiguous(),
            "held_out": factor.held_out.contiguous(),
            "ridge": torch.tensor(factor.held.ridge, dtype=torch.float64),
            "counts": torch.tensor([factor.captions, factor.rows]),
        }
    )
    staged = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, staged = tempfile.mkstemp(suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(staged).rename(path)
    except OSError:  # the disk is full: it costs time only
        if staged is not None:
            Path(staged).unlink(missing_ok=True)
