"""Every stage of `make base-model` learns, saves, goes on; and what comes out loads as Stable Diffusion does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from worker.ml.evaluation.judges import load_judges
from worker.ml.families import load_base
from worker.ml.toyworld.autoencoder import new_autoencoder, psnr, scene_pixels, train_autoencoder
from worker.ml.toyworld.budget import Budget
from worker.ml.toyworld.captions import caption
from worker.ml.toyworld.denoiser import SceneRing
from worker.ml.toyworld.denoiser_training import STAGES, stage_at, train_denoiser
from worker.ml.toyworld.export import export_base
from worker.ml.toyworld.judge_training import individuals_of, subject_loss, train_image_text, train_subject
from worker.ml.toyworld.measure import curve
from worker.ml.toyworld.scenes import FIRST, WHOLE, SpriteBank, sample_scene
from worker.ml.toyworld.tokenizer import save_tokenizer, train_tokenizer
from worker.ml.toyworld.world import HELD_OUT


class Steps(Budget):
    """A budget of steps, so that a test does the same work on any machine."""

    last: int = 0

    @classmethod
    def of(cls, log: Path, first: int, last: int) -> Steps:
        budget = cls(1e9, log, start_step=first, report_every=1)
        budget.last = last
        return budget

    def steps(self, endless: bool = False):  # type: ignore[no-untyped-def]
        for step in range(self.start_step, self.last):
            self._step = step
            yield step


@pytest.fixture(scope="module")
def ring(bank: SpriteBank) -> SceneRing:
    rng = np.random.default_rng(0)
    tokenizer = train_tokenizer(caption(sample_scene(bank, rng), rng) for _ in range(500))
    torch.manual_seed(0)
    return SceneRing(new_autoencoder().eval().requires_grad_(False), bank, tokenizer, 1.0, capacity=40)


def test_the_ring_keeps_the_newest(ring: SceneRing) -> None:
    rng = np.random.default_rng(0)
    small = SceneRing(ring.vae, ring.bank, ring.tokenizer, 0.5, capacity=10)
    small.add(rng, WHOLE, 8)
    first = list(small.scenes)
    small.add(rng, WHOLE, 5)
    assert len(small.scenes) == len(small.latents) == 10
    assert small.scenes[3:8] == first[3:8]
    assert not set(map(id, small.scenes[:3])) & set(map(id, first))
    latents, ids = small.batch(rng, 4)
    assert latents.shape == (4, 4, 16, 16)
    assert latents.dtype == torch.float32
    assert ids.shape == (4, 40)


def test_a_curriculum_widens_with_the_budget() -> None:
    stages = [stage_at(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert stages[0] == FIRST
    assert stages[-1] == STAGES[-1][1]
    for measure in ("nouns", "designers", "jitter", "pairs", "sizes", "styles"):
        reached = [getattr(stage, measure) for stage in stages]
        assert reached == sorted(reached), measure


def test_denoiser_training_goes_on_where_it_stopped(ring: SceneRing, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    train_denoiser(ring, tmp_path, Steps.of(log, 0, 2))
    saved = load_file(tmp_path / "state.safetensors")
    assert curve(log)["steps"] == 2
    resumed = Budget.resumed(100, log)
    assert resumed.start_step == 2
    train_denoiser(ring, tmp_path, Steps.of(log, 2, 3))
    again = load_file(tmp_path / "state.safetensors")
    counts = {key: int(value) for key, value in again.items() if key.startswith("t.")}
    assert set(counts.values()) == {3}
    moved = [key for key in saved if key.startswith("raw.") and not torch.equal(saved[key], again[key])]
    assert len(moved) > 100
    change = max((saved[key] - again[key]).abs().max().item() for key in moved)
    assert change < 0.01


def test_the_autoencoder_learns_and_the_polish_keeps_its_latents(bank: SpriteBank, tmp_path: Path) -> None:
    pixels = scene_pixels(bank, np.random.default_rng(9), 4, 64)
    torch.manual_seed(1)
    vae = train_autoencoder(bank, tmp_path, Steps.of(tmp_path / "log", 0, 8))
    before = vae.encode(pixels).latent_dist.mode()
    polished = train_autoencoder(bank, tmp_path, Steps.of(tmp_path / "log2", 0, 2), decoder_only=True)
    assert torch.allclose(polished.encode(pixels).latent_dist.mode(), before, atol=1e-5)
    assert psnr(polished, pixels) > psnr(new_autoencoder(), pixels)


def test_the_subject_loss_prefers_one_cluster_an_individual() -> None:
    number = torch.tensor([0, 0, 1, 1])
    apart = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1]), 3).float()
    mixed = torch.nn.functional.one_hot(torch.tensor([0, 1, 0, 1]), 3).float()
    assert subject_loss(apart, number) < 0.01 < subject_loss(mixed, number)


def test_judges_never_learn_from_a_held_out_subject(bank: SpriteBank) -> None:
    learnt = {key for keys in individuals_of(bank).values() for key in keys}
    assert learnt
    assert not learnt & {subject.key for subject in HELD_OUT}


def test_the_export_is_a_folder_of_stable_diffusions_classes(ring: SceneRing, tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    save_tokenizer(ring.tokenizer, work / "tokenizer")
    ring.vae.save_pretrained(work / "autoencoder")
    (work / "scale.txt").write_text("0.4")
    train_denoiser(ring, work / "denoiser", Steps.of(work / "log", 0, 1))
    train_subject(ring.bank, None, work / "judges", Steps.of(work / "log2", 0, 1))
    train_image_text(ring.bank, ring.tokenizer, None, work / "judges", Steps.of(work / "log3", 0, 1))
    export_base(work, out)
    export_base(work, out)

    model = load_base(out)
    assert model.description.id == "toyworld"
    assert model.description.resolution == 64
    assert max(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 16_000_000
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 27_000_000
    assert load_judges(out / "judges").text_features(["a dog"]).norm().item() == pytest.approx(1, abs=1e-4)

    pipeline = StableDiffusionPipeline.from_pretrained(out, local_files_only=True, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(
        "a photo of a dog", num_inference_steps=2, height=64, width=64, output_type="np"
    ).images
    assert pictures.shape == (1, 64, 64, 3)
    assert np.isfinite(pictures).all()
