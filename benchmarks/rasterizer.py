"""Compares the two rasterizers on portraits' geometry: `python benchmarks/rasterizer.py [--size 256] [--repeat 20]`."""

import argparse
import time

import numpy as np

from faceclip.face3d.camera import pose_vertices, project
from faceclip.face3d.model import default_head
from faceclip.face3d.rasterizer import rasterize, rasterize_numpy
from faceclip.people.sample import sample_identity, sample_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="pixels; portraits of S px are drawn at 2 S")
    parser.add_argument("--repeat", type=int, default=20)
    arguments = parser.parse_args()
    head = default_head()
    meshes = []
    for i in range(arguments.repeat):
        scene = sample_scene(0, i, 1)
        vertices = head.vertices(sample_identity(0, i).shape, scene.expression)
        posed = pose_vertices(vertices, head.head_weight, scene.pose)
        meshes.append(project(posed, scene.camera, arguments.size))
    rasterize(meshes[0], head.faces, arguments.size)  # compile
    print(f"{len(head.faces)} triangles, {arguments.size} × {arguments.size} px, median of {arguments.repeat} heads")
    pictures = {}
    for draw in (rasterize, rasterize_numpy):
        seconds = []
        for points in meshes:
            began = time.perf_counter()
            pictures[draw.__name__] = draw(points, head.faces, arguments.size)[0]
            seconds.append(time.perf_counter() - began)
        print(f"{draw.__name__:16s} {1e3 * np.median(seconds):8.2f} ms")
    same = (pictures["rasterize"] == pictures["rasterize_numpy"]).mean()
    print(f"pixels with the same triangle: {100 * same:.3f} %")


if __name__ == "__main__":
    main()
