"""Who is there: pictures painted by hand and a judge that sees colours, so that every answer is known."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from worker.ml.evaluation.presence import PRESENT, Sought, crop, look, windows
from worker.ml.regions import Box

LEFT, RIGHT = Box(0, 0, 0.5, 1), Box(0.5, 0, 0.5, 1)
CORNER, FAR_CORNER = Box(0, 0, 0.5, 0.5), Box(0.5, 0.5, 0.5, 0.5)
RED, GREEN, GREY = (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (0.1, 0.1, 0.1)
WHITE, CHIMERA, PALE_GREEN = (1.0, 1.0, 1.0), (0.1, 0.0, -1.0), (0.0, 1.0, 0.1)


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


def patched(ground: tuple[float, ...], *patches: tuple[Box, tuple[float, ...]]) -> Tensor:
    picture = torch.tensor(ground)[:, None, None].repeat(1, 16, 16)
    for box, colour in patches:
        crop(picture, box)[:] = torch.tensor(colour)[:, None, None]
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


def test_one_chimera_is_not_two_concepts() -> None:
    """Both would be there in the same window: it belongs to the one that it is more like, the other is fused."""
    red, green = Sought(photos(RED)), Sought(photos(GREEN))
    chimera = patched(WHITE, (CORNER, CHIMERA))
    assert states(chimera, red) == states(chimera, green) == ["present"]
    assert states(chimera, red, green) == ["present", "fused"]
    assert states(chimera, green, red) == ["fused", "present"]
    _, other = look(Colours(), chimera, painted(GREY, GREY), [red, green])
    assert other.score is not None
    assert other.score >= PRESENT
    assert other.box == CORNER


def test_a_concept_gives_way_where_it_has_another_place() -> None:
    """Green is most like itself in the chimera, which red needs; it stands elsewhere too."""
    red, green = Sought(photos(RED)), Sought(photos(GREEN))
    picture = patched(WHITE, (CORNER, CHIMERA), (FAR_CORNER, PALE_GREEN))
    alone = look(Colours(), picture, painted(GREY, GREY), [green])
    one, other = look(Colours(), picture, painted(GREY, GREY), [red, green])
    assert (one.state, other.state) == ("present", "present")
    assert (alone[0].box, one.box, other.box) == (CORNER, CORNER, FAR_CORNER)


def test_a_concept_partly_before_another_is_there() -> None:
    picture = patched(RED, (FAR_CORNER, GREEN))
    one, other = look(Colours(), picture, painted(GREY, GREY), [Sought(photos(RED)), Sought(photos(GREEN))])
    assert (one.state, other.state) == ("present", "present")
    assert other.box == FAR_CORNER


def test_a_box_is_taken() -> None:
    """Whoever has a box keeps it; what stands in it is nobody else's."""
    boxed, free = Sought(photos(GREEN), (CORNER,)), Sought(photos(RED))
    assert states(patched(WHITE, (CORNER, CHIMERA)), boxed, free) == ["present", "fused"]
    both = patched(WHITE, (CORNER, CHIMERA), (FAR_CORNER, RED))
    assert states(both, boxed, free) == ["present", "present"]
    missing = Sought(photos(GREEN), (FAR_CORNER,))
    assert states(patched(WHITE, (CORNER, CHIMERA)), missing, free) == ["missing", "present"]


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
    assert (seen.state, seen.score) == ("unknown", None)


def test_photos_too_different_from_each_other_say_nothing() -> None:
    """Among themselves they are no more alike than the base's own picture is to them. Others are told as before."""
    apart = Sought(normalize(torch.tensor([RED, GREEN]), dim=1))
    picture = painted(GREY, RED)
    for sought in (apart, Sought(apart.photos, (LEFT,)), Sought(apart.photos, (LEFT, RIGHT))):
        one, other = look(Colours(), picture, painted(GREY, GREY), [sought, Sought(photos(RED))])
        assert (one.state, one.score, other.state) == ("unknown", None, "present")
        assert one.box in (sought.boxes or windows())


def test_a_concept_in_two_regions_that_is_missing_in_one_is_missing() -> None:
    """Whatever cannot be told of the other."""
    both = Sought(photos(RED), (LEFT, RIGHT))
    for colour, state in ((GREY, "missing"), (RED, "unknown")):
        [seen] = look(Colours(), painted(RED, colour), painted(RED, GREY), [both])
        assert seen.state == state


def test_crops_are_never_empty_and_windows_lie_in_the_picture() -> None:
    picture = painted(RED, GREEN)
    assert crop(picture, Box(0.99, 0.99, 0.001, 0.001)).shape == (1, 3, 1, 1)
    assert crop(picture, LEFT).shape == (1, 3, 16, 8)
    assert all(box.x >= 0 and box.x + box.width <= 1 and box.y + box.height <= 1 for box in windows())
    assert len(windows()) == 25 + 9 + 1
