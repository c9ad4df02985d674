"""Grouping: limbs become people."""

from dataclasses import dataclass

import numpy as np

from posecore.fields import freeze
from posecore.limbs import Limbs
from posecore.peaks import Peaks
from posecore.skeleton import Skeleton


@dataclass(frozen=True)
class GroupParams:
    """Which assemblies count as people.

    min_keypoints:  fewer are dropped (3: reference decoder; OpenPose's first release asked for 4).
    min_mean_score: least sum of keypoint and limb scores per keypoint (0.2: reference decoder; OpenPose's first
                    release asked for 0.4)."""

    min_keypoints: int = 3
    min_mean_score: float = 0.2


@dataclass(frozen=True, eq=False)
class People:
    """peak: (N, K) int, index into the frame's peaks per person and keypoint, -1 where there is none.
    score: (N,) float32, sum of the scores of a person's keypoints and limbs."""

    peak: np.ndarray
    score: np.ndarray

    def __post_init__(self) -> None:
        freeze(self, "peak", "score")

    def __len__(self) -> int:
        return len(self.score)


def group_people(peaks: Peaks, limbs: Limbs, skeleton: Skeleton, params: GroupParams) -> People:
    """Assemble matched limbs into people and drop those with too little evidence.

    The skeleton's limbs form a forest and each is matched one to one, so every peak hangs from at most one other and
    a connected component holds at most one peak of each keypoint: a person is a component, whatever the order of the
    limbs. Redundant limbs come last, and only lend a person the keypoint it lacks: a lent keypoint may belong to two
    people, and counts neither for `min_keypoints` nor for the score, as in the reference decoder.
    """
    redundant = np.array([limb.redundant for limb in skeleton.limbs])[limbs.limb]
    tree = ~redundant
    root = _roots(limbs.source[tree], limbs.target[tree], len(peaks))

    in_person = np.zeros(len(peaks), dtype=bool)
    in_person[limbs.source[tree]] = True
    in_person[limbs.target[tree]] = True
    _, person = np.unique(root[in_person], return_inverse=True)
    n_people = person.max(initial=-1) + 1
    members = np.flatnonzero(in_person)
    person_of = np.full(len(peaks), -1)
    person_of[members] = person
    peak = np.full((n_people, len(skeleton.keypoints)), -1)
    peak[person, peaks.keypoint[members]] = members

    score = np.bincount(person, peaks.score[members], n_people)
    score += np.bincount(person_of[limbs.source[tree]], limbs.score[tree], n_people)
    count = np.bincount(person, minlength=n_people)

    _lend(peak, person_of, peaks, limbs.source[redundant], limbs.target[redundant])
    _lend(peak, person_of, peaks, limbs.target[redundant], limbs.source[redundant])

    kept = (count >= params.min_keypoints) & (score >= params.min_mean_score * count)
    return People(peak[kept], score[kept].astype(np.float32))


def _roots(source: np.ndarray, target: np.ndarray, n_peaks: int) -> np.ndarray:
    """The peak at the top of each peak's tree, by pointer jumping: (P,) int."""
    root = np.arange(n_peaks)
    root[target] = source
    while True:
        above = root[root]
        if (above == root).all():
            return root
        root = above


def _lend(peak: np.ndarray, person_of: np.ndarray, peaks: Peaks, owner: np.ndarray, lent: np.ndarray) -> None:
    """Give the person of each `owner` peak the `lent` peak, in place, if it has none of that kind."""
    owned = person_of[owner] >= 0
    person, lent = person_of[owner[owned]], lent[owned]
    keypoint = peaks.keypoint[lent]
    free = peak[person, keypoint] < 0
    peak[person[free], keypoint[free]] = lent[free]
