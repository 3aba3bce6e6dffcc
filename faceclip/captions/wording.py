"""The words of the grammar. Renders and photographs share every table but the few that `Wording` holds.

Every word of a caption comes from these tables: a text tower's vocabulary can be compact.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

Options = tuple[str, ...]

GLASSES = {
    "round": ("round glasses", "glasses with round frames"),
    "square": ("square glasses", "glasses with square frames"),
    "sunglasses": ("sunglasses", "dark sunglasses"),
}
HATS = {
    "cap": ("cap", "baseball cap"),
    "beanie": ("beanie", "knitted hat"),
    "brimmed": ("brimmed hat", "hat with a brim"),
}
BEARDS = {
    "stubble": ("stubble", "light stubble"),
    "mustache": ("a mustache", "a moustache"),
    "full": ("a full beard", "a beard"),
}
MAKEUP = {"lipstick": ("lipstick", "red lipstick"), "full": ("make-up", "full make-up")}
CLOTHES = {
    "tshirt": ("t-shirt",),
    "shirt": ("shirt", "collared shirt"),
    "sweater": ("sweater", "pullover"),
    "hoodie": ("hoodie", "hooded sweater"),
}
HAIR_LENGTHS = {"short": ("short",), "medium": ("medium length", "shoulder length"), "long": ("long",)}
HAIR_COLORS = {
    "black": ("black",),
    "brown": ("brown",),
    "blond": ("blond", "blonde"),
    "red": ("red", "ginger"),
    "gray": ("gray", "grey"),
}
NO_BEARD = ("no beard", "a shaved face")

# Before the subject ("a smiling person"), as a clause ("who is smiling"), and as a sentence of its own.
EXPRESSIONS = {
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

# What only photographs have, after "with": attribute → region and the words of each value that is worth saying. Left
# and right are those of the picture.
DETAILS: dict[str, tuple[str, dict[str, Options]]] = {
    "mouth": ("lips", {"open": ("an open mouth", "parted lips"), "closed": ("a closed mouth", "closed lips")}),
    "eyes": ("eyes", {"closed": ("closed eyes", "shut eyes")}),
    "brows": ("brows", {"raised": ("raised eyebrows", "raised brows")}),
    "gaze": (
        "eyes",
        {
            "camera": ("eyes on the camera", "a look into the camera"),
            "left": ("eyes looking to the left", "a gaze to the left"),
            "right": ("eyes looking to the right", "a gaze to the right"),
            "up": ("eyes looking up", "a gaze upwards"),
            "down": ("eyes looking down", "a lowered gaze"),
        },
    ),
    "head": (
        "skin",
        {
            "frontal": ("the face to the camera",),
            "left": ("the head turned to the left", "the face turned to the left"),
            "right": ("the head turned to the right", "the face turned to the right"),
        },
    ),
    "nod": ("skin", {"up": ("a raised head", "the chin up"), "down": ("a lowered head", "the chin down")}),
    "tilt": ("skin", {"left": ("the head tilted to the left",), "right": ("the head tilted to the right",)}),
    "lip_color": ("lips", {"red": ("red lips", "deep red lips")}),
    "light": (
        "skin",
        {
            "even": ("even light on the face",),
            "left": ("light from the left",),
            "right": ("light from the right",),
            "above": ("light from above",),
            "below": ("light from below",),
        },
    ),
}
# Values that most photographs have are said in a third of the cases.
USUAL = frozenset({("mouth", "closed"), ("gaze", "camera"), ("head", "frontal"), ("light", "even")})
FACE_SIZES = {"close": ("a close-up",), "far": ("a distant view", "a wide view")}
AGES = {"child": ("child",), "young": ("young person",), "middle": ("adult",), "old": ("elderly person",)}
SEXES = {"female": "woman", "male": "man"}


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Where the two worlds differ. backgrounds: the words for some colours; other_backgrounds: those for all others,
    with `{}` for the colour and its article. clothes: the words where the kind of clothes is unknown."""

    subjects: Options = ("a person", "a person", "someone", "an adult")
    openings: Options = ("", "", "a photo of ", "a portrait of ", "a picture of ")
    backgrounds: Mapping[str, Options] = field(default_factory=lambda: {"dark": ("a dark background",)})
    other_backgrounds: Options = ("{} background", "{} wall")
    clothes: Options = ("clothes", "clothing")


RENDERS = Wording()
# Nobody measured an age, and what is behind people on photographs is seldom a wall.
PHOTOGRAPHS = Wording(subjects=("a person", "a person", "someone"), other_backgrounds=("{} background", "{} backdrop"))
