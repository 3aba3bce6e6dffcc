"""What a component raises while it computes, as an error that names the component.

A configuration may describe the tensors of its weights and still be none that computes: heads that divide nothing, an
unknown type of prediction. Only the call shows it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from faceclip.errors import ConfigError, FaceClipError
from makeup_plugin.callbacks import callback_after_step

P = ParamSpec("P")
R = TypeVar("R")
# What networks and schedulers raise for shapes, kinds of numbers and settings that do not fit.
_RAISED = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError)
# A device that has no memory left, or fails, is no fault of a component.
_OF_THE_DEVICE = (torch.OutOfMemoryError, torch.AcceleratorError)

# What a frame below this function raises is an error of the callback.
_CALLING_BACK = f"{callback_after_step.__qualname__}.<locals>.after_step"


def parts_named(call: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """A function whose first argument is a pipeline: what a component of it raises becomes a ConfigError that names the
    component. Other errors pass, also those of callbacks."""

    @functools.wraps(call)
    def named(pipeline: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(pipeline, *args, **kwargs)
        except (FaceClipError, *_OF_THE_DEVICE):
            raise
        except _RAISED as error:
            name = _component_of(error, pipeline.components)
            if name is None:
                raise
            raise ConfigError(
                f"{name} cannot compute ({type(error).__name__}: {error}): its settings do not fit its weights, the"
                " other components or the arguments of the call; load it again, or change what was changed last"
            ) from error

    return named


def _component_of(error: BaseException, components: dict[str, Any]) -> str | None:
    """The innermost component that was computing, by the frames of the error; or the only one that our own function
    which raised it was given. None for an error of a callback, also where it used a component."""
    names = {id(part): name for name, part in components.items() if part is not None}
    found, trace = None, error.__traceback__
    frame = None
    while trace is not None:
        if frame is not None and frame.f_code.co_qualname == _CALLING_BACK:
            return None
        frame = trace.tb_frame
        found = names.get(id(frame.f_locals.get("self")), found)
        trace = trace.tb_next
    if found is None and frame is not None and frame.f_globals.get("__name__", "").startswith("makeup_plugin."):
        given = {names[id(value)] for value in frame.f_locals.values() if id(value) in names}
        found = given.pop() if len(given) == 1 else None
    return found
