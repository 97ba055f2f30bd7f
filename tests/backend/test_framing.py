"""A subject that leaves the picture is told where the background is plain; where it is not, nothing is said."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw

from backend.framing import cut_edges

WALL, GRASS = (200, 205, 210), (60, 120, 40)


def posed(box: tuple[int, int, int, int], ground: bool = False) -> Image.Image:
    """A round thing before a plain wall."""
    picture = Image.new("RGB", (512, 400), WALL)
    draw = ImageDraw.Draw(picture)
    if ground:
        draw.rectangle((0, 300, 512, 400), fill=GRASS)
    draw.ellipse(box, fill=(150, 60, 30))
    draw.rectangle((box[0] + 30, box[1] + 30, box[2] - 30, box[3] - 30), fill=(40, 40, 80))
    return picture


@pytest.mark.parametrize(
    ("box", "edges"),
    [
        ((150, 80, 380, 320), []),
        ((-120, 60, 330, 340), ["left"]),
        ((250, 60, 640, 340), ["right"]),
        ((120, -160, 400, 260), ["top"]),
        ((120, 160, 400, 560), ["bottom"]),
        ((-120, -120, 330, 260), ["left", "top"]),
    ],
)
def test_the_edges_that_cut(box: tuple[int, int, int, int], edges: list[str]) -> None:
    assert cut_edges(posed(box)) == edges


def test_the_ground_it_stands_on_is_not_the_subject() -> None:
    assert cut_edges(posed((150, 80, 380, 320), ground=True)) == []


def test_a_thing_at_the_side_is_not_the_subject() -> None:
    assert cut_edges(posed((400, 250, 600, 500))) == []


def test_nothing_is_said_before_a_busy_background() -> None:
    busy = Image.effect_noise((480, 360), 90).convert("RGB").resize((12, 9)).resize((480, 360))
    assert cut_edges(busy) == []
    assert cut_edges(Image.new("RGB", (300, 300), WALL)) == []
