"""Z-buffered triangle rasterization on the CPU: for every pixel the nearest triangle and barycentric weights.

Two implementations with equal results (benchmarks/rasterizer.py compares them): `rasterize` compiled by numba,
triangle by triangle over its bounding box, and `rasterize_numpy`, vectorized over blocks of triangles.
Pixel centres lie at integer coordinates: x in [0, width), y in [0, height), y down; a larger depth is nearer.
"""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True, fastmath=False)
def _fill(points, faces, triangle, weights, depth):  # pragma: no cover - compiled
    height, width = triangle.shape
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, az = points[a, 0], points[a, 1], points[a, 2]
        bx, by, bz = points[b, 0], points[b, 1], points[b, 2]
        cx, cy, cz = points[c, 0], points[c, 1], points[c, 2]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0.0 or not np.isfinite(area):
            continue
        x0 = max(0, int(np.ceil(min(ax, bx, cx))))
        x1 = min(width - 1, int(np.floor(max(ax, bx, cx))))
        y0 = max(0, int(np.ceil(min(ay, by, cy))))
        y1 = min(height - 1, int(np.floor(max(ay, by, cy))))
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                wc = 1.0 - wa - wb
                if wa < 0.0 or wb < 0.0 or wc < 0.0:
                    continue
                z = wa * az + wb * bz + wc * cz
                if z > depth[y, x]:
                    depth[y, x] = z
                    triangle[y, x] = f
                    weights[y, x, 0] = wa
                    weights[y, x, 1] = wb
                    weights[y, x, 2] = wc


def rasterize(
    points: np.ndarray, faces: np.ndarray, height: int, width: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nearest triangle of every pixel.

    Args:
        points: (V, 3) x and y in pixels, z depth, larger is nearer. Both windings are drawn.
        faces: (F, 3) vertex indices.

    Returns:
        triangle (H, W) int32, −1 where nothing is hit; barycentric weights (H, W, 3) float32; depth (H, W)
        float32, −inf where nothing is hit. Of triangles at equal depth the first one wins.
    """
    width = height if width is None else width
    triangle = np.full((height, width), -1, np.int32)
    weights = np.zeros((height, width, 3), np.float32)
    depth = np.full((height, width), -np.inf, np.float32)
    _fill(np.ascontiguousarray(points, np.float32), np.ascontiguousarray(faces, np.int32), triangle, weights, depth)
    return triangle, weights, depth


def rasterize_numpy(
    points: np.ndarray, faces: np.ndarray, height: int, width: int | None = None, block: int = 4096
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`rasterize` without a compiler: candidate (triangle, pixel) pairs of a block are expanded and reduced."""
    width = height if width is None else width
    points = np.asarray(points, np.float32)
    best_face = np.full(height * width, -1, np.int64)
    best_depth = np.full(height * width, -np.inf, np.float32)
    best_weights = np.zeros((height * width, 3), np.float32)
    for start in range(0, len(faces), block):
        index = np.arange(start, min(start + block, len(faces)))
        corner = points[faces[index]]  # (B, 3, 3)
        a, b, c = corner[:, 0], corner[:, 1], corner[:, 2]
        area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
        low = np.maximum(np.ceil(corner[..., :2].min(1)), 0)
        high = np.minimum(np.floor(corner[..., :2].max(1)), (width - 1, height - 1))
        size = np.where(np.isfinite(area) & (area != 0), np.maximum(high - low + 1, 0).prod(1), 0).astype(np.int64)
        if not size.sum():
            continue
        owner = np.repeat(np.arange(len(index)), size)
        offset = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        columns = (high - low + 1)[owner, 0].astype(np.int64)
        x = (low[owner, 0] + offset % columns).astype(np.float32)
        y = (low[owner, 1] + offset // columns).astype(np.float32)
        a, b, c, area = a[owner], b[owner], c[owner], area[owner]
        wa = ((b[:, 0] - x) * (c[:, 1] - y) - (b[:, 1] - y) * (c[:, 0] - x)) / area
        wb = ((c[:, 0] - x) * (a[:, 1] - y) - (c[:, 1] - y) * (a[:, 0] - x)) / area
        wc = ((a[:, 0] - x) * (b[:, 1] - y) - (a[:, 1] - y) * (b[:, 0] - x)) / area
        weight = np.stack([wa, wb, wc], 1)
        inside = (weight >= 0).all(1)
        weight, owner, x, y = weight[inside], owner[inside], x[inside], y[inside]
        z = (weight * corner[owner][..., 2]).sum(1)
        pixel = y.astype(np.int64) * width + x.astype(np.int64)
        order = np.lexsort((owner, -z, pixel))  # nearest first within a pixel; ties: first triangle
        first = np.ones(len(order), bool)
        first[1:] = pixel[order][1:] != pixel[order][:-1]
        keep = order[first]
        keep = keep[z[keep] > best_depth[pixel[keep]]]
        best_depth[pixel[keep]] = z[keep]
        best_face[pixel[keep]] = index[owner[keep]]
        best_weights[pixel[keep]] = weight[keep]
    return (
        best_face.reshape(height, width).astype(np.int32),
        best_weights.reshape(height, width, 3),
        best_depth.reshape(height, width),
    )


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
