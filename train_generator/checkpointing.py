"""Gradient checkpointing of the UNet, the shading channel and the autoencoder's decoder (Chen et al. 2016,
arXiv:1604.06174): it saves memory at the cost of one more forward pass of each block."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from diffusers import ModelMixin
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_blocks import UpDecoderBlock2D
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_gradients(model: ModelMixin) -> None:
    """Makes the model keep only the inputs of its blocks; backward repeats their forward pass.

    The repeated pass uses the attention processors of the first one, because `AttentionCapture`, which the alignment
    loss opens around the forward pass, is already closed when backward runs.
    """
    model.enable_gradient_checkpointing(_checkpoint)


def _checkpoint(block: nn.Module, *inputs: Any) -> Any:
    if isinstance(block, UpDecoderBlock2D):  # the decoder's blocks are large: each of its layers by itself
        hidden, time = inputs
        for resnet in block.resnets:
            hidden = checkpoint(resnet, hidden, time, use_reentrant=False)
        for upsampler in block.upsamplers or ():
            hidden = checkpoint(upsampler, hidden, use_reentrant=False)
        return hidden
    processors = {layer: layer.processor for layer in block.modules() if isinstance(layer, Attention)}

    def run(*inputs: Any) -> Any:
        with _processors(processors):
            return block(*inputs)

    return checkpoint(run, *inputs, use_reentrant=False)


@contextmanager
def _processors(wanted: Mapping[Attention, Any]) -> Iterator[None]:
    found = {layer: layer.processor for layer in wanted}
    try:
        _set(wanted)
        yield
    finally:
        _set(found)


def _set(processors: Mapping[Attention, Any]) -> None:
    for layer, processor in processors.items():
        if layer.processor is not processor:
            layer.set_processor(processor)
