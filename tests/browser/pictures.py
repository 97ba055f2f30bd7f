"""Takes the pictures of ``docs/pictures`` from a studio that is running and has been used for a while::

    python -m tests.browser.pictures http://127.0.0.1:8000 docs/pictures

Every page, light and dark, on a desktop and on a phone, as WebP below 150 kB.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.conftest import CHROMIUM_FLAGS, DESKTOP, PHONE, chromium

LARGEST_BYTES = 150_000
SETTLE_MS = 900


def places(page: Page) -> dict[str, str]:
    """Name and address of every page worth a picture."""
    fixed = {
        "studio": "/",
        "concepts": "/concepts",
        "new-concept": "/concepts/new",
        "compose": "/compose",
        "gallery": "/gallery",
        "queue": "/queue",
        "settings": "/settings",
    }
    trainings = page.request.get("/api/v1/jobs?kind=train").json()["items"]
    taught = [job for job in trainings if job["state"] == "succeeded"]
    live = [job for job in trainings if job["state"] == "running"]
    if taught:
        fixed["concept"] = f"/concepts/{taught[0]['request']['concepts'][0]}"
        fixed["training-done"] = f"/jobs/{taught[0]['id']}"
    if live:
        fixed["training"] = f"/jobs/{live[0]['id']}"
    drawn = page.request.get("/api/v1/jobs?kind=generate&limit=100").json()["items"]
    if boxes := [job for job in drawn if job["request"]["regions"] and job["state"] == "succeeded"]:
        fixed["boxes"] = f"/compose?job={boxes[0]['id']}"
    known = page.request.get("/api/v1/concepts").json()["items"]
    if merged := [each for concept in known for each in concept["weights"] if each["merge"]]:
        chosen = "&".join(f"c={concept}" for concept in merged[0]["concepts"])
        fixed["merge"] = f"/merge?{chosen}"
        fixed["merged"] = f"/merge/{merged[0]['id']}{compared(page, merged[0]['id'])}"
    if not known:
        return {"start": "/"}
    return fixed


def compared(page: Page, weights: str) -> str:
    """The query that shows the newest picture of merged weights beside those of their parents drawn with it."""
    parents = len(page.request.get(f"/api/v1/weights/{weights}").json()["parents"])
    drawn = page.request.get("/api/v1/jobs?kind=generate&limit=100").json()["items"]
    for place, job in enumerate(drawn):
        if [each["id"] for each in job["request"]["weights"] or []] == [weights]:
            around = drawn[place : place + parents + 1]
            return "?" + "&".join(f"job={each['id']}" for each in reversed(around))
    return ""


def take(page: Page, file: Path) -> None:
    """What is to be seen now, as WebP; less exact when it would be too large."""
    page.wait_for_timeout(SETTLE_MS)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    for quality in (90, 80, 70, 55):
        packed = io.BytesIO()
        picture.save(packed, "WEBP", quality=quality, method=6)
        if packed.tell() <= LARGEST_BYTES:
            break
    file.write_bytes(packed.getvalue())
    sys.stdout.write(f"{file} {packed.tell() // 1000} kB\n")


def album(browser: Browser, url: str, folder: Path) -> None:
    """All pictures of a studio."""
    for shape, size in (("", DESKTOP), ("-phone", PHONE)):
        for scheme in ("light", "dark"):
            context = browser.new_context(
                base_url=url,
                viewport=size,
                color_scheme="dark" if scheme == "dark" else "light",  # type: ignore[arg-type]
            )
            page = context.new_page()
            for name, address in places(page).items():
                page.goto(address)
                if name == "boxes":  # with the pictures below them
                    page.locator("region-canvas").evaluate("each => each.scrollIntoView()")
                take(page, folder / f"{name}{shape}-{scheme}.webp")
                if name == "gallery" and page.locator("a.shot").count():
                    page.locator("a.shot").nth(1).click()
                    page.locator("dialog[open] .lightbox-side").wait_for()
                    take(page, folder / f"lightbox{shape}-{scheme}.webp")
            context.close()


def main(url: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(CHROMIUM_FLAGS))
        album(browser, url, folder)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
