import numpy as np
import pytest

from posecore.oks import oks

SIGMAS = (0.1, 0.05)
AREA = np.array([2500.0])
POSE = np.array([[[10.0, 20.0], [30.0, 40.0]]])
NAN = [np.nan, np.nan]

# At this distance d^2 = area (2 sigma)^2, so a keypoint is worth exp(-1/2).
UNIT = [50 * 2 * sigma for sigma in SIGMAS]
HALF = np.exp(-0.5)


def moved(first: float, second: float) -> np.ndarray:
    return POSE + np.array([[first, 0], [0, second]])


def test_a_pose_is_wholly_like_itself():
    assert oks(POSE, POSE, AREA, SIGMAS).tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("pose", "expected"),
    [
        (moved(UNIT[0], 0), (HALF + 1) / 2),
        (moved(0, UNIT[1]), (1 + HALF) / 2),
        (moved(UNIT[0], UNIT[1]), HALF),
        (moved(2 * UNIT[0], 0), (HALF**4 + 1) / 2),
        (POSE + 1e6, 0),
    ],
)
def test_similarity_falls_with_distance_in_units_of_sigma(pose: np.ndarray, expected: float):
    assert oks(pose, POSE, AREA, SIGMAS)[0, 0] == pytest.approx(expected)


def test_a_picture_twice_as_large_changes_nothing():
    once = oks(moved(3, 4), POSE, AREA, SIGMAS)
    assert oks(2 * moved(3, 4), 2 * POSE, 4 * AREA, SIGMAS) == pytest.approx(once)


def test_a_keypoint_that_only_the_pose_lacks_counts_as_nothing():
    lacking = np.array([[POSE[0, 0], NAN]])
    assert oks(lacking, POSE, AREA, SIGMAS).tolist() == [[0.5]]


def test_a_keypoint_that_the_reference_lacks_does_not_count():
    reference = np.array([[NAN, POSE[0, 1]]])
    assert oks(POSE + np.array([[99, 99], [0, 0]]), reference, AREA, SIGMAS).tolist() == [[1.0]]


def test_a_reference_without_keypoints_is_like_nobody():
    assert oks(POSE, np.full((1, 2, 2), np.nan), AREA, SIGMAS).tolist() == [[0.0]]


def test_every_pose_meets_every_reference():
    poses = np.concatenate([POSE, moved(UNIT[0], UNIT[1])])
    references = np.concatenate([POSE + 1e6, POSE, moved(UNIT[0], UNIT[1])])
    areas = np.repeat(AREA, 3)
    np.testing.assert_allclose(oks(poses, references, areas, SIGMAS), [[0, 1, HALF], [0, HALF, 1]])


def test_nobody_has_no_similarities():
    assert oks(POSE[:0], POSE, AREA, SIGMAS).shape == (0, 1)
    assert oks(POSE, POSE[:0], AREA[:0], SIGMAS).shape == (1, 0)
