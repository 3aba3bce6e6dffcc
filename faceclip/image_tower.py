"""Where pipelines saved before version 0.2 say in model_index.json that their image tower is defined."""

from faceclip.towers.image import ImageTower

__all__ = ["ImageTower"]
