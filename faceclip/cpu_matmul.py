"""Float32 matrix products on a CPU by oneDNN, where PyTorch's own route is slower.

PyTorch hands float32 products to MKL, which does not use the full vector width of every processor: on a 2-core AMD
EPYC (Zen 5, AVX-512) `torch.mm` computes 90 GFLOP/s per core and oneDNN 200. Both ship in the same binary; results
differ by rounding only. No gradient passes through these functions.
"""

import functools

import torch
from torch import Tensor


@functools.cache
def has_onednn() -> bool:
    """Whether oneDNN's float32 product is there and worth it: not with narrow vectors, not in a build without it."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")  # what torch.compile calls for frozen linear layers


def uses_onednn(*tensors: Tensor) -> bool:
    """Whether `times_transpose` takes oneDNN for these."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors) and has_onednn()


def times_transpose(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (…, K) times the transpose of b (M, K), plus bias (M,) → (…, M). Without gradient; any strides will do."""
    if uses_onednn(a, b):
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return torch.nn.functional.linear(a, b, bias)
