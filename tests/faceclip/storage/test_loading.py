"""Weights that are no numbers are found wherever they lie, in every type."""

import pytest
import torch
from safetensors.torch import save_file

from faceclip.errors import CheckpointError
from faceclip.storage.loading import check_finite
from faceclip.storage.tensors import read_header

TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (kind, float(wrong))
        for kind in TYPES
        for wrong in ("nan", "inf", "-inf")
        if wrong == "nan" or kind != torch.float8_e4m3fn  # which has no infinity
    ],
)
def test_nan_and_infinity_are_named_at_any_place(kind, wrong):
    for place in (0, 1, 31, 500, 1000, 1002):
        values = torch.linspace(-3, 3, 1003)
        values[place] = wrong
        with pytest.raises(CheckpointError, match=r"here: block\.weight"):
            check_finite({"fine": torch.zeros(3), "block.weight": values.to(kind)}, "here")


@pytest.mark.parametrize("kind", TYPES)
def test_numbers_pass_and_so_does_what_is_empty_whole_or_on_meta(kind):
    values = torch.linspace(-3, 3, 1003).to(kind)
    check_finite({"a": values, "b": values[:0], "c": torch.ones(3, dtype=torch.int64)}, "here")
    check_finite({"meta": torch.zeros(2, device="meta"), "one": torch.tensor(1.0), "view": torch.rand(4, 5).T}, "here")


@pytest.mark.parametrize("kind", TYPES)
def test_a_header_tells_the_type(kind, tmp_path):
    save_file({"a": torch.zeros(2, 3).to(kind)}, tmp_path / "weights.safetensors")
    header = read_header(tmp_path / "weights.safetensors")["a"]
    assert header.dtype == kind and header.shape == (2, 3)
