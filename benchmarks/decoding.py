"""How long decoding takes: fields of drawn people on the default grid, one thread.

    python -m benchmarks.decoding [--json] [--repeats N]

The limits keep decoding far below what inference takes of the same core: 2 ms a frame for up to three people, 6 ms for
twenty.
"""

# ruff: noqa: E402

import os

# Read by NumPy's and OpenCV's thread pools when they are loaded.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import argparse
import json
from collections.abc import Callable
from statistics import median
from time import perf_counter_ns
from typing import Any

import cv2
import numpy as np

from posecore.fields import Fields
from posecore.geometry import Letterbox
from posecore.grouping import group_people
from posecore.limbs import match_limbs, score_limbs
from posecore.peaks import find_peaks
from posecore.pose import DecodeParams, decode_poses
from posecore.skeleton import COCO18
from tests.fixtures.fields import crowd, draw_fields

NET = (456, 256)  # a grid of 57 x 32 cells
NOISE = 0.02  # standard deviation; the background of a real network's fields is about as uneven
LIMIT_MS = {1: 2.0, 3: 2.0, 10: None, 20: 6.0}  # by number of people


def noisy_fields(n_people: int) -> Fields:
    """Fields of a crowd on the default grid."""
    drawn = draw_fields(crowd(n_people, NET), NET)
    rng = np.random.default_rng(n_people)
    heatmaps, pafs = (
        (field + rng.normal(0, NOISE, field.shape)).astype(np.float32) for field in (drawn.heatmaps, drawn.pafs)
    )
    return Fields(heatmaps, pafs, drawn.stride)


def median_ms(action: Callable[[], object], repeats: int) -> float:
    """Median wall time of an action after a few to warm up."""
    for _ in range(5):
        action()
    times = []
    for _ in range(repeats):
        start = perf_counter_ns()
        action()
        times.append(perf_counter_ns() - start)
    return median(times) / 1e6


def measure(n_people: int, repeats: int) -> dict[str, Any]:
    """Medians in ms of the three stages and of all decoding, with how much there was to decode."""
    fields, params = noisy_fields(n_people), DecodeParams()
    letterbox = Letterbox.fit(NET, NET)
    peaks = find_peaks(fields, params.peaks)

    def match() -> Any:
        return match_limbs(score_limbs(peaks, fields, COCO18, params.limbs), len(peaks), len(COCO18.limbs))

    limbs = match()
    return {
        "people": n_people,
        "found": len(group_people(peaks, limbs, COCO18, params.group)),
        "peaks": len(peaks),
        "peaks_ms": median_ms(lambda: find_peaks(fields, params.peaks), repeats),
        "limbs_ms": median_ms(match, repeats),
        "group_ms": median_ms(lambda: group_people(peaks, limbs, COCO18, params.group), repeats),
        "decode_ms": median_ms(lambda: decode_poses(fields, letterbox, COCO18, params), repeats),
        "limit_ms": LIMIT_MS[n_people],
    }


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--repeats", type=int, default=200, help="frames per figure (default: %(default)s)")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    rows = [measure(n_people, options.repeats) for n_people in LIMIT_MS]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("".join(f"{name:>10}" for name in rows[0]))
    for row in rows:
        cells = (f"{v:.2f}" if isinstance(v, float) else "-" if v is None else str(v) for v in row.values())
        print("".join(f"{cell:>10}" for cell in cells))


if __name__ == "__main__":
    main()
