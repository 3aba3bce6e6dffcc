"""Licence and origin of the data that results are of: said in every result, or the run is refused."""

from faceclip.errors import ConfigError


def data_terms(rendered: bool, licence: str, origin: str) -> dict[str, str]:
    """Returns what a result file says of its data. Renders of this project have theirs.

    Raises ConfigError for photographs of which nobody says licence and origin.
    """
    if rendered and not licence and not origin:
        return {"licence": "CC0-1.0", "origin": "rendered by faceclip.people"}
    for option, value in (("--licence", licence), ("--origin", origin)):
        if not value.strip():
            raise ConfigError(
                f"{option}: say the data's {option[2:]}, as {option} 'research only' or 'unknown, see URL'"
            )
    return {"licence": licence, "origin": origin}
