import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posecore.errors import FieldShapeError
from posecore.fields import Fields
from posecore.geometry import Letterbox
from posecore.grouping import group_people
from posecore.limbs import match_limbs, score_limbs
from posecore.peaks import find_peaks
from posecore.pose import DecodeParams, Poses, decode_poses
from posecore.skeleton import COCO18
from tests.fixtures.fields import STRIDE, crowd, draw_fields, figure

NET = (456, 256)
SAME = Letterbox.fit(NET, NET)
WITHIN = 0.1 * STRIDE  # pixels of the network: a tenth of a cell


def decode(people_xy_net: np.ndarray, letterbox: Letterbox = SAME, height: np.ndarray | float = 1.0) -> Poses:
    fields = draw_fields(people_xy_net, letterbox.net, height=height)
    return decode_poses(fields, letterbox, COCO18, DecodeParams())


def assert_same_people(poses: Poses, truth_xy_src: np.ndarray, within: float = WITHIN) -> None:
    """Every person of the truth is found, and nobody else, in any order. truth_xy_src: (N, 18, 2)."""
    assert len(poses) == len(truth_xy_src)
    necks = poses.xy_src[:, None, 1] - np.asarray(truth_xy_src)[None, :, 1]
    nearest = np.hypot(*necks.T).argmin(axis=1)
    np.testing.assert_allclose(poses.xy_src[nearest], truth_xy_src, atol=within)


@pytest.fixture(scope="module")
def three() -> Poses:
    """Seen with a confidence of 0.5, 0.9 and 0.7; their necks, by which they are put together, the other way round."""
    height = np.repeat([[0.5], [0.9], [0.7]], 18, axis=1)
    height[:, COCO18.index("neck")] = 0.9, 0.5, 0.7
    return decode(crowd(3, NET), height=height)


@pytest.mark.parametrize("n_people", [1, 2, 3, 5, 10])
def test_people_are_found_where_they_were_drawn(n_people: int):
    people = crowd(n_people, NET)
    poses = decode(people)
    assert_same_people(poses, people)
    assert poses.found.all()


@pytest.mark.parametrize("src", [(1280, 720), (1920, 1080), (320, 240), (500, 800)])
def test_people_come_back_in_source_pixels(src: tuple[int, int]):
    letterbox = Letterbox.fit(src, NET)
    room = letterbox.net[0] - 2 * letterbox.pad[0], letterbox.net[1] - 2 * letterbox.pad[1]
    truth = letterbox.to_src(crowd(2, room) + letterbox.pad)
    assert_same_people(decode(letterbox.to_net(truth), letterbox), truth, WITHIN / letterbox.scale)


@given(dx=st.floats(0, 250), dy=st.floats(0, 15))
@settings(max_examples=30)
def test_a_person_moves_with_the_picture(dx: float, dy: float):
    person = figure(70 + dx, 60 + dy)
    assert_same_people(decode(person), person[None])


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30)
def test_who_is_surer_of_what_does_not_matter(seed: int):
    # The ranks of the peaks of one keypoint are shuffled, another way for each keypoint.
    people = crowd(4, NET)
    assert_same_people(decode(people, height=np.random.default_rng(seed).uniform(0.4, 1, (4, 18))), people)


def test_people_may_change_places():
    tall, small = figure(0, 60), figure(0, 60, 0.5)
    for left, right in ((tall, small), (small, tall)):
        people = np.array([left, right]) + np.array([[[100, 0]], [[300, 0]]])
        assert_same_people(decode(people), people)


def test_arms_of_two_people_cross():
    # The left forearms, one channel pair, make an X: each one's elbow is above the other's wrist.
    people = np.array([figure(150, 60), figure(250, 60)])
    elbow, wrist = COCO18.index("left_elbow"), COCO18.index("left_wrist")
    people[0, [elbow, wrist]] = (200, 90), (256, 146)
    people[1, [elbow, wrist]] = (256, 90), (200, 146)
    assert_same_people(decode(people), people)


def test_two_people_overlap_by_half():
    people = np.array([figure(150, 60), figure(190, 64)])
    assert_same_people(decode(people), people)


def test_keypoints_that_cannot_be_seen_are_nan_and_count_as_nothing():
    lacking = ("left_wrist", "right_knee", "right_ankle")
    poses = decode(figure(200, 60, lacking=lacking))
    assert [COCO18.keypoints[k] for k in np.flatnonzero(~poses.found[0])] == sorted(lacking, key=COCO18.index)
    np.testing.assert_array_equal(np.isnan(poses.xy_src[0]).all(axis=1), ~poses.found[0])
    assert poses.score[0] == pytest.approx(np.nansum(poses.keypoint_score[0]) / 18)


def test_an_ear_is_found_by_its_shoulder():
    # Without the eye only the redundant limb leads to the ear.
    poses = decode(figure(200, 60, lacking=("left_eye",)))
    assert [COCO18.keypoints[k] for k in np.flatnonzero(~poses.found[0])] == ["left_eye"]


def test_two_keypoints_are_nobody():
    everything_but_an_arm = tuple(k for k in COCO18.keypoints if k not in ("left_elbow", "left_wrist"))
    assert len(decode(figure(200, 60, lacking=everything_but_an_arm))) == 0


def test_nobody_has_the_shapes_of_somebody():
    poses = decode(np.empty((0, 18, 2)))
    assert poses.xy_src.shape == (0, 18, 2)
    assert poses.keypoint_score.shape == (0, 18)
    assert poses.score.shape == (0,)


def test_poses_are_float32(three: Poses):
    assert {array.dtype for array in (three.xy_src, three.keypoint_score, three.score)} == {np.dtype(np.float32)}


def test_poses_are_by_falling_score(three: Poses):
    np.testing.assert_allclose(three.score, [0.88, 0.7, 0.52], rtol=0.08)
    x = crowd(3, NET)[:, 1, 0]
    np.testing.assert_allclose(three.xy_src[:, 1, 0], x[[1, 2, 0]], atol=WITHIN)


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        ({}, [0, 1, 2]),
        ({"max_people": 2}, [0, 1]),
        ({"max_people": 0}, []),
        ({"min_score": 0.6}, [0, 1]),
        ({"min_score": 0.6, "max_people": 1}, [0]),
        ({"min_score": 2.0}, []),
    ],
)
def test_select_takes_the_best(three: Poses, choice: dict[str, float], chosen: list[int]):
    selected = three.select(**choice)
    np.testing.assert_array_equal(selected.xy_src, three.xy_src[chosen])
    np.testing.assert_array_equal(selected.keypoint_score, three.keypoint_score[chosen])
    np.testing.assert_array_equal(selected.score, three.score[chosen])


def test_select_keeps_who_just_reaches_the_score(three: Poses):
    assert len(three.select(min_score=three.score[1])) == 2


def test_what_stages_hand_on_is_read_only(three: Poses):
    params = DecodeParams()
    fields = draw_fields(figure(200, 60), NET)
    peaks = find_peaks(fields, params.peaks)
    candidates = score_limbs(peaks, fields, COCO18, params.limbs)
    limbs = match_limbs(candidates, len(peaks), len(COCO18.limbs))
    people = group_people(peaks, limbs, COCO18, params.group)
    for value in (fields, peaks, candidates, limbs, people, three, three.select()):
        for name, array in vars(value).items():
            if isinstance(array, np.ndarray):
                assert not array.flags.writeable, f"{type(value).__name__}.{name}"


def test_fields_leave_their_makers_array_writeable():
    heatmaps = np.zeros((18, 4, 5), np.float32)
    Fields(heatmaps, np.zeros((38, 4, 5), np.float32), STRIDE)
    heatmaps[0, 0, 0] = 1


@pytest.mark.parametrize(
    ("heatmaps", "pafs", "message"),
    [
        ((18, 20), (38, 4, 5), "heatmaps: expected (K, Hc, Wc), found shape (18, 20)"),
        ((1, 18, 4, 5), (38, 4, 5), "heatmaps: expected (K, Hc, Wc), found shape (1, 18, 4, 5)"),
        ((18, 4, 5), (19, 2, 4, 5), "PAFs: expected (2L, 4, 5), found shape (19, 2, 4, 5)"),
        ((18, 4, 5), (38, 5, 4), "PAFs: expected (2L, 4, 5), found shape (38, 5, 4)"),
        ((19, 4, 5), (38, 4, 5), "heatmaps: expected 18 channels (coco18), found shape (19, 4, 5)"),
        ((18, 4, 5), (37, 4, 5), "PAFs: expected 38 channels (coco18), found shape (37, 4, 5)"),
    ],
)
def test_fields_of_another_shape_are_refused(heatmaps: tuple[int, ...], pafs: tuple[int, ...], message: str):
    whole = re.escape(f"{message}; does the manifest name the right output?")
    with pytest.raises(FieldShapeError, match=f"^{whole}$"):
        decode_poses(Fields(np.zeros(heatmaps), np.zeros(pafs), STRIDE), SAME, COCO18, DecodeParams())


def test_pafs_may_have_channels_that_no_limb_uses():
    drawn = draw_fields(figure(200, 60), NET)
    more = Fields(drawn.heatmaps, np.concatenate([drawn.pafs, drawn.pafs[:2]]), STRIDE)
    assert len(decode_poses(more, SAME, COCO18, DecodeParams())) == 1
