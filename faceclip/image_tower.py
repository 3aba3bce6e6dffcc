"""Where pipelines saved before version 0.2 say in model_index.json that their image tower is defined."""

from diffusers import ModelMixin  # diffusers loads a component only where it finds it beside the component's class

from faceclip.towers.image import ImageTower

__all__ = ["ImageTower", "ModelMixin"]
