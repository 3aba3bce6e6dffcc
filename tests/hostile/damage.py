"""Damages of a saved pipeline, each drawn from a generator: fields and bytes of settings, tensors, places of files."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

VALUES = (
    *(None, True, False, 0, 1, 2, 5, -1, 10**6, -(10**9), 2**53, 0.5, -1.5, 1e308, -1e-9),
    *(
        "",
        "x",
        "5",
        "x" * 3000,
        "__class__",
        "os.system",
        "../..",
        "/etc/passwd",
        "a\0b",
        "\u202e",
        "http://127.0.0.1:9/x",
    ),
    *([], [[]], [None], [5, "a"], [1] * 50, [0], [-1, -1], {}, {"a": 1}, {"_class_name": "UNet2DConditionModel"}),
)
TEXTS = (
    *("", "null", "[]", "5", '"x"', "{", "{}", "nul", '{"a": NaN}', '{"a": 1e999}', "\ufeff{}", "[" * 50_000),
    *('{"a":' * 20_000, '{"a": ' + "9" * 5000 + "}", " " * 2**20, "\0" * 100, '{"a": "\\ud800"}'),
)
Damage = Callable[[Path, random.Random], None]


def change_field(path: Path, rng: random.Random) -> None:
    """One field at any depth takes another value, is deleted or gets a new name; sometimes several do."""
    content = json.loads(path.read_text())
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place: Any = content
        while True:
            key = rng.choice(sorted(place)) if isinstance(place, dict) else rng.randrange(len(place))
            if not (isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7):
                break
            place = place[key]
        chance = rng.random()
        if chance < 0.12:
            del place[key]
        elif chance < 0.17 and isinstance(place, dict):
            place[rng.choice(("x", "self", "return_unused_kwargs", "_class_name", "dtype", "a.b"))] = place.pop(key)
        elif chance < 0.35 and isinstance(place[key], int | float) and not isinstance(place[key], bool):
            place[key] = place[key] * rng.choice((2, 3, -1, 0.5, 1000)) + rng.choice((0, 1))
        else:
            place[key] = copy.deepcopy(rng.choice(VALUES))  # later changes of this field are of this case alone
        if not content or not isinstance(place, dict | list) or not place:
            break
    path.write_text(json.dumps(content))


def change_bytes(path: Path, rng: random.Random) -> None:
    """A few bytes change, go or come; or the file ends early."""
    data = bytearray(path.read_bytes())
    chance = rng.random()
    if chance < 0.2:
        del data[rng.randrange(len(data)) :]
    elif chance < 0.3:
        start = rng.randrange(len(data))
        data[start:start] = rng.randbytes(rng.randint(1, 20))
    else:
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)


def change_text(path: Path, rng: random.Random) -> None:
    """The whole file is another one."""
    path.write_text(rng.choice(TEXTS))


def change_header(path: Path, rng: random.Random) -> None:
    """A safetensors file whose header says something else of the same bytes, or says how long it is wrongly."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.25:
        wrong = rng.choice((0, 1, size - 1, size + 8, 2**24, 2**40, 2**63, 2**64 - 1))
        path.write_bytes(struct.pack("<Q", wrong) + data[8:])
        return
    header = json.loads(data[8 : 8 + size])
    name = rng.choice(sorted(set(header) - {"__metadata__"}))
    entry, chance = header[name], rng.random()
    if chance < 0.25:
        entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I32", "U32", "I8", "BOOL", "F8_E4M3", "C64", "x", 5, None))
    elif chance < 0.5:
        entry["shape"] = rng.choice(([], [-1], [2**40], [2**63], [0], entry["shape"][::-1], [*entry["shape"], 1], "x"))
    elif chance < 0.75:
        entry["data_offsets"] = rng.choice(
            ([0, 0], [0, 2**60], [-1, 4], entry["data_offsets"][::-1], [0], None, [4, 8])
        )
    else:
        header[rng.choice(("x", "", "../x", "a" * 3000, "weight", "\u202e"))] = header.pop(name)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def change_tensors(path: Path, rng: random.Random) -> None:
    """A tensor is missing, strange, of another shape or kind, or holds what is no number; sometimes all are."""
    tensors = load_file(path)
    names = sorted(tensors)
    for name in names if rng.random() < 0.05 else rng.sample(names, min(len(names), rng.choice((1, 1, 2)))):
        if name in tensors:  # all of them may be gone
            _change_tensor(tensors, name, rng)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def _change_tensor(tensors: dict[str, Tensor], name: str, rng: random.Random) -> None:
    value = tensors[name]
    damaged = value.clone().to(value.dtype if value.is_floating_point() else torch.float32)
    if damaged.numel():
        damaged.flatten()[rng.randrange(damaged.numel())] = rng.choice((float("nan"), float("inf"), float("-inf")))
    kinds: list[Callable[[], object]] = [
        lambda: tensors.pop(name),
        lambda: tensors.update({f"{name}.x": value.clone()}),
        lambda: tensors.update({name: torch.zeros(0)}),
        lambda: tensors.update({name: value[None].clone()}),
        lambda: tensors.update({name: torch.cat([value.flatten(), value.flatten()])}),
        lambda: tensors.update({name: value.to(rng.choice((torch.int8, torch.bool, torch.int64, torch.uint8)))}),
        lambda: tensors.update({name: value.to(torch.complex64)}),
        lambda: tensors.update({name: damaged}),
        lambda: tensors.update({name: damaged}),
        lambda: tensors.update({name: value.to(torch.float64) * 1e300}),
        lambda: tensors.update({name: value.to(rng.choice((torch.float16, torch.bfloat16, torch.float64)))}),
        tensors.clear,
    ]
    rng.choice(kinds)()


class _Runs:
    """What a pickle runs that a stranger made."""

    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.trace}",)


def change_format(path: Path, rng: random.Random) -> None:
    """The older format in place of safetensors, with code, with other things, or with pieces that lie elsewhere."""
    older, chance = path.with_suffix(".bin"), rng.random()
    tensors = load_file(path)
    path.unlink()
    if chance < 0.35:
        older.write_bytes(pickle.dumps(_Runs(str(path.with_name("ran")))))
    elif chance < 0.5:
        torch.save(tensors | {"x": _Runs(str(path.with_name("ran")))}, older)
    elif chance < 0.6:
        torch.save([5, "x"], older)
    elif chance < 0.7:
        torch.save(tensors, older)
    else:
        place = rng.choice(("../x.safetensors", "/etc/passwd", path.name, "", 5, None, "a\0b", "x" * 300))
        index = {"metadata": {}, "weight_map": rng.choice(({"a": place}, {}, [place], None))}
        path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))


def change_place(path: Path, rng: random.Random) -> None:
    """The file is missing, a folder, a FIFO, a device, or a link to something else."""
    path.unlink()
    target = rng.choice(("", "folder", "fifo", "/dev/zero", "/dev/random", "/proc/self/environ", "nowhere", path.name))
    if target == "folder":
        path.mkdir()
    elif target == "fifo":
        os.mkfifo(path)
    elif target:
        path.symlink_to(target)


OF_SETTINGS: tuple[Damage, ...] = (*[change_field] * 7, change_bytes, change_bytes, change_text, change_place)
OF_WEIGHTS: tuple[Damage, ...] = (*[change_tensors] * 3, change_header, change_header, change_bytes, change_place)
