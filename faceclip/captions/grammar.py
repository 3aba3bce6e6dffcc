"""The grammar of captions: from attributes and visible regions to sentences whose phrases know their span, region and
attributes.

An attribute that is missing or "" is unknown, and no caption states it. Renders know all of their attributes
(`faceclip.people.rows`), photographs those that could be read (`faceclip.captions.photographs`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from faceclip.captions import wording as tables
from faceclip.captions.wording import RENDERS, Wording
from faceclip.data.records import Caption, CaptionKind, Phrase

LONGEST = 6  # things that one caption lists at most
Attributes = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Words:
    """A piece of a caption: text, and if it describes something, where and which attributes it states."""

    text: str
    region: str | None = None
    attributes: tuple[str, ...] = ()


def sentences(
    attributes: Attributes, visible: frozenset[str], generator: np.random.Generator, wording: Wording = RENDERS
) -> list[Caption]:
    """Returns four captions of one portrait: short and long attributes, the emotion alone, and both; the first two
    alone where the expression is unknown.

    `visible` are the regions that can be seen. The same generator state gives the same captions.
    """
    present = _present(attributes, visible, generator, wording)
    absent = _absent(attributes, visible, generator)
    backdrop = _background(attributes, visible, generator, wording)
    generator.shuffle(present)
    short = present[:1] or absent[:1] or backdrop
    if len(present) > 1 and generator.random() < 0.5:
        short = present[:2]
    negation = absent[:1] if generator.random() < 0.35 else []
    full = [*present[:LONGEST], *negation] or absent[:1]
    place = backdrop if generator.random() < 0.5 else []
    some = present[: int(generator.integers(1, 4))] or absent[:1]
    compose = _Composer(attributes, visible, generator, wording)
    captions = [compose.list_of(short, [], None, "attributes"), compose.list_of(full, place, None, "attributes")]
    if expression := attributes.get("expression"):
        captions += [compose.emotion(expression), compose.list_of(some, [], expression, "both")]
    return captions


def _pick(generator: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(generator.integers(len(options)))]


def _present(
    attributes: Attributes, visible: frozenset[str], generator: np.random.Generator, wording: Wording
) -> list[Words]:
    """Returns phrases for what the person has or wears, each with a region that can be seen."""
    found = []
    if attributes.get("hair_length") == "bald":
        # Only a bare head shows that it is bald.
        if attributes.get("hat") == "none":
            found.append(Words(text="a bald head", region="skin", attributes=("hair_length",)))
    elif "hair" in visible and (attributes.get("hair_color") or _bare_length(attributes)):
        found.append(_hair(attributes, generator))
    if (glasses := _worn(attributes, "glasses")) and "glasses" in visible:
        text = _pick(generator, tables.GLASSES[glasses])
        found.append(Words(text=text, region="glasses", attributes=("glasses",)))
    if (hat := _worn(attributes, "hat")) and "hat" in visible:
        text, names = _pick(generator, tables.HATS[hat]), ("hat",)
        if color := attributes.get("hat_color"):
            text, names = f"{color} {text}", ("hat", "hat_color")
        found.append(Words(text=_article(text), region="hat", attributes=names))
    if (beard := _worn(attributes, "beard")) and "beard" in visible:
        text = _pick(generator, tables.BEARDS[beard])
        found.append(Words(text=text, region="beard", attributes=("beard",)))
    if (makeup := _worn(attributes, "makeup")) and "lips" in visible:
        text = _pick(generator, tables.MAKEUP[makeup])
        region = "lips" if makeup == "lipstick" else "skin"
        found.append(Words(text=text, region=region, attributes=("makeup",)))
    if "clothes" in visible and attributes.get("clothes_color") and generator.random() < 0.6:
        color, kind = attributes["clothes_color"], attributes.get("clothes")
        if kind:
            text = _article(f"{color} {_pick(generator, tables.CLOTHES[kind])}")
            found.append(Words(text=text, region="clothes", attributes=("clothes", "clothes_color")))
        else:
            text = f"{color} {_pick(generator, wording.clothes)}"
            found.append(Words(text=text, region="clothes", attributes=("clothes_color",)))
    for name, (region, options) in tables.DETAILS.items():
        if not (value := attributes.get(name)) or value not in options or region not in visible:
            continue
        if (name, value) not in tables.USUAL or generator.random() < 1 / 3:
            found.append(Words(text=_pick(generator, options[value]), region=region, attributes=(name,)))
    return found


def _worn(attributes: Attributes, name: str) -> str:
    """Returns the value of something that a person may lack; "" where it is unknown or not there."""
    value = attributes.get(name, "")
    return "" if value == "none" else value


def _hair(attributes: Attributes, generator: np.random.Generator) -> Words:
    """Says the hair color always, its length unless a hat hides it, and texture, sometimes."""
    words, names = [], []
    color, texture = (attributes.get(name) for name in ("hair_color", "hair_texture"))
    length = _bare_length(attributes)
    if length and (generator.random() < 0.6 or not color):
        words.append(_pick(generator, tables.HAIR_LENGTHS[length]))
        names.append("hair_length")
    if texture and generator.random() < 0.35:
        words.append(texture)
        names.append("hair_texture")
    if color:
        words.append(_pick(generator, tables.HAIR_COLORS[color]))
        names.append("hair_color")
    return Words(text=" ".join([*words, "hair"]), region="hair", attributes=tuple(names))


def _bare_length(attributes: Attributes) -> str:
    """Returns how long the hair is; "" where that is unknown or hidden by a hat."""
    return "" if _worn(attributes, "hat") else attributes.get("hair_length", "")


def _absent(attributes: Attributes, visible: frozenset[str], generator: np.random.Generator) -> list[Words]:
    """Returns phrases for what is not there, in random order; their region is where it would be."""
    found = []
    if attributes.get("glasses") == "none" and "eyes" in visible:
        found.append(Words(text="no glasses", region="eyes", attributes=("glasses",)))
    if attributes.get("hat") == "none" and "hair" in visible:
        found.append(Words(text="no hat", region="hair", attributes=("hat",)))
    if attributes.get("beard") == "none" and "skin" in visible:
        found.append(Words(text=_pick(generator, tables.NO_BEARD), region="skin", attributes=("beard",)))
    generator.shuffle(found)
    return found


def _background(
    attributes: Attributes, visible: frozenset[str], generator: np.random.Generator, wording: Wording
) -> list[Words]:
    color = attributes.get("background_color")
    if "background" not in visible or not color:
        return []
    others = tuple(option.format(_article(color)) for option in wording.other_backgrounds)
    text = _pick(generator, wording.backgrounds.get(color, others))
    return [Words(text=text, region="background", attributes=("background_color",))]


@dataclass(frozen=True)
class _Composer:
    """Sentences about one portrait."""

    attributes: Attributes
    visible: frozenset[str]
    generator: np.random.Generator
    wording: Wording

    def pick(self, options: Sequence[str]) -> str:
        return _pick(self.generator, options)

    def emotion(self, expression: str) -> Caption:
        """Returns a caption of the expression alone."""
        before, clause, whole = tables.EXPRESSIONS[expression]
        style = int(self.generator.integers(3))
        if style == 0:
            text = self.pick(whole)
            # The sentence's predicate says the emotion; "The person" and "The face" do not.
            words = text.split(" ", 2)
            pieces = [Words(text=f"{words[0]} {words[1]} "), _mood(words[2].rstrip(".")), Words(text=".")]
            return _assemble(pieces, "emotion")
        opening = Words(text=self.pick(self.wording.openings))
        if style == 1:
            pieces = [*_with_adjective(self.pick(before), Words(text="person")), Words(text=".")]
            return _assemble([opening, *pieces], "emotion")
        subject = Words(text=f"{self.pick(self.wording.subjects)} ")
        return _assemble([opening, subject, _mood(self.pick(clause)), Words(text=".")], "emotion")

    def list_of(
        self, things: Sequence[Words], place: Sequence[Words], expression: str | None, kind: CaptionKind
    ) -> Caption:
        """Returns [opening] [adjective] person [clause] with a, b and c [in front of place]."""
        pieces = self._opening()
        clause = None
        noun = self._noun()
        if expression is None:
            pieces.extend(self._subject(noun))
        elif self.generator.random() < 0.6:
            adjective = self.pick(tables.EXPRESSIONS[expression][0])
            pieces.extend(_with_adjective(adjective, noun or Words(text="person")))
        else:
            pieces.extend(self._subject(noun))
            clause = _mood(self.pick(tables.EXPRESSIONS[expression][1]))
        # A place alone stands in front as well: "a person in front of a blue wall".
        listed = [item for item in things if item.region != "background"]
        place = [*place, *(item for item in things if item.region == "background")]
        for position, item in enumerate(listed):
            joint = " with " if position == 0 else " and " if position == len(listed) - 1 else ", "
            pieces += [Words(text=joint), item]
        for item in place:
            pieces += [Words(text=" in front of "), item]
        if clause is not None:
            pieces += [Words(text=", "), clause]
        pieces.append(Words(text="."))
        return _assemble(pieces, kind)

    def _opening(self) -> list[Words]:
        """Returns "A photo of", or how large the face is where that is known."""
        plain = [Words(text=self.pick(self.wording.openings))]
        words = tables.FACE_SIZES.get(self.attributes.get("face_size", ""))
        if words and "skin" in self.visible and self.generator.random() < 0.5:
            return [Words(text=self.pick(words), region="skin", attributes=("face_size",)), Words(text=" of ")]
        return plain

    def _noun(self) -> Words | None:
        """Returns the person by sex and age, where they are known and the face can be seen."""
        sex, age = (self.attributes.get(name, "") for name in ("sex", "age"))
        if "skin" not in self.visible or not (sex or age):
            return None
        if not sex:
            return Words(text=self.pick(tables.AGES[age]), region="skin", attributes=("age",))
        grown = {"child": "girl" if sex == "female" else "boy", "young": f"young {tables.SEXES[sex]}"}
        grown["old"] = f"elderly {tables.SEXES[sex]}"
        names = ("age", "sex") if age in grown else ("sex",)
        return Words(text=grown.get(age, tables.SEXES[sex]), region="skin", attributes=names)

    def _subject(self, noun: Words | None) -> list[Words]:
        if noun is None:
            return [Words(text=self.pick(self.wording.subjects))]
        return [replace(noun, text=_article(noun.text))]


def _mood(text: str) -> Words:
    return Words(text=text, region="skin", attributes=("expression",))


def _with_adjective(adjective: str, noun: Words) -> list[Words]:
    article = _article(adjective).split(" ", 1)[0]
    spaced = [Words(text=f" {noun.text}")] if noun.region is None else [Words(text=" "), noun]
    return [Words(text=f"{article} "), _mood(adjective), *spaced]


def _article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _assemble(pieces: Sequence[Words], kind: CaptionKind) -> Caption:
    """Joins pieces, capitalizes the sentence, and notes where each phrase stands."""
    pieces = [piece for piece in pieces if piece.text]
    first = pieces[0]
    pieces = [replace(first, text=first.text[0].upper() + first.text[1:]), *pieces[1:]]
    text, phrases = "", []
    for piece in pieces:
        start = len(text)
        text += piece.text
        if piece.region is not None:
            phrases.append(
                Phrase(text=piece.text, start=start, end=len(text), region=piece.region, attributes=piece.attributes)
            )
    return Caption(text=text, kind=kind, phrases=tuple(phrases))
