"""Typed errors of the project. Every message names the fault, its place and the remedy."""

from collections.abc import Iterable

_LONGEST = 2000  # characters of a message
# What constructors and readers of other projects raise for damaged files and for settings that cannot be.
BAD_INPUT = (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError)


def listed(names: Iterable[object]) -> str:
    """Returns the first eight names, joined by commas, for a message; "…" stands for the others."""
    shown = list(map(str, names))
    return ", ".join(shown[:8]) + (" …" if len(shown) > 8 else "")


class FaceClipError(Exception):
    """Base of all errors that this project raises for a user's input or environment.

    A long message is shortened in the middle. Its beginning (fault and place) and its end (the remedy) stay.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) <= _LONGEST:
            return text
        return f"{text[: _LONGEST - 600]} … ({len(text):,} characters) … {text[-500:]}"


class ConfigError(FaceClipError, ValueError):
    """A configuration key is unknown, has the wrong type, or holds an impossible value."""


class MissingExtraError(FaceClipError, ImportError):
    """A package of an optional extra is needed and not installed; the message names package and extra."""


class CheckpointError(FaceClipError):
    """A weights file or training checkpoint is missing, truncated, corrupt or does not fit the model.

    Where tensors were compared with those of a model, four attributes hold the names of all tensors that differ, of
    which the message has the first: `missing`, `unexpected`, `misshapen` (another shape) and `mistyped` (integers or
    complex numbers where floating point is expected). Otherwise they are empty.
    """

    def __init__(
        self,
        *args: object,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        misshapen: Iterable[str] = (),
        mistyped: Iterable[str] = (),
    ) -> None:
        super().__init__(*args)
        self.missing: tuple[str, ...] = tuple(missing)
        self.unexpected: tuple[str, ...] = tuple(unexpected)
        self.misshapen: tuple[str, ...] = tuple(misshapen)
        self.mistyped: tuple[str, ...] = tuple(mistyped)


class DataError(FaceClipError):
    """A dataset, shard or record is missing, corrupt or lacks a column."""


class EmptyDatasetError(DataError):
    """A dataset or split has no usable record."""


class TooManyBadRecordsError(DataError):
    """A data set has more unusable rows than the configuration allows."""


class NonFiniteLossError(FaceClipError, ArithmeticError):
    """The loss or a gradient became NaN or infinite; the last complete checkpoint is untouched."""


class NonFiniteLatentsError(FaceClipError, ArithmeticError):
    """Latents or pixels became NaN or infinite while a picture was drawn; there is no picture."""


class FaceError(FaceClipError, ValueError):
    """An image does not give the face that is needed."""


class NoFaceError(FaceError):
    """No face was found in an image."""


class SeveralFacesError(FaceError):
    """More than one face was found where exactly one is required."""


class BadLandmarksError(FaceError):
    """The given points cannot be the eyes, nose tip and mouth corners of a face in the image."""


class UnreadableImageError(FaceError):
    """An image is missing, truncated, or not an image."""


class ImageTooLargeError(FaceError):
    """An image has more pixels than the limit allows. It is rejected before it is decoded."""
