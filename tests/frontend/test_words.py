"""Numbers and sizes as pages say and show them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from frontend import phrases, pictures


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "unknown"), (0.2, "0 s"), (89.4, "89 s"), (95, "2 min"), (4800, "80 min"), (6000, "1 h 40 min")],
)
def test_duration(seconds: float | None, said: str) -> None:
    assert phrases.duration(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (999, "999 B"), (1_790_000, "1.8 MB"), (24e9, "24.0 GB")]
)
def test_size(count: float, said: str) -> None:
    assert phrases.size(count) == said


@pytest.mark.parametrize(("seconds", "said"), [(5, "just now"), (61, "1 minute ago"), (7300, "2 hours ago")])
def test_ago(seconds: float, said: str) -> None:
    assert phrases.ago(datetime.now(UTC) - timedelta(seconds=seconds)) == said


def test_the_sentence_and_the_ring_of_a_phase() -> None:
    assert phrases.standing("training", 240, 600, 40.0) == "Training: step 240 of 600, about 40 s left"
    assert phrases.standing("training", 600, 600, 0.0) == "Training: step 600 of 600"
    assert phrases.standing("drawing", 3, 12, 9.0) == "Drawing, 25 %"
    assert phrases.standing("saving", 5, 5, None) == "Saving and measuring what has changed"
    assert phrases.standing("unheard_of", 0, 0, None) == "Unheard of"
    assert phrases.ring("training", 0, 100) == pytest.approx(0.25)
    assert phrases.ring("training", 100, 100) == pytest.approx(1.0)
    assert phrases.ring("saving", 5, 10) is None


def test_the_encoders_text_reads_as_it_was_written() -> None:
    assert phrases.prompt("a <stark> dog, 1 < 2 > 0") == "a @stark dog, 1 < 2 > 0"


@pytest.mark.parametrize(
    ("natural", "in_grid"),
    [((64, 64), (256, 256)), ((96, 64), (384, 256)), ((32, 32), (128, 128)), ((512, 512), (256, 256))],
)
def test_small_pictures_grow_at_most_fourfold(natural: tuple[int, int], in_grid: tuple[int, int]) -> None:
    assert pictures.size_in_grid(*natural) == in_grid


@pytest.mark.parametrize(
    ("site", "said"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "down 1.0 cross keys"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_v", "mid 0.0 cross values"),
        ("up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_out.0", "up 2.1 self output"),
        ("down_blocks.0.resnets.1.conv1", "down 0.1 conv1"),
        ("up_blocks.1.attentions.0.proj_in", "up 1.0 proj in"),
        ("conv_in", "conv in"),
    ],
)
def test_layers_have_short_names(site: str, said: str) -> None:
    """Of self-attention and cross-attention in one block two different ones."""
    assert phrases.layer(site) == said
