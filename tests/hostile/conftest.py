"""The small pipeline of the plugin's tests, and a photo with a face that is given by hand."""

from tests.makeup_plugin.conftest import photo, pipeline, points

__all__ = ["photo", "pipeline", "points"]
