"""Object keypoint similarity, COCO's measure of how near two poses are."""

import numpy as np


def oks(a: np.ndarray, b: np.ndarray, area: np.ndarray, sigmas: tuple[float, ...]) -> np.ndarray:
    """Similarity in [0, 1] of each pose in `a` with each in `b`.

    a: (N, K, 2) pixels. b: (M, K, 2) pixels, the reference; NaN marks keypoints it does not have, which do not count.
    area: (M,) squared pixels, the size of the reference people. A keypoint that only `a` lacks counts as 0.
    Returns (N, M) float64; 0 where the reference has no keypoint at all.
    Source: COCO keypoint evaluation, exp(-d^2 / (2 area (2 sigma)^2)) averaged over the reference's keypoints.
    """
    squared = ((a[:, None].astype(np.float64) - b[None]) ** 2).sum(axis=3)
    variance = (2 * np.asarray(sigmas)) ** 2
    near = np.exp(-squared / (2 * np.maximum(area, 1e-9)[None, :, None] * variance))
    labelled = ~np.isnan(b[..., 0])
    total = np.where(np.isnan(near), 0, near).sum(axis=2)
    return total / np.maximum(labelled.sum(axis=1), 1)
