"""What people upload becomes an upright, metadata-free sRGB picture; declared type and name do not matter."""

from __future__ import annotations

import io
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageChops, ImageCms, ImageStat

from backend.storage import Storage
from backend.studio import Studio
from backend.uploads import display_name
from tests.backend.conftest import Api
from tests.backend.pictures import encoded, photo, revealing, scene


def stored(client: TestClient, photo: dict[str, Any]) -> Image.Image:
    answer = client.get(photo["url"])
    assert answer.headers["content-type"] == "image/jpeg"
    picture = Image.open(io.BytesIO(answer.content))
    assert (picture.format, picture.mode) == ("JPEG", "RGB")
    return picture


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference in grey levels."""
    return max(ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).mean)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(client: TestClient, api: Api, orientation: int) -> None:
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that undoes the tag's
    upright = scene(3)
    turned = upright.transpose(Image.Transpose(back[orientation])) if orientation in back else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(turned, quality=95, subsampling=0, exif=exif)
    [kept] = api.photos(api.concept()["id"], content)["items"]
    assert (kept["width"], kept["height"]) == upright.size
    assert difference(stored(client, kept), upright) < 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "I;16", "1"])
def test_every_mode_becomes_rgb(client: TestClient, api: Api, mode: str) -> None:
    plain = scene(4)
    if mode == "I;16":
        grey = plain.convert("L").convert("I").point(lambda value: value * 256)
        picture, expected, kind = grey.convert("I;16"), plain.convert("L"), "PNG"
    elif mode == "P":
        picture = plain.quantize(64)
        expected, kind = picture.convert("RGB"), "PNG"
    else:
        picture = plain.convert(mode)
        expected, kind = picture.convert("RGB"), "JPEG" if mode == "CMYK" else "PNG"
    [kept] = api.photos(
        api.concept()["id"], encoded(picture, kind, **({"quality": 95} if kind == "JPEG" else {}))
    )["items"]
    assert difference(stored(client, kept), expected) < 4


def test_transparency_is_laid_on_white(client: TestClient, api: Api) -> None:
    clear = Image.new("RGBA", (300, 300), (200, 0, 0, 0))
    [kept] = api.photos(api.concept()["id"], encoded(clear, "PNG"))["items"]
    assert difference(stored(client, kept), Image.new("RGB", (300, 300), "white")) < 2


def test_an_embedded_profile_is_converted_to_srgb(client: TestClient, api: Api) -> None:
    lab_like = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = encoded(scene(5), quality=95, subsampling=0, icc_profile=lab_like)
    [kept] = api.photos(api.concept()["id"], content)["items"]
    picture = stored(client, kept)
    assert difference(picture, scene(5)) < 3
    assert "icc_profile" not in picture.info
    [kept] = api.photos(api.concept("Other")["id"], encoded(scene(5), quality=95, icc_profile=b"broken"))[
        "items"
    ]
    assert difference(stored(client, kept), scene(5)) < 4


def test_no_metadata_survives_anywhere(client: TestClient, api: Api, studio: Studio) -> None:
    content = revealing()
    assert content.count(b"SECRET") >= 4
    [kept] = api.photos(api.concept()["id"], content)["items"]
    for url in (kept["url"], kept["thumbnail_url"]):
        served = client.get(url).content
        assert b"SECRET" not in served
        assert not Image.open(io.BytesIO(served)).getexif()
    for file in studio.storage.root.rglob("*"):
        assert file.is_dir() or b"SECRET" not in file.read_bytes()


def test_declared_type_and_extension_are_ignored(client: TestClient, api: Api) -> None:
    concept = api.concept()
    files = [
        ("files", ("cat.jpg", encoded(scene(1), "PNG"), "text/html")),
        ("files", ("x", encoded(scene(2), "WEBP"))),
    ]
    assert client.post(f"/api/v1/concepts/{concept['id']}/photos", files=files).status_code == 201


def test_findings_are_sentences(api: Api) -> None:
    blurred = scene(1).resize((8, 6)).resize((800, 600), Image.Resampling.BICUBIC)
    dark = scene(2, (600, 600)).point(lambda value: value // 10)
    kept = api.photos(
        api.concept()["id"], encoded(blurred), encoded(dark), photo(3), photo(3), photo(9, (600, 600))
    )
    found = [" ".join(item["warnings"]) for item in kept["items"]]
    assert "Blurred" in found[0]
    assert "dark" in found[1]
    assert "Small" in found[2]
    assert "Almost the same" not in found[2]
    assert "Almost the same" in found[3]
    assert found[4] == ""


def test_all_or_none_with_a_pointer_to_each(client: TestClient, api: Api, studio: Studio) -> None:
    concept = api.concept()
    files = [("files", ("a.jpg", photo(1))), ("files", ("b.jpg", b"")), ("files", ("c.jpg", b"%PDF-1.7"))]
    answer = client.post(f"/api/v1/concepts/{concept['id']}/photos", files=files)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/files/1", "/files/2"]
    assert client.get(f"/api/v1/concepts/{concept['id']}").json()["photos"] == []
    assert list(studio.storage.keys()) == []
    assert list((studio.storage.root / "staging").iterdir()) == []


def test_a_decoder_that_dies_is_replaced(client: TestClient, api: Api, studio: Studio) -> None:
    api.photos(api.concept()["id"], photo(1))
    child = studio.darkroom._child
    assert child is not None
    child.kill()
    api.photos(api.concept("Other")["id"], photo(2))
    assert studio.darkroom._child is not child


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\dog.jpg", "dog.jpg"),
        ("a\x00b\r\nc.jpg", "abc.jpg"),
        ("\u202egpj.exe", "gpj.exe"),
        ("", "photo"),
        ("x" * 5000, "x" * 120),
        ("<img onerror=alert(1)>", "<img onerror=alert(1)>"),
    ],
)
def test_display_names(given: str, shown: str) -> None:
    assert display_name(given) == shown


def test_low_water_refuses_before_anything_is_stored(client: TestClient, api: Api, studio: Studio) -> None:
    concept = api.concept()
    storage: Storage = studio.storage
    storage.low_water_bytes = 1 << 60
    answer = client.post(f"/api/v1/concepts/{concept['id']}/photos", files=[("files", ("a.jpg", photo()))])
    assert (answer.status_code, answer.json()["code"]) == (507, "storage-full")
