"""Two sample concepts are taught, brought together on the Merge page, and seen side by side, with the yardstick too."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.acceptance.studios import RunningStudio
from tests.browser.conftest import DESKTOP, PHONE, Complaints
from tests.browser.test_journey import DRAWING_MS, TRAINING_MS, WARMING_MS, barriers
from tests.browser.test_methods import FEW

pytestmark = pytest.mark.browser


@pytest.fixture
def two(page: Page) -> list[dict[str, Any]]:
    """Two sample concepts, taught as little as can be."""
    for _ in range(WARMING_MS // 500):
        if page.request.get("/api/v1/bases").json()["items"]:
            break
        page.wait_for_timeout(500)
    samples = page.request.get("/api/v1/samples").json()["items"]
    slugs = [each["slug"] for each in samples if each["kind"] == "subject"][:2]
    found = [page.request.post(f"/api/v1/samples/{slug}").json() for slug in slugs]
    taught(page, *([concept] for concept in found))
    return found


def taught(page: Page, *trainings: list[dict[str, Any]]) -> None:
    """The concepts of each training learn as little as can be, together."""
    for concepts in trainings:
        ids = [each["id"] for each in concepts]
        body = {"concepts": ids, "method": "custom-diffusion", "params": FEW}
        answer = page.request.post("/api/v1/trainings", data=body)
        assert answer.status == 202, answer.text()
    for _ in range(TRAINING_MS // 500):
        jobs = page.request.get("/api/v1/jobs?kind=train").json()["items"]
        assert not [each["error"] for each in jobs if each["state"] == "failed"]
        if all(each["state"] == "succeeded" for each in jobs):
            break
        page.wait_for_timeout(500)


def test_two_concepts_are_brought_together(
    page: Page,
    browser: Browser,
    studio: RunningStudio,
    complaints: Complaints,
    two: list[dict[str, Any]],
) -> None:
    names = [each["name"] for each in two]
    page.goto("/concepts")
    page.get_by_role("link", name="Bring together").click()
    page.wait_for_url("**/merge")
    for name in names:
        page.get_by_role("checkbox", name=re.compile(name)).check()
    verdict = page.locator("#told .verdict")
    expect(verdict).to_be_visible(timeout=DRAWING_MS)
    page.locator("#numbers > summary").click()
    expect(page.locator("#numbers").get_by_text("Drift ahead")).to_be_visible()
    assert barriers(page) == []
    page.locator("#advanced > summary").click()
    page.get_by_label("Captions", exact=True).fill("5")
    page.locator("#go").click()
    expect(page.locator("[id='param.captions-wrong']")).to_have_text("Must be at least 10.")
    complaints.forgive("422")
    page.get_by_label("Captions", exact=True).fill("200")
    page.locator("#go").click()

    page.wait_for_url(re.compile(r"/jobs/[0-9a-f-]{36}$"))
    expect(page.get_by_role("link", name="See it side by side")).to_be_visible(timeout=TRAINING_MS)
    expect(page.get_by_text("Verified.")).to_be_visible()
    assert barriers(page) == []
    page.locator("#merge-numbers > summary").click()
    assert page.locator("#merge-numbers tbody tr").count() > 4
    page.get_by_role("link", name="See it side by side").click()

    page.get_by_label("Pictures").select_option("1")
    page.get_by_role("button", name="Draw all").click()
    expect(page.locator(".side-by-side article")).to_have_count(3)
    expect(page.locator(".side-by-side a.shot img")).to_have_count(3, timeout=3 * DRAWING_MS)
    for title in (f"{names[0]} alone", f"{names[1]} alone", "Merged"):
        expect(page.locator(".side-by-side").get_by_role("heading", name=title)).to_be_visible()
    assert barriers(page) == []
    for size in (PHONE, DESKTOP):
        page.set_viewport_size(size)  # type: ignore[arg-type]
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= size["width"], f"the page scrolls sideways: {wide} pixels of {size['width']}"

    merged = page.url
    page.get_by_role("link", name="Train one").click()
    expect(page.get_by_role("heading", name="Teach them together")).to_be_visible()
    expect(page.get_by_role("heading", name="Merge: closed form").first).to_be_visible()
    without_script(browser, studio, two)

    taught(page, two)
    page.goto(merged)
    expect(page.get_by_text("then trained together: the same words")).to_be_visible()
    expect(page.get_by_role("link", name="Train one")).to_have_count(0)
    page.get_by_label("Seed").fill("")
    page.get_by_role("button", name="Draw all").click()
    expect(page.locator(".side-by-side article")).to_have_count(4)
    expect(page.locator(".side-by-side a.shot img")).to_have_count(4, timeout=4 * DRAWING_MS)
    titles = [each.strip() for each in page.locator(".side-by-side h3").all_inner_texts()]
    assert set(titles[:2]) == {f"{name} alone" for name in names}
    assert titles[2:] == ["Merged", "Trained together"]
    expect(page.get_by_label("Seed")).not_to_have_value("")
    assert barriers(page) == []


def without_script(browser: Browser, studio: RunningStudio, two: list[dict[str, Any]]) -> None:
    """The form shows the forecast by a button of its own."""
    context = browser.new_context(base_url=studio.url, viewport=PHONE, java_script_enabled=False)
    page = context.new_page()
    page.goto("/merge")
    for concept in two:
        page.locator(f"[name=c][value='{concept['id']}']").check(force=True)
    page.get_by_role("button", name="Look how they go together").click()
    page.wait_for_url("**/merge?*")
    expect(page.locator("#told .verdict")).to_be_visible()
    expect(page.get_by_role("button", name="Merge", exact=True)).to_be_visible()
    context.close()


def test_the_merge_page_says_what_it_needs(
    browser: Browser, studio: RunningStudio, complaints: Complaints
) -> None:
    context = browser.new_context(base_url=studio.url, viewport=PHONE, color_scheme="dark")
    page = context.new_page()
    complaints.listen(page)
    page.goto("/merge")
    expect(page.get_by_role("heading", level=1)).to_have_text("Bring concepts together")
    assert barriers(page) == []
    context.close()
