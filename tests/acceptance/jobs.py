"""Waiting for jobs over HTTP, as a client does."""

from __future__ import annotations

import time
from typing import Any

import httpx2 as httpx


def base_available(client: httpx.Client, within_s: float = 240) -> dict[str, Any]:
    """The first base model a live worker serves; a fresh studio is ready some seconds before its executor is."""
    deadline = time.monotonic() + within_s
    while True:
        for base in client.get("/bases").raise_for_status().json()["items"]:
            if base["available"]:
                found: dict[str, Any] = base
                return found
        assert time.monotonic() < deadline, f"no base model after {within_s} s"
        time.sleep(0.5)


def finished(client: httpx.Client, job: dict[str, Any], within_s: float = 240) -> dict[str, Any]:
    """The job when it has ended; fails loudly when it does not succeed."""
    deadline = time.monotonic() + within_s
    while True:
        now: dict[str, Any] = client.get(f"/jobs/{job['id']}").raise_for_status().json()
        if now["state"] in {"succeeded", "failed", "cancelled"}:
            assert now["state"] == "succeeded", now["error"]
            return now
        assert time.monotonic() < deadline, f"still {now['state']} after {within_s} s: {now['progress']}"
        time.sleep(0.3)
