import numpy as np
import pytest

from posecore.errors import SkeletonError
from posecore.skeleton import COCO18, SKELETONS, Limb, Skeleton

FORWARD = Limb(0, 1, (0, 1))


def skeleton_of(*limbs: Limb, sigmas: tuple[float, ...] = (0.1, 0.1, 0.1)) -> Skeleton:
    return Skeleton("test", ("head", "hand", "foot"), limbs, sigmas)


def other_side(keypoint: str) -> int:
    swapped = {"left": "right", "right": "left"}
    side, _, part = keypoint.partition("_")
    return COCO18.index(f"{swapped[side]}_{part}" if side in swapped else keypoint)


def test_coco18_is_known_by_its_name():
    assert SKELETONS["coco18"] is COCO18


def test_coco18_has_18_keypoints_of_different_names():
    assert len(set(COCO18.keypoints)) == 18


def test_coco18_gives_each_paf_channel_to_one_limb():
    assert sorted(COCO18.paf_channels.ravel()) == list(range(2 * 19))


def test_coco18_hangs_every_keypoint_but_the_neck_from_one_other():
    assert sorted(limb.target for limb in COCO18.tree) == [k for k in range(18) if k != COCO18.index("neck")]


def test_coco18_closes_loops_only_from_shoulder_to_ear():
    loops = [(COCO18.keypoints[limb.source], COCO18.keypoints[limb.target]) for limb in COCO18.limbs if limb.redundant]
    assert loops == [("right_shoulder", "right_ear"), ("left_shoulder", "left_ear")]


def test_coco18_is_the_same_left_and_right():
    mirror = [other_side(keypoint) for keypoint in COCO18.keypoints]
    limbs = {(limb.source, limb.target, limb.redundant) for limb in COCO18.limbs}
    assert {(mirror[source], mirror[target], redundant) for source, target, redundant in limbs} == limbs
    assert [COCO18.sigmas[k] for k in mirror] == list(COCO18.sigmas)


def test_limb_ends_and_channels_are_in_the_order_of_the_limbs():
    skeleton = skeleton_of(Limb(0, 1, (2, 3)), Limb(1, 2, (1, 0)))
    assert skeleton.limb_ends.tolist() == [[0, 1], [1, 2]]
    assert skeleton.paf_channels.tolist() == [[2, 3], [1, 0]]


def test_a_redundant_limb_may_close_a_loop():
    skeleton = skeleton_of(FORWARD, Limb(1, 2, (2, 3)), Limb(0, 2, (4, 5), redundant=True))
    assert skeleton.tree == skeleton.limbs[:2]


def test_skeletons_of_the_same_data_are_equal_after_their_arrays_were_used():
    assert np.array_equal(skeleton_of(FORWARD).limb_ends, [[0, 1]])
    assert skeleton_of(FORWARD) == skeleton_of(FORWARD)


@pytest.mark.parametrize(
    ("limbs", "message"),
    [
        ([Limb(0, 3, (0, 1))], r"skeleton test: limb 0->3 is not between two keypoints"),
        ([Limb(-1, 0, (0, 1))], r"skeleton test: limb -1->0 is not between two keypoints"),
        ([Limb(2, 2, (0, 1))], r"skeleton test: limb 2->2 is not between two keypoints"),
        (
            [FORWARD, Limb(2, 1, (2, 3))],
            r"hand is the target of two limbs; mark the one that closes the loop as redundant",
        ),
        ([FORWARD, Limb(1, 0, (2, 3))], r"skeleton test: the limbs at (head|hand) form a loop"),
        ([FORWARD, Limb(1, 2, (2, 3)), Limb(2, 0, (4, 5))], r"skeleton test: the limbs at \w+ form a loop"),
    ],
)
def test_limbs_that_make_no_people_are_refused(limbs: list[Limb], message: str):
    with pytest.raises(SkeletonError, match=message):
        skeleton_of(*limbs)


def test_every_keypoint_needs_a_sigma():
    with pytest.raises(SkeletonError, match="skeleton test: 3 keypoints but 2 sigmas"):
        skeleton_of(FORWARD, sigmas=(0.1, 0.1))
