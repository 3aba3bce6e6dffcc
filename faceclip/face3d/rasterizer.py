"""Z-buffered triangle rasterization on the CPU: for every pixel the nearest triangle and barycentric weights.

numba compiles it: triangle by triangle, every pixel of the triangle's bounding box is tested.
Pixel centres lie at integer coordinates: x in [0, width), y in [0, height), y down; a larger depth is nearer.
"""

import numba
import numpy as np


@numba.njit(inline="always")
def _edge(px, py, qx, qy, side):  # pragma: no cover - compiled
    """The line x = gradient · y + start of an edge, and the side on which it bounds the triangle: 1 is left, −1 right.

    The side is 0 for flat edges, of which rounding could move the place by more than a pixel.
    """
    slope = (py - qy) * side
    if abs(slope) <= 1e-3:
        return 0.0, 0.0, 0
    wide = np.float64(px), np.float64(py), np.float64(qx), np.float64(qy)
    gradient = (wide[0] - wide[2]) * side / slope
    return gradient, (wide[1] * wide[2] - wide[0] * wide[3]) * side / slope, 1 if slope > 0.0 else -1


@numba.njit(inline="always")
def _narrow(edge, y, x0, x1, first, last):  # pragma: no cover - compiled
    """Of the pixels `first` to `last` of a row those that an edge does not rule out, and one more on its side."""
    gradient, start, sign = edge
    if sign == 0:
        return first, last
    place = min(max(gradient * y + start, x0 - 2.0), x1 + 2.0)
    if sign > 0:
        return max(first, int(np.floor(place)) - 1), last
    return first, min(last, int(np.ceil(place)) + 1)


@numba.njit(cache=True, nogil=True, fastmath=False)
def _fill(points, faces, left, top, triangle, weights, depth):  # pragma: no cover - compiled
    height, width = triangle.shape
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, az = points[a, 0], points[a, 1], points[a, 2]
        bx, by, bz = points[b, 0], points[b, 1], points[b, 2]
        cx, cy, cz = points[c, 0], points[c, 1], points[c, 2]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0.0 or not np.isfinite(area):
            continue
        side = 1.0 if area > 0.0 else -1.0
        x0 = max(left, int(np.ceil(min(ax, bx, cx))))
        x1 = min(left + width - 1, int(np.floor(max(ax, bx, cx))))
        y0 = max(top, int(np.ceil(min(ay, by, cy))))
        y1 = min(top + height - 1, int(np.floor(max(ay, by, cy))))
        one, two, three = _edge(bx, by, cx, cy, side), _edge(cx, cy, ax, ay, side), _edge(ax, ay, bx, by, side)
        for y in range(y0, y1 + 1):
            first, last = _narrow(one, y, x0, x1, x0, x1)
            first, last = _narrow(two, y, x0, x1, first, last)
            first, last = _narrow(three, y, x0, x1, first, last)
            for x in range(first, last + 1):
                pa = (bx - x) * (cy - y) - (by - y) * (cx - x)
                pb = (cx - x) * (ay - y) - (cy - y) * (ax - x)
                if pa * side < 0.0 or pb * side < 0.0:  # outside, as most of the box is: not worth a division
                    continue
                wa, wb = pa / area, pb / area
                wc = 1.0 - wa - wb
                if wa < 0.0 or wb < 0.0 or wc < 0.0:
                    continue
                z = wa * az + wb * bz + wc * cz
                row, column = y - top, x - left
                if z > depth[row, column]:
                    depth[row, column] = z
                    triangle[row, column] = f
                    weights[row, column, 0] = wa
                    weights[row, column, 1] = wb
                    weights[row, column, 2] = wc


def rasterize(
    points: np.ndarray, faces: np.ndarray, height: int, width: int | None = None, *, corner: tuple[int, int] = (0, 0)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nearest triangle of every pixel.

    Args:
        points: (V, 3) x and y in pixels, z depth, larger is nearer. Both windings are drawn.
        faces: (F, 3) vertex indices.
        height, width: px of the window that is drawn. corner: x and y of its first pixel.

    Returns:
        triangle (H, W) int32, −1 where nothing is hit; barycentric weights (H, W, 3) float32; depth (H, W)
        float32, −inf where nothing is hit. Of triangles at equal depth the first one wins.
    """
    width = height if width is None else width
    triangle = np.full((height, width), -1, np.int32)
    weights = np.zeros((height, width, 3), np.float32)
    depth = np.full((height, width), -np.inf, np.float32)
    mesh = np.ascontiguousarray(points, np.float32), np.ascontiguousarray(faces, np.int32)
    _fill(*mesh, *corner, triangle, weights, depth)
    return triangle, weights, depth


@numba.njit(cache=True, nogil=True)
def _interpolate(values, faces, triangle, weights, out):  # pragma: no cover - compiled
    height, width = triangle.shape
    for y in range(height):
        for x in range(width):
            f = triangle[y, x]
            if f < 0:
                continue
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            for k in range(values.shape[1]):
                out[y, x, k] = (
                    weights[y, x, 0] * values[a, k] + weights[y, x, 1] * values[b, k] + weights[y, x, 2] * values[c, k]
                )


def interpolate(values: np.ndarray, faces: np.ndarray, triangle: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Per-vertex `values` (V, C) at every pixel of a rasterization: (H, W, C) float32, 0 where nothing is hit."""
    out = np.zeros((*triangle.shape, values.shape[1]), np.float32)
    _interpolate(
        np.ascontiguousarray(values, np.float32), np.ascontiguousarray(faces, np.int32), triangle, weights, out
    )
    return out


@numba.njit(cache=True, nogil=True)
def _normals(vertices, faces, out):  # pragma: no cover - compiled
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ux, uy, uz = vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1], vertices[b, 2] - vertices[a, 2]
        vx, vy, vz = vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1], vertices[c, 2] - vertices[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for i in (a, b, c):
            out[i, 0] += nx
            out[i, 1] += ny
            out[i, 2] += nz
    for i in range(out.shape[0]):
        length = np.sqrt(out[i, 0] ** 2 + out[i, 1] ** 2 + out[i, 2] ** 2)
        if length > 1e-12:
            out[i] /= length


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals (V, 3) of a triangle mesh with counter-clockwise faces."""
    out = np.zeros((len(vertices), 3), np.float32)
    _normals(np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32), out)
    return out
