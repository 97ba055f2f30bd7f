"""Jobs of different concepts in one call of a real, tiny denoiser: pictures as if alone, nobody pays for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backend.identifiers import new_id
from backend.schemas.executor import FromExecutor, ImageDone, Progress, RunJob, Succeeded
from backend.schemas.generations import GenerateSpec
from tests.ml.fixtures import model, one_thread, photos, tiny_folder
from tests.ml.teaching import stark, teach
from tests.ml.test_batches import Small
from worker.drawing import draw_together
from worker.executor import JobStopped
from worker.handlers import Workshop
from worker.ml.families.base import DiffusionModel
from worker.pipe_run import Reporter

__all__ = ["model", "one_thread", "photos", "tiny_folder"]
SPEC: dict[str, Any] = {
    "prompt": "x", "text": "a photo of a dog", "negative_prompt": "", "base": "tiny", "base_hash": "h", "weights": [],
    "num_images": 1, "seed": 3, "num_inference_steps": 4, "guidance_scale": 4.0, "scheduler": "dpmsolver++",
    "width": 32, "height": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def taught(
    model: DiffusionModel, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Input files of two concepts that were learned apart."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("one", "two"):
        rate = 0.02 if name == "one" else 0.05
        teach(model, [stark(photos)], folder / f"prior-{name}", learning_rate=rate).save(folder / name)
    return {name: str(folder / name) for name in ("one", "two", "broken")}


class Desk:
    """Reporters of jobs, what they sent, and who ended how."""

    def __init__(self, folder: Path, inputs: dict[str, str], base_folder: str = "") -> None:
        self.folder, self.inputs, self.base_folder = folder, inputs, base_folder
        self.sent: list[FromExecutor] = []
        self.ends: dict[str, Succeeded | JobStopped] = {}

    def reporter(self, job: str, weights: str = "", **changes: Any) -> Reporter:
        spec = {**SPEC, **changes}
        if weights:
            spec["text"] = "a photo of a <stark> dog"
            file = {"id": new_id(), "storage_key": weights, "sha256": ""}
            spec["weights"] = [{"file": file, "scale": 1.0, "tokens": ["stark"], "concepts": []}]
        staging = self.folder / job
        staging.mkdir(parents=True)
        run = RunJob(
            job=job, fence=1, kind="generate", spec=GenerateSpec(**spec).model_dump(mode="json"), inputs=self.inputs,
            staging=str(staging), checkpoints="", cache="", base_folder=self.base_folder,
        )  # fmt: skip
        return Reporter(run, self.sent.append)

    def ended(self, reporter: Reporter, outcome: Succeeded | JobStopped) -> None:
        assert reporter.job.job not in self.ends
        self.ends[reporter.job.job] = outcome

    def pixels(self, job: str, index: int = 0) -> Any:
        return np.asarray(Image.open(self.folder / job / f"image-{index}.png")).astype(int)

    def told(self, job: str, kind: type[FromExecutor]) -> list[Any]:
        return [each for each in self.sent if isinstance(each, kind) and each.job == job]  # type: ignore[union-attr]


def three(desk: Desk) -> list[Reporter]:
    return [
        desk.reporter("a", "one"),
        desk.reporter("b", "two", seed=9, guidance_scale=2.0),
        desk.reporter("c", num_images=2, seed=20),
    ]


def test_pictures_are_those_of_each_job_alone(
    model: DiffusionModel, taught: dict[str, str], tmp_path: Path
) -> None:
    watched = Small(model, 100)
    together = Desk(tmp_path / "together", taught)
    draw_together(watched, three(together), together.ended)  # type: ignore[arg-type]
    assert watched.calls == [8] * 4  # four pictures, guided, four steps: one call of the denoiser each
    assert {name: type(end) for name, end in together.ends.items()} == dict.fromkeys("abc", Succeeded)
    assert [done.index for done in together.told("c", ImageDone)] == [0, 1]
    last = together.told("c", Progress)[-1]
    assert (last.phase, last.step, last.total) == ("drawing", 8, 8)
    alone = Desk(tmp_path / "alone", taught)
    for reporter in three(alone):
        draw_together(model, [reporter], alone.ended)
        for index in range(reporter.job.spec["num_images"]):
            difference = alone.pixels(reporter.job.job, index) - together.pixels(reporter.job.job, index)
            assert np.abs(difference).max() <= 2
    assert np.abs(alone.pixels("a") - alone.pixels("b")).max() > 2


@pytest.mark.parametrize(
    "bad", [{"weights": "broken"}, {"text": "dog " * 40}, {"text": "a <wolf>"}, {"num_inference_steps": 0}]
)
def test_a_bad_job_is_left_out_and_the_others_are_drawn(
    model: DiffusionModel, taught: dict[str, str], tmp_path: Path, bad: dict[str, Any]
) -> None:
    desk = Desk(tmp_path, taught)
    reporters = [desk.reporter("bad", **bad), *three(desk)]
    draw_together(model, reporters, desk.ended)
    assert sorted(desk.ends) == ["a", "b", "c"]
    assert desk.told("bad", ImageDone) == []


@pytest.mark.parametrize(("request_", "reason"), [("cancel", "cancelled"), ("release", "released")])
def test_one_stops_within_a_step_and_the_others_come_to_their_end(
    model: DiffusionModel, taught: dict[str, str], tmp_path: Path, request_: str, reason: str
) -> None:
    desk = Desk(tmp_path, taught)
    reporters = three(desk)
    rows: list[int] = []

    class Asking(Small):
        def predict(self, noisy: Any, timesteps: Any, conditioning: Any) -> Any:
            rows.append(len(noisy))
            if len(rows) == 2:
                reporters[1].ask(request_)  # type: ignore[arg-type]
            return super().predict(noisy, timesteps, conditioning)

    draw_together(Asking(model, 100), reporters, desk.ended)  # type: ignore[arg-type]
    assert rows == [8, 8, 6, 6]
    assert str(desk.ends["b"]) == reason
    assert isinstance(desk.ends["a"], Succeeded)
    assert isinstance(desk.ends["c"], Succeeded)
    assert desk.told("b", ImageDone) == []


def test_a_full_device_draws_fewer_at_a_time(
    model: DiffusionModel, taught: dict[str, str], tmp_path: Path
) -> None:
    desk = Desk(tmp_path, taught)
    small = Small(model, 4)
    draw_together(small, three(desk), desk.ended)  # type: ignore[arg-type]
    assert sorted(desk.ends) == ["a", "b", "c"]
    assert set(small.calls) == {4}


def test_what_goes_wrong_in_the_shared_call_is_raised_with_nobody_ended(
    model: DiffusionModel, taught: dict[str, str], tmp_path: Path
) -> None:
    desk = Desk(tmp_path, taught)
    with pytest.raises(torch.OutOfMemoryError):
        draw_together(Small(model, 1), three(desk), desk.ended)  # type: ignore[arg-type]
    assert desk.ends == {}


def test_the_workshop_draws_on_the_base_of_the_jobs(
    tiny_folder: Path, taught: dict[str, str], tmp_path: Path
) -> None:
    desk = Desk(tmp_path, taught, str(tiny_folder))
    Workshop().handle_together(three(desk), desk.ended)
    assert sorted(desk.ends) == ["a", "b", "c"]
