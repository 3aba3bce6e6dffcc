"""ComfyUI's MODEL, as far as our nodes use it."""

import copy


class ModelPatcher:
    def __init__(self, model, load_device, offload_device, size=0):
        self.model, self.load_device, self.offload_device, self.size = model, load_device, offload_device, size
        self.model_options = {"transformer_options": {}}

    def clone(self):
        clone = ModelPatcher(self.model, self.load_device, self.offload_device, self.size)
        clone.model_options = _copied(self.model_options)
        return clone

    def get_model_object(self, name):
        return getattr(self.model, name)

    def set_model_attn2_replace(self, patch, block_name, number, transformer_index=None):
        key = (block_name, number) if transformer_index is None else (block_name, number, transformer_index)
        options = self.model_options["transformer_options"]
        options.setdefault("patches_replace", {}).setdefault("attn2", {})[key] = patch


def _copied(options):
    return {key: _copied(value) if isinstance(value, dict) else copy.copy(value) for key, value in options.items()}
