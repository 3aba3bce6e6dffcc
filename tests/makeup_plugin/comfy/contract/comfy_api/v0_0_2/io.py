"""Schema, node, inputs and outputs."""

from enum import StrEnum
from types import SimpleNamespace


class FolderType(StrEnum):
    input, output, temp = "input", "output", "temp"


class Hidden(StrEnum):
    unique_id, prompt, extra_pnginfo = "UNIQUE_ID", "PROMPT", "EXTRA_PNGINFO"


def _kind(name, *settings):
    """A type of sockets: `Input` takes these settings beside those of every input, and `Output` the common ones."""

    class Input:
        io_type = name

        def __init__(self, id, display_name=None, optional=False, tooltip=None, lazy=None, **given):
            if strange := set(given) - set(settings):
                raise TypeError(f"{name}.Input has no argument {sorted(strange)}")
            self.id, self.optional, self.tooltip, self.given = id, optional, tooltip, given

    class Output:
        io_type = name

        def __init__(self, id=None, display_name=None, tooltip=None, is_output_list=False):
            self.id, self.display_name = id, display_name

    return SimpleNamespace(Input=Input, Output=Output, io_type=name)


_WIDGET = ("default", "socketless", "force_input")
_NUMBER = ("min", "max", "step", "display_mode")
String = _kind("STRING", "multiline", "placeholder", "dynamic_prompts", *_WIDGET)
Int = _kind("INT", "control_after_generate", *_NUMBER, *_WIDGET)
Float = _kind("FLOAT", "round", *_NUMBER, *_WIDGET)
Boolean = _kind("BOOLEAN", "label_on", "label_off", *_WIDGET)
Combo = _kind("COMBO", "options", "control_after_generate", *_WIDGET)
Image = _kind("IMAGE")
Model = _kind("MODEL")
Conditioning = _kind("CONDITIONING")


def Custom(io_type):
    return _kind(io_type)


class Schema:
    def __init__(
        self,
        node_id,
        display_name=None,
        category="sd",
        inputs=None,
        outputs=None,
        hidden=None,
        description="",
        *,
        is_output_node=False,
        is_experimental=False,
        not_idempotent=False,
    ):
        self.node_id, self.display_name, self.category, self.description = node_id, display_name, category, description
        self.inputs, self.outputs, self.hidden = inputs or [], outputs or [], hidden or []
        self.is_output_node = is_output_node

    def validate(self):
        names = [part.id for part in (*self.inputs, *self.outputs)]
        if len(set(names)) != len(names):
            raise ValueError(f"ids of inputs and outputs must be unique: {names}")


class ComfyNode:
    hidden = None  # until a run

    @classmethod
    def PREPARE_CLASS_CLONE(cls, hidden_inputs):
        return type(cls.__name__, (cls,), {"hidden": SimpleNamespace(unique_id=hidden_inputs.get(Hidden.unique_id))})

    @classmethod
    def GET_SCHEMA(cls):
        schema = cls.define_schema()
        schema.validate()
        return schema


class NodeOutput:
    def __init__(self, *args, ui=None, expand=None, block_execution=None):
        self.args, self.ui = args, ui

    @property
    def result(self):
        return self.args or None
