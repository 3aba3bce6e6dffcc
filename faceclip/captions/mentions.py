"""Which words of a given caption describe which regions: every noun phrase of the lexicon, at every place.

A phrase is the noun with the describing words before it ("long wavy hair", "her bright blue eyes"), at most 12 of them.
What is said not to be there ("no beard", "without glasses", "does not wear a hat") describes nothing. Words that the
lexicon does not know are left alone: a description by a model or a person is never parsed further.
"""

import re
from collections.abc import Sequence

from faceclip.data.records import Caption, Phrase

VERSION = 2  # of what is linked
# Region → nouns, as regular expressions of whole words.
LEXICON = {
    "hair": "hair|hairstyle|haircut|bangs|ponytail|braids?|curls|locks|fringe",
    "brows": "eyebrows?|brows?",
    "eyes": "eyes?|eyelashes|lashes|eyelids?|gaze",
    "glasses": "glasses|eyeglasses|sunglasses|spectacles",
    "nose": "nose|nostrils",
    "lips": "lips?|mouth|lipstick|teeth|smile|grin",
    "beard": "beard|moustache|mustache|goatee|stubble|sideburns",
    "hat": "hat|cap|beanie|helmet|hood|headscarf|turban|hijab",
    "ears": "ears?|earrings?",
    "neck": "neck|necklace",
    "clothes": "shirt|t-shirt|blouse|suit|jacket|coat|dress|sweater|pullover|hoodie|uniform|jersey|tie|necktie|scarf"
    "|collar|clothes|clothing|top|vest",
    "skin": "skin|face|cheeks?|forehead|chin|complexion|freckles|wrinkles|make-?up",
    "background": "background|backdrop|wall",
}
_COLORS = (
    "black|white|gr[ae]y|silver|red|ginger|auburn|orange|yellow|golden|blond|blonde|brown|brunette|beige|green|blue|navy"
    "|purple|violet|pink|hazel|dark|light|pale|bright|fair|tanned"
)
_SHAPES = (
    "long|short|medium|shoulder|length|curly|wavy|straight|thick|thin|bushy|arched|big|large|small|little|narrow|wide|full"
    "|high|low|pointed|pointy|round|oval|square|double|slightly|very|open|closed|parted|raised|smiling|wrinkled|receding"
    "|messy|neat|shaved|trimmed|heavy|slim|rosy|bare|plain|blurred|blurry|striped|checked|collared|knitted|baseball|wool"
    "|woolen|leather|denim|business|formal|casual|framed|rimmed|toothy|broad|gentle|friendly|soft|smooth|young|old"
)
# Bounded repetitions: each word of a long text would be the start of another walk to its end.
_ADJECTIVE = rf"(?:(?:{_COLORS}|{_SHAPES})(?:-(?:{_COLORS}|{_SHAPES})){{0,3}})"
_NOUN = "|".join(f"(?:{nouns})" for nouns in LEXICON.values())
_PHRASE = re.compile(rf"\b((?:{_ADJECTIVE}(?:,\s+|\s+and\s+|\s+)){{0,12}})({_NOUN})(?![\w-])", re.IGNORECASE)
_REGION_OF = {region: re.compile(rf"(?:{nouns})", re.IGNORECASE) for region, nouns in LEXICON.items()}
_BEFORE = r"(?:(?:any|a|an|the|visible|wearing|wear|having|have|facial)\s+)*"
_NEGATION = re.compile(rf"\b(?:no|not|without|neither|nor|never|lacks?|lacking|\w+n['’]t)\s+{_BEFORE}$", re.IGNORECASE)
_NEAR = 60  # characters before a phrase in which its negation begins
# Between two mentions: what goes on with a denial, and what does so only in a list that ends with the former.
_OR = re.compile(rf"(?:\s*,)?\s*\b(?:or|nor)\s+{_BEFORE}", re.IGNORECASE)
_COMMA = re.compile(rf"\s*,\s+{_BEFORE}", re.IGNORECASE)


def link_mentions(text: str) -> Caption:
    """Returns a caption of kind "free" with a phrase for every mention of a region, in order of appearance."""
    found = list(_PHRASE.finditer(text))
    phrases = []
    denied = False
    for match, goes_on in zip(found, _continued(text, found), strict=True):
        negated = _NEGATION.search(text, max(0, match.start() - _NEAR), match.start())
        denied = negated is not None or (denied and goes_on)
        if denied:
            continue
        noun = match.group(2)
        region = next(name for name, nouns in _REGION_OF.items() if nouns.fullmatch(noun))
        phrases.append(Phrase(text=match.group(), start=match.start(), end=match.end(), region=region))
    return Caption(text=text, kind="free", phrases=tuple(phrases))


def _continued(text: str, found: Sequence[re.Match[str]]) -> list[bool]:
    """Returns whether a denial of the mention before goes on with each mention: "no hat or glasses" and "no hat,
    glasses or beard" deny everything, "no hat, brown hair" and "no hat and brown hair" deny the hat."""
    goes_on = [False] * len(found)
    listed = False  # whether the list goes on from the mention behind to an "or"
    for number in range(len(found) - 1, 0, -1):
        between = found[number - 1].end(), found[number].start()
        listed = bool(_OR.fullmatch(text, *between) or (listed and _COMMA.fullmatch(text, *between)))
        goes_on[number] = listed
    return goes_on
