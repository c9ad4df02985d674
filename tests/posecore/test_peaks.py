import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posecore.fields import Fields
from posecore.peaks import PeakParams, Peaks, find_peaks, snap
from tests.fixtures.fields import SIGMA_CELL

PER_CELL = 4  # points of the surface per cell and axis


def fields_of(*heatmaps: np.ndarray) -> Fields:
    stacked = np.array(heatmaps, dtype=np.float32)
    return Fields(stacked, np.zeros((2, *stacked.shape[1:]), np.float32), 8)


def gaussian(
    x: float, y: float, height: float = 1.0, shape: tuple[int, int] = (12, 14), spread: float = SIGMA_CELL
) -> np.ndarray:
    """A heatmap of `shape` (rows, columns) with one peak at (x, y) cells."""
    row, column = np.indices(shape) + 0.5
    return height * np.exp(-((column - x) ** 2 + (row - y) ** 2) / (2 * spread**2))


def surface_maxima(heatmap: np.ndarray, threshold: float) -> set[tuple[int, int]]:
    """(column, row) of the points of the whole upsampled heatmap that are higher than their four neighbours."""
    up = cv2.resize(heatmap, None, fx=PER_CELL, fy=PER_CELL, interpolation=cv2.INTER_CUBIC)
    fence = np.pad(up, 1, constant_values=-np.inf)
    top = up > threshold
    for around in (fence[1:-1, :-2], fence[1:-1, 2:], fence[:-2, 1:-1], fence[2:, 1:-1]):
        top &= up > around
    return {(int(column), int(row)) for row, column in np.argwhere(top)}


def surface_points(peaks: Peaks) -> set[tuple[int, int]]:
    return {(int(x), int(y)) for x, y in np.floor(peaks.xy_cell * PER_CELL)}


@given(x=st.floats(2, 12), y=st.floats(2, 10), height=st.floats(0.2, 1.0))
def test_a_gaussian_is_found_where_it_was_drawn(x: float, y: float, height: float):
    peaks = find_peaks(fields_of(gaussian(x, y, height)), PeakParams())
    assert len(peaks) == 1
    np.testing.assert_allclose(peaks.xy_cell[0], (x, y), atol=0.05)
    # Where four cells meet, the surface runs 7 % below the Gaussian.
    assert 0.92 * height <= peaks.score[0] <= 1.001 * height


@given(seed=st.integers(0, 10_000), rows=st.integers(3, 12), columns=st.integers(3, 12))
def test_peaks_are_the_maxima_of_the_bicubic_surface(seed: int, rows: int, columns: int):
    # No cell is low enough to be passed over, so the borders and every shape of the surface are looked at.
    heatmap = np.random.default_rng(seed).uniform(0.06, 1, (rows, columns)).astype(np.float32)
    peaks = find_peaks(fields_of(heatmap), PeakParams(threshold=0.1, radius_cell=0))
    assert surface_points(peaks) == surface_maxima(heatmap, 0.1)


@given(seed=st.integers(0, 10_000))
def test_cells_passed_over_hold_no_peak_of_keypoints_in_a_crowd(seed: int):
    rng = np.random.default_rng(seed)
    people = (
        gaussian(*rng.uniform(1, 12, 2), height=rng.uniform(0.1, 1), spread=rng.uniform(0.7, 1.2)) for _ in range(12)
    )
    heatmap = np.max(list(people), axis=0).astype(np.float32)
    peaks = find_peaks(fields_of(heatmap), PeakParams(threshold=0.1, radius_cell=0))
    assert surface_points(peaks) == surface_maxima(heatmap, 0.1)


def test_the_score_is_the_height_of_the_surface():
    heatmap = np.random.default_rng(0).uniform(0.1, 1, (9, 9)).astype(np.float32)
    peaks = find_peaks(fields_of(heatmap), PeakParams(radius_cell=0))
    up = cv2.resize(heatmap, None, fx=PER_CELL, fy=PER_CELL, interpolation=cv2.INTER_CUBIC)
    column, row = np.floor(peaks.xy_cell * PER_CELL).astype(int).T
    np.testing.assert_allclose(peaks.score, up[row, column], rtol=1e-5)


def test_neighbouring_cells_can_hold_two_peaks():
    # One maximum of the grid, two of the surface: two small people, 1.75 cells apart, one less sure.
    heatmap = np.maximum(gaussian(5.5, 6.5, spread=0.6), gaussian(7.25, 6.5, height=0.7, spread=0.6))
    peaks = find_peaks(fields_of(heatmap), PeakParams())
    np.testing.assert_allclose(peaks.xy_cell, [(5.5, 6.5), (7.25, 6.5)], atol=0.2)


@given(
    x=st.sampled_from([6, 6.25, 6.5, 6.75]),
    y=st.sampled_from([5, 5.25, 5.5, 5.75]),
    height=st.floats(0.2, 1),
    spread=st.floats(0.7, 1.5),
)
def test_a_peak_between_points_is_one_peak(x: float, y: float, height: float, spread: float):
    # Two or four points tie here, in one cell or in several, of which each has its own sum for its neighbours' points.
    assert len(find_peaks(fields_of(gaussian(x, y, height, spread=spread)), PeakParams(radius_cell=0))) == 1


@given(value=st.floats(0.11, 1))
def test_a_plateau_is_one_peak_at_its_first_point(value: float):
    peaks = find_peaks(fields_of(np.full((5, 7), value)), PeakParams(radius_cell=0))
    assert peaks.xy_cell.tolist() == [[0.125, 0.125]]


@pytest.mark.parametrize(("x", "y"), [(0.5, 5.5), (13.5, 5.5), (6.5, 0.5), (6.5, 11.5), (0.5, 0.5), (13.5, 11.5)])
def test_a_peak_in_a_border_cell_stays_in_that_cell(x: float, y: float):
    peaks = find_peaks(fields_of(gaussian(x, y)), PeakParams())
    assert np.floor(peaks.xy_cell).tolist() == [[np.floor(x), np.floor(y)]]


@pytest.mark.parametrize("place", range(3))
def test_a_peak_does_not_leak_into_the_next_heatmap(place: int):
    heatmaps = [np.zeros((12, 14)) for _ in range(3)]
    heatmaps[place] = gaussian(13.5, 11.5) + gaussian(0.5, 0.5)
    peaks = find_peaks(fields_of(*heatmaps), PeakParams())
    assert peaks.keypoint.tolist() == [place, place]


def test_peaks_are_sorted_by_keypoint_then_by_falling_score():
    low_then_high = gaussian(3.5, 3.5, 0.5) + gaussian(10.5, 8.5, 0.9)
    peaks = find_peaks(fields_of(low_then_high, np.zeros((12, 14)), gaussian(6.5, 6.5, 0.7)), PeakParams())
    assert peaks.keypoint.tolist() == [0, 0, 2]
    np.testing.assert_allclose(peaks.score, [0.9, 0.5, 0.7], atol=0.02)


@pytest.mark.parametrize(("height", "n_peaks"), [(0.09, 0), (0.12, 1)])
def test_only_peaks_above_the_threshold_count(height: float, n_peaks: int):
    # At a cell's centre: the four points around it are a little lower than the cell.
    assert len(find_peaks(fields_of(gaussian(6.5, 6.5, height)), PeakParams(threshold=0.1))) == n_peaks


def test_the_threshold_is_not_above_itself():
    assert len(find_peaks(fields_of(np.full((5, 5), 0.5)), PeakParams(threshold=0.5))) == 0


def test_of_two_near_peaks_of_a_keypoint_the_higher_stays():
    near = np.maximum(gaussian(5.5, 6.5, 0.7, spread=0.6), gaussian(7.5, 6.5, 1.0, spread=0.6))
    peaks = find_peaks(fields_of(near), PeakParams(radius_cell=2.5))
    np.testing.assert_allclose(peaks.xy_cell, [(7.5, 6.5)], atol=0.05)


def test_near_peaks_of_different_keypoints_both_stay():
    peaks = find_peaks(fields_of(gaussian(6, 6), gaussian(6.5, 6)), PeakParams(radius_cell=2))
    assert peaks.keypoint.tolist() == [0, 1]


def test_a_dropped_peak_drops_nobody():
    # Three in a row, each near the next: the first rules out the second, which then cannot rule out the third.
    row = [gaussian(x, 6.5, height, spread=0.6) for x, height in ((3.5, 1.0), (5.5, 0.8), (7.5, 0.6))]
    peaks = find_peaks(fields_of(np.max(row, axis=0)), PeakParams(radius_cell=2.5))
    np.testing.assert_allclose(peaks.xy_cell, [(3.5, 6.5), (7.5, 6.5)], atol=0.05)


def test_empty_heatmaps_give_no_peaks():
    peaks = find_peaks(fields_of(np.zeros((12, 14)), np.zeros((12, 14))), PeakParams())
    assert len(peaks) == 0
    assert peaks.keypoint.shape == (0,)
    assert peaks.xy_cell.shape == (0, 2)


def test_one_cell_is_heatmap_enough():
    assert len(find_peaks(fields_of([[0.9]]), PeakParams())) == 1


@given(st.floats(0, 60))
def test_snapping_moves_to_the_nearest_point_of_the_surface(x: float):
    snapped = snap(np.array([x], dtype=np.float32))
    points = (np.arange(-1, 61 * PER_CELL) + 0.5) / PER_CELL
    assert snapped in points
    assert abs(snapped - x) <= 0.5 / PER_CELL + 1e-6
