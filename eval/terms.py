"""Licence and origin of the data that results are of: every result states them, or the run is rejected."""

from faceclip.errors import ConfigError


def check_terms(licence: str, origin: str, prefix: str = "") -> None:
    """Raises ConfigError, which names the setting behind a prefix such as "--", for data without licence or origin,
    whose results cannot be published."""
    for name, value in (("licence", licence), ("origin", origin)):
        if not value.strip():
            raise ConfigError(f"{prefix}{name}: say the {name} of the data, such as 'CC0-1.0' or 'unknown, see URL'")


def data_terms(rendered: bool, licence: str, origin: str) -> dict[str, str]:
    """Returns what a result file says of its data. Renders of this project have theirs; raises what `check_terms`
    raises for photographs."""
    if rendered and not licence and not origin:
        return {"licence": "CC0-1.0", "origin": "rendered by faceclip.people"}
    check_terms(licence, origin, "--")
    return {"licence": licence, "origin": origin}
