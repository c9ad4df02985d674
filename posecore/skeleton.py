"""Skeletons as data: which keypoints a network finds, which limbs join them, and in which channels.

The channel order of COCO-18 is that of OpenPose (Cao et al., CVPR 2017, arXiv 1611.08050) and, unchanged, of
Lightweight OpenPose (Osokin, arXiv 1811.12004).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from posecore.errors import SkeletonError


@dataclass(frozen=True)
class Limb:
    """A directed limb and where its PAF lives.

    source, target: keypoint indices, the PAF points from source to target.
    paf:            (x, y) channel indices in the network's PAF output.
    redundant:      the limb closes a loop (shoulder to ear); it supports an assembly but never starts a person.
    """

    source: int
    target: int
    paf: tuple[int, int]
    redundant: bool = False


@dataclass(frozen=True)
class Skeleton:
    """Keypoint names in channel order and the limbs between them.

    The limbs that are not redundant form a forest: every keypoint is the target of at most one of them, and no chain
    of limbs returns to where it began. Grouping relies on it: one-to-one matching per limb then makes every connected
    component one person.

    sigmas: per keypoint, the spread of human annotators relative to the person's scale, as in COCO's OKS. COCO has
            no neck; it is taken as wide as a shoulder.
    """

    name: str
    keypoints: tuple[str, ...]
    limbs: tuple[Limb, ...]
    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        k = len(self.keypoints)
        if len(self.sigmas) != k:
            raise SkeletonError(f"skeleton {self.name}: {k} keypoints but {len(self.sigmas)} sigmas")
        for limb in self.limbs:
            if not (0 <= limb.source < k and 0 <= limb.target < k) or limb.source == limb.target:
                raise SkeletonError(
                    f"skeleton {self.name}: limb {limb.source}->{limb.target} is not between two keypoints"
                )
        parent: dict[int, int] = {}
        for limb in self.tree:
            if limb.target in parent:
                raise SkeletonError(
                    f"skeleton {self.name}: {self.keypoints[limb.target]} is the target of two limbs; "
                    "mark the one that closes the loop as redundant"
                )
            parent[limb.target] = limb.source
        for start in parent:
            node, steps = start, 0
            while node in parent:
                node, steps = parent[node], steps + 1
                if steps > k:
                    raise SkeletonError(f"skeleton {self.name}: the limbs at {self.keypoints[start]} form a loop")

    @property
    def tree(self) -> tuple[Limb, ...]:
        """The limbs that are not redundant."""
        return tuple(limb for limb in self.limbs if not limb.redundant)

    @cached_property
    def limb_ends(self) -> np.ndarray:
        """(L, 2) int, source and target keypoint of each limb."""
        return np.array([(limb.source, limb.target) for limb in self.limbs], dtype=np.intp)

    @cached_property
    def paf_channels(self) -> np.ndarray:
        """(L, 2) int, x and y channel of each limb in the network's PAF output."""
        return np.array([limb.paf for limb in self.limbs], dtype=np.intp)

    def index(self, keypoint: str) -> int:
        return self.keypoints.index(keypoint)


COCO18 = Skeleton(
    name="coco18",
    keypoints=(
        "nose", "neck",
        "right_shoulder", "right_elbow", "right_wrist",
        "left_shoulder", "left_elbow", "left_wrist",
        "right_hip", "right_knee", "right_ankle",
        "left_hip", "left_knee", "left_ankle",
        "right_eye", "left_eye", "right_ear", "left_ear",
    ),
    limbs=(
        Limb(1, 2, (12, 13)),    # neck -> right shoulder
        Limb(1, 5, (20, 21)),    # neck -> left shoulder
        Limb(2, 3, (14, 15)),    # right shoulder -> elbow
        Limb(3, 4, (16, 17)),    # right elbow -> wrist
        Limb(5, 6, (22, 23)),    # left shoulder -> elbow
        Limb(6, 7, (24, 25)),    # left elbow -> wrist
        Limb(1, 8, (0, 1)),      # neck -> right hip
        Limb(8, 9, (2, 3)),      # right hip -> knee
        Limb(9, 10, (4, 5)),     # right knee -> ankle
        Limb(1, 11, (6, 7)),     # neck -> left hip
        Limb(11, 12, (8, 9)),    # left hip -> knee
        Limb(12, 13, (10, 11)),  # left knee -> ankle
        Limb(1, 0, (28, 29)),    # neck -> nose
        Limb(0, 14, (30, 31)),   # nose -> right eye
        Limb(14, 16, (34, 35)),  # right eye -> ear
        Limb(0, 15, (32, 33)),   # nose -> left eye
        Limb(15, 17, (36, 37)),  # left eye -> ear
        Limb(2, 16, (18, 19), redundant=True),  # right shoulder -> ear
        Limb(5, 17, (26, 27), redundant=True),  # left shoulder -> ear
    ),
    sigmas=(
        .026, .079, .079, .072, .062, .079, .072, .062, .107, .087, .089, .107, .087, .089, .025, .025, .035, .035,
    ),
)  # fmt: skip

SKELETONS = {COCO18.name: COCO18}
