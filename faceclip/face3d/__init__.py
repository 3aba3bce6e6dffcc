"""Parametric head: model, camera, light, rasterizer and the shading map of the 3D facial rendering channel."""
