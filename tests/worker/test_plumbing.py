"""The small parts: what errors mean, what is verified, what is said, who may hold a slot."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backend import failpoints
from backend.identifiers import new_id
from backend.schemas.bases import JudgesDescription
from backend.schemas.executor import ImageDone, Loss, Progress, RunJob
from backend.schemas.generations import GenerateSpec, GuidedAttention
from backend.schemas.presence import PresenceCheck
from backend.schemas.trainings import PinnedConcept, TrainSpec
from tests.worker import drill
from worker import device
from worker.bases import base_folders, keep_description, kept_description
from worker.executor_process import Died, executor_environment
from worker.pipe_run import Reporter
from worker.recipes import image_recipe, parameters_text, published_recipe
from worker.slot import Slot, SlotTaken
from worker.verification import OutputInvalid, verified_picture, verified_weights, weights_manifest

TRAIN = TrainSpec(
    concepts=[], method="custom-diffusion", base="drill", base_hash="d" * 64, params={}, seed=7, previews=[]
)
GENERATE = GenerateSpec(
    prompt="a photo of @stark", text="a photo of <stark> dog", negative_prompt="blurred", base="toy",
    base_hash="ab" * 32, weights=[], num_images=4, seed=2**32 - 2, num_inference_steps=20, guidance_scale=5.0,
    scheduler="dpmsolver++", width=64, height=96,
)  # fmt: skip


# ---- device


@pytest.mark.parametrize(
    ("error", "code", "sticky"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "gpu_out_of_memory", False),
        (MemoryError(), "gpu_out_of_memory", False),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "gpu_out_of_memory",
            False,
        ),
        (RuntimeError("CUDA error: device-side assert triggered"), "device_fault", True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "device_fault", True),
        (RuntimeError("CUDA error: unspecified launch failure"), "device_fault", True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), "device_fault", True),
        (RuntimeError("uncorrectable ECC error encountered"), "device_fault", True),
    ],
)
def test_errors_of_the_device_are_told_apart(error: Exception, code: str, sticky: bool) -> None:
    fault = device.classify(error)
    assert fault is not None
    assert (fault.code, fault.sticky, fault.retryable) == (code, sticky, sticky)
    outside = ValueError("outside")
    outside.__cause__ = error
    assert device.classify(outside) == fault


def test_other_errors_are_not_the_devices() -> None:
    assert device.classify(ValueError("shape mismatch")) is None
    assert device.classify(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


# ---- verification


def test_weights_are_read_again_before_they_are_published(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_bytes(drill.weights(TRAIN, 3))
    assert weights_manifest(good).steps == 3
    assert verified_weights(good, TRAIN).seed == 7
    with pytest.raises(OutputInvalid, match="another training"):
        verified_weights(good, TRAIN.model_copy(update={"seed": 8}))
    content = good.read_bytes()
    bad = {
        "poisoned": drill.weights(TRAIN, 3, poisoned=True),
        "cut": content[:-1],
        "longer": content + b"x",
        "empty": b"",
        "no header": b"\0" * 64,
        "huge header": (2**40).to_bytes(8, "little") + content[8:],
        "no manifest": _safetensors({"__metadata__": {}}, b""),
    }
    for name, damaged in bad.items():
        path = tmp_path / "bad"
        path.write_bytes(damaged)
        with pytest.raises(OutputInvalid):
            weights_manifest(path)
        assert name


@pytest.mark.parametrize(("dtype", "numpy"), [("F16", "<f2"), ("F64", "<f8")])
def test_infinite_values_are_found_in_every_type(tmp_path: Path, dtype: str, numpy: str) -> None:
    header = json.loads(drill.weights(TRAIN, 3)[8:].split(b"}}")[0] + b"}}")
    for value, fine in ((1.0, True), (np.inf, False)):
        data = np.array([1.0, value], numpy).tobytes()
        header["site.a.delta"] = {"dtype": dtype, "shape": [2], "data_offsets": [0, len(data)]}
        path = tmp_path / "w"
        path.write_bytes(_safetensors(header, data))
        if fine:
            weights_manifest(path)
        else:
            with pytest.raises(OutputInvalid):
                weights_manifest(path)


def _safetensors(header: dict[str, object], data: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def test_pictures_must_decode_and_have_their_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    drill.picture(1).save(path)
    assert Image.open(_written(tmp_path, verified_picture(path, (64, 64)))).format == "WEBP"
    with pytest.raises(OutputInvalid):
        verified_picture(path, (64, 65))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(OutputInvalid):
        verified_picture(path)


def _written(folder: Path, content: bytes) -> Path:
    path = folder / "thumbnail"
    path.write_bytes(content)
    return path


# ---- recipes


def test_the_recipe_stands_in_the_form_that_others_parse() -> None:
    recipe = image_recipe(GENERATE, 3)
    assert recipe.seed == 1  # seeds wrap at 32 bits
    assert parameters_text(recipe).splitlines() == [
        "a photo of <stark> dog",
        "Negative prompt: blurred",
        "Steps: 20, Sampler: DPM-Solver++ (2M), CFG scale: 5.0, Seed: 1, Size: 64x96, Model hash: ababababab, "
        f"Model: toy, Version: moongate {recipe.code_version}",
    ]


def test_how_a_picture_was_drawn_is_taken_from_the_executor_where_it_may_choose() -> None:
    """Another seed only of pictures that are looked at, guidance only where that was asked."""
    judges = JudgesDescription(name="j", hash="cd" * 32)
    who = PinnedConcept(id=new_id(), token="stark", class_noun="dog", kind="subject", photos=[])
    done = ImageDone(
        job="j", fence=1, index=0, seed=77, file="f", attention=GuidedAttention(scale=3.0, concepts=[who.id])
    )  # fmt: skip

    def told(guidance_of_missing: float | None) -> tuple[int, float, list[str]]:
        check = None
        if guidance_of_missing is not None:
            check = PresenceCheck(
                judges=judges, concepts=[who], plain_text="x", regions=[], retries=1,
                guidance_of_missing=guidance_of_missing,
            )  # fmt: skip
        spec = GENERATE.model_copy(update={"check": check, "attention_guidance": 0.5})
        recipe = published_recipe(spec, done)
        return recipe.seed, recipe.attention_guidance, recipe.attention_concepts

    assert told(3.0) == (77, 3.0, [who.id])
    assert told(0.0) == (77, 0.5, [])
    assert told(None) == (2**32 - 2, 0.5, [])


# ---- the executor's reports


def reporter(lease_s: float = 60.0) -> tuple[Reporter, list[object]]:
    job = RunJob(job="j", fence=1, kind="train", spec={}, inputs={}, staging="s", checkpoints="c", cache="k",
                 base_folder="", lease_s=lease_s)  # fmt: skip
    sent: list[object] = []
    return Reporter(job, sent.append), sent


def test_progress_is_throttled_but_phases_and_ends_are_not() -> None:
    told, sent = reporter()
    for step in range(1, 101):
        told.loss(step, 0.5)
        told.progress("training", step, 100)
    told.progress("saving", 100, 100)
    progress = [message for message in sent if isinstance(message, Progress)]
    assert [(message.phase, message.step) for message in progress] == [
        ("training", 1),
        ("training", 100),
        ("saving", 100),
    ]
    points = [point for message in sent if isinstance(message, Loss) for point in message.points]
    assert [step for step, _ in points] == list(range(1, 101))


def test_cancel_beats_release_beats_finish() -> None:
    told, _ = reporter()
    told.ask("finish")
    told.ask("release")
    assert told.asked == "release"
    told.ask("cancel")
    told.ask("finish")
    assert told.asked == "cancel"


def test_a_lease_that_nobody_renews_asks_for_release() -> None:
    told, _ = reporter(lease_s=0.1)
    assert told.asked is None
    time.sleep(0.15)
    assert told.asked == "release"
    told.renew()
    assert told.asked is None


# ---- bases, slot, environment


def test_descriptions_are_kept_until_the_folder_changes(tmp_path: Path) -> None:
    folder, cache = tmp_path / "bases" / "toy", tmp_path / "cache"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    assert base_folders(tmp_path / "bases", [folder, tmp_path / "nothing"]) == [folder]
    assert kept_description(folder, cache) is None
    keep_description(folder, cache, drill.BASE)
    assert kept_description(folder, cache) == drill.BASE
    (folder / "model_index.json").write_text("{ }")
    assert kept_description(folder, cache) is None


def test_a_slot_has_one_holder(tmp_path: Path) -> None:
    first, second = Slot(tmp_path, "cpu"), Slot(tmp_path, "cpu")
    first.take()
    with pytest.raises(SlotTaken):
        second.take()
    Slot(tmp_path, "gpu-1").take()
    first.leave()
    second.take()
    assert first.name == second.name


def test_the_executors_environment_holds_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONGATE_DATABASE_URL", "postgresql://u:secret@h/d")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    made = executor_environment(1)
    assert "secret" not in str(made)
    assert (made["HF_HUB_OFFLINE"], made["OMP_NUM_THREADS"], made["OMP_WAIT_POLICY"]) == ("1", "1", "PASSIVE")


def test_deaths_are_told_in_words() -> None:
    assert Died(-9).words == "it was killed by signal 9"
    assert Died(1).words == "it exited with status 1"
    assert Died(None).words == "it vanished"


# ---- failpoints


def test_failpoints_do_nothing_unless_they_are_named() -> None:
    failpoints.fp("publish.after_rename")
    assert failpoints.parse("a=kill; b=sleep:2;c=raise:file") == {
        "a": ("kill", ""),
        "b": ("sleep", "2"),
        "c": ("raise", "file"),
    }
    with pytest.raises(ValueError, match="unknown failpoint"):
        failpoints.parse("a=explode")


@pytest.mark.parametrize(("action", "status"), [("kill", -signal.SIGKILL), ("raise", 1), ("sleep:0.01", 0)])
def test_a_named_failpoint_acts(action: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from backend.failpoints import fp; fp('here')"],
        env={"MOONGATE_FAILPOINTS": f"here={action}", "PATH": "/usr/bin"}, cwd=Path(__file__).parents[2],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == status


def test_the_supervisor_loads_no_tensor_library() -> None:
    program = "import sys, worker.__main__, worker.celery_app; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False).returncode
        == 0
    )


def test_what_the_forkserver_preloads_starts_no_thread_pool() -> None:
    """A fork after a tensor operation may hang, so importing must not run one with threads (stack 2)."""
    program = (
        "import os, worker.handlers\n"
        "assert len(os.listdir('/proc/self/task')) == 1, os.listdir('/proc/self/task')\n"
    )
    environment = {**executor_environment(1), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-500:]
