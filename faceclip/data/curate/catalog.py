"""The shipped measures by name, and the choice among them for one run."""

from collections.abc import Sequence

import pyarrow as pa

from faceclip.data.curate import face_measures, pixels, text
from faceclip.data.curate.measures import Measure, check_columns, load_plugin
from faceclip.errors import ConfigError

SHIPPED = {
    measure.name: measure
    for measure in (
        pixels.SIZE,
        pixels.COLOR,
        pixels.EXPOSURE,
        pixels.BLUR,
        pixels.HASH,
        face_measures.FACES,
        face_measures.CARTOON,
        text.TEXT,
        face_measures.IDENTITY,
    )
}
USUAL = tuple(name for name in SHIPPED if name != face_measures.IDENTITY.name)  # identity needs the extra `photos`
ROW_COLUMNS = {"row": pa.int64(), "key": pa.string(), "person": pa.string(), "reason": pa.string()}
"""Columns that every row has: its number in the split, its key, its person, and the reason why it was not measured (""
if it was)."""


def choose_measures(names: Sequence[str], plugins: Sequence[str]) -> list[Measure]:
    """Returns the shipped measures with these names, in the catalog's order, and then the plugins at MODULE:NAME.

    Raises ConfigError if a name is unknown, a plugin cannot be loaded, two columns have the same name, or nothing is
    chosen.
    """
    for name in names:
        if name not in SHIPPED:
            raise ConfigError(
                f"measures: {name!r} is none of {', '.join(SHIPPED)}; name one's own by plugins=MODULE:NAME"
            )
    chosen = [SHIPPED[name] for name in SHIPPED if name in names]  # in the catalog's order
    chosen += [load_plugin(place) for place in plugins]
    if not chosen:
        raise ConfigError("measures: name at least one, or a plugin by plugins=MODULE:NAME")
    check_columns(chosen, tuple(ROW_COLUMNS))
    return chosen
