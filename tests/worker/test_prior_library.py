"""The administrator's folder of captioned pictures: read, sanitised by the darkroom, prepared once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from backend.identifiers import new_id
from backend.schemas.executor import RunJob
from backend.schemas.methods.custom_diffusion import CustomDiffusionParams
from backend.schemas.trainings import PinnedConcept, PinnedFile, TrainSpec
from backend.settings import Settings
from tests.backend.pictures import scene
from tests.ml.tiny_base import write_tiny_base
from worker.handlers import Workshop
from worker.ml.run import Cancelled, InProcessRun
from worker.ml.training.retrieval import LIBRARY
from worker.pipe_run import Reporter
from worker.prior_library import LONGEST_CAPTION, Limits, captions, prepare, prior_config


def put(folder: Path, name: str, number: int, caption: str | None = None, **options: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    scene(number).save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


def index(library: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((library / "index.json").read_text())
    return found


def test_captions_stand_beside_the_pictures_or_in_a_list(folder: Path, tmp_path: Path) -> None:
    put(folder, "a.jpg", 1, " a dog\n on the beach ")
    put(folder, "deep/b.png", 2, "overruled")
    put(folder, "c.webp", 3)
    put(folder, "long.png", 4, "x" * (LONGEST_CAPTION + 1))
    put(tmp_path, "outside.png", 5, "a secret")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "link.txt").write_text("a secret")
    lines = [
        {"file_name": "deep/b.png", "text": "a cat"},
        {"file_name": "../outside.png", "text": "a secret"},
        {"file_name": "missing.png", "text": "nothing"},
        {"file_name": 3, "text": ["no"]},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(["not json", *map(json.dumps, lines)]))
    assert captions(folder) == {"a.jpg": "a dog on the beach", "deep/b.png": "a cat"}


def test_pictures_are_sanitised_as_uploads_are_and_only_once(folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    put(folder, "turned.jpg", 1, "a dog", exif=exif)
    put(folder, "plain.png", 2, "a cat")
    put(folder, "tiny.png", 3, "a speck").write_bytes(b"no picture at all")
    library, run = tmp_path / "library", InProcessRun()
    prepare(folder, library, Limits(), run)
    found = index(library)
    assert found["tiny.png"]["refused"] == "unsupported-image"
    with Image.open(library / found["turned.jpg"]["file"]) as clean:
        assert clean.size == scene(1).size[::-1]
        assert (clean.format, dict(clean.getexif())) == ("JPEG", {})
    names = {found[name]["file"] for name in ("turned.jpg", "plain.png")}
    assert {path.name for path in library.iterdir()} == names | {"index.json"}
    stamps = {name: (library / name).stat().st_mtime_ns for name in names}
    put(folder, "new.png", 4, "an owl")
    (folder / "plain.txt").write_text("a red cat")
    prepare(folder, library, Limits(), run)
    assert {name: (library / name).stat().st_mtime_ns for name in names} == stamps
    assert index(library)["plain.png"]["caption"] == "a red cat"
    assert index(library)["new.png"]["caption"] == "an owl"


def test_the_limits_are_those_of_uploads(folder: Path, tmp_path: Path) -> None:
    put(folder, "a.png", 1, "a dog")
    prepare(folder, tmp_path / "library", Limits(max_upload_bytes=10), InProcessRun())
    assert index(tmp_path / "library")["a.png"]["refused"] == "file-too-large"


def test_what_was_done_before_a_cancel_is_kept(folder: Path, tmp_path: Path) -> None:
    for number in range(3):
        put(folder, f"{number}.png", number, "a dog")
    run = InProcessRun()
    run.on_step = lambda unit, done, *_: setattr(run, "request", "cancel" if done == 2 else None)
    with pytest.raises(Cancelled):
        prepare(folder, tmp_path / "library", Limits(), run)
    assert len(index(tmp_path / "library")) == 2


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    run = InProcessRun()
    prepare(tmp_path / "gone", tmp_path / "library", Limits(), run)
    assert [code for code, _ in run.notes] == ["prior_folder_unread"]


def test_a_training_takes_its_prior_images_from_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler, with what the supervisor tells the executor: folder and limits in, weights out."""
    base, staging = write_tiny_base(tmp_path / "base"), tmp_path / "staging"
    staging.mkdir()
    for number in range(4):
        put(folder, f"{number}.png", number, "photo of a dog")
    photos = [put(tmp_path, f"taught-{number}.png", 10 + number) for number in range(3)]
    monkeypatch.setattr("worker.device.prepare", lambda threads: "this CPU")
    workshop = Workshop()
    settings = Settings(data_dir=tmp_path, prior_folder=folder)
    ready = workshop.start(
        {
            "threads": 1,
            "cache": str(tmp_path / "cache"),
            "judges": [],
            "base_folders": [str(base)],
            **prior_config(settings),
        }
    )
    params = CustomDiffusionParams(steps=1, batch_size=1, prior="folder", prior_images=4, preview_every=0)
    pinned = [PinnedFile(id=str(path), storage_key=str(path), sha256="") for path in photos]
    concept = PinnedConcept(id=new_id(), token="stark", class_noun="dog", kind="subject", photos=pinned)
    spec = TrainSpec(
        concepts=[concept], method="custom-diffusion", base="base", base_hash=ready.bases[0].hash,
        params=params.model_dump(mode="json"), seed=1, previews=[],
    )  # fmt: skip
    job = RunJob(
        job="j", fence=1, kind="train", spec=spec.model_dump(mode="json"), inputs={str(p): str(p) for p in photos},
        staging=str(staging), checkpoints=str(tmp_path / "checkpoints"), cache=str(tmp_path / "cache"),
        base_folder=str(base), lease_s=600.0,
    )  # fmt: skip
    done = workshop.handle(job, Reporter(job, lambda message: None))
    assert (staging / done.files["weights"]).is_file()
    library = tmp_path / "cache/prior" / LIBRARY
    assert len(index(library)) == 4
    assert len(list((tmp_path / "cache/prior").rglob("*.safetensors"))) == 4
