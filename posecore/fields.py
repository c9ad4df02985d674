"""What a network says about one frame."""

from dataclasses import dataclass

import numpy as np

from posecore.errors import FieldShapeError
from posecore.skeleton import Skeleton


def freeze(value: object, *names: str) -> None:
    """Swap arrays of a frozen dataclass for read-only views.

    Ray hands actors read-only arrays: code that writes in place would pass at the desk and fail on the cluster, so it
    fails at the desk.
    """
    for name in names:
        view = getattr(value, name).view()
        view.flags.writeable = False
        object.__setattr__(value, name, view)


@dataclass(frozen=True, eq=False)
class Fields:
    """Network output for one frame, on the stride grid.

    heatmaps: (K, Hc, Wc) float32, confidence of each keypoint; the background channel is already dropped.
    pafs:     (2L or more, Hc, Wc) float32, unit vectors from limb source to limb target, in the network's channel
              order; `Skeleton.paf_channels` says which channels belong to which limb.
    stride:   network-input pixels per cell.
    """

    heatmaps: np.ndarray
    pafs: np.ndarray
    stride: int

    def __post_init__(self) -> None:
        if self.heatmaps.ndim != 3:
            raise FieldShapeError("heatmaps", "(K, Hc, Wc)", self.heatmaps.shape)
        if self.pafs.ndim != 3 or self.pafs.shape[1:] != self.heatmaps.shape[1:]:
            raise FieldShapeError("PAFs", f"(2L, {self.heatmaps.shape[1]}, {self.heatmaps.shape[2]})", self.pafs.shape)
        freeze(self, "heatmaps", "pafs")

    def check(self, skeleton: Skeleton) -> None:
        """Raise FieldShapeError unless there is a heatmap per keypoint and a PAF channel pair per limb."""
        if len(self.heatmaps) != len(skeleton.keypoints):
            raise FieldShapeError(
                "heatmaps", f"{len(skeleton.keypoints)} channels ({skeleton.name})", self.heatmaps.shape
            )
        if len(self.pafs) <= skeleton.paf_channels.max():
            raise FieldShapeError(
                "PAFs", f"{skeleton.paf_channels.max() + 1} channels ({skeleton.name})", self.pafs.shape
            )
