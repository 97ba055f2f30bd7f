"""Forms work without script: they redirect when all is well, and say what is wrong beside the field."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from starlette.datastructures import FormData

from backend.schemas.methods import CARDS
from backend.services import samples
from frontend import method_choice, method_fields
from tests.backend.pictures import photo
from tests.backend.workshop import Workshop
from tests.frontend.conftest import Api, Lived
from tests.frontend.markup import read


def posted(client: TestClient, address: str, status: int = 303, **fields: str | list[str]) -> str:
    """The address that a form leads to, or the words of the page that it comes back as."""
    answer = client.post(address, data=fields, follow_redirects=False)
    assert answer.status_code == status, answer.text[:2000]
    return answer.headers["location"] if status == 303 else read(answer.text).words


def test_a_concept_with_photos_in_one_form(client: TestClient) -> None:
    files = [("files", (f"{index}.jpg", photo(index))) for index in range(3)]
    fields = {"name": "Stark", "kind": "subject", "class_noun": "dog"}
    answer = client.post("/concepts", data=fields, files=files, follow_redirects=False)
    assert answer.status_code == 303
    assert "3 photos" in read(client.get(answer.headers["location"]).text).words


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": "", "class_noun": "dog"}, "Please fill this in."),
        ({"name": "Stark", "class_noun": ""}, "Say what it is"),
        ({"name": "Stark", "class_noun": "dog", "token": "No Good"}, "This does not have the right form."),
        ({"name": "x" * 81, "class_noun": "dog"}, "Use at most 80 characters."),
        ({"name": "Ann", "class_noun": "woman", "person": "yes"}, "needs that person's consent"),
        ({"name": "Stark", "class_noun": "dog", "kind": "sphinx"}, "This value is not right."),
    ],
)
def test_what_is_wrong_stands_beside_the_field(
    client: TestClient, fields: dict[str, str], sentence: str
) -> None:
    assert sentence in posted(client, "/concepts", 422, **fields)
    assert client.get("/api/v1/concepts").json()["items"] == []


def test_what_was_typed_is_still_there(client: TestClient) -> None:
    answer = client.post("/concepts", data={"name": 'A "quoted" <b>name</b>', "class_noun": ""})
    assert "A &#34;quoted&#34; &lt;b&gt;name&lt;/b&gt;" in answer.text


def test_a_taken_word_is_told_at_the_word(client: TestClient, api: Api) -> None:
    api.concept("Stark")
    fields = {"name": "Other", "class_noun": "dog", "token": "stark"}
    assert "Another concept has this token already." in posted(client, "/concepts", 409, **fields)


def test_a_broken_photo_is_refused_with_a_sentence(client: TestClient, api: Api) -> None:
    concept = api.concept("Stark")["id"]
    answer = client.post(f"/concepts/{concept}/photos", files=[("files", ("x.jpg", b"not a picture"))])
    assert answer.status_code in (415, 422)
    assert 'role="alert"' in answer.text


def test_training_by_form(client: TestClient, api: Api, workshop: Workshop) -> None:
    concept = api.concept("Stark", photos=3)["id"]
    fields: dict[str, str | list[str]] = {
        "preset": "quick",
        "param.steps": "7",
        "param.learning_rate": "",
        "param.augment": "",  # by preset
        "param.flip": "false",
        "seed": "5",
    }
    job = client.get("/api/v1" + posted(client, f"/concepts/{concept}/train", **fields)).json()
    assert job["request"]["params"] == {"steps": 7, "flip": False}
    assert (job["request"]["preset"], job["request"]["seed"]) == ("quick", 5)
    assert "cancelled" in client.get(posted(client, f"/jobs/{job['id']}/cancel")).text.lower()
    again = posted(client, f"/jobs/{job['id']}/retry")
    assert again.startswith("/jobs/")
    assert again != f"/jobs/{job['id']}"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"param.steps": "0"}, "Must be at least 1."),
        ({"param.learning_rate": "much"}, "Must be a number."),
        ({"preset": "eternal"}, "This value is not right."),
        ({"seed": "-1"}, "Give at least 0."),
    ],
)
def test_wrong_parameters_are_told_at_the_parameter(
    client: TestClient, api: Api, workshop: Workshop, fields: dict[str, str], sentence: str
) -> None:
    concept = api.concept("Stark", photos=3)["id"]
    answer = client.post(f"/concepts/{concept}/train", data=fields)
    assert answer.status_code == 422
    assert sentence in answer.text
    assert client.get("/api/v1/jobs").json()["items"] == []


def test_boxes_that_are_ticked_by_default_are_sent_as_ticked(client: TestClient, api: Api) -> None:
    html = client.get(f"/concepts/{api.concept('Stark', photos=3)['id']}?method=textual-inversion").text
    hidden, box = (
        html.index('type="hidden" name="param.flip"'),
        html.index('type="checkbox" name="param.flip"'),
    )
    assert hidden < box  # the later of two fields with one name counts
    assert 'name="param.flip" value="true" checked' in html


def test_a_ticked_box_counts_though_its_hidden_field_says_no() -> None:
    form = FormData([("param.text_encoder", "false"), ("param.text_encoder", "true")])
    shown = method_choice.parameters(CARDS["dreambooth"], None)
    assert method_fields.wanted(shown, "quick", form) == {"text_encoder": True}


def test_empty_fields_show_what_they_mean(client: TestClient, api: Api) -> None:
    """A number that holds for every preset, or that the preset says it."""
    html = client.get(f"/concepts/{api.concept('Stark', photos=3)['id']}").text
    shown = {one["name"]: one.get("placeholder") for one in read(html).fields if "name" in one}
    assert shown["param.steps"] == "by preset"
    assert shown["param.batch_size"] == "4"


def test_too_few_photos_are_told_before_and_after(client: TestClient, api: Api, workshop: Workshop) -> None:
    concept = api.concept("Stark", photos=1)["id"]
    assert "Add 2 more photos" in client.get(f"/concepts/{concept}").text
    assert "learns from 3 to" in posted(client, f"/concepts/{concept}/train", 422, preset="quick")


def test_drawing_by_form(client: TestClient, api: Api, workshop: Workshop) -> None:
    api.taught(workshop)
    fields = {
        "prompt": "a photo of @stark",
        "num_images": "2",
        "seed": "9",
        "size": "64x64",
        "scheduler": "ddim",
    }
    address = posted(client, "/compose", **fields)
    assert address.startswith("/compose?job=")
    assert client.get(address).text.count('class="shot pending"') == 2
    workshop.draw()
    page = client.get(address).text
    assert page.count("data-lightbox=") == 2
    assert 'value="9"' in page


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"prompt": ""}, "Write what the picture should show."),
        ({"prompt": "@nobody on the moon"}, "names a concept that does not exist"),
        ({"prompt": "a dog", "num_images": "65"}, "Give at most 64."),
        ({"prompt": "a dog", "guidance_scale": "strong"}, "Give a number."),
        ({"prompt": "a dog " * 40}, "Shorten it."),
    ],
)
def test_wrong_prompts_are_told_beside_the_box(
    client: TestClient, workshop: Workshop, fields: dict[str, str], sentence: str
) -> None:
    answer = client.post("/compose", data=fields)
    assert answer.status_code == 422
    assert sentence in answer.text


def test_a_picture_is_starred_repeated_varied_and_deleted(
    client: TestClient, lived_in: Lived, workshop: Workshop
) -> None:
    image = f"/images/{lived_in.image}"
    starred = client.post(f"{image}/star", data={"starred": "true"}, headers={"HX-Request": "true"}).text
    assert 'aria-pressed="true"' in starred
    assert "<html" not in starred
    seed = client.get(f"/api/v1{image}").json()["recipe"]["seed"]
    for way, count, first in (("again", 1, seed), ("vary", 4, (seed + 1) % 2**32)):
        job = posted(client, f"{image}/{way}").removeprefix("/compose?job=")
        request = client.get(f"/api/v1/jobs/{job}").json()["request"]
        assert (request["num_images"], request["seed"]) == (count, first)
    assert posted(client, f"{image}/delete") == "/gallery"
    assert client.get(image).status_code == 404


def test_forgetting_a_concept_asks_first(client: TestClient, api: Api, workshop: Workshop) -> None:
    made, _ = api.taught(workshop)
    address = f"/concepts/{made['id']}/delete"
    assert "would be forgotten as well" in posted(client, address, 409)
    assert posted(client, address, cascade="true") == "/concepts"
    assert client.get(f"/concepts/{made['id']}").status_code == 404


def test_foreign_pages_cannot_post(client: TestClient) -> None:
    headers = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert (
        client.post("/concepts", data={"name": "x", "class_noun": "dog"}, headers=headers).status_code == 403
    )


def test_the_first_concept_is_two_clicks_away(client: TestClient, workshop: Workshop) -> None:
    shipped = [one for one in samples.sets() if one.featured]
    if not shipped:
        assert "Bring photos" in read(client.get("/").text).words
        return
    start = client.get("/").text
    assert f'action="/concepts/samples/{shipped[0].slug}"' in start
    page = client.get(posted(client, f"/concepts/samples/{shipped[0].slug}")).text
    assert 'value="quick" checked' in page
    address = page.split('id="train"')[0].rsplit('action="', 1)[1].split('"')[0]
    assert posted(client, address, preset="quick").startswith("/jobs/")
