"""The containers say what the repository does: valid, with commands and settings that exist, and nothing wide open."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from backend.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile.gpu").read_text()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
COMMANDS = [SERVICES[name]["command"] for name in OURS] + [
    json.loads(line) for line in re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.M)
]


def test_the_file_is_valid_compose() -> None:
    schema = json.loads((Path(__file__).parent / "compose_spec" / "compose-spec.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(COMPOSE)


def test_the_profiles_of_the_design() -> None:
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    assert [name for name in ("web", "worker-cpu", "postgres", "redis") if profiles[name]] == []
    assert profiles["worker-gpu-0"] == ["gpu"]
    assert profiles["prometheus"] == ["observability"]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_run_what_exists(command: list[str]) -> None:
    assert command[:2] == ["python", "-m"]
    program = command[2]
    if program == "alembic":
        assert (ROOT / "alembic.ini").exists()
        return
    target = command[command.index("-A" if program == "celery" else "--factory") + 1]
    module, _, attribute = target.partition(":")
    assert hasattr(importlib.import_module(module), attribute or "app")
    if program == "celery":
        assert command[-4:] == ["-P", "threads", "-c", "1"]


@pytest.mark.parametrize("name", OURS)
def test_images_and_settings_exist(name: str) -> None:
    service = SERVICES[name]
    assert (ROOT / service["build"]["dockerfile"]).exists()
    assert re.search(rf"^FROM .* AS {service['build']['target']}$", DOCKERFILE, re.M)
    settings = {f"MOONGATE_{field.upper()}" for field in Settings.model_fields}
    assert {key for key in service["environment"] if key.startswith("MOONGATE_")} <= settings


@pytest.mark.parametrize("name", OURS)
def test_our_containers_can_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert DOCKERFILE.count("\nUSER moongate\n") == 2


def test_ports_are_published_on_loopback_only_and_workers_have_time_to_stop() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert COMPOSE["networks"]["inside"]["internal"] is True
    for name in ("worker-cpu", "worker-gpu-0"):
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) >= 60


def test_what_the_images_copy_exists() -> None:
    for sources in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.M):
        for source in sources.split():
            assert (ROOT / source).exists(), source


def test_the_web_image_has_no_tensor_library() -> None:
    web = DOCKERFILE.split("AS web")[1].split("\nFROM ")[0]
    heavy = re.search(r"heavy = \{(.*?)\}", web)
    assert heavy
    assert {"'torch'", "'diffusers'", "'transformers'"} <= set(heavy[1].split(", "))
    assert "COPY worker" not in web
