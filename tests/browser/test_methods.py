"""Every method of the table teaches a sample subject in the browser, and a picture is drawn with what it learned."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from backend.schemas.methods import CARDS
from tests.acceptance.studios import RunningStudio
from tests.browser.conftest import DESKTOP, PHONE, Complaints
from tests.browser.test_journey import DRAWING_MS, TRAINING_MS, WARMING_MS, barriers

pytestmark = pytest.mark.browser

FEW: dict[str, Any] = {
    "steps": 3, "batch_size": 2, "prior_images": 2, "prior_steps": 2, "preview_every": 0
}  # fmt: skip
"""The least that still is a training, for those of these parameters that a method has."""


def concept(page: Page) -> str:
    """Address of the sample subject; taken by the start page's button where nobody has done so yet."""
    known = page.request.get("/api/v1/concepts").json()["items"]
    if known:
        return f"/concepts/{known[0]['id']}"
    page.goto("/")
    page.locator("form[action^='/concepts/samples/'] button").first.click()
    page.wait_for_url(re.compile(r"/concepts/[0-9a-f-]{36}"))
    return re.sub(r"\?.*", "", page.url)


@pytest.mark.parametrize("method", CARDS)
def test_a_subject_is_taught_and_drawn(page: Page, method: str) -> None:
    card = CARDS[method]
    page.goto(concept(page))
    train = page.get_by_role("button", name="Train", exact=True)
    expect(train).to_be_enabled(timeout=WARMING_MS)
    page.get_by_role("radio", name="Thorough").check()
    page.locator("#methods > summary").click()
    page.locator(f"#method-{method}").click()
    expect(page.locator("#methods > summary")).to_contain_text(card.title)
    expect(page.locator("#train input[name=method]")).to_have_value(method)
    expect(page.locator("[name=preset][value=thorough]")).to_be_checked()  # is kept when the method changes
    page.get_by_role("radio", name="Quick").check()
    page.locator("#advanced > summary").click()
    for name in FEW.keys() & card.params_type.model_fields.keys():
        page.get_by_label(name.replace("_", " ").capitalize(), exact=True).fill(str(FEW[name]))
    train.click()

    page.wait_for_url(re.compile(r"/jobs/[0-9a-f-]{36}$"))
    expect(page.get_by_text(card.title).first).to_be_visible()
    expect(page.get_by_role("link", name="Use it in a prompt")).to_be_visible(timeout=TRAINING_MS)
    expect(page.locator(".strip > li").first).to_be_visible()
    expect(page.locator("loss-curve")).to_be_visible()
    if "steps" in card.params_type.model_fields:
        assert page.locator("loss-curve canvas").count() == 1

    page.get_by_role("link", name="The concept").click()
    newest = page.locator(".version").first
    expect(newest.get_by_role("heading")).to_contain_text(card.title)
    page.get_by_role("link", name="Use it in a prompt").click()
    page.get_by_label("Steps").fill("3")
    page.get_by_label("Pictures").fill("1")
    page.get_by_role("button", name="Draw").click()
    shot = page.locator(".result").first.locator("a.shot img")
    expect(shot).to_have_count(1, timeout=DRAWING_MS)
    assert shot.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_form_of_every_method_fits_a_phone_and_has_no_barriers(
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
    address = concept(page)
    for place in (*(f"{address}?method={method}" for method in CARDS), "/concepts/new"):
        page.goto(place)
        for fold in page.locator("#methods, #advanced").all():
            fold.locator("> summary").click()
        for size in (PHONE, DESKTOP):
            page.set_viewport_size(size)  # type: ignore[arg-type]
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= size["width"], f"{place} scrolls sideways: {wide} pixels of {size['width']}"
        if place.endswith((f"={list(CARDS)[-1]}", "/new")):  # one stands for all: they are one template
            assert barriers(page) == []
    context.close()
    assert complaints.said == []


def test_without_script_a_method_is_chosen_and_wrong_input_told(
    browser: Browser, studio: RunningStudio
) -> None:
    context = browser.new_context(base_url=studio.url, viewport=DESKTOP, java_script_enabled=False)
    page = context.new_page()
    page.goto(concept(page))
    card = list(CARDS.values())[-1]
    page.locator("#methods > summary").click()
    page.locator(f"#method-{card.name}").click()
    page.wait_for_url(re.compile(f"method={card.name}"))
    expect(page.locator("#methods > summary")).to_contain_text(card.title)
    page.locator("#advanced > summary").click()
    page.locator("#seed").fill("sixteen")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.locator("#seed-wrong")).to_have_text("Give a whole number.")
    expect(page.locator("#seed")).to_have_value("sixteen")
    expect(page.locator("#methods > summary")).to_contain_text(card.title)

    page.goto("/concepts/new")
    page.locator("#methods > summary").click()
    page.locator(f"[name=method][value={card.name}]").check()
    shown = page.locator("#methods .presets:visible")
    expect(shown).to_have_count(1)
    expect(shown.locator("input")).to_have_count(3)
    context.close()
