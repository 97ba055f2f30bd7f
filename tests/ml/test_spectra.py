"""Decompositions: made once for a base, believed only when right, bounded, whatever other processes do."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch

from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.run import Cancelled, InProcessRun
from worker.ml.spectra import STALE_S, Spectra, Spectrum, decomposed

NAMES = ("site.conv_in", "site.time_embedding.linear_1", "site.conv_out")


@pytest.fixture
def kept(tiny_folder: Path, tmp_path: Path) -> DiffusionModel:
    return load_base(tiny_folder, cache_dir=tmp_path / "cache")


def matrices(model: DiffusionModel) -> dict[str, torch.Tensor]:
    return {name: model.denoiser.get_parameter(f"{name.removeprefix('site.')}.weight") for name in NAMES}


def files(model: DiffusionModel) -> dict[str, bytes]:
    assert model.cache_dir is not None
    return {path.name: path.read_bytes() for path in sorted(model.cache_dir.glob("spectra/*/*"))}


def same(one: Spectrum, other: Spectrum) -> bool:
    return all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


def test_a_decomposition_is_of_the_weight(kept: DiffusionModel) -> None:
    for weight in matrices(kept).values():
        found = decomposed(weight)
        torch.testing.assert_close(
            (found.left * found.values) @ found.right, weight.flatten(1), atol=1e-5, rtol=1e-5
        )
        assert all(each.dtype == torch.float32 for each in vars(found).values())


def test_it_is_made_once_and_read_again(kept: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Spectra(kept).of(matrices(kept))
    assert files(kept).keys() == {f"{name}.safetensors" for name in NAMES}

    def forbidden(weight: torch.Tensor) -> Spectrum:
        raise AssertionError("was kept")

    monkeypatch.setattr("worker.ml.spectra.decomposed", forbidden)
    again = Spectra(kept).of(matrices(kept))
    assert all(same(made[name], again[name]) for name in NAMES)


def test_without_a_place_nothing_is_kept(model: DiffusionModel) -> None:
    assert model.cache_dir is None
    assert Spectra(model).of(matrices(model)).keys() == set(NAMES)


def flip(content: bytes) -> bytes:
    """Other numbers in the middle of U: of four bytes one holds an exponent, wherever numbers begin."""
    place = len(content) // 3
    return content[:place] + bytes(byte ^ 0x7F for byte in content[place : place + 4]) + content[place + 4 :]


@pytest.mark.parametrize(
    "damage", [lambda content: content[:100], lambda content: b"junk", lambda content: b"", flip]
)
def test_a_damaged_or_half_written_file_is_made_again(kept: DiffusionModel, damage: object) -> None:
    made = Spectra(kept).of(matrices(kept))
    before = files(kept)
    assert kept.cache_dir is not None
    [victim] = kept.cache_dir.rglob(f"{NAMES[1]}.safetensors")
    victim.write_bytes(damage(victim.read_bytes()))  # type: ignore[operator]
    again = Spectra(kept).of(matrices(kept))
    assert all(same(made[name], again[name]) for name in NAMES)
    assert files(kept) == before


def test_the_file_of_another_weight_is_not_believed(kept: DiffusionModel) -> None:
    Spectra(kept).of(matrices(kept))
    touched = {name: 1.01 * weight for name, weight in matrices(kept).items()}
    found = Spectra(kept).of(touched)
    assert all(same(found[name], decomposed(weight)) for name, weight in touched.items())


def test_each_is_a_step_and_a_cancel_acts_between_two(kept: DiffusionModel) -> None:
    run = InProcessRun()
    run.on_step = lambda unit, done, *_: setattr(run, "request", "cancel" if done == 2 else None)
    with pytest.raises(Cancelled):
        Spectra(kept).of(matrices(kept), run)
    assert len(files(kept)) == 2


def test_the_room_is_bounded_and_the_base_used_longest_ago_goes_first(kept: DiffusionModel) -> None:
    """Two other bases; the whole may take two of three."""
    assert kept.cache_dir is not None
    root = kept.cache_dir / "spectra"
    Spectra(kept).of(matrices(kept))
    size = sum(map(len, files(kept).values()))
    for age, name in ((1, "recent"), (2, "old")):
        (root / name).mkdir()
        (root / name / "x.safetensors").write_bytes(b"0" * size)
        os.utime(root / name, (10_000.0 - age, 10_000.0 - age))
    [own] = [path for path in root.iterdir() if path.name not in ("recent", "old")]
    next(own.glob("*conv_out*")).unlink()
    Spectra(kept, most_bytes=2 * size + 10).of(matrices(kept))
    assert {path.name for path in root.iterdir()} == {own.name, "recent"}
    assert len(list(own.iterdir())) == len(NAMES)


def test_what_finds_no_room_is_used_and_not_kept(kept: DiffusionModel) -> None:
    found = Spectra(kept, most_bytes=10).of(matrices(kept))
    assert found.keys() == set(NAMES)
    assert files(kept) == {}


def test_a_place_that_cannot_be_written_costs_time_only(kept: DiffusionModel, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a directory should be")
    assert Spectra(kept).of(matrices(kept)).keys() == set(NAMES)


def test_staged_files_of_a_killed_process_are_removed(kept: DiffusionModel) -> None:
    Spectra(kept).of(matrices(kept))
    assert kept.cache_dir is not None
    [own] = (kept.cache_dir / "spectra").iterdir()
    dead, living = own / "dead.tmp", own / "living.tmp"
    for path in (dead, living):
        path.write_bytes(b"half")
    os.utime(dead, (dead.stat().st_mtime - 2 * STALE_S,) * 2)
    next(own.glob("*conv_out*")).unlink()
    Spectra(kept).of(matrices(kept))
    assert not dead.exists()
    assert living.exists()


def fill_and_empty(model: DiffusionModel, rounds: int) -> None:
    assert model.cache_dir is not None
    expected = {name: decomposed(weight) for name, weight in matrices(model).items()}
    for number in range(rounds):
        found = Spectra(model).of(matrices(model))
        assert all(same(found[name], expected[name]) for name in NAMES)
        for path in model.cache_dir.glob("spectra/*"):
            if number % 5 == 4:
                shutil.rmtree(path, ignore_errors=True)
            else:
                (path / f"{NAMES[number % 3]}.safetensors").unlink(missing_ok=True)


def test_processes_may_fill_and_empty_one_directory_at_once(kept: DiffusionModel) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fill_and_empty, args=(kept, 30)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert not any(name.endswith(".tmp") for name in files(kept))
