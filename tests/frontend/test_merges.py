"""Concepts are brought together by a form: forecast, report, and what the merged version was made of."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.models import LOCAL_OWNER
from backend.schemas.executor import Unit
from backend.schemas.merges.requests import (
    MergeForecast,
    MergeReport,
    MergeSpec,
    PairForecast,
    SiteForecast,
    SiteMerge,
)
from backend.services import leases
from backend.studio import Studio
from frontend import merge_view, phrases
from frontend.rendering import ENVIRONMENT
from tests.backend.workshop import Workshop, merge_report
from tests.frontend.conftest import Api
from tests.frontend.markup import read

NOBODY = "019a0000-0000-7000-8000-000000000000"


def chosen(two: list[dict[str, Any]], **more: str) -> dict[str, Any]:
    return {"c": [each["id"] for each in two], **more}


def merge(client: TestClient, two: list[dict[str, Any]], **more: str) -> str:
    """Address of the job's page."""
    answer = client.post("/merge", data=chosen(two, **more), follow_redirects=False)
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"])


def test_an_empty_studio_says_what_a_merge_needs(client: TestClient, api: Api, workshop: Workshop) -> None:
    assert "there is none yet" in read(client.get("/merge").text).words
    assert "/merge" not in read(client.get("/concepts").text).addresses
    api.taught(workshop)
    assert "there is one yet" in read(client.get("/merge").text).words


def test_the_form_grows_with_the_choice(client: TestClient, two: list[dict[str, Any]]) -> None:
    page = read(client.get("/merge").text)
    assert "Choose two or more" in page.words
    assert page.addresses.count("/merge") >= 2
    one = read(client.get("/merge", params={"c": two[0]["id"]}).text)
    assert "Stark and" in one.words
    both = read(client.get("/merge", params=chosen(two)).text)
    assert "earlier version" in both.words  # the steered worker sketches nothing
    assert f"/concepts/{two[0]['id']}?with={two[1]['id']}#train" in both.addresses
    assert {"param.captions", "param.start_token", "param.padding"} <= {
        one.get("name") for one in both.fields
    }
    assert "/merge" in read(client.get("/concepts").text).addresses


def test_a_merge_by_form(client: TestClient, workshop: Workshop, two: list[dict[str, Any]]) -> None:
    stark, mia = two
    job = merge(client, two, **{f"s.{mia['id']}": "0,5", "param.captions": "300", "method": "closed-form"})
    spec = workshop.job(job.rpartition("/")[2]).spec
    assert {each["file"]["id"]: each["scale"] for each in spec["weights"]} == {
        stark["taught"]: 1.0,
        mia["taught"]: 0.5,
    }
    assert spec["params"]["captions"] == 300
    assert "Merging Stark and Mia" in read(client.get(job).text).words
    made = workshop.merge()
    page = read(client.get(job).text)
    assert "Merged Stark and Mia" in page.words
    assert "keep what they learned to within 3 × 10⁻⁸; other text moves by 2.1 %" in page.words
    assert f"/merge/{made}" in page.addresses
    assert page.inline == []
    for concept, other in ((stark, mia), (mia, stark)):
        page = read(client.get(f"/concepts/{concept['id']}").text)
        assert "Merge: closed form newest" in page.words
        assert "Merged with" in page.words
        assert {f"/merge/{made}", f"/concepts/{other['id']}"} <= set(page.addresses)


def test_a_strength_left_empty_is_all_that_was_learned(
    client: TestClient, api: Api, workshop: Workshop, two: list[dict[str, Any]]
) -> None:
    """Whatever scale suits the concept alone: among others it stands weaker."""
    stark, mia = two
    api.train(stark["id"])
    calibrated = workshop.train(scale=0.65)
    page = read(client.get(f"/merge?c={stark['id']}&c={mia['id']}").text)
    assert "Custom Diffusion, drawn at scale 0.65 when alone, just now" in page.words
    spec = workshop.job(merge(client, two).rpartition("/")[2]).spec
    scales = {each["file"]["id"]: each["scale"] for each in spec["weights"]}
    assert scales == {calibrated: 1.0, mia["taught"]: 1.0}
    half = merge(client, two, **{f"s.{stark['id']}": "0.5"})
    assert "@stark at 0.5, @mia at 1.0" in read(client.get(half).text).words
    workshop.merge()  # the first one, which waited
    made_of = read(client.get(f"/merge/{workshop.merge()}").text).words.partition("Made of")[2]
    assert made_of.index("at strength 0.5,") < made_of.index("at strength 1,")


def test_an_older_version_is_chosen(
    client: TestClient, api: Api, workshop: Workshop, two: list[dict[str, Any]]
) -> None:
    stark, mia = two
    api.train(stark["id"])
    newer = workshop.train()
    usual = workshop.job(merge(client, two).rpartition("/")[2]).spec
    assert newer in {each["file"]["id"] for each in usual["weights"]}
    made = workshop.merge()
    older = workshop.job(merge(client, two, **{f"v.{stark['id']}": stark["taught"]}).rpartition("/")[2]).spec
    assert {each["file"]["id"] for each in older["weights"]} == {stark["taught"], mia["taught"]}
    options = read(client.get("/merge", params=chosen(two)).text).words
    assert "Merge: closed form, with Mia" in options
    both = {f"v.{each['id']}": made for each in two}
    assert "share one version" in read(client.post("/merge", data=chosen(two, **both)).text).words


def test_one_version_has_one_strength(
    client: TestClient, api: Api, workshop: Workshop, two: list[dict[str, Any]]
) -> None:
    """Two concepts of one version, and a third beside them."""
    stark, mia = two
    merge(client, two)
    made = workshop.merge()
    third, taught = api.taught(workshop, "Rex")
    three = [*two, third]
    shared = {f"v.{each['id']}": made for each in two}
    first, second = f"s.{stark['id']}", f"s.{mia['id']}"
    for differing in ({first: "0.5", second: "0.7"}, {first: "0.5"}, {second: "0.5"}):
        sent = chosen(three, **shared, **differing)
        for answer in (client.post("/merge", data=sent), client.get("/merge", params=sent)):
            said = "Stark and Mia stand in one version, which has one strength: give each the same."
            assert said in read(answer.text).words
    assert [job["kind"] for job in client.get("/api/v1/jobs").json()["items"]].count("merge") == 1
    spec = workshop.job(
        merge(client, three, **shared, **{first: "0.5", second: "0,50"}).rpartition("/")[2]
    ).spec
    assert {each["file"]["id"]: each["scale"] for each in spec["weights"]} == {made: 0.5, taught: 1.0}


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        ({"param.captions": "5"}, "Must be at least 10."),
        ({"param.ridge": "a little"}, "Must be a number."),
        ({"s": "3"}, "Give at most 2."),
        ({"s": "much"}, "Give a number."),
        ({"method": "average"}, "There is no such merge."),
    ],
)
def test_what_is_wrong_stands_in_the_form(
    client: TestClient, two: list[dict[str, Any]], sent: dict[str, str], sentence: str
) -> None:
    scale = {f"s.{two[0]['id']}": sent["s"]} if "s" in sent else {}
    before = len(client.get("/api/v1/jobs").json()["items"])
    answer = client.post("/merge", data=chosen(two, **{**sent, **scale}))
    assert answer.status_code == 422
    assert sentence in read(answer.text).words
    assert len(client.get("/api/v1/jobs").json()["items"]) == before


def test_too_few_are_told(client: TestClient, two: list[dict[str, Any]]) -> None:
    answer = client.post("/merge", data={"c": [two[0]["id"]]})
    assert (answer.status_code, "Choose at least two" in read(answer.text).words) == (422, True)
    assert client.get("/merge", params={"c": ["x", NOBODY]}).status_code == 200


def test_a_merge_that_failed_shows_its_report(
    client: TestClient, workshop: Workshop, studio: Studio, two: list[dict[str, Any]]
) -> None:
    job = merge(client, two)
    row = workshop.claim()
    told = merge_report(
        MergeSpec.model_validate(row.spec), verified=False, failures=["The words are off by 2 %."]
    )
    error = {"code": "merge_unverified", "retryable": False, "message": "It was not kept.", "detail_id": "x"}
    with studio.writing() as session:
        report = {"merge": told.model_dump(mode="json")}
        leases.fail(session, Unit(job=row.id, fence=row.fence), error, 3, report)
    words = read(client.get(job).text).words
    assert "Not verified" in words
    assert "The words are off by 2 %." in words
    assert "Use it in a prompt" not in words


def test_several_are_taught_together_by_the_training_form(
    client: TestClient, api: Api, workshop: Workshop, two: list[dict[str, Any]]
) -> None:
    stark, mia = two
    address = f"/concepts/{stark['id']}"
    page = read(client.get(f"{address}?with={mia['id']}").text)
    assert "Teach them together" in page.words
    assert any(f"with={mia['id']}" in each and "method=" in each for each in page.addresses)
    sent = {"with": mia["id"], "method": "custom-diffusion", "preset": "quick"}
    answer = client.post(f"{address}/train", data=sent, follow_redirects=False)
    job = workshop.job(answer.headers["location"].rpartition("/")[2])
    assert [each["token"] for each in job.spec["concepts"]] == ["stark", "mia"]
    workshop.train()
    assert "Learned together with" in read(client.get(f"/concepts/{mia['id']}").text).words
    few = api.concept("Few")
    page = read(client.get(f"{address}?with={few['id']}&with=x&with={NOBODY}").text)
    assert "Few: Add" in page.words


def test_a_forecast_in_words(api: Api, studio: Studio, two: list[dict[str, Any]]) -> None:
    first, second = (each["taught"] for each in two)
    pair = PairForecast(
        first=first, second=second, verdict="poor", sentence="They fight.", token_cosine=0.9, overlap=0.5,
        crosstalk=0.3, agreement=-0.5, sign_conflict=0.66,
    )  # fmt: skip
    told = MergeForecast(
        merge="closed-form", verdict="poor", sentence="They fight over words.", pairs=[pair], drift=0.12,
        drift_alone=[0.02, 0.03], rank=5,
        constraint_rows=6, condition=1e4, sites=[SiteForecast(site="mid_block.attentions.0.attn2.to_k", drift=0.12)],
    )  # fmt: skip
    with studio.reading() as session:
        shown = merge_view.of_forecast(session, LOCAL_OWNER, told)
    assert (shown.verdict, shown.words) == ("poor", "Get in each other's way")
    assert [each.name for each in shown.pairs[0].first + shown.pairs[0].second] == ["Stark", "Mia"]
    numbers = {each.name: each.value for each in [*shown.numbers, *shown.pairs[0].numbers]}
    assert numbers["Drift ahead"] == "12.0 % (alone 2.0 %, 3.0 %)"
    assert numbers["Pinned"] == "5 of 6"
    assert numbers["Crosstalk"] == "30.0 %"
    assert all(each.meaning.endswith(".") for each in [*shown.numbers, *shown.pairs[0].numbers])
    assert (shown.bars[0].name, shown.bars[0].share) == ("mid 0 cross keys", 1.0)
    assert shown.barred.startswith("How far other text will move")
    assert (numbers["Same direction"], numbers["Opposite signs"]) == ("-0.50", "66.0 %")


def test_a_forecast_of_a_sum_and_of_none_in_words(
    api: Api, studio: Studio, two: list[dict[str, Any]]
) -> None:
    """A sum has crosstalk by layer and no drift; where nothing is foreseen there is no verdict either."""
    site = SiteForecast(site="mid_block.attentions.0.attn2.to_k", crosstalk=0.4)
    told = MergeForecast(
        merge="lora-svd", verdict="fair", sentence="Added up.", pairs=[], sites=[site], cancelled=0.1, beyond_rank=0.2
    )  # fmt: skip
    silent = MergeForecast(merge="gradient-fusion", verdict=None, sentence="It is not forecast.", pairs=[])
    with studio.reading() as session:
        shown, none = (merge_view.of_forecast(session, LOCAL_OWNER, each) for each in (told, silent))
    assert {each.name: each.value for each in shown.numbers} == {
        "Cancelled": "10.0 %",
        "Beyond the rank": "20.0 %",
    }
    assert all(each.meaning.endswith(".") for each in shown.numbers)
    assert (shown.bars[0].value, shown.barred) == ("40.0 %", "Crosstalk in each layer")
    assert (none.verdict, none.words, none.bars) == ("", "", [])
    page = ENVIRONMENT.get_template("_forecast.html").render(forecast=none)
    assert "It is not forecast." in page
    assert 'class="light"' not in page


def test_a_forecast_of_a_vote_and_of_a_fusion_in_words(studio: Studio) -> None:
    """Layers by opposite signs; and by drift, with what would be missing."""
    name = "mid_block.attentions.0.attn2.to_k"
    vote = MergeForecast(
        merge="ties", verdict="good", sentence="They agree.", pairs=[],
        sites=[SiteForecast(site=name, sign_conflict=0.61), SiteForecast(site=name, sign_conflict=0.305)],
    )  # fmt: skip
    fusion = MergeForecast(
        merge="gradient-fusion", verdict="fair", sentence="Halfway.", pairs=[], drift=0.1, drift_alone=[0.05, 0.1],
        missed=0.2, sites=[SiteForecast(site=name, drift=0.1, missed=0.2)],
    )  # fmt: skip
    with studio.reading() as session:
        voted, fused = (merge_view.of_forecast(session, LOCAL_OWNER, each) for each in (vote, fusion))
    assert [(each.value, each.share) for each in voted.bars] == [("61.0 %", 1.0), ("30.5 %", 0.5)]
    assert voted.barred.startswith("Opposite signs in each layer")
    assert {each.name: each.value for each in fused.numbers} == {
        "Drift ahead": "10.0 % (alone 5.0 %, 10.0 %)",
        "Missing ahead": "20.0 %",
    }
    assert all(each.meaning.endswith(".") for each in fused.numbers)
    assert fused.barred.startswith("How far other text will move")


def test_a_report_of_a_sum_claims_nothing_of_the_words() -> None:
    site = SiteMerge(site="mid_block.attentions.0.attn2.to_k", change=1.0, rank=4, discarded_energy=0.2)
    told = MergeReport(merge="lora-svd", inputs=[], verified=True, discarded_energy=0.125, sites=[site])
    shown = merge_view.of_report(told, ["Stark", "Mia"])
    assert shown.sentence.startswith("Stark and Mia are one set of weights now")
    assert "keep" not in shown.sentence
    assert {each.name: each.value for each in shown.numbers} == {"Cut off": "12.5 %"}
    assert all(each.meaning.endswith(".") for each in shown.numbers)
    fitted = MergeReport(
        merge="gradient-fusion", inputs=[], verified=True, residual_of_change=0.041, drift=0.1
    )
    said = merge_view.of_report(fitted, ["Stark", "Mia"]).sentence
    assert said.endswith("of what they learned, 4.1 % is missing in the worst layer.")


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0, "0"),
        (0.0213, "2.1 %"),
        (0.004, "0.40 %"),
        (5e-5, "0.01 %"),
        (3.2e-8, "3 × 10⁻⁸"),
        (1.0, "100.0 %"),
    ],
)
def test_small_shares(share: float, words: str) -> None:
    assert phrases.fine(share) == words
