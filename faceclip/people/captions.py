"""Captions of a portrait from its labels: wording varies, phrases know their span, region and attributes.

A caption never states what cannot be seen: hair color needs visible hair, and so on for every region of the
picture. Every word comes from the tables below: a text tower's vocabulary can be compact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from faceclip.data.records import REGIONS, VOCABULARIES, Caption, CaptionKind, Phrase
from faceclip.errors import DataError
from faceclip.storage.shards import ShardedArray

VISIBLE_SHARE = 0.004
"""A region is visible when it covers at least this share of the picture."""

_SUBJECTS = ("a person", "a person", "someone", "an adult")
_OPENINGS = ("", "", "a photo of ", "a portrait of ", "a picture of ")

_GLASSES = {
    "round": ("round glasses", "glasses with round frames"),
    "square": ("square glasses", "glasses with square frames"),
    "sunglasses": ("sunglasses", "dark sunglasses"),
}
_HATS = {
    "cap": ("cap", "baseball cap"),
    "beanie": ("beanie", "knitted hat"),
    "brimmed": ("brimmed hat", "hat with a brim"),
}
_BEARDS = {
    "stubble": ("stubble", "light stubble"),
    "mustache": ("a mustache", "a moustache"),
    "full": ("a full beard", "a beard"),
}
_MAKEUP = {"lipstick": ("lipstick", "red lipstick"), "full": ("make-up", "full make-up")}
_CLOTHES = {
    "tshirt": ("t-shirt",),
    "shirt": ("shirt", "collared shirt"),
    "sweater": ("sweater", "pullover"),
    "hoodie": ("hoodie", "hooded sweater"),
}
_HAIR_LENGTHS = {"short": ("short",), "medium": ("medium length", "shoulder length"), "long": ("long",)}
_HAIR_COLORS = {
    "black": ("black",),
    "brown": ("brown",),
    "blond": ("blond", "blonde"),
    "red": ("red", "ginger"),
    "gray": ("gray", "grey"),
}
_SHOWN_BY = {
    "hair_color": "hair",
    "hair_texture": "hair",
    "glasses": "glasses",
    "hat": "hat",
    "hat_color": "hat",
    "beard": "beard",
    "makeup": "lips",
    "clothes": "clothes",
    "clothes_color": "clothes",
}
_BACKGROUNDS = {"dark": ("a dark background",)}

# Before the subject ("a smiling person"), as a clause ("who is smiling"), and as a sentence of its own.
_EXPRESSIONS = {
    "neutral": (
        ("calm", "neutral"),
        ("with a neutral expression", "with a calm face"),
        ("The face shows a neutral expression.", "The person looks calm."),
    ),
    "smile": (
        ("smiling", "happy"),
        ("with a smile", "smiling"),
        ("The person is smiling.", "The face shows a friendly smile."),
    ),
    "laugh": (
        ("laughing", "very happy"),
        ("laughing with an open mouth", "with a big laugh"),
        ("The person is laughing.", "The face shows a big laugh."),
    ),
    "surprise": (
        ("surprised", "astonished"),
        ("with a surprised look", "looking surprised"),
        ("The person looks surprised.", "The face shows surprise."),
    ),
    "sad": (
        ("sad", "unhappy"),
        ("with a sad look", "looking sad"),
        ("The person looks sad.", "The face shows sadness."),
    ),
    "angry": (
        ("angry", "furious"),
        ("with an angry look", "looking angry"),
        ("The person looks angry.", "The face shows anger."),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Words:
    """A piece of a caption: text, and if it describes something, where and which attributes it states."""

    text: str
    region: str | None = None
    attributes: tuple[str, ...] = ()


def describe(
    attributes: Mapping[str, str], regions: NDArray[np.uint8], generator: np.random.Generator
) -> list[Caption]:
    """Four captions of one portrait: short and long attributes, the emotion alone, and both.

    `attributes` has a value of `VOCABULARIES` for every name; `regions` (S, S) is the label map, and decides
    what is visible. The same generator state gives the same captions. Raises `DataError` for unknown values.
    """
    _check(attributes)
    visible = _visible_regions(regions)
    present = _present(attributes, visible, generator)
    absent = _absent(attributes, visible, generator)
    backdrop = _background(attributes, visible, generator)
    generator.shuffle(present)
    short = present[:1] or absent[:1] or backdrop
    if len(present) > 1 and generator.random() < 0.5:
        short = present[:2]
    negation = absent[:1] if generator.random() < 0.35 else []
    full = [*present, *negation] or absent[:1]
    place = backdrop if generator.random() < 0.5 else []
    some = present[: int(generator.integers(1, 4))] or absent[:1]
    captions = [
        _compose(short, [], None, "attributes", generator),
        _compose(full, place, None, "attributes", generator),
        _emotion(attributes["expression"], generator),
        _compose(some, [], attributes["expression"], "both", generator),
    ]
    return captions


def _check(attributes: Mapping[str, str]) -> None:
    for name, values in VOCABULARIES.items():
        if attributes.get(name) not in values:
            raise DataError(f"attribute {name}={attributes.get(name)!r}: expected one of {', '.join(values)}")


def seen_values(
    values: Mapping[str, NDArray[np.str_]], regions: NDArray[np.uint8] | ShardedArray
) -> dict[str, NDArray[np.str_]]:
    """What N pictures show of their attributes: `values` (N,) by name, and "" where a value cannot be seen and no
    caption would state it (the hair color of a bald head, the length of hair under a hat). regions: (N, S, S)."""
    shares = np.stack([np.bincount(labels.ravel(), minlength=len(REGIONS)) for labels in regions]) / regions[0].size
    visible = dict(zip(REGIONS, (shares >= VISIBLE_SHARE).T, strict=True))
    seen = {name: words.copy() for name, words in values.items()}
    for name, region in _SHOWN_BY.items():
        seen[name][(values[name] != "none") & ~visible[region]] = ""
    bald = values["hair_length"] == "bald"
    seen["hair_length"][(values["hat"] != "none") | (~bald & ~visible["hair"])] = ""
    return seen


def _visible_regions(regions: NDArray[np.uint8]) -> frozenset[str]:
    share = np.bincount(regions.ravel(), minlength=len(REGIONS)) / regions.size
    if len(share) > len(REGIONS):
        raise DataError(f"region map holds label {len(share) - 1}, the last known one is {len(REGIONS) - 1}")
    return frozenset(name for name, part in zip(REGIONS, share, strict=True) if part >= VISIBLE_SHARE)


def _pick(generator: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(generator.integers(len(options)))]


def _present(attributes: Mapping[str, str], visible: frozenset[str], generator: np.random.Generator) -> list[Words]:
    """Phrases for what the person has or wears, each with a region that can be seen."""
    found = []
    if attributes["hair_length"] == "bald":
        # Only a bare head shows that it is bald.
        if attributes["hat"] == "none":
            found.append(Words(text="a bald head", region="skin", attributes=("hair_length",)))
    elif "hair" in visible:
        found.append(_hair(attributes, generator))
    if attributes["glasses"] != "none" and "glasses" in visible:
        text = _pick(generator, _GLASSES[attributes["glasses"]])
        found.append(Words(text=text, region="glasses", attributes=("glasses",)))
    if attributes["hat"] != "none" and "hat" in visible:
        text = f"{attributes['hat_color']} {_pick(generator, _HATS[attributes['hat']])}"
        found.append(Words(text=_article(text), region="hat", attributes=("hat", "hat_color")))
    if attributes["beard"] != "none" and "beard" in visible:
        text = _pick(generator, _BEARDS[attributes["beard"]])
        found.append(Words(text=text, region="beard", attributes=("beard",)))
    if attributes["makeup"] != "none" and "lips" in visible:
        text = _pick(generator, _MAKEUP[attributes["makeup"]])
        region = "lips" if attributes["makeup"] == "lipstick" else "skin"
        found.append(Words(text=text, region=region, attributes=("makeup",)))
    if "clothes" in visible and generator.random() < 0.6:
        text = f"{attributes['clothes_color']} {_pick(generator, _CLOTHES[attributes['clothes']])}"
        found.append(Words(text=_article(text), region="clothes", attributes=("clothes", "clothes_color")))
    return found


def _hair(attributes: Mapping[str, str], generator: np.random.Generator) -> Words:
    """Hair color always; length unless a hat hides it, and texture, sometimes."""
    words, names = [], []
    if attributes["hat"] == "none" and generator.random() < 0.6:
        words.append(_pick(generator, _HAIR_LENGTHS[attributes["hair_length"]]))
        names.append("hair_length")
    if generator.random() < 0.35:
        words.append(attributes["hair_texture"])
        names.append("hair_texture")
    words.append(_pick(generator, _HAIR_COLORS[attributes["hair_color"]]))
    names.append("hair_color")
    return Words(text=f"{' '.join(words)} hair", region="hair", attributes=tuple(names))


def _absent(attributes: Mapping[str, str], visible: frozenset[str], generator: np.random.Generator) -> list[Words]:
    """Phrases for what is not there, in random order; their region is where it would be."""
    found = []
    if attributes["glasses"] == "none" and "eyes" in visible:
        found.append(Words(text="no glasses", region="eyes", attributes=("glasses",)))
    if attributes["hat"] == "none" and "hair" in visible:
        found.append(Words(text="no hat", region="hair", attributes=("hat",)))
    if attributes["beard"] == "none" and "skin" in visible:
        found.append(Words(text=_pick(generator, ("no beard", "a shaved face")), region="skin", attributes=("beard",)))
    generator.shuffle(found)
    return found


def _background(attributes: Mapping[str, str], visible: frozenset[str], generator: np.random.Generator) -> list[Words]:
    if "background" not in visible:
        return []
    color = attributes["background_color"]
    text = _pick(generator, _BACKGROUNDS.get(color, (f"a {color} background", f"a {color} wall")))
    return [Words(text=text, region="background", attributes=("background_color",))]


def _emotion(expression: str, generator: np.random.Generator) -> Caption:
    before, clause, sentences = _EXPRESSIONS[expression]
    style = int(generator.integers(3))
    if style == 0:
        text = _pick(generator, sentences)
        # The sentence's predicate says the emotion; "The person" and "The face" do not.
        words = text.split(" ", 2)
        pieces = [Words(text=f"{words[0]} {words[1]} "), _mood(words[2].rstrip(".")), Words(text=".")]
        return _assemble(pieces, "emotion")
    opening = Words(text=_pick(generator, _OPENINGS))
    if style == 1:
        pieces = [*_with_adjective(_pick(generator, before)), Words(text=".")]
        return _assemble([opening, *pieces], "emotion")
    subject = Words(text=f"{_pick(generator, _SUBJECTS)} ")
    return _assemble([opening, subject, _mood(_pick(generator, clause)), Words(text=".")], "emotion")


def _compose(
    things: Sequence[Words],
    place: Sequence[Words],
    expression: str | None,
    kind: CaptionKind,
    generator: np.random.Generator,
) -> Caption:
    """[opening] [adjective] person [clause] with a, b and c [in front of place]."""
    pieces = [Words(text=_pick(generator, _OPENINGS))]
    clause = None
    if expression is None:
        pieces.append(Words(text=_pick(generator, _SUBJECTS)))
    elif generator.random() < 0.6:
        pieces.extend(_with_adjective(_pick(generator, _EXPRESSIONS[expression][0])))
    else:
        pieces.append(Words(text=_pick(generator, _SUBJECTS)))
        clause = _mood(_pick(generator, _EXPRESSIONS[expression][1]))
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


def _mood(text: str) -> Words:
    return Words(text=text, region="skin", attributes=("expression",))


def _with_adjective(adjective: str) -> list[Words]:
    return [Words(text=f"{_article(adjective).split(' ', 1)[0]} "), _mood(adjective), Words(text=" person")]


def _article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _assemble(pieces: Sequence[Words], kind: CaptionKind) -> Caption:
    """Join pieces, capitalize the sentence, and note where each phrase stands."""
    pieces = [piece for piece in pieces if piece.text]
    first = pieces[0]
    pieces = [replace(first, text=first.text[0].upper() + first.text[1:]), *pieces[1:]]
    text, phrases = "", []
    for piece in pieces:
        start = len(text)
        text += piece.text
        if piece.region is not None:
            phrases.append(
                Phrase(
                    text=piece.text,
                    start=start,
                    end=len(text),
                    region=piece.region,
                    attributes=piece.attributes,
                )
            )
    return Caption(text=text, kind=kind, phrases=tuple(phrases))
