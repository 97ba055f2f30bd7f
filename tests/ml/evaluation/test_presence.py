"""Who is there: pictures painted by hand and a judge that sees colours, so that every answer is known."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from worker.ml.evaluation.presence import PRESENT, Sought, crop, look, windows
from worker.ml.regions import Box

LEFT, RIGHT = Box(0, 0, 0.5, 1), Box(0.5, 0, 0.5, 1)
RED, GREEN, GREY = (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (0.1, 0.1, 0.1)


class Colours:
    """A panel whose individuals are colours."""

    hash = "colours"

    def image_text_features(self, pixels: Tensor) -> Tensor:
        return self.subject_features(pixels)

    def text_features(self, texts: list[str]) -> Tensor:
        raise AssertionError("nobody reads here")

    def subject_features(self, pixels: Tensor) -> Tensor:
        return normalize(pixels.mean((2, 3)), dim=1)


def painted(left: tuple[float, ...], right: tuple[float, ...]) -> Tensor:
    picture = torch.empty(3, 16, 16)
    picture[:, :, :8], picture[:, :, 8:] = (
        torch.tensor(left)[:, None, None],
        torch.tensor(right)[:, None, None],
    )
    return picture


def photos(colour: tuple[float, ...]) -> Tensor:
    return normalize(torch.tensor([colour, colour]), dim=1)


def states(picture: Tensor, *sought: Sought) -> list[str]:
    return [seen.state for seen in look(Colours(), picture, painted(GREY, GREY), sought)]


def test_present_fused_and_missing_in_regions() -> None:
    red, green = Sought(photos(RED), (LEFT,)), Sought(photos(GREEN), (RIGHT,))
    assert states(painted(RED, GREEN), red, green) == ["present", "present"]
    assert states(painted(RED, RED), red, green) == ["present", "fused"]
    assert states(painted(RED, GREY), red, green) == ["present", "missing"]
    assert states(painted(GREEN, RED), red, green) == ["fused", "fused"]


def test_a_concept_without_a_region_is_found_where_it_is() -> None:
    red, green = Sought(photos(RED)), Sought(photos(GREEN))
    one, other = look(Colours(), painted(GREEN, RED), painted(GREY, GREY), [red, green])
    assert (one.state, other.state) == ("present", "present")
    assert one.box.x >= 0.5
    assert other.box.x + other.box.width <= 0.5
    assert states(painted(GREY, GREY), red) == ["missing"]


def test_a_concept_in_two_regions_must_be_in_both() -> None:
    both = Sought(photos(RED), (LEFT, RIGHT))
    assert states(painted(RED, RED), both) == ["present"]
    assert states(painted(RED, GREY), both) == ["missing"]


def test_the_scale_has_the_base_at_zero_and_the_photos_at_one() -> None:
    [base] = look(Colours(), painted(GREY, GREY), painted(GREY, GREY), [Sought(photos(RED), (LEFT,))])
    [full] = look(Colours(), painted(RED, GREY), painted(GREY, GREY), [Sought(photos(RED), (LEFT,))])
    assert base.score is not None
    assert full.score is not None
    assert abs(base.score) < 1e-6
    assert abs(full.score - 1.0) < 1e-6
    assert 0.0 < PRESENT < 1.0


def test_anchors_that_do_not_differ_say_nothing() -> None:
    [seen] = look(Colours(), painted(RED, RED), painted(RED, RED), [Sought(photos(RED), (LEFT,))])
    assert (seen.state, seen.score) == ("missing", None)


def test_crops_are_never_empty_and_windows_lie_in_the_picture() -> None:
    picture = painted(RED, GREEN)
    assert crop(picture, Box(0.99, 0.99, 0.001, 0.001)).shape == (1, 3, 1, 1)
    assert crop(picture, LEFT).shape == (1, 3, 16, 8)
    assert all(box.x >= 0 and box.x + box.width <= 1 and box.y + box.height <= 1 for box in windows())
    assert len(windows()) == 25 + 9 + 1
