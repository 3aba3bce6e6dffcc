"""`DiffusionPipeline.from_pretrained` of a saved pipeline, which knows nothing of our LoRA.

diffusers looks for the class that model_index.json names in its own namespace, builds the components and the pipeline,
and in the end writes the path into the pipeline's configuration. The class that it finds here takes this as the sign to
add the rest.
"""

from __future__ import annotations

from typing import Any, TypeVar

import diffusers

Kind = TypeVar("Kind", bound=type)


def known_to_diffusers(kind: Kind) -> Kind:
    """Class decorator: after the import of its module, `DiffusionPipeline.from_pretrained` loads pipelines of this
    class, too. What it gives is a plain instance of `kind`."""

    def register_to_config(self: Any, **settings: Any) -> None:
        super(loading, self).register_to_config(**settings)
        if "_name_or_path" in settings:
            self.__class__ = kind
            self._add_saved_rest(settings["_name_or_path"])

    body = {"register_to_config": register_to_config, "__module__": kind.__module__, "__doc__": kind.__doc__}
    loading: Any = type(kind.__name__, (kind,), body)
    setattr(diffusers, kind.__name__, loading)
    return kind
