"""Poses: the people of one frame in source pixels, and the way there from fields."""

from dataclasses import dataclass, field

import numpy as np

from posecore.fields import Fields, freeze
from posecore.geometry import Letterbox
from posecore.grouping import GroupParams, group_people
from posecore.limbs import LimbParams, match_limbs, score_limbs
from posecore.peaks import PeakParams, find_peaks
from posecore.skeleton import Skeleton


@dataclass(frozen=True)
class DecodeParams:
    """Everything that decides what people are seen in given fields."""

    peaks: PeakParams = field(default_factory=PeakParams)
    limbs: LimbParams = field(default_factory=LimbParams)
    group: GroupParams = field(default_factory=GroupParams)


@dataclass(frozen=True, eq=False)
class Poses:
    """People of one frame, by falling score.

    xy_src:         (N, K, 2) float32, source pixels, pixel centres at .5; NaN where a keypoint was not found.
    keypoint_score: (N, K) float32, heatmap value at the keypoint; NaN where it was not found.
    score:          (N,) float32, mean heatmap value over all K keypoints, those not found counting as 0.
    """

    xy_src: np.ndarray
    keypoint_score: np.ndarray
    score: np.ndarray

    def __post_init__(self) -> None:
        freeze(self, "xy_src", "keypoint_score", "score")

    def __len__(self) -> int:
        return len(self.score)

    @property
    def found(self) -> np.ndarray:
        """(N, K) bool, which keypoints were found."""
        return ~np.isnan(self.keypoint_score)

    def select(self, min_score: float = 0.0, max_people: int | None = None) -> "Poses":
        """The `max_people` best of those that reach `min_score`."""
        kept = np.flatnonzero(self.score >= min_score)[:max_people]
        return Poses(self.xy_src[kept], self.keypoint_score[kept], self.score[kept])


def decode_poses(fields: Fields, letterbox: Letterbox, skeleton: Skeleton, params: DecodeParams) -> Poses:
    """Find the people in one frame's fields.

    letterbox: the transform that made the network's input from the source picture.
    Raises FieldShapeError if the fields do not belong to the skeleton.
    """
    fields.check(skeleton)
    peaks = find_peaks(fields, params.peaks)
    candidates = score_limbs(peaks, fields, skeleton, params.limbs)
    limbs = match_limbs(candidates, len(peaks), len(skeleton.limbs))
    people = group_people(peaks, limbs, skeleton, params.group)

    missing = people.peak < 0
    # A peak in the padding is a keypoint just outside; it is reported at the picture's edge.
    xy_src = np.clip(letterbox.to_src(peaks.xy_cell.astype(np.float64) * fields.stride), 0, letterbox.src)
    # One row of NaN behind the peaks serves index -1.
    xy_src = np.vstack([xy_src, np.full((1, 2), np.nan)])[people.peak]
    keypoint_score = np.append(peaks.score, np.float32(np.nan))[people.peak]
    score = np.where(missing, 0, keypoint_score).mean(axis=1)
    order = np.argsort(-score, kind="stable")
    return Poses(xy_src[order].astype(np.float32), keypoint_score[order], score[order].astype(np.float32))
