"""One pipeline, or several that share a UNet or another part, and several threads: they take turns."""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from diffusers import SchedulerMixin
from torch import nn

from faceclip.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")
Kind = TypeVar("Kind", bound=type)


class Turns:
    """Whose turn it is on one pipeline, or on several that share a UNet.

    A call sets the scheduler, scales and flags that its steps read, and weights may move between devices meanwhile: so
    a second thread waits until the first one has its pictures, or has finished loading or saving.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.calling = False

    def __reduce__(self) -> tuple[type[Turns], tuple]:
        return Turns, ()  # a copy of a pipeline has turns of its own


_turns_by_module: weakref.WeakKeyDictionary[nn.Module, Turns] = weakref.WeakKeyDictionary()
_choosing = threading.Lock()


def turns_of(unet: nn.Module | None) -> Turns:
    """The turns of all pipelines that use this UNet. A call attaches processors to it and sets their scales."""
    if unet is None:
        return Turns()
    with _choosing:
        return _turns_by_module.setdefault(unet, Turns())


def give_turns(unet: nn.Module, turns: Turns) -> None:
    """Lets all pipelines that use this UNet take these turns, unless it has turns of its own already."""
    with _choosing:
        _turns_by_module.setdefault(unet, turns)


_part_locks: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()


@contextmanager
def _parts_held(pipeline: Any) -> Iterator[None]:
    """Holds every network and the scheduler of a pipeline: one with another UNet may share them. All threads take them
    in the same order, so that none waits for one that waits for it."""
    parts = {id(part): part for part in vars(pipeline).values() if isinstance(part, nn.Module | SchedulerMixin)}
    with ExitStack() as held:
        for _, part in sorted(parts.items()):
            with _choosing:
                lock = _part_locks.setdefault(part, threading.RLock())
            held.enter_context(lock)
        yield


class TakesTurns(Protocol):
    _turns: Turns


def call_in_turn(method: Callable[P, R]) -> Callable[P, R]:
    """A pipeline's call, which waits until no other thread uses the pipeline.

    Raises ConfigError within a call of the same thread, that is, in its callback.
    """

    @functools.wraps(method)
    def waiting(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._turns.lock, _parts_held(self):
            _check_outside(self._turns, "the pipeline cannot be called")
            self._turns.calling = True
            try:
                return method(self, *args, **kwargs)
            finally:
                self._turns.calling = False

    return cast("Callable[P, R]", waiting)


def change_in_turn(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """A method that changes or saves a pipeline, which waits until no other thread uses it.

    Raises ConfigError within a call of the same thread, that is, in its callback.
    """

    @functools.wraps(method)
    def waiting(self: TakesTurns, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._turns.lock, _parts_held(self):
            _check_outside(self._turns, f"{method.__name__} is not possible")
            return method(self, *args, **kwargs)

    return waiting


def move_in_turn(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """A method that moves weights, which waits until no other thread uses the pipeline. diffusers calls such methods at
    the end of a call, too."""

    @functools.wraps(method)
    def waiting(self: TakesTurns, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._turns.lock, _parts_held(self):
            return method(self, *args, **kwargs)

    return waiting


def waits_for_calls(*names: str) -> Callable[[Kind], Kind]:
    """Class decorator: these methods of instances, which the class has from diffusers, wait as in `move_in_turn`."""

    def decorated(kind: Kind) -> Kind:
        for name in names:
            assert not inspect.ismethod(getattr(kind, name)), f"{name} is a classmethod: it has no pipeline"
            setattr(kind, name, move_in_turn(getattr(kind, name)))
        return kind

    return decorated


def _check_outside(turns: Turns, what: str) -> None:
    if turns.calling:
        raise ConfigError(f"{what} within a call of the same pipeline: a callback must wait until the call has ended")
