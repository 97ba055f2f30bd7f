"""Storage: whole files or nothing, fresh keys, one root."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from backend.errors import InsufficientStorage
from backend.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "storage")


def test_put_and_open(storage: Storage) -> None:
    stored = storage.put(b"moon")
    assert stored.size_bytes == 4
    assert stored.sha256 == hashlib.sha256(b"moon").hexdigest()
    with storage.open(stored.key) as file:
        assert file.read() == b"moon"
    assert storage.put(b"moon").key != stored.key
    assert not list((storage.root / "staging").iterdir())


def test_adopt_moves_the_file(storage: Storage, tmp_path: Path) -> None:
    finished = tmp_path / "weights"
    finished.write_bytes(b"w" * 3_000_000)
    stored = storage.adopt(finished)
    assert not finished.exists()
    assert storage.path(stored.key).stat().st_size == 3_000_000
    assert list(storage.keys()) == [stored.key]
    assert list(storage.keys(older_than_s=60)) == []


def test_delete_twice(storage: Storage) -> None:
    key = storage.put(b"x").key
    storage.delete(key)
    storage.delete(key)
    with pytest.raises(FileNotFoundError):
        storage.open(key)


@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "", "ab/..", "ab/x\x00", "staging/x"])
def test_a_key_never_leaves_the_root(storage: Storage, key: str) -> None:
    with pytest.raises(ValueError, match="not a storage key"):
        storage.path(key)


def test_links_are_not_followed(storage: Storage, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    link = tmp_path / "link"
    link.symlink_to(secret)
    with pytest.raises(OSError, match="symbolic link"):
        storage.adopt(link)
    key = storage.put(b"x").key
    storage.path(key).unlink()
    storage.path(key).symlink_to(secret)
    with pytest.raises(OSError, match="symbolic link"):
        storage.open(key)


def test_low_water(tmp_path: Path) -> None:
    with pytest.raises(InsufficientStorage):
        Storage(tmp_path, low_water_bytes=1 << 60).require_space()
    Storage(tmp_path).require_space()


def test_staging_is_swept(storage: Storage) -> None:
    left = storage.stage()
    left.write_bytes(b"half")
    assert storage.sweep_staging(older_than_s=60) == 0
    os.utime(left, (0, 0))
    assert storage.sweep_staging(older_than_s=60) == 1
