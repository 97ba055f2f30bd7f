"""Two concepts in boxes of their own: drawn with the mouse, moved with the keys, shown over the finished picture."""

from __future__ import annotations

import json
from typing import Any

import httpx2 as httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.acceptance.jobs import base_available
from tests.acceptance.studios import RunningStudio
from tests.acceptance.test_regions import taught
from tests.browser.conftest import PHONE, Complaints
from tests.browser.test_journey import DRAWING_MS, barriers

pytestmark = pytest.mark.browser


COVERED = """each => {
    each.scrollIntoView({block: "nearest"});
    const {x, y, width} = each.getBoundingClientRect();
    return !document.elementFromPoint(x + width / 2, y + 20)?.closest("a.shot");
}"""


def boxes(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(page.locator("[name=regions]").input_value() or "[]")
    return found


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From one place of the stage to another, in shares of it."""
    area = page.locator(".region-stage").bounding_box()
    assert area is not None
    places = [(area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in (start, end)]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=4)
    page.mouse.up()


def test_boxes_are_drawn_moved_and_shown(
    page: Page, browser: Browser, studio: RunningStudio, complaints: Complaints
) -> None:
    with httpx.Client(base_url=studio.api, timeout=90) as client:
        base_available(client)
        taught(client)
    page.goto("/compose")
    page.get_by_role("textbox", name="Prompt").fill("a photo of @stark and @domino on the beach")
    page.get_by_text("Boxes", exact=True).click()
    drag(page, (0.05, 0.2), (0.45, 0.9))
    page.keyboard.type("@stark")
    drag(page, (0.95, 0.9), (0.55, 0.2))  # from any corner
    page.keyboard.type("@domino")
    first, second = boxes(page)
    assert (first["prompt"], second["prompt"]) == ("@stark", "@domino")
    assert [first["x"], first["width"], second["x"], second["width"]] == pytest.approx(
        [0.05, 0.4, 0.55, 0.4], abs=0.02
    )
    assert barriers(page) == []

    # moved and resized by pointer and by keys, never out of the picture
    drag(page, (0.25, 0.6), (0.0, 0.6))
    assert boxes(page)[0]["x"] == 0
    assert boxes(page)[0]["width"] == pytest.approx(first["width"])
    box = page.get_by_role("group", name="@domino")
    box.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    moved = boxes(page)[1]
    assert moved["x"] == pytest.approx(min(second["x"] + 0.02, 1 - second["width"]))
    assert moved["height"] == pytest.approx(second["height"] - 0.02)

    # a third comes by its button and goes by a key
    page.get_by_role("button", name="Add a box").click()
    assert len(boxes(page)) == 3
    page.locator(".region-box").last.focus()
    page.keyboard.press("Delete")
    assert len(boxes(page)) == 2

    page.get_by_label("Prompt in boxes, at the end").fill("0.1")
    page.locator("#num_inference_steps").fill("4")
    page.locator("#num_images").fill("1")
    page.get_by_role("button", name="Draw", exact=True).click()
    shots = page.locator(".result").first.locator("a.shot")
    expect(shots).to_have_count(1, timeout=DRAWING_MS)
    assert boxes(page)[1] == moved
    assert not shots.first.evaluate(COVERED), "the form hides the picture that it drew"

    # the picture shows its boxes, and a remix has them again
    shots.first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".boxed rect")).to_have_count(2)
    expect(dialog.locator(".boxed svg")).to_be_hidden()
    dialog.get_by_label("Show them").check()
    expect(dialog.locator(".boxed svg")).to_be_visible()
    assert barriers(page) == []
    dialog.get_by_role("link", name="Remix").click()
    page.wait_for_url("**/compose?from=*")
    assert boxes(page)[1]["prompt"] == "@domino"
    expect(page.get_by_label("Prompt in boxes, at the end")).to_have_value("0.1")

    # what is wrong with a box is told with its number
    page.get_by_label("Who stands in this box").first.fill("@nobody")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("[data-part=problem]")).to_contain_text(
        "Box 1: The prompt names a concept that does not exist."
    )
    complaints.forgive("422")

    for scheme in ("light", "dark"):
        context = browser.new_context(base_url=studio.url, viewport=PHONE, color_scheme=scheme)  # type: ignore[arg-type]
        phone = context.new_page()
        complaints.listen(phone)
        phone.goto("/compose")
        phone.get_by_text("Boxes", exact=True).click()
        phone.get_by_role("button", name="Add a box").click()
        assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert barriers(phone) == []
        context.close()
