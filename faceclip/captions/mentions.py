"""Which words of a given caption describe which regions: every noun phrase of the lexicon, at every place.

A phrase is the noun with the describing words before it ("long wavy hair", "her bright blue eyes"). What is said not to
be there ("no beard", "without glasses") describes nothing. Words that the lexicon does not know are left alone: a
description by a model or a person is never parsed further.
"""

import re

from faceclip.data.records import Caption, Phrase

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
_ADJECTIVE = rf"(?:(?:{_COLORS}|{_SHAPES})(?:-(?:{_COLORS}|{_SHAPES}))*)"
_PHRASE = re.compile(
    rf"\b((?:{_ADJECTIVE}(?:,\s+|\s+and\s+|\s+))*)({'|'.join(f'(?:{nouns})' for nouns in LEXICON.values())})(?![\w-])",
    re.IGNORECASE,
)
_REGION_OF = {region: re.compile(rf"(?:{nouns})", re.IGNORECASE) for region, nouns in LEXICON.items()}
_NEGATION = re.compile(
    r"\b(?:no|not|without|neither|nor|never|lacks?|lacking)\s+(?:(?:any|a|an|the|visible|wearing|having)\s+)*$",
    re.IGNORECASE,
)
_MORE = re.compile(r"^[\s,]*(?:or|and|nor|,)\s+(?:(?:any|a|an)\s+)*$", re.IGNORECASE)


def link_mentions(text: str) -> Caption:
    """A caption of kind "free" with a phrase for every mention of a region, in order of appearance."""
    phrases = []
    denied_until = -1  # the end of the last mention that was denied: "no hat or glasses" denies both
    for match in _PHRASE.finditer(text):
        before = text[: match.start()]
        follows = denied_until >= 0 and _MORE.match(before[denied_until:])
        if _NEGATION.search(before) or (follows and " and " not in before[denied_until:]):
            denied_until = match.end()
            continue
        noun = match.group(2)
        region = next(name for name, nouns in _REGION_OF.items() if nouns.fullmatch(noun))
        phrases.append(Phrase(text=match.group(), start=match.start(), end=match.end(), region=region))
    return Caption(text=text, kind="free", phrases=tuple(phrases))
