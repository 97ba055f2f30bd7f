"""Checkpoints either verify or do not exist."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from worker.ml.training.cadence import Cadence
from worker.ml.training.checkpoint import FILES, Checkpoint, load_newest, save_checkpoint


def state(step: int) -> Checkpoint:
    return Checkpoint(
        step,
        {"w": torch.full((3, 2), float(step))},
        {"w/exp_avg": torch.ones(3, 2), "w/step": torch.tensor(float(step))},
        {"loss": 0.1 + 0.2, "fingerprint": "x"},
    )


def test_a_round_trip_is_exact(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(7))
    found, discarded = load_newest(tmp_path)
    assert found is not None
    assert (found.step, found.scalars, discarded) == (7, {"loss": 0.1 + 0.2, "fingerprint": "x"}, [])
    assert torch.equal(found.tensors["w"], state(7).tensors["w"])
    assert torch.equal(found.optimiser["w/step"], torch.tensor(7.0))


def test_two_newest_are_kept_by_number(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt-10", "ckpt-100"]


def test_nothing_is_pickled(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state(1))
    names = {"tensors.safetensors", "optimiser.safetensors", "scalars.json", "manifest.json"}
    assert {file.name for file in path.iterdir()} == names


@pytest.mark.parametrize(
    "file", ["tensors.safetensors", "optimiser.safetensors", "scalars.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_one_is_reported_and_the_older_used(tmp_path: Path, file: str, damage: str) -> None:
    save_checkpoint(tmp_path, state(1))
    target = save_checkpoint(tmp_path, state(2)) / file
    content = bytearray(target.read_bytes())
    if damage == "gone":
        target.unlink()
    elif damage == "cut":
        target.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 4
        target.write_bytes(content)
    found, discarded = load_newest(tmp_path)
    assert found is not None
    assert (found.step, discarded) == (1, ["ckpt-2"])


def test_an_unfinished_one_does_not_count(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1)).rename(tmp_path / "ckpt-1.tmp")
    assert load_newest(tmp_path) == (None, [])
    save_checkpoint(tmp_path, state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt-2"]


def test_a_valid_one_goes_only_for_a_newer_valid_one(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step))
    (tmp_path / "ckpt-2" / "manifest.json").write_text("{}")
    save_checkpoint(tmp_path, state(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt-1", "ckpt-3"]


def test_a_damaged_one_of_the_same_step_is_written_anew(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state(5))
    (path / "scalars.json").write_text(json.dumps({"step": 6}))
    save_checkpoint(tmp_path, state(5))
    assert load_newest(tmp_path)[0] is not None


def test_f17_a_full_disk_leaves_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1))
    for file in (*FILES, "manifest.json"):

        def full(name: str, file: str = file) -> None:
            if name == file:
                raise OSError(errno.ENOSPC, "full")

        with pytest.raises(OSError, match="full"):
            save_checkpoint(tmp_path, state(2), full)
        assert [path.name for path in tmp_path.iterdir()] == ["ckpt-1"]
    found, discarded = load_newest(tmp_path)
    assert (found and found.step, discarded) == (1, [])


def test_no_directory_is_no_checkpoint(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "none") == (None, [])


def test_the_cadence_stretches_where_writing_is_dear() -> None:
    now = 0.0
    cadence = Cadence(60.0, clock=lambda: now)
    now = 59.0
    assert not cadence.due()
    assert cadence.affordable()
    now = 60.0
    assert cadence.due()
    now = 70.0
    cadence.written(started_s=60.0)
    now = 70.0 + 199.0
    assert not cadence.due()
    assert not cadence.affordable()
    now = 70.0 + 200.0
    assert cadence.due()
