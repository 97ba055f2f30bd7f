"""A stranger's first visit: drop photos, watch a concept learn, write a prompt, look at the pictures."""

from __future__ import annotations

import base64
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.acceptance.studios import ROOT, RunningStudio
from tests.browser.conftest import DESKTOP, PHONE, Complaints

pytestmark = pytest.mark.browser

PHOTOS = sorted((ROOT / "backend" / "sample_photos" / "stark").glob("0[0-4].webp"))
AXE = Path(__file__).parent / "vendor" / "axe.min.js"
FEW = {"steps": 8, "batch_size": 2, "prior_images": 4, "prior_steps": 4, "preview_every": 4}
WARMING_MS = 120_000
TRAINING_MS = 240_000
DRAWING_MS = 120_000
DROP = """async ([selector, files]) => {
  const carried = new DataTransfer();
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    carried.items.add(new File([bytes], name, { type: "image/webp" }));
  }
  const target = document.querySelector(selector);
  for (const type of ["dragenter", "dragover", "drop"]) {
    target.dispatchEvent(new DragEvent(type, { dataTransfer: carried, bubbles: true, cancelable: true }));
  }
}"""


@lru_cache
def axe() -> str:
    return AXE.read_text()


def barriers(page: Page) -> list[str]:
    """What keeps somebody from using the page, as axe-core finds it."""
    page.evaluate(axe())
    found: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{page.url} {one['id']}: {node['html'][:160]} {node['failureSummary'][:300]}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


def drop(page: Page, selector: str, photos: list[Path]) -> None:
    files = [[photo.name, base64.b64encode(photo.read_bytes()).decode()] for photo in photos]
    page.evaluate(DROP, [selector, files])


def test_from_photos_to_a_picture(page: Page, complaints: Complaints) -> None:
    page.goto("/")
    expect(page.get_by_role("heading", level=1)).to_have_text("Teach the studio something of yours")
    assert barriers(page) == []

    # photos, dropped and picked; thumbnails stand there before anything is sent
    page.goto("/concepts/new")
    drop(page, "photo-drop", PHOTOS[:4])
    page.locator("#files").set_input_files(PHOTOS[4])
    expect(page.locator("photo-drop .photos > li")).to_have_count(5)
    page.locator("photo-drop .photos > li").last.get_by_role("button", name="Remove").click()
    expect(page.locator("photo-drop .photos > li")).to_have_count(4)
    page.get_by_label("Name").fill("Stark")
    page.get_by_role("button", name="Continue").click()  # without the noun: told beside the field
    expect(page.locator("#class_noun-wrong")).to_contain_text("Say what it is")
    page.get_by_label("What kind of thing").fill("dog")
    assert barriers(page) == []
    page.get_by_role("button", name="Continue").click()
    page.wait_for_url(re.compile(r"/concepts/[0-9a-f-]{36}$"))
    expect(page.get_by_role("heading", name="4 photos")).to_be_visible()

    # the concept's page takes further photos at once
    drop(page, "photo-drop", PHOTOS[4:])
    expect(page.get_by_role("heading", name="5 photos")).to_be_visible()

    # training, watched
    page.get_by_text("Advanced").click()
    for name, value in FEW.items():
        page.locator(f"[name='param.{name}']").fill(str(value))
    train = page.get_by_role("button", name="Train", exact=True)
    expect(train).to_be_enabled(timeout=WARMING_MS)
    train.click()
    page.wait_for_url(re.compile(r"/jobs/[0-9a-f-]{36}$"))
    expect(page.get_by_role("heading", level=1)).to_have_text("Learning Stark")
    expect(page.locator(".strip > li").first).to_be_visible(timeout=TRAINING_MS)
    assert barriers(page) == []
    expect(page.get_by_role("link", name="Use it in a prompt")).to_be_visible(timeout=TRAINING_MS)
    expect(page.get_by_role("heading", level=1)).to_have_text("Taught Stark")
    assert page.locator(".strip > li").count() >= 2
    assert page.locator("loss-curve canvas").count() == 1

    # a prompt, completed with the keyboard; pictures arrive one by one
    page.get_by_role("link", name="Use it in a prompt").click()
    box = page.get_by_role("textbox", name="Prompt")
    expect(box).to_have_value(re.compile("@stark"))
    box.fill("")
    box.press_sequentially("a photo of @st")
    expect(page.get_by_role("option", name="@stark")).to_be_visible()
    box.press("Enter")
    expect(box).to_have_value("a photo of @stark ")
    expect(page.locator("button.chip[data-token=stark]")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("[data-part=tokens]")).to_have_text(re.compile(r"\d+ of \d+ tokens"))
    assert barriers(page) == []
    page.get_by_label("Steps").fill("4")
    page.get_by_label("Pictures").fill("3")
    box.press("Control+Enter")
    page.wait_for_url(re.compile(r"/compose\?job="))
    shots = page.locator(".result").first.locator("a.shot")
    expect(shots).to_have_count(3, timeout=DRAWING_MS)
    expect(page.get_by_text("Done in").first).to_be_visible(timeout=DRAWING_MS)

    # the lightbox: the whole recipe, arrows, star, and the focus comes back
    shots.first.click()
    box_open = page.get_by_role("dialog")
    expect(box_open.get_by_text("Scheduler")).to_be_visible()
    picture = box_open.get_by_role("img").first
    first = picture.get_attribute("src")
    assert (picture.bounding_box() or {"width": 0})["width"] <= 4 * int(
        picture.evaluate("image => image.naturalWidth")
    )
    page.keyboard.press("ArrowRight")
    expect(picture).not_to_have_attribute("src", first or "")
    box_open.get_by_role("button", name="Star", exact=True).click()
    expect(box_open.get_by_role("button", name="Starred")).to_be_visible()
    assert barriers(page) == []
    page.keyboard.press("Escape")
    expect(box_open).to_be_hidden()
    assert page.evaluate("document.activeElement.matches('a.shot')")
    complaints.forgive("422")  # the form without its noun


def test_a_prompt_that_cannot_be_drawn_is_told_in_a_sentence(page: Page, complaints: Complaints) -> None:
    page.goto("/compose")
    page.get_by_role("textbox", name="Prompt").fill("a photo of @nobody")
    expect(page.locator("[data-part=problem]")).to_contain_text("@nobody")
    page.get_by_role("button", name="Draw").click()
    expect(page.locator("[data-part=problem]")).to_be_visible()
    expect(page.get_by_role("textbox", name="Prompt")).to_have_value("a photo of @nobody")

    # a problem that only the server finds stays until something is changed
    page.get_by_role("textbox", name="Prompt").fill("a photo of a dog")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Negative prompt").fill("@nobody")
    page.get_by_role("button", name="Draw").click()
    expect(page.locator("[data-part=problem]")).to_have_text("Tokens belong into the prompt.")
    expect(page.locator("[data-part=tokens]")).to_have_text(re.compile("tokens"))
    expect(page.locator("[data-part=problem]")).to_be_visible()
    complaints.forgive("422")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_a_phone_and_has_no_barriers(
    browser: Browser, studio: RunningStudio, complaints: Complaints, scheme: str
) -> None:
    context = browser.new_context(
        base_url=studio.url,
        viewport=PHONE,
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
    )
    page = context.new_page()
    complaints.listen(page)
    for address in addresses(page):
        page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        page.goto(address)
        for size in (PHONE, DESKTOP):
            page.set_viewport_size(size)  # type: ignore[arg-type]
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= size["width"], f"{address} scrolls sideways: {wide} pixels of {size['width']}"
            assert barriers(page) == []
    context.close()
    assert complaints.said == []


def addresses(page: Page) -> list[str]:
    """Every kind of page of the studio as the journey left it."""
    fixed = ["/", "/concepts", "/concepts/new", "/compose", "/gallery", "/queue", "/settings"]
    jobs = page.request.get("/api/v1/jobs").json()["items"]
    concepts = page.request.get("/api/v1/concepts").json()["items"]
    images = page.request.get("/api/v1/images?limit=1").json()["items"]
    return [
        *fixed,
        *(f"/jobs/{job['id']}" for job in jobs[:3]),
        *(f"/concepts/{concept['id']}" for concept in concepts[:1]),
        *(f"/images/{image['id']}" for image in images),
    ]


def test_the_chosen_colours_are_remembered(page: Page) -> None:
    page.emulate_media(color_scheme="light")
    page.goto("/settings")
    switch = page.locator(".rail [data-theme-switch]")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    switch.click()
    switch.click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (light, dark) == ("rgb(251, 250, 247)", "rgb(16, 20, 31)")
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_the_keyboard_reaches_the_content_first(page: Page) -> None:
    page.goto("/gallery")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
