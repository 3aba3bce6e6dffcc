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


class _Holding(threading.local):
    """How many pipelines the current thread holds, one within the call of another."""

    depth = 0


_holding = _Holding()


@contextmanager
def held(pipeline: Any) -> Iterator[None]:
    """Holds the turns of a pipeline, all its networks and its scheduler, of which a pipeline with another UNet may
    share some.

    All threads take them in the same order, so that none waits for one that waits for it. A thread that holds another
    pipeline already, because this is a callback of its call, does not wait at all.

    Raises ConfigError in such a callback where another thread uses the pipeline or a part of it.
    """
    with ExitStack() as stack:
        for name, lock in _locks_of(pipeline):
            if not lock.acquire(blocking=_holding.depth == 0):
                raise ConfigError(
                    f"another thread uses {name}, and a callback cannot wait for it: do this after the call has ended,"
                    " or keep the pipelines of a callback to one thread"
                )
            stack.callback(lock.release)
        _holding.depth += 1
        try:
            yield
        finally:
            _holding.depth -= 1


def _locks_of(pipeline: Any) -> Iterator[tuple[str, threading.RLock]]:
    """Locks in the order in which to take them, each with the name of what it guards. The parts are looked up when the
    first is taken: until then another thread may exchange them."""
    yield "the pipeline", pipeline._turns.lock
    parts: dict[int, tuple[str, Any]] = {}
    for name, part in vars(pipeline).items():
        if isinstance(part, nn.Module | SchedulerMixin):
            parts |= {id(one): (name, one) for one in (part, *_holders_of_weights(part))}
    for _, (name, part) in sorted(parts.items(), key=lambda entry: entry[0]):
        with _choosing:
            lock = _part_locks.setdefault(part, threading.RLock())
        yield name, lock


def _holders_of_weights(part: Any) -> list[nn.Module]:
    """The modules of a part that hold weights, by which parts know each other that share a network within: a list of
    ControlNets, a compiled module, two joint encoders with one recognizer."""
    modules = part.modules() if isinstance(part, nn.Module) else ()
    return [one for one in modules if any(True for _ in one.parameters(recurse=False))]


class TakesTurns(Protocol):
    _turns: Turns


def call_in_turn(method: Callable[P, R]) -> Callable[P, R]:
    """A pipeline's call, which waits until no other thread uses the pipeline.

    Raises ConfigError within a call of the same thread, that is, in its callback; in the callback of another pipeline
    as `held` does.
    """

    @functools.wraps(method)
    def waiting(self: Any, *args: Any, **kwargs: Any) -> Any:
        with held(self):
            _check_outside(self._turns, "the pipeline cannot be called")
            self._turns.calling = True
            try:
                return method(self, *args, **kwargs)
            finally:
                self._turns.calling = False

    return cast("Callable[P, R]", waiting)


def change_in_turn(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """A method that changes or saves a pipeline, which waits until no other thread uses it.

    Raises ConfigError within a call of the same thread, that is, in its callback; in the callback of another pipeline
    as `held` does.
    """

    @functools.wraps(method)
    def waiting(self: TakesTurns, *args: P.args, **kwargs: P.kwargs) -> R:
        with held(self):
            _check_outside(self._turns, f"{method.__name__} is not possible")
            return method(self, *args, **kwargs)

    return waiting


def move_in_turn(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """A method that moves weights, which waits until no other thread uses the pipeline. diffusers calls such methods at
    the end of a call, too."""

    @functools.wraps(method)
    def waiting(self: TakesTurns, *args: P.args, **kwargs: P.kwargs) -> R:
        with held(self):
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
