"""What photos and prior images are called (methods.md 4, "Data and prompts").

Subject: "photo of a <token> dog". Style: "painting in the style of <token> art". Where the category itself is new its
plain name is taught, without a token: "photo of a moongate". A prefix of the augmentation comes first: "zoomed in
photo of a <token> dog".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

STYLE_NOUN = "art"
ARTICLE = re.compile(r"\b(an?|the|one|my|his|her|their)(\s+\w+)?\s*$", re.IGNORECASE)


def photo_caption(
    token: str | None, class_noun: str, kind: Literal["subject", "style"], prefix: str = ""
) -> str:
    """Caption of a photo, placeholder as ``<token>``; without a token the class noun alone."""
    if kind == "style":
        word = "" if token is None else f"<{token}> "
        plain = f"painting in the style of {word}{class_noun or STYLE_NOUN}"
    elif token is None:
        plain = f"photo of {with_article(class_noun)}"
    else:
        plain = f"photo of a <{token}> {class_noun}".rstrip()
    return f"{prefix} {plain}".lstrip()


def class_prompts(class_noun: str, kind: Literal["subject", "style"], examples: Sequence[str]) -> list[str]:
    """Texts of the generated prior images, used in turn; empty where there is no class to preserve.

    The class alone, then the base model's example prompts with the class in the subject's place: like the
    paper's retrieved captions, they hold the class in many surroundings. Never with a placeholder, never
    augmented.
    """
    if kind == "style":
        noun = class_noun or STYLE_NOUN
        return [f"painting in the style of {noun}", noun]
    if not class_noun:
        return []
    return [
        f"photo of {with_article(class_noun)}",
        *(filled(example, class_noun) for example in examples if "{}" in example),
    ]


def other_class_prompts(
    class_noun: str, kind: Literal["subject", "style"], nouns: Sequence[str], examples: Sequence[str]
) -> list[str]:
    """Like `class_prompts` where the class itself is new: the base knows no picture of it that could be preserved.

    What stands above it is preserved instead: art for a style; for a subject the things that the base draws well
    (``nouns``), each in another of the surroundings. Empty where the base names none.
    """
    if kind == "style":
        return class_prompts("", kind, examples)
    places = ["photo of {}", *(example for example in examples if "{}" in example)]
    known = [noun for noun in nouns if noun.lower() != class_noun.lower()]
    return [filled(places[at % len(places)], noun) for at, noun in enumerate(known)]


def without_noun(text: str, token: str, class_noun: str) -> str:
    """``text`` with the class noun taken away behind ``<token>``: "a <stark> dog" is "a <stark>"."""
    return re.sub(rf"(<{token}>) {re.escape(class_noun)}(?!\w)", r"\1", text) if class_noun else text


def with_article(noun: str) -> str:
    """ "a dog", "an owl"."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def filled(example: str, noun: str) -> str:
    """``example`` with the class in the place of ``{}``; an article where the example has none before it."""
    before, after = example.split("{}", 1)
    return before + (noun if ARTICLE.search(before) else with_article(noun)) + after
