"""How the texts of a picture with regions are built from its sentence."""

from __future__ import annotations

import pytest

from backend.services.prompts import Placeholder
from backend.services.region_texts import Subject, constructed, constructed_apart

STARK = {"stark": Placeholder("stark", "dog", 1, "w1")}
REX = {"rex": Placeholder("rex", "dog", 1, "w4")}
DOMINO = {"domino": Placeholder("domino-2", "cat", 1, "w2")}
INK = {"ink": Placeholder("ink", "", 1, "w3")}
OWL = {"minerva": Placeholder("minerva", "owl", 1, "w5")}
GATE = {"gate": Placeholder("gate", "moongate", 1, "w6")}
DOG, CAT = Subject("@stark", STARK, 0.2), Subject("@domino", DOMINO, 0.8)


@pytest.mark.parametrize(
    ("sentence", "whole", "first"),
    [
        ("a photo of @stark and @domino on the beach", "a photo of a dog and a cat on the beach",
         "a photo of a <stark> dog and a <stark> dog on the beach"),
        ("a photo of a @stark dog and a @Domino cat", "a photo of a dog and a cat",
         "a photo of a <stark> dog and a <stark> dog"),
        ("the @domino beside my @stark", "the cat beside my dog", "the <stark> dog beside my <stark> dog"),
        ("a dog and a cat in the snow", "a dog and a cat in the snow", "a <stark> dog and a <stark> dog in the snow"),
        ("on the beach", "a dog and a cat on the beach", "a <stark> dog and a <stark> dog on the beach"),
        ("watercolor", "a dog and a cat, watercolor", "a <stark> dog and a <stark> dog, watercolor"),
        ("@stark at night", "a dog and a cat at night", "a <stark> dog and a <stark> dog at night"),
        ("a red @stark and @domino", "a red dog and a cat", "a red <stark> dog and a <stark> dog"),
        ("@stark and @domino, @stark in front", "a dog and a cat, a dog in front",
         "a <stark> dog and a <stark> dog, a <stark> dog in front"),
    ],
)  # fmt: skip
def test_a_region_keeps_the_sentence_and_changes_who_is_there(sentence: str, whole: str, first: str) -> None:
    texts = constructed(sentence, [DOG, CAT], {})
    assert texts.whole == whole
    assert texts.regions[0] == first
    assert texts.regions[1] == first.replace("<stark> dog", "<domino-2> cat")


def test_further_words_of_a_region_come_along() -> None:
    subjects = [Subject("@stark wearing sunglasses", STARK), Subject("a red teapot", {})]
    texts = constructed("@stark and a red teapot on the moon", subjects, {})
    assert texts.whole == "a dog wearing sunglasses and a red teapot on the moon"
    assert texts.regions == (
        "a <stark> dog wearing sunglasses and a <stark> dog wearing sunglasses on the moon",
        "a red teapot and a red teapot on the moon",
    )


def test_two_of_one_class_take_turns_from_left_to_right() -> None:
    texts = constructed("a dog and a dog", [Subject("@stark", STARK), Subject("@rex", REX)], {})
    assert texts.whole == "a dog and a dog"
    assert texts.regions == ("a <stark> dog and a <stark> dog", "a <rex> dog and a <rex> dog")


def test_a_scene_names_its_subjects_from_left_to_right() -> None:
    texts = constructed("in the city", [Subject("@domino", DOMINO, 0.9), Subject("@minerva", OWL, 0.1)], {})
    assert texts.whole == "an owl and a cat in the city"
    assert texts.regions[1] == "a <minerva> owl and a <minerva> owl in the city"


def test_one_concept_in_two_boxes() -> None:
    texts = constructed("@stark on the beach", [DOG, Subject("@stark", STARK, 0.9)], {})
    assert texts.whole == "a dog and a dog on the beach"
    assert texts.regions == ("a <stark> dog and a <stark> dog on the beach",) * 2


def test_what_belongs_to_no_region_keeps_its_token_in_the_picture_alone() -> None:
    texts = constructed(
        "@stark and @domino in front of @gate in the style of @ink", [DOG, CAT], {**GATE, **INK}
    )
    assert texts.whole == "a dog and a cat in front of <gate> moongate in the style of <ink>"
    assert texts.regions[0] == "a <stark> dog and a <stark> dog in front of moongate in the style of art"
    both = Subject("@stark", {**STARK, **GATE})
    assert "<gate> moongate" in constructed("@stark in front of @gate", [both], GATE).regions[0]


def test_a_word_that_only_looks_like_the_noun_is_left_alone() -> None:
    texts = constructed("a hotdog on the moon", [DOG], {})
    assert texts.whole == "a dog, a hotdog on the moon"


@pytest.mark.parametrize(
    ("sentence", "whole", "dog", "cat"),
    [
        ("a photo of @stark and @domino on the beach", "a photo on the beach",
         "a photo of a <stark> dog on the beach", "a photo of a <domino-2> cat on the beach"),
        ("a photo of a @stark dog and a @Domino cat", "a photo",
         "a photo of a <stark> dog", "a photo of a <domino-2> cat"),
        ("the @domino beside my @stark", "", "my <stark> dog", "the <domino-2> cat"),
        ("a dog and a cat in the snow", "in the snow", "a <stark> dog in the snow", "a <domino-2> cat in the snow"),
        ("on the beach", "on the beach", "a <stark> dog on the beach", "a <domino-2> cat on the beach"),
        ("watercolor", "watercolor", "a <stark> dog, watercolor", "a <domino-2> cat, watercolor"),
        ("@stark at night", "at night", "a <stark> dog at night", "a <domino-2> cat at night"),
        ("a red @stark and @domino at night", "at night", "a red <stark> dog at night", "a <domino-2> cat at night"),
        ("my painting with @stark chasing @domino, in oil", "my painting, in oil",
         "my painting with a <stark> dog, in oil", "my painting with a <domino-2> cat, in oil"),
    ],
)  # fmt: skip
def test_apart_everybody_is_alone_and_the_picture_is_what_is_left(
    sentence: str, whole: str, dog: str, cat: str
) -> None:
    texts = constructed_apart(sentence, [DOG, CAT], {})
    assert texts.whole == whole
    assert texts.regions == (dog, cat)


def test_apart_what_belongs_to_no_region_keeps_its_token_in_the_picture_alone() -> None:
    texts = constructed_apart(
        "@stark and @domino in front of @gate in the style of @ink", [DOG, CAT], {**GATE, **INK}
    )
    assert texts.whole == "in front of <gate> moongate in the style of <ink>"
    assert texts.regions[0] == "a <stark> dog in front of moongate in the style of art"
