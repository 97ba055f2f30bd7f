"""Training of the two judges (`worker.ml.evaluation.judges`), each for a budget of wall time.

**Image and text.** CLIP's symmetric cross-entropy on a batch of fresh scenes with captions. Every scene
brings a second, wrong caption that differs in one word group (object, colour, place, one of a pair), so that
a batch holds the distinctions that matter; and heads that are thrown away afterwards learn the list of
(object, colour) and the place directly. So that the judge reads a drawing nobody showed it, its bank bends and
recolours what it draws and holds hundreds of further drawings of the classes (`class_drawings`), and two objects in
five are of two hundred further classes: what two designers' drawings of one thing have in common is learnt on many.

**Subject.** Supervised contrastive (Khosla et al. 2020, eq. 2): a batch holds a few classes, of each several
designers' drawings, of each two pictures at different places, sizes, turns and lights. Besides the classes of
the world, the further classes are individuals here too: what makes one drawing this one and not another
must be learnt on many.

Both see a share of pictures after a round trip through the autoencoder, which is how generated pictures look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, cross_entropy, interpolate
from transformers import CLIPTokenizer

from worker.ml.evaluation.judges import CHANNELS, ImageTextJudge, SubjectJudge
from worker.ml.toyworld.budget import Budget
from worker.ml.toyworld.captions import caption, place_phrase
from worker.ml.toyworld.places import Rng
from worker.ml.toyworld.scenes import Curriculum, Placed, Scene, SpriteBank, draw, sample_scene
from worker.ml.toyworld.sprites import SpriteKey
from worker.ml.toyworld.tokenizer import token_ids
from worker.ml.toyworld.world import COLOURS, HELD_OUT, NOUNS, PLACES, STYLES

LEARNING_RATE = 2e-3
SAVE_EVERY = 250
IMAGE_TEXT_STATE, SUBJECT_STATE = "image_text_state.safetensors", "subject_state.safetensors"
SCENES = 48
CLASSES_A_BATCH, DRAWINGS_A_CLASS, VIEWS = 6, 4, 2
TEMPERATURE = 0.1
FURTHER_SHARE = 0.4
LONGEST_NAME = 9
GROUNDS = (*PLACES, *COLOURS)
TINTS = (None, *COLOURS)
JUDGED = Curriculum(designers=1000, pairs=0.4, tints=0.4, styles=0.1, sizes=0.15)


@dataclass
class RoundTrips:
    """Pictures after a round trip through the autoencoder: a ring, because a trip costs as much as several
    training steps.
    """

    vae: AutoencoderKL
    per_step: int = 2

    @torch.no_grad()
    def through(self, pixels: Tensor, rng: Rng) -> Tensor:
        """``pixels`` [B, 3, 64, 64] with ``per_step`` rows at random replaced by their reconstruction."""
        rows = torch.from_numpy(rng.permutation(len(pixels))[: self.per_step].copy())
        pixels[rows] = self.vae.decode(self.vae.encode(pixels[rows]).latent_dist.mode()).sample.clamp(-1, 1)
        return pixels


def roughened(pixels: Tensor, rng: Rng) -> Tensor:
    """Light, contrast, slight tint of the light, blur and noise, drawn for each picture; [B, 3, 64, 64] in
    [-1, 1].
    """
    count = len(pixels)

    def drawn(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, channels, 1, 1)).astype(np.float32))

    soft = interpolate(avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
    blur = drawn(-1.0, 1.0).clamp(min=0)
    out = pixels * (1 - blur) + soft * blur
    out = out * drawn(0.8, 1.15) + drawn(-0.12, 0.12) + drawn(-0.06, 0.06, 3)
    noise = torch.from_numpy(rng.standard_normal(out.shape, dtype=np.float32))
    return (out + noise * drawn(0.0, 0.06)).clamp(-1, 1)


def pictures(scenes: list[Scene], bank: SpriteBank, trips: RoundTrips | None, rng: Rng) -> Tensor:
    """``scenes`` as a judge sees them while it learns, [len(scenes), 3, 64, 64] in [-1, 1]."""
    drawn = np.stack([draw(scene, bank, 64) for scene in scenes]).transpose(0, 3, 1, 2)
    pixels = torch.from_numpy(np.ascontiguousarray(drawn)) * 2 - 1
    return roughened(pixels if trips is None else trips.through(pixels, rng), rng)


# ---- image and text


def further_classes(bank: SpriteBank, tokenizer: CLIPTokenizer) -> tuple[str, ...]:
    """Classes of ``bank`` beyond the world's, of two drawings or more, whose names leave room in a caption."""
    drawings = Counter(key.noun for key in bank.sprites if key.noun not in NOUNS)
    several = sorted(noun for noun, count in drawings.items() if count >= 2)
    return tuple(noun for noun in several if len(tokenizer(noun)["input_ids"]) - 2 <= LONGEST_NAME)


def widened(scene: Scene, bank: SpriteBank, further: tuple[str, ...], rng: Rng) -> Scene:
    """``scene`` with some objects exchanged for things of ``further`` classes."""

    def exchanged(placed: Placed) -> Placed:
        if not further or rng.random() >= FURTHER_SHARE:
            return placed
        keys = bank.trained(further[int(rng.integers(len(further)))])
        return replace(placed, key=keys[int(rng.integers(len(keys)))])

    return replace(scene, objects=tuple(exchanged(placed) for placed in scene.objects))


def wrong_caption(scene: Scene, rng: Rng, further: tuple[str, ...] = ()) -> str:
    """A caption that differs from ``scene`` in one thing: an object, its colour, the place, or one of a pair
    gone.
    """
    which = int(rng.integers(len(scene.objects)))
    placed = scene.objects[which]
    kind = int(rng.choice(4, p=(0.5, 0.2, 0.15, 0.15)))
    if kind == 0:
        same_kind = NOUNS if placed.key.noun in NOUNS else further
        noun = _other(same_kind, {o.key.noun for o in scene.objects}, rng)
        return caption(_with(scene, which, replace(placed, key=SpriteKey(noun, ""))), rng)
    if kind == 1:
        colour = _other(tuple(COLOURS), {placed.colour or ""}, rng)
        return caption(_with(scene, which, replace(placed, colour=colour)), rng)
    if kind == 2 and len(scene.objects) == 2:
        return caption(replace(scene, objects=(placed,)), rng)
    place = _other(GROUNDS, {scene.place}, rng)
    bare = replace(scene, place=place)
    text = caption(bare, rng)
    phrase = place_phrase(place, rng)
    return text if _names(text, place) else f"{text} {phrase}"


def _other(names: tuple[str, ...], taken: set[str], rng: Rng) -> str:
    free = [name for name in names if name not in taken]
    return free[int(rng.integers(len(free)))]


def _with(scene: Scene, which: int, placed: Placed) -> Scene:
    return replace(scene, objects=tuple(placed if i == which else o for i, o in enumerate(scene.objects)))


def _names(text: str, place: str) -> bool:
    return any(text.endswith(phrase) for phrase in PLACES.get(place, (f"{place} background",)))


class Lessons(nn.Module):
    """Heads for training only: which objects and which (object, colour) are there, the place and the style.
    ``classes``: the world's nouns and then the further ones; colours are asked of the world's alone.
    """

    def __init__(self, classes: tuple[str, ...] = NOUNS) -> None:
        super().__init__()
        self.classes = classes
        self.nouns = nn.Linear(2 * CHANNELS[-1], len(classes))
        self.things = nn.Linear(2 * CHANNELS[-1], len(NOUNS) * len(TINTS))
        self.grounds = nn.Linear(2 * CHANNELS[-1], len(GROUNDS))
        self.styles = nn.Linear(2 * CHANNELS[-1], len(STYLES))

    def loss(self, pooled: Tensor, scenes: list[Scene]) -> Tensor:
        """Sum of the losses; ``pooled`` [B, 320]."""
        nouns = torch.zeros(len(scenes), len(self.classes))
        things = torch.zeros(len(scenes), len(NOUNS) * len(TINTS))
        for row, named, scene in zip(things, nouns, scenes, strict=True):
            for placed in scene.objects:
                named[self.classes.index(placed.key.noun)] += 1 / len(scene.objects)
                if placed.key.noun in NOUNS:
                    row[NOUNS.index(placed.key.noun) * len(TINTS) + TINTS.index(placed.colour)] = 1
        ground = torch.tensor([GROUNDS.index(scene.place) for scene in scenes])
        style = torch.tensor([list(STYLES).index(scene.style) for scene in scenes])
        listed = binary_cross_entropy_with_logits(self.things(pooled), things) * len(TINTS)
        total: Tensor = (
            listed
            + cross_entropy(self.nouns(pooled), nouns)
            + 0.3 * cross_entropy(self.grounds(pooled), ground)
            + 0.3 * cross_entropy(self.styles(pooled), style)
        )
        return total


def train_image_text(
    bank: SpriteBank, tokenizer: CLIPTokenizer, trips: RoundTrips | None, folder: Path, budget: Budget
) -> ImageTextJudge:
    """Train for the budget; goes on from ``folder`` where there is a state."""
    torch.manual_seed(3)
    further = further_classes(bank, tokenizer)
    judge = ImageTextJudge(len(tokenizer), int(tokenizer.eos_token_id))
    lessons = Lessons((*NOUNS, *further))
    if (folder / SUBJECT_STATE).exists():
        stored = load_file(folder / SUBJECT_STATE)
        tower = {key[9:]: value for key, value in stored.items() if key.startswith("w.images.")}
        judge.images.load_state_dict(tower)

    def loss(rng: Rng) -> Tensor:
        scenes = [widened(sample_scene(bank, rng, JUDGED), bank, further, rng) for _ in range(SCENES)]
        texts = [caption(scene, rng) for scene in scenes]
        texts += [wrong_caption(scene, rng, further) for scene in scenes]
        pooled = judge.images(pictures(scenes, bank, trips, rng))
        seen = nn.functional.normalize(judge.image_projection(pooled), dim=1)
        read = judge.encode_texts(torch.tensor(token_ids(tokenizer, texts)))
        logits = seen @ read.T * judge.log_scale.clamp(max=4.0).exp()
        truth = torch.arange(SCENES)
        contrast = cross_entropy(logits, truth) + cross_entropy(logits[:, :SCENES].T, truth)
        return contrast + lessons.loss(pooled, scenes)

    _train(
        nn.ModuleDict({"judge": judge, "lessons": lessons}),
        loss,
        folder / IMAGE_TEXT_STATE,
        budget,
        3,
    )
    return judge


# ---- subjects


@dataclass(frozen=True)
class Individual:
    """A drawing, perhaps tinted: "Stark", or "the blue one of these teapots"."""

    key: SpriteKey
    colour: str | None


def individuals_of(bank: SpriteBank) -> dict[str, list[SpriteKey]]:
    """Class -> drawings a judge may learn from; held-out subjects and the held-out set are not among them."""
    withheld = {subject.key for subject in HELD_OUT}
    classes: dict[str, list[SpriteKey]] = {}
    for key in bank.sprites:
        if key not in withheld and key.designer != "openmoji":
            classes.setdefault(key.noun, []).append(key)
    return {noun: keys for noun, keys in classes.items() if len(keys) >= 2}


def portrait(individual: Individual, rng: Rng) -> Scene:
    """One individual somewhere, anyhow: strong jitter of size, position, turn, light and place."""
    side = float(rng.uniform(0.34, 0.95))
    reach = max(0.04, 0.5 - 0.55 * side)
    x, y = 0.5 + rng.uniform(-reach, reach), 0.53 + rng.uniform(-reach, reach)
    turn = float(rng.normal(0, 9)) if rng.random() < 0.7 else 0.0
    placed = Placed(
        individual.key, individual.colour, side, float(x), float(y), bool(rng.random() < 0.5), turn
    )
    ground = GROUNDS[int(rng.integers(len(GROUNDS)))]
    return Scene(
        (placed,), ground, "photo", "normal", int(rng.integers(2**31)), float(rng.uniform(0.78, 1.15))
    )


def subject_loss(features: Tensor, number: Tensor) -> Tensor:
    """Supervised contrastive loss; ``features`` [B, d] unit rows, ``number`` [B] names the individual of each
    row.
    """
    same = number[:, None] == number[None, :]
    itself = torch.eye(len(number), dtype=torch.bool)
    logits = (features @ features.T / TEMPERATURE).masked_fill(itself, -1e9)
    log_share = logits - logits.logsumexp(1, keepdim=True)
    positive = (same & ~itself).float()
    return -((log_share * positive).sum(1) / positive.sum(1)).mean()


def subject_batch(classes: dict[str, list[SpriteKey]], rng: Rng) -> tuple[list[Scene], Tensor]:
    """Scenes and the individual's number of each: a few classes, several designers, sometimes two tints of
    one drawing.
    """
    names = list(classes)
    known, further = [n for n in names if n in NOUNS], [n for n in names if n not in NOUNS]
    chosen = [known[i] for i in rng.permutation(len(known))[: CLASSES_A_BATCH // 2]]
    chosen += [further[i] for i in rng.permutation(len(further))[: CLASSES_A_BATCH - len(chosen)]]
    individuals: list[Individual] = []
    for noun in chosen:
        keys = classes[noun]
        for i in rng.permutation(len(keys))[:DRAWINGS_A_CLASS]:
            tint = noun in NOUNS and rng.random() < 0.25
            individuals.append(Individual(keys[int(i)], str(rng.choice(list(COLOURS))) if tint else None))
    number = torch.arange(len(individuals)).repeat(VIEWS)
    return [portrait(one, rng) for _ in range(VIEWS) for one in individuals], number


def train_subject(bank: SpriteBank, trips: RoundTrips | None, folder: Path, budget: Budget) -> SubjectJudge:
    """Train for the budget; goes on from ``folder`` where there is a state."""
    torch.manual_seed(4)
    judge, classes = SubjectJudge(), individuals_of(bank)

    def loss(rng: Rng) -> Tensor:
        scenes, number = subject_batch(classes, rng)
        return subject_loss(judge(pictures(scenes, bank, trips, rng)), number)

    _train(judge, loss, folder / SUBJECT_STATE, budget, 4)
    return judge


# ---- both


def _train(
    module: nn.Module, loss_of: Callable[[Rng], Tensor], state: Path, budget: Budget, seed: int
) -> None:
    """AdamW for the budget, saving weights and moments to ``state``. Leaves ``module`` in evaluation mode."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = dict(module.named_parameters())
    optimiser = torch.optim.AdamW(parameters.values(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.02)
    if state.exists():
        _restore(module, parameters, optimiser, load_file(state))
    rng = np.random.default_rng([seed, budget.start_step])
    module.train()
    smooth: float | None = None
    for step in budget.steps():
        for group in optimiser.param_groups:
            group["lr"] = budget.learning_rate(LEARNING_RATE)
        loss = loss_of(rng)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimiser.step()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        budget.report(step, SCENES, loss=smooth)
        if step % SAVE_EVERY == SAVE_EVERY - 1:
            _save(module, parameters, optimiser, state)
    _save(module, parameters, optimiser, state)
    module.eval()


def _save(
    module: nn.Module, parameters: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer, path: Path
) -> None:
    tensors = {f"w.{name}": value for name, value in module.state_dict().items()}
    for name, parameter in parameters.items():
        moments = optimiser.state.get(parameter, {})
        tensors |= {f"o.{name}.{key}": value.reshape(-1) for key, value in moments.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def _restore(
    module: nn.Module,
    parameters: dict[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
) -> None:
    module.load_state_dict({key[2:]: value for key, value in tensors.items() if key.startswith("w.")})
    for name, parameter in parameters.items():
        if f"o.{name}.step" in tensors:
            optimiser.state[parameter] = {
                "step": tensors[f"o.{name}.step"].reshape(()).clone(),
                "exp_avg": tensors[f"o.{name}.exp_avg"].view_as(parameter).clone(),
                "exp_avg_sq": tensors[f"o.{name}.exp_avg_sq"].view_as(parameter).clone(),
            }
