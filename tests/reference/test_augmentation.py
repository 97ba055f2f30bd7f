"""T13: augmentation draws follow the table of methods.md 4; masks and pastes, cell by cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from worker.ml.streams import rng
from worker.ml.training.augmentation import SMALL, ZOOMED, Draw, draw_view, render

SIZE, DRAWS = 512, 10_000


@pytest.fixture(scope="module")
def draws() -> list[Draw]:
    return [draw_view(SIZE, rng(0, "augment", number), augment=True, flip=True) for number in range(DRAWS)]


def within_three_sigma(count: int, probability: float, of: int) -> bool:
    return abs(count - of * probability) <= 3 * np.sqrt(of * probability * (1 - probability))


def test_frequencies(draws: list[Draw]) -> None:
    small = [draw for draw in draws if draw.prefix in SMALL]
    zoomed = [draw for draw in draws if draw.prefix in ZOOMED]
    plain = [draw for draw in draws if not draw.prefix]
    for found, probability in ((zoomed, 1 / 3), (small, 2 / 3 * 0.4), (plain, 2 / 3 * 0.6)):
        # sizes are whole pixels: S / 3 is not one, which moves the probabilities by less than a thousandth
        assert within_three_sigma(len(found), probability, DRAWS)
    for words, found in ((SMALL, small), (ZOOMED, zoomed)):
        for word in words:
            assert within_three_sigma(sum(draw.prefix == word for draw in found), 0.5, len(found))
    assert within_three_sigma(sum(draw.mirrored for draw in draws), 0.5, DRAWS)


def test_sizes_and_places(draws: list[Draw]) -> None:
    for draw in draws:
        if draw.prefix in ZOOMED:
            assert 1.2 * SIZE - 1 <= draw.size_px < 1.4 * SIZE
            assert 0 <= draw.left_px <= draw.size_px - SIZE
            assert 0 <= draw.top_px <= draw.size_px - SIZE
        elif draw.prefix in SMALL:
            assert SIZE // 3 <= draw.size_px < 0.6 * SIZE
            assert 0 <= draw.left_px <= SIZE - draw.size_px
            assert 0 <= draw.top_px <= SIZE - draw.size_px
        else:
            assert (draw.size_px, draw.left_px, draw.top_px) == (SIZE, 0, 0)
    small = np.array([draw.size_px for draw in draws if draw.prefix in SMALL])
    middle = (SIZE / 3 + 0.6 * SIZE) / 2
    spread = 0.6 * SIZE - SIZE / 3
    assert abs(small.mean() - middle) < 3 * spread / np.sqrt(12 * len(small)) + 0.5


def test_without_augmentation_and_flips_nothing_is_thrown() -> None:
    assert {draw_view(64, rng(0, "x", n), augment=False, flip=False) for n in range(50)} == {
        Draw(64, 0, 0, "", False)
    }
    assert {draw_view(64, rng(0, "x", n), augment=False, flip=True).mirrored for n in range(50)} == {
        True,
        False,
    }


def gradient_photo() -> Image.Image:
    ramp = np.linspace(0, 255, 96, dtype=np.uint8)
    return Image.fromarray(
        np.stack(
            [np.tile(ramp, (96, 1)), np.tile(ramp[:, None], (1, 96)), np.full((96, 96), 200, np.uint8)], 2
        )
    )


@pytest.mark.parametrize("number", range(40))
def test_the_mask_is_the_pasted_box_less_a_cell_a_side(number: int) -> None:
    """Every cell of the mask lies wholly in the paste with a cell of the paste around it; the canvas is mid
    grey.
    """
    size, cell = 64, 4
    draw = draw_view(size, rng(number, "mask", 0), augment=True, flip=False)
    view = render(gradient_photo(), draw, size, cell)
    assert view.pixels.shape == (3, size, size)
    assert view.mask.shape == (1, size // cell, size // cell)
    assert view.pixels.abs().max() <= 1.0
    if draw.prefix not in SMALL:
        assert bool(view.mask.all())
        return
    inside = np.zeros((size, size), dtype=bool)
    inside[draw.top_px : draw.top_px + draw.size_px, draw.left_px : draw.left_px + draw.size_px] = True
    assert bool((view.pixels[:, ~torch.from_numpy(inside)] == 0).all())
    for y in range(size // cell):
        for x in range(size // cell):
            box = inside[y * cell : (y + 1) * cell, x * cell : (x + 1) * cell]
            if view.mask[0, y, x]:
                assert box.all()
    rows = np.nonzero(view.mask[0].numpy())[0]
    assert rows.min() * cell >= draw.top_px + 1
    assert (rows.max() + 1) * cell <= draw.top_px + draw.size_px - 1 + cell
    assert view.mask.sum() >= ((draw.size_px // cell) - 3) ** 2


def test_mirroring_and_zooming_show_the_right_pixels() -> None:
    photo = gradient_photo()
    plain, mirrored = (render(photo, Draw(64, 0, 0, "", flipped), 64, 4).pixels for flipped in (False, True))
    torch.testing.assert_close(mirrored, plain.flip(2), atol=0.02, rtol=0)
    zoomed = render(photo, Draw(80, 16, 4, "close up", False), 64, 4).pixels
    whole = render(photo, Draw(80, 0, 0, "", False), 80, 4).pixels
    assert torch.equal(zoomed, whole[:, 4:68, 16:80])
