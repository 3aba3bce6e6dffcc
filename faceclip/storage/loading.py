"""Loads models from folders strictly: the tensors must be exactly those of the model, or a CheckpointError is raised.

diffusers only logs missing tensors, leaves them on the `meta` device, and reads folders of any other class.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode

from faceclip.errors import BAD_INPUT, CheckpointError, listed
from faceclip.storage.regular import read_settings
from faceclip.storage.tensors import find_weights, read_header

_MOST_PADDING = 64  # px; convolutions of published models have 1
_COUNTED = ("layers", "depth", "blocks")  # words in the names of fields that count parts of a model
_DRAWING = {"kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "uniform_", "normal_"}
DAMAGE = (*BAD_INPUT, OSError, MemoryError)  # what a damaged file or configuration gives
# Held while models are built or loaded. diffusers and accelerate replace methods of `nn.Module` meanwhile; two threads
# that did so at once would leave a replacement behind, and modules built beside them would have no storage.
building = threading.RLock()


def load_strictly(load: Callable[..., Any], kind: type[nn.Module], source: str | Path, **options: Any) -> Any:
    """Loads a model by `load`, a `from_pretrained` of the class `kind`, from `source` with `options`.

    Raises:
        CheckpointError: the folder is missing or damaged, belongs to another class, its tensors are not exactly those
            of the model that its configuration describes, or hold NaN or infinity.
    """
    strict: Any = StrictlyLoaded.from_pretrained
    if getattr(load, "__func__", None) is strict.__func__ and getattr(load, "__self__", None) is kind:
        return load(source, **options)  # it calls this function with the `from_pretrained` of diffusers
    folder = Path(source, options.get("subfolder") or "")
    remedy = f"give a folder that {kind.__name__}.save_pretrained wrote, or make it again"
    with building:
        try:
            if folder.is_dir():
                check_folder(folder, kind, variant=options.get("variant"))
        except CheckpointError as error:
            kinds = {name: getattr(error, name) for name in ("missing", "unexpected", "misshapen", "mistyped")}
            advice = "" if remedy in str(error) else f": {remedy}"
            raise CheckpointError(f"{folder} cannot be loaded as {kind.__name__} ({error}){advice}", **kinds) from error
        try:
            model, info = load(source, **options | {"output_loading_info": True})
        except DAMAGE as error:
            raise CheckpointError(f"{folder} cannot be loaded as {kind.__name__} ({error}): {remedy}") from error
    problems = [
        f"{len(info[name])} {name.replace('_', ' ')}: {listed(sorted(map(str, info[name])))}"
        for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info[name]
    ]
    if problems:
        raise CheckpointError(f"{folder} does not fit {kind.__name__}, {'; '.join(problems)}: {remedy}")
    check_finite(model.state_dict(), folder)
    return (model, info) if options.get("output_loading_info") else model


class StrictlyLoaded:
    """Mixin before `ModelMixin`, which makes `from_pretrained` strict (see `load_strictly`)."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
        """Loads as in diffusers, but strictly. Raises CheckpointError for missing or damaged files and other models."""
        load: Callable[..., Any] = super().from_pretrained  # type: ignore[misc]  # that of ModelMixin
        if options.get("quantization_config") is not None:
            return load(pretrained_model_name_or_path, **options)
        kind: Any = cls
        return load_strictly(load, kind, pretrained_model_name_or_path, **options)


def check_folder(folder: Path, kind: type[nn.Module], *, variant: str | None = None) -> None:
    """Compares the headers of a folder's weights with the model that its config.json describes; no tensor is read.

    Raises:
        CheckpointError: config.json is missing, damaged, of another class, or describes no model of the class; weights
            are missing or damaged; a tensor is missing, unexpected, of another shape or of another kind of numbers.
            The message names file and tensor, the error's attributes all tensors.
    """
    path = folder / "config.json"
    remedy = f"give a folder that {kind.__name__}.save_pretrained wrote, or make it again"
    config = read_settings(path)
    name = config.get("_class_name", kind.__name__)
    if name not in [base.__name__ for base in kind.__mro__]:
        raise CheckpointError(f"{path} is that of {name!r}: {remedy}")
    files = find_weights(folder, variant=variant)
    where = str(files[0] if len(files) == 1 else folder)
    found = {key: value for file in files for key, value in read_header(file).items()}
    _check_counts(config, len(found), path, where)
    try:
        with torch.device("meta"), _Uninitialized(), _at_most(len(found), where):
            model = kind.from_config(config)
        expected = model.state_dict()
        # Names of earlier versions of diffusers, which it translates when it loads.
        if hasattr(model, "_fix_state_dict_keys_on_load"):
            model._fix_state_dict_keys_on_load(found)
    except DAMAGE as error:
        raise CheckpointError(f"{path} does not describe a {kind.__name__} ({error}): {remedy}") from error
    compare(found, expected, where, f"does not fit {path}", remedy)


def _check_counts(value: Any, tensors: int, path: Path, where: str, field: str = "") -> None:
    """Raises CheckpointError for a field that counts more layers than the file `where` has tensors, because diffusers
    makes lists of that length before it builds the first layer, and for a padding that would make pictures huge."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            _check_counts(part, tensors, path, where, f"{field}.{name}" if field else str(name))
    elif isinstance(value, list | tuple):
        for part in value:
            _check_counts(part, tensors, path, where, field)
    elif isinstance(value, int) and "padding" in field and value > _MOST_PADDING:
        raise CheckpointError(f"{path}: {field} is {value:,}, beyond {_MOST_PADDING}: save or fetch the folder again")
    elif isinstance(value, int) and value > tensors and any(word in field.rsplit(".", 1)[-1] for word in _COUNTED):
        raise CheckpointError(
            f"{path}: {field} is {value:,}, and {where} has {tensors:,} tensors: save or fetch the folder again"
        )


def compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str, what: str, remedy: str) -> None:
    """Compares names, shapes and kinds of numbers; floating point of any precision is one kind.

    Raises CheckpointError, "`where` `what`", with the number and first names of the tensors that differ, and `remedy`.
    """
    mistyped = {
        name: f"{name} is {found[name].dtype}, expected {expected[name].dtype}"
        for name in sorted(found.keys() & expected.keys())
        if found[name].dtype != expected[name].dtype
        and not (found[name].is_floating_point() and expected[name].is_floating_point())
    }
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    refuse_differences(found, shapes, mistyped, f"{where} {what}, ", f": {remedy}")


def refuse_differences(
    found: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    mistyped: Mapping[str, str],
    begin: str,
    end: str,
) -> None:
    """Compares the names and shapes of tensors with the expected `shapes`.

    mistyped: by name, a text about each tensor of another kind of numbers.

    Raises CheckpointError if any tensor differs: `begin`, the numbers and first texts of what is missing, unexpected,
    misshapen and mistyped, and `end`. The error's attributes have all names.
    """
    kinds: dict[str, Mapping[str, str]] = {
        "missing": {name: name for name in sorted(shapes.keys() - found.keys())},
        "unexpected": {name: name for name in sorted(found.keys() - shapes.keys())},
        "misshapen": {
            name: f"{name} is {tuple(found[name].shape)}, expected {shapes[name]}"
            for name in sorted(found.keys() & shapes.keys())
            if tuple(found[name].shape) != shapes[name]
        },
        "mistyped": mistyped,
    }
    problems = [f"{len(texts)} {kind}: {listed(texts.values())}" for kind, texts in kinds.items() if texts]
    if problems:
        raise CheckpointError(f"{begin}{'; '.join(problems)}{end}", **kinds)


def check_finite(tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Raises CheckpointError, which names the tensor, if one contains NaN or infinity."""
    for name, value in tensors.items():
        if not value.is_meta and value.is_floating_point() and not _is_finite(value):
            raise CheckpointError(f"{where}: {name} holds NaN or infinity; make or fetch the weights again")


def _is_finite(value: Tensor) -> bool:
    """Returns whether all numbers are finite, by the smallest and the largest, to which NaN propagates.

    For 16 bits on a CPU this takes a thirtieth of the time of testing each number, and no memory.
    """
    if not value.numel() or value.element_size() < 2:  # 8 bits have no least and largest
        return bool(torch.isfinite(value.float()).all())  # nor does each of their types have `isfinite`
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(value))


class _Uninitialized(TorchFunctionMode):
    """Context in which new parameters are not initialized, which for tensors without storage takes most of the time."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _DRAWING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def _at_most(tensors: int, where: str) -> Iterator[None]:
    """Context in which building a model raises ValueError once it has far more parts than the file `where` has tensors,
    because a configuration may ask for a billion layers."""
    counts, mine = {"parameter": 0, "module": 0}, threading.get_ident()

    def count(kind: str, most: int) -> None:
        counts[kind] += threading.get_ident() == mine
        if counts[kind] > most:
            raise ValueError(f"it asks for far more than the {tensors} tensors of {where}")

    hooks = [
        registration.register_module_parameter_registration_hook(lambda *_: count("parameter", 2 * tensors + 100)),
        registration.register_module_module_registration_hook(lambda *_: count("module", 5 * tensors + 1000)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
