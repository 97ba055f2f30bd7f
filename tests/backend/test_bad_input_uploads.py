"""Hostile uploads: the rows in-U of the bad input table. Each answers with a problem, and nothing is stored."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from backend.settings import Settings
from backend.studio import Studio
from tests.backend.conftest import Api
from tests.backend.pictures import encoded, photo, scene


def png_header(width: int, height: int) -> bytes:
    """A small PNG file that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def animation(kind: str, frames: int = 3) -> bytes:
    first, *rest = [scene(number, (300, 300)) for number in range(frames)]
    out = io.BytesIO()
    first.save(out, kind, save_all=True, append_images=rest, duration=100)
    return out.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
CASES: list[tuple[str, Callable[[], bytes], int, str]] = [
    ("zero bytes", lambda: b"", 422, "empty-file"),
    ("text", lambda: b"hello" * 100, 415, "unsupported-image"),
    ("html", lambda: b"<html><script>alert(1)</script>", 415, "unsupported-image"),
    ("pdf", lambda: b"%PDF-1.7\n%abc", 415, "unsupported-image"),
    ("eps", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 300 300\n", 415, "unsupported-image"),
    ("svg", lambda: SVG, 415, "unsupported-image"),
    ("tiff", lambda: encoded(scene(), "TIFF"), 415, "unsupported-image"),
    ("ico", lambda: encoded(scene(0, (256, 256)), "ICO"), 415, "unsupported-image"),
    ("dds", lambda: encoded(scene(0, (256, 256)), "DDS"), 415, "unsupported-image"),
    ("bmp", lambda: encoded(scene(), "BMP"), 415, "unsupported-image"),
    ("jpeg 2000", lambda: encoded(scene(), "JPEG2000"), 415, "unsupported-image"),
    ("gif", lambda: animation("GIF"), 415, "unsupported-image"),
    ("heic", lambda: b"\0\0\0\x18ftypheic" + b"\0" * 200, 415, "unsupported-image"),
    ("bomb", lambda: png_header(50_000, 50_000), 422, "image-too-large"),
    ("one pixel", lambda: encoded(scene(0, (1, 1)), "PNG"), 422, "image-too-small"),
    ("short side", lambda: encoded(scene(0, (900, 255))), 422, "image-too-small"),
    ("thread", lambda: encoded(Image.new("RGB", (30_000, 1)), "PNG"), 422, "image-too-small"),
    ("banner", lambda: encoded(scene(0, (2000, 300))), 422, "bad-aspect"),
    ("apng", lambda: animation("PNG"), 422, "multi-frame"),
    ("animated webp", lambda: animation("WEBP"), 422, "multi-frame"),
    ("cut off", lambda: photo()[:2000], 422, "unreadable-image"),
    ("damaged png", lambda: encoded(scene(), "PNG")[:1000], 422, "unreadable-image"),
    ("claims more than it has", lambda: png_header(1000, 1000), 422, "unreadable-image"),
]


@pytest.mark.parametrize(
    ("content", "status", "code"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_hostile_file_is_refused(
    client: TestClient, api: Api, studio: Studio, content: Callable[[], bytes], status: int, code: str
) -> None:
    concept = api.concept()
    answer = client.post(
        f"/api/v1/concepts/{concept['id']}/photos", files=[("files", ("dog.jpg", content(), "image/jpeg"))]
    )
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["pointer"] == "/files/0"
    assert list(studio.storage.keys()) == []
    assert client.get("/healthz").status_code == 200


def test_missing_part_and_part_that_is_no_file(client: TestClient, api: Api) -> None:
    url = f"/api/v1/concepts/{api.concept()['id']}/photos"
    assert client.post(url, files=[("other", ("a.jpg", photo()))]).status_code == 422
    boundary = "multipart/form-data; boundary=b"
    body = b'--b\r\nContent-Disposition: form-data; name="files"\r\n\r\nhello\r\n--b--\r\n'
    assert client.post(url, content=body, headers={"content-type": boundary}).status_code == 422


def test_files_above_the_limits(client: TestClient, api: Api, settings: Settings) -> None:
    url = f"/api/v1/concepts/{api.concept()['id']}/photos"
    large = photo() + b"\0" * settings.max_upload_bytes
    answer = client.post(url, files=[("files", ("a.jpg", large))])
    assert (answer.status_code, answer.json()["code"]) == (413, "file-too-large")
    tiny = encoded(scene(0, (1, 1)), "PNG")
    answer = client.post(url, files=[("files", (f"{n}.png", tiny)) for n in range(21)])
    assert answer.status_code == 400
    answer = client.post(url, files=[("files", (f"{n}.png", b"x")) for n in range(1001)])
    assert answer.status_code == 400


def multipart(*parts: bytes, end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + end


DISPOSITION = b'Content-Disposition: form-data; name="files"; filename="a.jpg"\r\n'
BROKEN = {
    "no boundary": ("multipart/form-data", multipart(DISPOSITION + b"\r\nx")),
    "long boundary": (f"multipart/form-data; boundary={'b' * 10_000}", b"x"),
    "other boundary": ("multipart/form-data; boundary=zzz", multipart(DISPOSITION + b"\r\nx")),
    "no name": ("multipart/form-data; boundary=b", multipart(b"Content-Type: image/jpeg\r\n\r\nx")),
    "many headers": (
        "multipart/form-data; boundary=b",
        multipart(b"X: y\r\n" * 10_000 + DISPOSITION + b"\r\nx"),
    ),
    "large header": ("multipart/form-data; boundary=b", multipart(b"X: " + b"y" * 1_000_000 + b"\r\n\r\nx")),
    "no end": ("multipart/form-data; boundary=b", multipart(DISPOSITION + b"\r\nx", end=b"")),
    "data before": ("multipart/form-data; boundary=b", b"junk" * 1000 + multipart(DISPOSITION + b"\r\nx")),
    "empty": ("multipart/form-data; boundary=b", b""),
    "not multipart": ("application/octet-stream", b"x"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_multipart(client: TestClient, api: Api, case: str) -> None:
    content_type, body = BROKEN[case]
    url = f"/api/v1/concepts/{api.concept()['id']}/photos"
    answer = client.post(url, content=body, headers={"content-type": content_type})
    assert answer.status_code in {400, 413, 415, 422}, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_lengths_that_lie(client: TestClient, api: Api) -> None:
    url = f"/api/v1/concepts/{api.concept()['id']}/photos"
    form = {"content-type": "multipart/form-data; boundary=b"}
    assert client.post(url, content=b"x", headers={**form, "content-length": "-1"}).status_code == 400
    assert client.post(url, content=b"x", headers={**form, "content-length": "9" * 30}).status_code == 413
    assert client.post(url, content=b"x", headers={**form, "content-length": "999999999"}).status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(3):
            yield b"x" * 1_000_000

    answer = client.post("/api/v1/concepts", content=chunks(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_uploads_to_what_is_not_there(client: TestClient, api: Api) -> None:
    files = [("files", ("a.jpg", photo()))]
    gone = api.concept()["id"]
    assert client.delete(f"/api/v1/concepts/{gone}").status_code == 204
    for concept_id in (gone, "01900000-0000-7000-8000-000000000000", "nonsense"):
        answer = client.post(f"/api/v1/concepts/{concept_id}/photos", files=files)
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
