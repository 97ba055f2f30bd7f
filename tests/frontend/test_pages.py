"""Every page answers, empty or full; nothing on it is inline, external, broken or hostile."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from backend.models import Job
from backend.studio import Studio
from tests.backend.conftest import on_both_databases
from tests.backend.workshop import Workshop
from tests.frontend.conftest import Api, Lived
from tests.frontend.markup import Markup, read

FIXED = ("/", "/concepts", "/concepts/new", "/compose", "/gallery", "/queue", "/settings")
HTML = {"Accept": "text/html"}
NOBODY = "00000000-0000-7000-8000-00000000ffff"


def pages(lived: Lived) -> list[str]:
    """Every kind of page of a studio that was used."""
    jobs = [f"/jobs/{job}" for job in (lived.trained, lived.running, lived.queued, lived.failed, lived.drawn)]
    more = [
        f"/concepts/{lived.concept}",
        f"/images/{lived.image}",
        f"/compose?job={lived.drawn}",
        f"/compose?from={lived.image}&seed=same",
        "/compose?prompt=a+photo+of+@stark",
        f"/gallery?concept={lived.concept}&q=photo&starred=",
    ]
    return [*FIXED, *jobs, *more]


def seen(client: TestClient, address: str, status: int = 200) -> Markup:
    answer = client.get(address, headers=HTML)
    assert answer.status_code == status, (address, answer.text[:2000])
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return read(answer.text)


@pytest.mark.parametrize("address", FIXED)
def test_every_page_answers_on_an_empty_installation(client: TestClient, address: str) -> None:
    page = seen(client, address)
    assert page.tags.count("h1") == 1
    assert page.inline == []


@on_both_databases
def test_every_page_answers_with_content_and_is_sound(client: TestClient, lived_in: Lived) -> None:
    known: set[str] = set()
    for address in pages(lived_in):
        page = seen(client, address)
        assert page.inline == [], address
        assert page.tags.count("h1") == 1, address
        assert page.unclosed == [], (address, page.unclosed)
        assert len(page.ids) == len(set(page.ids)), (address, [i for i in page.ids if page.ids.count(i) > 1])
        unnamed = [
            one
            for one in page.fields
            if one["within-label"] != "True"
            and "aria-label" not in one
            and one.get("id") not in page.labelled
        ]
        assert unnamed == [], (address, unnamed)
        assert not [one for one in page.addresses if re.match(r"(https?:)?//|javascript:|data:", one)], (
            address
        )
        known.update(one.split("#")[0] for one in page.addresses if one.startswith(("/static/", "/api/v1/")))
    for address in sorted(known):
        assert client.get(address).status_code == 200, address


def test_hostile_text_is_inert(client: TestClient, lived_in: Lived) -> None:
    for address in pages(lived_in):
        html = client.get(address, headers=HTML).text
        assert "<svg onload" not in html, address
        assert '<script>alert("x")' not in html, address
    assert "<svg onload=alert(1)>" in seen(client, f"/jobs/{lived_in.failed}").words


def test_the_job_page_says_what_happened(client: TestClient, lived_in: Lived) -> None:
    page = seen(client, f"/jobs/{lived_in.running}")
    assert "Training: step 30 of 300, about 2 min left" in page.words
    assert "The worker was lost at step 20." in page.words
    assert "Keep what is learned" in page.words
    assert (
        "Waiting behind" in seen(client, f"/jobs/{lived_in.queued}").words
        or "Next in the queue" in seen(client, f"/jobs/{lived_in.queued}").words
    )


def test_boxes_and_who_is_looked_for_are_settings_in_words(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    api.taught(workshop, name="Stark")
    box = {"x": 0.0, "y": 0.0, "width": 0.5, "height": 1.0, "prompt": "@stark"}
    job = api.generate("@stark on the moon", regions=[box], check=True)["id"]
    page = seen(client, f"/jobs/{job}")
    assert "Boxes 1 " in page.words
    assert "Looks for @stark" in page.words
    assert "storage_key" not in page.words
    plain = seen(client, f"/jobs/{api.generate('@stark')['id']}")
    assert "Boxes" not in plain.words
    assert "Looks for nobody" in plain.words


def test_the_lightbox_is_a_fragment_with_the_whole_recipe(client: TestClient, lived_in: Lived) -> None:
    html = client.get(f"/images/{lived_in.image}", headers={"HX-Request": "true"}).text
    assert "<html" not in html
    page = read(html)
    for word in ("Seed", "Steps", "Guidance", "Scheduler", "Base model", "Same seed again", "@stark"):
        assert word in page.words


def test_the_gallery_goes_on_where_it_ended(
    client: TestClient, lived_in: Lived, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frontend.pages.gallery.PER_PAGE", 2)
    first = client.get("/gallery?q=photo").text
    more = re.search(r'hx-get="([^"]+)"', first)
    assert more is not None
    following = client.get(more[1].replace("&amp;", "&"), headers={"HX-Request": "true"}).text
    assert "<html" not in following
    shots = re.compile(r'data-lightbox="([^"]+)"')
    assert len(shots.findall(first)) == 2
    assert len(shots.findall(following)) == 1
    assert not set(shots.findall(first)) & set(shots.findall(following))


@pytest.mark.parametrize(
    "address",
    ["/nothing/here", "/concepts/nonsense", f"/concepts/{NOBODY}", f"/jobs/{NOBODY}", f"/images/{NOBODY}"],
)
def test_a_lost_visitor_gets_a_page(client: TestClient, address: str) -> None:
    assert "Back to the studio" in seen(client, address, 404).words


def test_programs_still_get_problems(client: TestClient) -> None:
    answer = client.get("/api/v1/concepts/nonsense", headers=HTML)
    assert answer.headers["content-type"] == "application/problem+json"
    assert client.get("/nothing/here").headers["content-type"] == "application/problem+json"


def test_without_its_database_the_page_says_so(client: TestClient, studio: Studio) -> None:
    with studio.database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE images RENAME TO lost_images")
    assert "Not available now" in seen(client, "/gallery", 503).words


def test_pages_forbid_what_they_do_not_need(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]
    for part in ("default-src 'self'", "object-src 'none'", "base-uri 'none'", "frame-ancestors 'none'"):
        assert part in policy
    assert "unsafe" not in policy


TIMED = {
    "train": {"seconds": 2.0, "count": 100},
    **{work: {"seconds": 0.0, "count": 1} for work in ("preview", "prior", "calibration")},
}
"""Where a job's seconds went: a hundred steps in two."""


def test_the_start_promises_no_time_that_this_machine_has_not_shown(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio
) -> None:
    before = seen(client, "/").words
    assert "a little patience" in before
    assert not re.search(r"\d+ (s|min)\b|minutes", before)
    concept, _ = api.taught(workshop)
    with studio.writing() as session:
        session.execute(update(Job).values(metrics={"spent": TIMED}))
    client.delete(f"/api/v1/concepts/{concept['id']}?cascade=true")
    assert "about 3 s on this machine" in seen(client, "/").words
