import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posecore.grouping import GroupParams, People, group_people
from posecore.limbs import Limbs
from posecore.peaks import Peaks
from posecore.skeleton import COCO18, Limb, Skeleton
from tests.fixtures.fields import make_limbs, make_peaks

# Neck to head and hand, hand to tool; the tool to the head closes the loop.
NECK, HEAD, HAND, TOOL = range(4)
SKELETON = Skeleton(
    "test",
    ("neck", "head", "hand", "tool"),
    (Limb(0, 1, (0, 1)), Limb(0, 2, (2, 3)), Limb(2, 3, (4, 5)), Limb(3, 1, (6, 7), redundant=True)),
    (0.1, 0.1, 0.1, 0.1),
)
TO_HEAD, TO_HAND, TO_TOOL, LOOP = range(4)

ALL = GroupParams(min_keypoints=1, min_mean_score=0)


def peaks_of(*keypoints: int, score: float = 0.5) -> Peaks:
    return make_peaks(*((keypoint, 0, 0, score) for keypoint in keypoints))


def group(peaks: Peaks, limbs: Limbs, params: GroupParams = ALL) -> People:
    return group_people(peaks, limbs, SKELETON, params)


def test_connected_peaks_are_a_person():
    peaks = peaks_of(NECK, HEAD, HAND, TOOL)
    people = group(peaks, make_limbs((TO_TOOL, 2, 3, 0.5), (TO_HEAD, 0, 1, 0.5), (TO_HAND, 0, 2, 0.5)))
    assert people.peak.tolist() == [[0, 1, 2, 3]]


def test_the_score_sums_keypoints_and_limbs():
    peaks = make_peaks((NECK, 0, 0, 0.5), (HEAD, 0, 0, 0.25), (HAND, 0, 0, 0.125))
    people = group(peaks, make_limbs((TO_HEAD, 0, 1, 1.0), (TO_HAND, 0, 2, 0.75)))
    assert people.score.tolist() == [2.625]


def test_unconnected_components_are_different_people():
    peaks = peaks_of(NECK, NECK, HEAD, HEAD, HAND)
    people = group(peaks, make_limbs((TO_HEAD, 0, 3, 0.9), (TO_HEAD, 1, 2, 0.8), (TO_HAND, 1, 4, 0.7)))
    assert sorted(people.peak.tolist()) == [[0, 3, -1, -1], [1, 2, 4, -1]]


def test_a_person_needs_no_neck():
    people = group(peaks_of(HAND, TOOL), make_limbs((TO_TOOL, 0, 1, 0.5)))
    assert people.peak.tolist() == [[-1, -1, 0, 1]]


def test_peaks_without_a_limb_belong_to_nobody():
    people = group(peaks_of(NECK, HEAD, HEAD), make_limbs((TO_HEAD, 0, 2, 0.5)))
    assert people.peak.tolist() == [[0, 2, -1, -1]]


PEOPLE_PEAKS = peaks_of(NECK, NECK, NECK, HEAD, HEAD, HAND, HAND, HAND, TOOL, TOOL)
PEOPLE_LIMBS = (
    (TO_HEAD, 0, 4, 0.5), (TO_HEAD, 1, 3, 0.25),
    (TO_HAND, 0, 5, 0.75), (TO_HAND, 1, 7, 0.5), (TO_HAND, 2, 6, 0.25),
    (TO_TOOL, 7, 8, 0.5), (TO_TOOL, 6, 9, 1.0),
    (LOOP, 9, 4, 0.5), (LOOP, 8, 3, 0.5),
)  # fmt: skip


@given(st.permutations(PEOPLE_LIMBS))
def test_the_order_of_limbs_does_not_matter(limbs: list[tuple[int, int, int, float]]):
    people = group(PEOPLE_PEAKS, make_limbs(*limbs))
    # The first lacks a tool, which its head's redundant limb lends; the third lacks a head, which its tool's lends.
    assert people.peak.tolist() == [[0, 4, 5, 9], [1, 3, 7, 8], [2, 4, 6, 9]]
    assert people.score.tolist() == [2.75, 3.25, 2.75]


@pytest.mark.parametrize(
    ("keypoints", "limb", "expected"),
    [
        ((NECK, HEAD, TOOL), (TO_HEAD, 0, 1, 0.5), [0, 1, -1, 2]),
        ((HEAD, HAND, TOOL), (TO_TOOL, 1, 2, 0.5), [-1, 0, 1, 2]),
    ],
    ids=["its-source", "its-target"],
)
def test_a_redundant_limb_lends_a_keypoint_that_is_lacking(keypoints, limb, expected):
    loop = (LOOP, 2, list(keypoints).index(HEAD), 0.25)
    people = group(peaks_of(*keypoints), make_limbs(limb, loop))
    assert people.peak.tolist() == [expected]


def test_a_redundant_limb_replaces_no_keypoint():
    peaks = peaks_of(NECK, HEAD, HEAD, HAND, TOOL)
    limbs = make_limbs((LOOP, 4, 2, 1.0), (TO_HEAD, 0, 1, 0.5), (TO_HAND, 0, 3, 0.5), (TO_TOOL, 3, 4, 0.5))
    assert group(peaks, limbs).peak.tolist() == [[0, 1, 3, 4]]


def test_a_redundant_limb_joins_no_two_people():
    peaks = peaks_of(NECK, HEAD, HAND, TOOL)
    people = group(peaks, make_limbs((TO_HEAD, 0, 1, 0.5), (TO_TOOL, 2, 3, 0.5), (LOOP, 3, 1, 0.5)))
    assert people.peak[:, [NECK, HAND]].tolist() == [[0, -1], [-1, 2]]


@pytest.mark.parametrize(
    ("peaks", "limbs"),
    [
        (peaks_of(), make_limbs()),
        (peaks_of(NECK, HEAD, TOOL), make_limbs()),
        (peaks_of(HEAD, TOOL), make_limbs((LOOP, 1, 0, 0.9))),
    ],
    ids=["no-peaks", "no-limbs", "a-redundant-limb-only"],
)
def test_nobody(peaks: Peaks, limbs: Limbs):
    people = group(peaks, limbs)
    assert len(people) == 0
    assert people.peak.shape == (0, 4)


@pytest.mark.parametrize(("least", "n_people"), [(2, 2), (3, 1), (4, 0)])
def test_people_of_too_few_keypoints_are_dropped(least: int, n_people: int):
    peaks = peaks_of(NECK, NECK, HEAD, HEAD, HAND)
    limbs = make_limbs((TO_HEAD, 0, 2, 0.5), (TO_HEAD, 1, 3, 0.5), (TO_HAND, 1, 4, 0.5))
    assert len(group(peaks, limbs, GroupParams(min_keypoints=least, min_mean_score=0))) == n_people


def test_a_lent_keypoint_is_no_evidence():
    limbs = make_limbs((TO_HEAD, 0, 1, 0.5), (LOOP, 2, 1, 0.5))
    assert len(group(peaks_of(NECK, HEAD, TOOL), limbs, GroupParams(min_keypoints=3, min_mean_score=0))) == 0


@pytest.mark.parametrize(("least", "n_people"), [(0.5, 1), (0.51, 0)])
def test_people_of_too_low_a_score_are_dropped(least: float, n_people: int):
    # Two keypoints of 0.25 and a limb of 0.5: a sum of 1, 0.5 for each keypoint.
    limbs = make_limbs((TO_HEAD, 0, 1, 0.5))
    params = GroupParams(min_keypoints=2, min_mean_score=least)
    assert len(group(peaks_of(NECK, HEAD, score=0.25), limbs, params)) == n_people


def test_a_chain_over_the_whole_body_is_one_person():
    # Ankle to ankle through the neck, the longest way through COCO-18, its limbs from the far end.
    peaks = peaks_of(*range(18))
    tree = [number for number, limb in enumerate(COCO18.limbs) if not limb.redundant]
    limbs = make_limbs(*((number, *COCO18.limb_ends[number], 0.5) for number in reversed(tree)))
    people = group_people(peaks, limbs, COCO18, GroupParams())
    np.testing.assert_array_equal(people.peak, [np.arange(18)])
