import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posecore.fields import Fields
from posecore.limbs import LimbParams, Limbs, match_limbs, score_limbs
from posecore.peaks import Peaks
from posecore.skeleton import Limb, Skeleton
from tests.fixtures.fields import make_limbs, make_peaks

SHAPE = (12, 16)  # rows and columns of the grid
PAIR = Skeleton("pair", ("a", "b"), (Limb(0, 1, (0, 1)),), (0.1, 0.1))
# The second limb's channels come first and swapped: the place of a PAF is the skeleton's to say.
CHAIN = Skeleton("chain", ("a", "b", "c"), (Limb(0, 1, (2, 3)), Limb(1, 2, (1, 0))), (0.1, 0.1, 0.1))


def fields_of(*pafs: np.ndarray | float, keypoints: int = 2) -> Fields:
    """PAF channels, each an array that fills the grid or a number that does."""
    channels = np.array([np.broadcast_to(channel, SHAPE) for channel in pafs], dtype=np.float32)
    return Fields(np.zeros((keypoints, *SHAPE), np.float32), channels, 8)


def score_pair(start: tuple[float, float], end: tuple[float, float], *pafs: np.ndarray | float) -> list[float]:
    peaks = make_peaks((0, *start, 1), (1, *end, 1))
    return score_limbs(peaks, fields_of(*pafs), PAIR, LimbParams()).score.tolist()


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ((12.125, 2.125), 0.6),  # right
        ((2.125, 10.125), 0.8),  # down
        ((8.125, 10.125), 1.0),  # along the field, 6 right and 8 down
        ((10.125, 8.125), 0.96),  # 8 right and 6 down: 0.8 * 0.6 + 0.6 * 0.8
    ],
)
def test_the_score_is_the_dot_product_of_field_and_direction(end: tuple[float, float], expected: float):
    assert score_pair((2.125, 2.125), end, 0.6, 0.8) == pytest.approx([expected])


def test_a_limb_against_the_field_does_not_pass():
    assert score_pair((12.125, 2.125), (2.125, 2.125), 0.6, 0.8) == []


def test_a_limb_without_length_does_not_pass():
    assert score_pair((5.125, 5.125), (5.125, 5.125), 1.0, 1.0) == []


def test_the_score_is_the_mean_along_the_limb():
    # The field is c / 10 in column c, whose centre is at c + 0.5. Ten samples, at 1.125, 2.125, ..., 10.125, read
    # 0.0625, 0.1625, ..., 0.9625.
    assert score_pair((1.125, 5.125), (10.125, 5.125), np.arange(16) / 10, 0.0) == pytest.approx([0.5125])


def test_ends_are_read_at_the_nearest_surface_points():
    # 1.2 and 10.05 lie between the points 1.125, 1.375 and 9.875, 10.125, each nearer to the one of the test above.
    assert score_pair((1.2, 5.0), (10.05, 5.2), np.arange(16) / 10, 0.0) == pytest.approx([0.5125])


def test_nine_of_ten_samples_are_enough_and_the_mean_is_over_them():
    # Ones up to column 8: of the samples at 1.125, ..., 10.125 eight read 1, the ninth 3/8 and the tenth 0.
    assert score_pair((1.125, 5.125), (10.125, 5.125), np.arange(16) <= 8, 0.0) == pytest.approx([8.375 / 9])


def test_eight_of_ten_samples_are_not_more_than_the_share():
    assert score_pair((1.125, 5.125), (10.125, 5.125), np.arange(16) <= 7, 0.0) == []


def test_samples_below_the_least_alignment_are_misses():
    assert score_pair((1.125, 5.125), (10.125, 5.125), 0.049, 0.0) == []
    assert score_pair((1.125, 5.125), (10.125, 5.125), 0.051, 0.0) == pytest.approx([0.051])


@pytest.mark.parametrize(
    ("limb", "y"),
    [(0, 0.125), (0, SHAPE[0] - 0.125), (1, 0.125), (1, SHAPE[0] - 0.125)],
    ids=["first-top", "first-bottom", "second-top", "second-bottom"],
)
def test_limbs_at_the_edge_do_not_read_another_limbs_field(limb: int, y: float):
    right, left = (1.0, 0.0), (-1.0, 0.0)
    first, second = (right, left) if limb == 0 else (left, right)
    fields = fields_of(second[1], second[0], *first, keypoints=3)
    peaks = make_peaks((limb, 2.125, y, 1), (limb + 1, 12.125, y, 1))
    limbs = score_limbs(peaks, fields, CHAIN, LimbParams())
    assert limbs.limb.tolist() == [limb]
    assert limbs.score.tolist() == [1.0]


def test_beyond_the_outermost_cells_centres_their_value_holds():
    field = np.where(np.arange(16) == 15, 0.5, 0.0)
    down = score_pair((15.875, 2.125), (15.875, 9.125), 0.0, field)
    assert down == pytest.approx([0.5])


def test_every_pair_that_a_limb_could_join_is_scored():
    peaks = make_peaks((0, 2, 2, 0.9), (0, 2, 8, 0.8), (1, 9, 2, 0.9), (1, 9, 5, 0.8), (1, 9, 8, 0.7))
    limbs = score_limbs(peaks, fields_of(1.0, 0.0), PAIR, LimbParams())
    assert set(zip(limbs.source.tolist(), limbs.target.tolist(), strict=True)) == {
        (s, t) for s in (0, 1) for t in (2, 3, 4)
    }


def test_limbs_are_sorted_by_falling_score_then_limb_source_target():
    right = (1.0, 0.0)
    peaks = make_peaks((0, 2, 3, 1), (0, 2, 9, 1), (1, 8, 3, 1), (1, 8, 9, 1), (2, 14, 3, 1))
    limbs = score_limbs(peaks, fields_of(*right[::-1], *right, keypoints=3), CHAIN, LimbParams())
    found = list(zip(limbs.limb.tolist(), limbs.source.tolist(), limbs.target.tolist(), strict=True))
    # Level limbs score 1, those that change rows cos 45 degrees.
    assert found == [(0, 0, 2), (0, 1, 3), (1, 2, 4), (0, 0, 3), (0, 1, 2), (1, 3, 4)]


def test_many_ties_keep_their_order():
    row = [(0, 1 + column, 5, 1) for column in range(6)] + [(1, 9 + column, 5, 1) for column in range(6)]
    limbs = score_limbs(make_peaks(*row), fields_of(1.0, 0.0), PAIR, LimbParams())
    assert set(limbs.score) == {1.0}
    assert limbs.source.tolist() == np.repeat(np.arange(6), 6).tolist()
    assert limbs.target.tolist() == np.tile(np.arange(6, 12), 6).tolist()


@pytest.mark.parametrize(("source", "target"), [(0, 80), (41, 122), (63, 143), (79, 159)])
def test_a_limb_scores_in_a_crowd_what_it_scores_alone(source: int, target: int):
    # 6400 candidates of 10 samples each, twice what OpenCV takes in one row.
    rng = np.random.default_rng(0)
    fields = fields_of(*rng.uniform(0.2, 1, (2, *SHAPE)))
    left, right = rng.uniform((0, 0), (7, 6), (80, 2)), rng.uniform((8, 6), (16, 12), (80, 2))
    crowd = Peaks(np.repeat([0, 1], 80), np.vstack([left, right]).astype(np.float32), np.ones(160, np.float32))
    alone = Peaks(np.array([0, 1]), crowd.xy_cell[[source, target]], np.ones(2, np.float32))

    limbs = score_limbs(crowd, fields, PAIR, LimbParams())
    assert len(limbs) == 6400
    in_crowd = limbs.score[(limbs.source == source) & (limbs.target == target)]
    assert in_crowd.tolist() == score_limbs(alone, fields, PAIR, LimbParams()).score.tolist()


@pytest.mark.parametrize("peaks", [make_peaks(), make_peaks((0, 2, 2, 1), (0, 9, 9, 1))], ids=["none", "one-kind"])
def test_no_pairs_no_limbs(peaks: Peaks):
    limbs = score_limbs(peaks, fields_of(1.0, 0.0), PAIR, LimbParams())
    assert len(limbs) == 0
    assert len(match_limbs(limbs, len(peaks), 1)) == 0


def test_a_peak_serves_once_in_a_kind_of_limb():
    matched = match_limbs(make_limbs((0, 0, 2, 0.9), (0, 0, 3, 0.8), (0, 1, 2, 0.7), (0, 1, 3, 0.6)), 4, 1)
    assert list(zip(matched.source.tolist(), matched.target.tolist(), strict=True)) == [(0, 2), (1, 3)]


def test_a_rival_that_is_ruled_out_rules_out_nobody():
    # The second loses its source to the first, so its target is free for the third, worse one.
    matched = match_limbs(make_limbs((0, 0, 2, 0.9), (0, 0, 3, 0.8), (0, 1, 3, 0.1)), 4, 1)
    assert list(zip(matched.source.tolist(), matched.target.tolist(), strict=True)) == [(0, 2), (1, 3)]


def test_a_peak_serves_in_several_kinds_of_limb():
    assert len(match_limbs(make_limbs((0, 0, 1, 0.9), (1, 1, 2, 0.8), (1, 0, 2, 0.7)), 3, 2)) == 2


N_LIMBS, N_ENDS = 3, 6
candidates = st.lists(
    st.tuples(st.integers(0, N_LIMBS - 1), st.integers(0, N_ENDS - 1), st.integers(N_ENDS, 2 * N_ENDS - 1)),
    unique=True,
    max_size=60,
)


def greedy(limbs: Limbs) -> list[int]:
    """Cao et al., section 2.4, as it is usually programmed."""
    taken: set[tuple[str, int, int]] = set()
    chosen = []
    for number, (limb, source, target) in enumerate(zip(limbs.limb, limbs.source, limbs.target, strict=True)):
        ends = {("source", limb, source), ("target", limb, target)}
        if not ends & taken:
            taken |= ends
            chosen.append(number)
    return chosen


@given(candidates)
def test_matching_all_at_once_equals_the_greedy_loop(found: list[tuple[int, int, int]]):
    limbs = make_limbs(*((*ends, 1 - number / 100) for number, ends in enumerate(found)))
    chosen = greedy(limbs)
    matched = match_limbs(limbs, 2 * N_ENDS, N_LIMBS)
    for name in ("limb", "source", "target", "score"):
        np.testing.assert_array_equal(getattr(matched, name), getattr(limbs, name)[chosen])
