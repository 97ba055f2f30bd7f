"""A studio of its own for every test, over HTTP, with a worker that the test steers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from backend import migrate
from backend.main import create_app
from backend.settings import Settings
from backend.studio import Studio
from tests.backend.pictures import photo
from tests.backend.workshop import Workshop
from tests.servers import Servers

ORIGIN = "http://127.0.0.1"


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str:
    """SQLite; a test that is parametrised indirectly with "postgres" gets an empty database of the real server."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return ""
    servers: Servers = request.getfixturevalue("servers")
    return servers.fresh_database()


on_both_databases = pytest.mark.parametrize(
    "database_url", ["sqlite", pytest.param("postgres", marks=pytest.mark.servers)], indirect=True
)


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(data_dir=tmp_path / "data", database_url=database_url, low_water_bytes=0, log_json=True)


@pytest.fixture
def app(settings: Settings) -> Iterator[FastAPI]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    migrate.upgrade(settings)
    yield create_app(settings)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url=ORIGIN) as client:
        yield client


@pytest.fixture
def studio(app: FastAPI) -> Studio:
    opened: Studio = app.state.studio
    return opened


@pytest.fixture
def workshop(client: TestClient, studio: Studio) -> Workshop:
    shop = Workshop(studio)
    shop.open()
    return shop


class Api:
    """The client with what most tests begin with."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def concept(self, name: str = "Stark", photos: int = 0, **fields: Any) -> dict[str, Any]:
        body = {"name": name, "class_noun": "dog", **fields}
        made: dict[str, Any] = self.client.post("/api/v1/concepts", json=body).raise_for_status().json()
        if photos:
            self.photos(made["id"], *(photo(seed) for seed in range(photos)))
        return made

    def photos(self, concept_id: str, *contents: bytes) -> dict[str, Any]:
        files = [("files", (f"{index}.jpg", content)) for index, content in enumerate(contents)]
        answer = self.client.post(f"/api/v1/concepts/{concept_id}/photos", files=files)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def train(self, *concepts: str, **fields: Any) -> dict[str, Any]:
        answer = self.client.post("/api/v1/trainings", json={"concepts": list(concepts), **fields})
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def generate(self, prompt: str, **fields: Any) -> dict[str, Any]:
        answer = self.client.post("/api/v1/generations", json={"prompt": prompt, **fields})
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def taught(self, workshop: Workshop, name: str = "Stark") -> tuple[dict[str, Any], str]:
        """A concept with photos and weights; the concept and the weights' id."""
        made = self.concept(name, photos=3)
        self.train(made["id"])
        return made, workshop.train()


@pytest.fixture
def api(client: TestClient) -> Api:
    return Api(client)
