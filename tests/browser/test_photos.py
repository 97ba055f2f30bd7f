"""Photos are turned and cropped before they are sent, by pointer and by keyboard; the studio then does the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.backend.pictures import photo
from tests.browser.conftest import Complaints
from tests.browser.test_journey import barriers

pytestmark = pytest.mark.browser


def test_photos_are_judged_turned_and_cropped_before_they_are_sent(
    page: Page, complaints: Complaints, tmp_path: Path
) -> None:
    files = []
    for seed in (1, 2):
        files.append(tmp_path / f"{seed}.jpg")
        files[-1].write_bytes(photo(seed, (1000, 800)))
    small = tmp_path / "small.jpg"
    small.write_bytes(photo(3, (200, 200)))
    page.goto("/concepts/new")
    page.locator("#files").set_input_files(files)
    cards = page.locator("photo-drop .photos > li")
    expect(cards).to_have_count(2)

    # warnings stand beside the photos at once, before anything is stored
    page.locator("#files").set_input_files([files[0], small])
    expect(cards.nth(2)).to_contain_text("Almost the same as another photo")
    expect(cards.nth(3)).to_contain_text("The shorter side must have at least 256 pixels")
    assert page.request.get("/api/v1/concepts").json()["items"] == []
    for _ in range(2):
        cards.last.get_by_role("button", name="Remove").click()

    first = cards.first.get_by_role("img")
    before = first.get_attribute("src")
    cards.first.get_by_role("button", name="Turn").press("Enter")
    expect(first).not_to_have_attribute("src", before or "")
    assert first.evaluate(
        "async image => { await image.decode(); return image.naturalHeight > image.naturalWidth }"
    )

    cards.last.get_by_role("button", name="Crop").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".crop-box")).to_be_visible()
    assert barriers(page) == []
    handle = dialog.locator(".crop-handle.left.top").bounding_box()
    assert handle is not None
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y + 30, steps=4)
    page.mouse.up()
    assert float(dialog.get_by_label("Left").input_value()) > 2
    assert float(dialog.get_by_label("Top").input_value()) > 2
    for side, percent in {"Left": "10", "Top": "0", "Right": "50", "Bottom": "25"}.items():
        dialog.get_by_label(side).fill(percent)
    dialog.get_by_label("Bottom").press("Enter")
    expect(dialog).to_be_hidden()

    page.get_by_label("Name").fill("Edited")
    page.get_by_label("What kind of thing").fill("dog")
    page.get_by_role("button", name="Continue").click()
    page.wait_for_url(re.compile(r"/concepts/[0-9a-f-]{36}$"))
    expect(page.get_by_role("heading", name="2 photos")).to_be_visible()
    stored = page.request.get(f"/api/v1/concepts/{page.url.rpartition('/')[2]}").json()
    assert sorted((one["width"], one["height"]) for one in stored["photos"]) == [(400, 600), (800, 1000)]

    # the same on the concept's page, where the frame is a page of its own
    page.get_by_role("link", name="Crop photo 1").click()
    expect(page.locator(".crop-box")).to_be_visible()
    assert barriers(page) == []
    page.get_by_role("link", name="Leave it as it is").click()
    page.get_by_role("button", name="Turn photo 1").click()
    page.wait_for_url(re.compile("#photo-"))
    complaints.forgive("422")  # the photo that is too small
