"""What a merge must keep: text states of each concept's own words, and what the concept itself makes of them
(methods.md 6.4, 6.5).

Captions of a word: "V* dog" and "photo of a V* dog" (a style: "painting in the style of V* art"); rows from V* to the
end of the text. Words before V* have the same states in all concepts, because the encoder reads from left to right,
while every concept wants another value there: they are left out, or may be averaged.

In company a word is asked once more behind every other subject's, "photo of a V1 dog and a V2 cat", because the encoder
gives it other states there, of which the captions above say nothing: rows from V* to the end of its noun. This is our
own and from no paper.

The values come from the concept's own edit, so any text-side edit can be asked: matrices, factors, gates, locked keys.
Scale s: V* at ``rows.at(s)``, changes times s. In float64 on the CPU from the text encoder's own precision on.

Departure: words that nobody taught (a rare token's row as it was) are the same vector in two concepts that want
different values of it. The second then gets another rare token's row: a constraint needs an address, not a certain one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import torch
from torch import Tensor

from backend.schemas.weights import TaughtToken
from worker.ml.conditioning import MatrixChange, TextEdit, TokenRows
from worker.ml.errors import InputInvalid, MethodUnsupported
from worker.ml.families.base import CrossAttention, DiffusionModel, Site
from worker.ml.gates import gated_change
from worker.ml.low_rank import LowRankChange
from worker.ml.training.captions import photo_caption

SAME_ROW = 1e-3
"""Vectors nearer than this share of their length are one word to the text encoder."""
SAME_STATE = 1e-6
"""What single precision can tell apart."""
RARE_LETTERS = "qxzjvkw"
"""Pairs of them are no words: words without a vector of their own may be moved there."""


@dataclass(frozen=True, eq=False)
class Asked:
    """An edit with its scale; ``tokens`` are the words it teaches, as it calls them."""

    edit: TextEdit
    scale: float
    tokens: Sequence[TaughtToken]


@dataclass(frozen=True, eq=False)
class WordRows:
    """Of one word: ``states`` [s, d] and ``changes`` {site: [s, o]} (what the concept adds to the base's keys and
    values there), float64 on the CPU; ``promised`` [s] is False at words before V*. ``rows``: V* as the merge has it;
    ``moved``: it was given another row than its own.
    """

    rows: TokenRows
    states: Tensor
    changes: Mapping[str, Tensor]
    promised: Tensor
    moved: bool = False


@torch.no_grad()
def word_rows(
    model: DiffusionModel, asked: Sequence[Asked], *, prefix: bool, company: bool = False
) -> list[list[WordRows]]:
    """For each asked edit its words, in their order; with ``company`` each subject's behind every other's as well.
    Raises `MethodUnsupported` (rows for every layer) and `PromptTooLong`.
    """
    spoken = iter(_all_states(model, asked, prefix))
    found: list[list[WordRows]] = []
    for each in asked:
        words: list[WordRows] = []
        for taught in each.tokens:
            own = next(spoken)
            locked = next(spoken)[0] if taught.token in each.edit.locked_words else own[0]
            word = _read(model, each, taught, own, locked)
            for other in (other for known in [*found, words] for other in known):
                if _same_word(word, other) and not _agree(word, other):
                    word = _moved(model, word, taught, prefix, [*found, words])
                    break
            words.append(word)
        found.append(words)
    return _in_company(model, asked, found) if company else found


def _in_company(
    model: DiffusionModel, asked: Sequence[Asked], found: Sequence[Sequence[WordRows]]
) -> list[list[WordRows]]:
    """``found`` with the rows of every subject's word behind every other subject's; words that were given another row
    than their own stay as they are.
    """
    known = [
        (each, taught, word)
        for each, words in zip(asked, found, strict=True)
        for taught, word in zip(each.tokens, words, strict=True)
    ]
    subjects = [(each, taught, word) for each, taught, word in known if taught.kind == "subject"]
    extended = {id(word): word for _, _, word in known}
    for each, taught, word in subjects:
        others = [(other, behind) for _, other, behind in subjects if behind is not word]
        if word.moved or not others:
            continue
        states = _states_behind(model, taught, word.rows.learned, others)
        locked = states
        if taught.token in each.edit.locked_words:
            locked = _states_behind(model, taught, each.edit.tokens[taught.token].at(0.0), others)
        changes: dict[str, Tensor] = {}
        for layer in model.cross_attention():
            changes |= _own_changes(each, layer, states, locked)
        extended[id(word)] = replace(
            word,
            states=torch.cat([word.states, states]),
            changes={name: torch.cat([word.changes[name], change]) for name, change in changes.items()},
            promised=torch.cat([word.promised, torch.ones(len(states), dtype=torch.bool)]),
        )
    return [[extended[id(word)] for word in words] for words in found]


def _states_behind(
    model: DiffusionModel,
    taught: TaughtToken,
    vectors: Tensor,
    others: Sequence[tuple[TaughtToken, WordRows]],
) -> Tensor:
    """States [s, d] of the word with these ``vectors``, from V* to its noun's last piece, behind each of ``others``."""
    end, free = model.token_ids("", {})[1], model.vocabulary_size + len(vectors)
    ids, places, known = list[list[int]](), list[tuple[int, int]](), [vectors]
    own = captions_of(taught.model_copy(update={"token": "own"}))[0]
    for other, behind in others:  # two may have one name, so here they have others
        learned = behind.rows.learned
        virtual = {
            "own": range(model.vocabulary_size, model.vocabulary_size + len(vectors)),
            "other": range(free, free + len(learned)),
        }
        free += len(learned)
        known.append(learned)
        head = f"{captions_of(other.model_copy(update={'token': 'other'}))[1]} and a"
        ids.append(model.token_ids(f"{head} {own}", virtual))
        places.append((model.token_ids(head, virtual).index(end), ids[-1].index(end)))
    table = torch.cat([each.to(model.device, model.dtype) for each in known])
    longest = max(stop for _, stop in places)
    encoded = model.encode_prompts(torch.tensor(ids)[:, :longest], table if len(table) else None).states
    return torch.cat(
        [row[start:stop] for row, (start, stop) in zip(encoded.double().cpu(), places, strict=True)]
    )


def captions_of(taught: TaughtToken) -> tuple[str, ...]:
    """The texts a word is asked with."""
    long = photo_caption(taught.token, taught.class_noun, taught.kind)
    return long[long.index("<") :], long


def read_sites(model: DiffusionModel) -> list[Site]:
    """Key and value of every layer in turn."""
    return [site for layer in model.cross_attention() for site in (layer.key, layer.value)]


def without_repeats(states: Tensor) -> Tensor:
    """``states`` [s, d] with rows that single precision cannot tell from an earlier one replaced by it."""
    near = torch.cdist(states, states) <= SAME_STATE * torch.linalg.vector_norm(states, dim=1)
    return states[near.long().argmax(dim=1)]


def _all_states(model: DiffusionModel, asked: Sequence[Asked], prefix: bool) -> list[tuple[Tensor, Tensor]]:
    """`_states` of every word in turn; where keys are locked, then once more with the row it started from."""
    texts = []
    for each in asked:
        for taught in each.tokens:
            rows = each.edit.tokens[taught.token]
            if rows.per_layer:
                raise MethodUnsupported(
                    f"<{taught.token}> has another vector for every layer, so its text states differ from layer to "
                    "layer: the closed form has one text for all of them."
                )
            texts.append((taught, rows.at(each.scale)))
            if taught.token in each.edit.locked_words:
                texts.append((taught, rows.at(0.0)))
    return _states(model, texts, prefix)


def _read(
    model: DiffusionModel, asked: Asked, taught: TaughtToken, own: tuple[Tensor, Tensor], locked: Tensor
) -> WordRows:
    """``own``: the word's states and which of them are promised."""
    states, promised = own
    rows = asked.edit.tokens[taught.token]
    changes: dict[str, Tensor] = {}
    for layer in model.cross_attention():
        changes |= _own_changes(asked, layer, states, locked)
    at_scale = rows.at(asked.scale).float()
    return WordRows(TokenRows(rows.start.float(), at_scale), states, changes, promised)


def _states(
    model: DiffusionModel, words: Sequence[tuple[TaughtToken, Tensor]], prefix: bool
) -> list[tuple[Tensor, Tensor]]:
    """(states [s, d], whether V* or behind it [s]) of all captions of each word with its vectors, encoded in one batch
    and no further than the longest: the encoder reads from left to right.
    """
    end = model.token_ids("", {})[1]
    ids: list[list[int]] = []
    places: list[list[tuple[int, int]]] = []
    vectors: list[Tensor] = []
    first = model.vocabulary_size
    for taught, rows in words:
        virtual = {taught.token: range(first, first + len(rows))}
        first += len(rows)
        vectors.append(rows.to(model.device, model.dtype))
        places.append([])
        for text in captions_of(taught):
            ids.append(model.token_ids(text, virtual))
            word = model.token_ids(text[: text.index("<")].strip(), {}).index(end)
            places[-1].append((word, ids[-1].index(end)))
    longest = 1 + max((last for each in places for _, last in each), default=0)
    known = torch.cat(vectors)
    batch = torch.tensor(ids)[:, :longest]
    states = iter(model.encode_prompts(batch, known if len(known) else None).states.double().cpu())
    found = []
    for each in places:
        chosen, promised = [], []
        for word, last in each:
            start = 1 if prefix else word
            chosen.append(next(states)[start : last + 1])
            promised.append(torch.arange(start, last + 1) >= word)
        found.append((torch.cat(chosen), torch.cat(promised)))
    return found


def _own_changes(asked: Asked, layer: CrossAttention, states: Tensor, locked: Tensor) -> dict[str, Tensor]:
    """What the edit adds to the base's key and value of ``states`` [s, d]; keys are read from ``locked`` [s, d]."""
    found = {}
    for site, read in ((layer.key, locked), (layer.value, states)):
        change, gate = asked.edit.sites.get(site.name), asked.edit.gated.get(site.name)
        scale, here = asked.scale, torch.zeros(len(states), len(site.weight), dtype=torch.float64)
        if change is not None and scale:
            here = scale * of_states(change, read)
        if gate is not None and scale:
            weight = site.weight.double().cpu()
            if change is not None:
                weight = weight + scale * change.dense().double().cpu()
            on_cpu = replace(gate, keys=gate.keys.cpu(), duals=gate.duals.cpu(), targets=gate.targets.cpu())
            here = here + gated_change(read, weight, [(on_cpu, scale)])
        if read is not states:
            here = here + (read - states) @ site.weight.double().cpu().T
        found[site.name] = here
    return found


def of_states(change: MatrixChange, states: Tensor) -> Tensor:
    """``states dW^T`` [s, o] in float64, through the factors where it has some."""
    if isinstance(change, LowRankChange) and change.down.ndim == 2:
        down, up = change.down.double().cpu(), change.up.double().cpu()
        return change.factor * ((states @ down.T) @ up.T)
    return states @ change.dense().double().cpu().T


def _same_word(one: WordRows, other: WordRows) -> bool:
    first, second = one.rows.learned, other.rows.learned
    if first.shape != second.shape or not first.numel():
        return False
    return bool((first - second).norm() <= SAME_ROW * second.norm())


def _agree(one: WordRows, other: WordRows) -> bool:
    """Whether V* itself, first of the first caption's rows, is wanted to read the same in both."""
    here, there = (torch.cat([each[0] for each in word.changes.values()]) for word in (one, other))
    return bool((here - there).norm() <= SAME_STATE * max(float(here.norm()), float(there.norm())))


def _moved(
    model: DiffusionModel,
    word: WordRows,
    taught: TaughtToken,
    prefix: bool,
    known: Sequence[Sequence[WordRows]],
) -> WordRows:
    """``word`` under the rows of rare letters: the same keys and values at another address. Raises `InputInvalid`."""
    taken = torch.cat([other.rows.learned for words in known for other in words] + [word.rows.learned])
    free: list[Tensor] = []
    for letters in permutations(RARE_LETTERS, 2):
        row = model.word_rows("".join(letters)).float().mean(dim=0)
        if bool(((torch.stack([*taken, *free]) - row).norm(dim=1) > SAME_ROW * row.norm()).all()):
            free.append(row)
        if len(free) == word.rows.vectors:
            break
    else:
        raise InputInvalid("The base model has no rare token left that could tell these words apart.")
    rows = torch.stack(free)
    ((states, promised),) = _states(model, [(taught, rows)], prefix)
    matrices = {site.name: site.weight.double().cpu() for site in read_sites(model)}
    changes = {
        name: change + (word.states - states) @ matrices[name].T for name, change in word.changes.items()
    }
    return WordRows(TokenRows(rows, rows), states, changes, promised, moved=True)
