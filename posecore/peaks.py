"""Peaks: where each heatmap says a keypoint is."""

from dataclasses import dataclass

import numpy as np

from posecore.fields import Fields, freeze


@dataclass(frozen=True)
class PeakParams:
    """threshold:  least heatmap value of a peak (0.1: Lightweight OpenPose's reference decoder).
    radius_cell: peaks of one keypoint nearer than this are one (1.5 cells = 12 network pixels: reference decoder)."""

    threshold: float = 0.1
    radius_cell: float = 1.5


@dataclass(frozen=True, eq=False)
class Peaks:
    """Candidate keypoints of all people in a frame, sorted by keypoint, then by falling score.

    keypoint: (P,) int, index into the skeleton's keypoints.
    xy_cell:  (P, 2) float32, position on the stride grid, cell centres at .5.
    score:    (P,) float32, value of the heatmap's surface at the peak.
    """

    keypoint: np.ndarray
    xy_cell: np.ndarray
    score: np.ndarray

    def __post_init__(self) -> None:
        freeze(self, "keypoint", "xy_cell", "score")

    def __len__(self) -> int:
        return len(self.score)


# Points per cell and axis at which the surface between the cells is looked at. Four is what the reference decoder
# upsamples to; people are counted as it counts them.
_PER_CELL = 4


def find_peaks(fields: Fields, params: PeakParams) -> Peaks:
    """Find the maxima of every heatmap's bicubic surface above the threshold.

    Two keypoints in neighbouring cells (small people in a crowd) are two maxima of the surface but one of the grid, so
    the surface decides; it is looked at only around the cells that can hold a peak, at `_PER_CELL` points per cell and
    axis, which costs a tenth of upsampling whole heatmaps. A point is a peak if it tops its four neighbours; a plateau
    yields its first point in raster order. The position is then refined between the points. Peaks nearer than
    `radius_cell` to a higher one of the same keypoint are dropped.
    """
    _, height, width = fields.heatmaps.shape
    # The surface overshoots its cells by less than a factor of two.
    keypoint, y, x = np.nonzero(fields.heatmaps > params.threshold / 2)
    around = np.arange(-2, 3)[:, None]
    rows = (keypoint * height + np.clip(y + around, 0, height - 1)) * width
    cells = fields.heatmaps.ravel().take(rows[:, None] + np.clip(x + around, 0, width - 1))
    # Summed in float64 and then rounded: patches share points, and where two points tie, an ulp between two patches'
    # sums would let each call the other one higher, and the peak be lost.
    across = (_BICUBIC @ cells.astype(np.float64).reshape(5, -1)).reshape(len(_BICUBIC), 5, -1)
    surface = (_BICUBIC @ across).astype(np.float32)
    surface[0, :, np.flatnonzero(y == 0)] = surface[-1, :, np.flatnonzero(y == height - 1)] = -np.inf
    surface[:, 0, np.flatnonzero(x == 0)] = surface[:, -1, np.flatnonzero(x == width - 1)] = -np.inf

    inner = surface[1:-1, 1:-1]
    top = (inner > params.threshold) & (inner > surface[1:-1, :-2]) & (inner > surface[:-2, 1:-1])
    top &= (inner >= surface[1:-1, 2:]) & (inner >= surface[2:, 1:-1])
    row, column, cell = np.nonzero(top)
    row, column = row + 1, column + 1
    score = surface[row, column, cell]
    dx = _vertex(surface[row, column - 1, cell], score, surface[row, column + 1, cell])
    dy = _vertex(surface[row - 1, column, cell], score, surface[row + 1, column, cell])
    # Point 1 lies half a step inside the cell's edge.
    xy_cell = np.stack([x[cell] + (column - 0.5 + dx) / _PER_CELL, y[cell] + (row - 0.5 + dy) / _PER_CELL], axis=1)

    keypoint = keypoint[cell]
    order = np.lexsort((xy_cell[:, 0], xy_cell[:, 1], -score, keypoint))
    keypoint, xy_cell, score = keypoint[order], xy_cell[order].astype(np.float32), score[order]
    keep = _suppress(keypoint, xy_cell, params.radius_cell)
    return Peaks(keypoint[keep], xy_cell[keep], score[keep])


def _bicubic_weights() -> np.ndarray:
    """(6, 5) float64: from five cells in a row to the surface at the middle one's four points and the two next to them,
    by cubic convolution with a = -0.75, as OpenCV's."""
    points = (np.arange(_PER_CELL + 2) - (_PER_CELL + 1) / 2) / _PER_CELL
    t = np.abs(points[:, None] - np.arange(-2, 3))
    a = -0.75
    near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


_BICUBIC = _bicubic_weights()


def snap(xy_cell: np.ndarray) -> np.ndarray:
    """The surface point nearest to each position, float32. PAFs are read between these: see `score_limbs`."""
    return ((np.floor(xy_cell * _PER_CELL) + 0.5) / _PER_CELL).astype(np.float32)


def _vertex(before: np.ndarray, centre: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Offset in [-0.5, 0.5] of the top of the parabola through the logarithms of three neighbouring values.

    Exact for a Gaussian, which is what networks of this kind are trained to draw. Beyond the border (-inf) nothing is
    known, and the point stays where it is.
    """
    floor = centre * np.float32(0.01)
    log_before, log_centre, log_after = (np.log(np.maximum(v, floor)) for v in (before, centre, after))
    curvature = 2 * log_centre - log_before - log_after
    offset = 0.5 * (log_after - log_before) / np.maximum(curvature, np.float32(1e-6))
    beyond = np.isinf(before) | np.isinf(after)
    return np.where(beyond, np.float32(0), np.clip(offset, -0.5, 0.5))


def _suppress(keypoint: np.ndarray, xy_cell: np.ndarray, radius: float) -> np.ndarray:
    """Greedy non-maximum suppression, peaks sorted by keypoint and falling score. Returns a (P,) bool mask.

    A peak stays unless a kept peak before it is near. That recursion is solved by iterating it from "all stay" until
    nothing changes; each round settles at least one more peak, and two rounds are the rule.
    """
    if not len(keypoint):
        return np.ones(0, dtype=bool)
    # One row per keypoint, its peaks side by side: peaks of different keypoints need not be compared.
    count = np.bincount(keypoint)
    place = keypoint, np.arange(len(keypoint)) - (np.cumsum(count) - count)[keypoint]
    row = np.full((len(count), count.max(), 2), np.nan, np.float32)
    row[place] = xy_cell
    near = np.tril(((row[:, :, None] - row[:, None]) ** 2).sum(axis=3) < radius**2, -1)
    keep = np.ones(row.shape[:2], dtype=bool)
    while True:
        settled = ~(near & keep[:, None]).any(axis=2)
        if (settled == keep).all():
            return keep[place]
        keep = settled
