"""The texts of a picture with regions, built from its sentence (methods.md 13.5). Pure.

A region's text keeps the layout of the whole and changes only who is there: "a dog and a cat on the beach" with
@stark in one box and @domino in the other is read as "a <stark> dog and a <stark> dog on the beach" inside the first
and as "a <domino> cat and a <domino> cat on the beach" inside the second. A text that names its own subject alone
would ask for one thing in the middle of the picture. The picture itself is read with class nouns, "a dog and a cat on
the beach": the base model's part is where things are, not who they are.

A region's subject stands in the sentence as its prompt, its token, or its class noun. Where none of the subjects
does, the sentence is the scene: "p_1 and p_2 on the beach"; where some do, the others join the last that does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from backend.services import prompts
from backend.services.prompts import Placeholder

STYLE_NOUN = "art"
DETERMINERS = "an?|the|my|our|your|his|her|their|its|one|this|that"
_DETERMINED = re.compile(rf"({DETERMINERS}|two|three|four|some|many)\s", re.IGNORECASE)
_BEFORE = re.compile(rf"\b({DETERMINERS})(\s+\w+)?\s*$", re.IGNORECASE)
_PREPOSITION = re.compile(
    r"(above|across|against|along|among|around|at|before|behind|below|beneath|beside|between|by|during|from|in|inside"
    r"|into|near|on|onto|outside|over|through|to|towards|under|underneath|with|within)\b",
    re.IGNORECASE,
)
_OPEN = re.compile(r"\s*(,|\b(of|with|and|showing|featuring))?\s*$", re.IGNORECASE)
_JOINT = re.compile(r"^[\s,;]+")
"""What a sentence ends or begins with when its subjects are taken out."""


@dataclass(frozen=True)
class Subject:
    """What one region shows: its prompt; tokens that its weights teach, those of the prompt among them; and the middle
    of its box from the left.
    """

    prompt: str
    known: Mapping[str, Placeholder]
    middle: float = 0.5


@dataclass(frozen=True)
class Texts:
    """Encoder texts: of the picture, and of each region."""

    whole: str
    regions: tuple[str, ...]


@dataclass(frozen=True)
class _Slot:
    """A place of the sentence where ``subject`` stands, with the determiner that was written there."""

    subject: int
    determiner: str


_Piece = str | _Slot


def constructed(sentence: str, subjects: Sequence[Subject], rest: Mapping[str, Placeholder]) -> Texts:
    """Texts of a picture whose prompt is ``sentence``; ``rest`` are the tokens of it that belong to no region.

    In the picture's text these keep their placeholders. In a region's text they are class nouns unless the region's
    own weights teach them.
    """
    pieces = _pieces(sentence, subjects)
    everyone = {name: subject.known[name] for subject in subjects for name in prompts.tokens(subject.prompt)}
    nouns = {**everyone, **rest}

    def render(slot: Callable[[int], str], text: Callable[[str], str]) -> str:
        rendered = ""
        for piece in pieces:
            rendered += (
                text(piece) if isinstance(piece, str) else _placed(rendered, piece, slot(piece.subject))
            )
        return rendered

    def inside(subject: Subject) -> str:
        others = {name: taught for name, taught in nouns.items() if name not in subject.known}
        named = prompts.resolved(subject.prompt, subject.known)
        return render(lambda _: named, lambda text: prompts.resolved(plain(text, others), subject.known))

    whole = render(
        lambda index: plain(subjects[index].prompt, subjects[index].known),
        lambda text: prompts.resolved(plain(text, everyone), rest),
    )
    return Texts(whole, tuple(inside(subject) for subject in subjects))


def constructed_apart(sentence: str, subjects: Sequence[Subject], rest: Mapping[str, Placeholder]) -> Texts:
    """Texts where every region has a pass of its own: in it its subject is alone, "a <stark> dog on the beach", and the
    picture's text is what is left, "on the beach". What stands between the first subject and the last is left out.
    """
    pieces = _pieces(sentence, subjects)
    slots = [at for at, piece in enumerate(pieces) if isinstance(piece, _Slot)]
    before, after = _text(pieces[: slots[0]]), _text(pieces[slots[-1] + 1 :])
    first, bare = pieces[slots[0]], _BEFORE.sub("", before)
    everyone = {name: subject.known[name] for subject in subjects for name in prompts.tokens(subject.prompt)}
    nouns = {**everyone, **rest}

    def inside(index: int, subject: Subject) -> str:
        others = {name: taught for name, taught in nouns.items() if name not in subject.known}
        beginning = before if isinstance(first, _Slot) and first.subject == index else bare
        lead, scene = (prompts.resolved(plain(text, others), subject.known) for text in (beginning, after))
        own = next(piece for piece in pieces if isinstance(piece, _Slot) and piece.subject == index)
        return lead + _placed(lead, own, prompts.resolved(subject.prompt, subject.known)) + scene

    ground = _OPEN.sub("", bare) + (after if bare.strip() else _JOINT.sub("", after))
    whole = prompts.resolved(plain(ground, everyone), rest).strip()
    return Texts(whole, tuple(inside(index, subject) for index, subject in enumerate(subjects)))


def _text(pieces: Sequence[_Piece]) -> str:
    return "".join(piece for piece in pieces if isinstance(piece, str))


def _pieces(sentence: str, subjects: Sequence[Subject]) -> list[_Piece]:
    """The sentence cut at its subjects; every subject has a slot."""
    spans = _mentions(sentence, subjects)
    named = {slot.subject for _, _, slot in spans}
    missing = sorted((i for i in range(len(subjects)) if i not in named), key=lambda i: subjects[i].middle)
    if not spans:
        scene = sentence.strip()
        joint = " " if _PREPOSITION.match(scene) else ", "
        return [*_joined(missing), *([joint, scene] if scene else [])]
    pieces: list[_Piece] = []
    at = 0
    for start, end, slot in spans:
        pieces += [sentence[at:start], slot]
        at = end
    pieces += [" and ", *_joined(missing)] if missing else []
    return [piece for piece in [*pieces, sentence[at:]] if piece != ""]


def _joined(order: Sequence[int]) -> list[_Piece]:
    """ "p_1 and p_2 and p_3"."""
    pieces: list[_Piece] = []
    for index in order:
        pieces += [" and ", _Slot(index, "")] if pieces else [_Slot(index, "")]
    return pieces


def _mentions(sentence: str, subjects: Sequence[Subject]) -> list[tuple[int, int, _Slot]]:
    """Where subjects stand in the sentence, from left to right: by their prompts, else tokens, else class nouns.

    All places of a token count; subjects that share one take turns. Of prompts and nouns the first free place counts.
    """
    spans: list[tuple[int, int, _Slot]] = []

    def claim(index: int, pattern: str) -> bool:
        for match in re.finditer(rf"(?:\b({DETERMINERS})\s+)?{pattern}", sentence, re.IGNORECASE):
            if all(match.end() <= start or end <= match.start() for start, end, _ in spans):
                spans.append((match.start(), match.end(), _Slot(index, match[1] or "")))
                return True
        return False

    def named() -> set[int]:
        return {slot.subject for _, _, slot in spans}

    def noun_behind(taught: Placeholder) -> str:
        return rf"(?:\s+{re.escape(taught.class_noun)}(?!\w))?" if taught.class_noun else ""

    own = [prompts.tokens(subject.prompt) for subject in subjects]
    for index, subject in enumerate(subjects):
        words = (
            _DETERMINED.sub("", subject.prompt, count=1)
            if _DETERMINED.match(subject.prompt)
            else subject.prompt
        )
        ends_with = [name for name in own[index] if words.lower().endswith(f"@{name}")]
        if len(words.split()) > 1 or not own[index]:
            behind = noun_behind(subject.known[ends_with[0]]) if ends_with else ""
            claim(index, rf"(?<![\w@-]){re.escape(words)}(?![\w-]){behind}")
    for name in dict.fromkeys(name for names in own for name in names):
        sharing = [index for index, names in enumerate(own) if name in names]
        turn = [index for index in sharing if index not in named()] or sharing
        while claim(turn[0], rf"@{re.escape(name)}(?![\w-]){noun_behind(subjects[sharing[0]].known[name])}"):
            turn = [*turn[1:], turn[0]]
    for index, subject in enumerate(subjects):
        for taught in (subject.known[name] for name in own[index]):
            if index not in named() and taught.class_noun:
                claim(index, rf"(?<![\w@-]){re.escape(taught.class_noun)}(?![\w-])")
    return sorted(spans, key=lambda span: span[0])


def plain(text: str, known: Mapping[str, Placeholder]) -> str:
    """``text`` with the tokens of ``known`` as class nouns, whether written or resolved; others stay as they are."""
    read = prompts.resolved(text, known)
    for taught in known.values():
        read = re.sub(rf"<{taught.token}>\s?", "" if taught.class_noun else f"{STYLE_NOUN} ", read)
    return read.rstrip() if not text.endswith(" ") else read


def _placed(before: str, slot: _Slot, phrase: str) -> str:
    """The phrase with the determiner of its place; with an article where neither has one and it begins with a noun
    ("a <stark> dog", "an owl")."""
    if _DETERMINED.match(phrase) or (not slot.determiner and _BEFORE.search(before)):
        return phrase
    if slot.determiner and slot.determiner.lower() not in ("a", "an"):
        return f"{slot.determiner} {phrase}"
    if _PREPOSITION.match(phrase):
        return phrase
    return f"{'an' if phrase[:1].lower() in 'aeiou' else 'a'} {phrase}"
