"""How accurate are network and decoding? AP on COCO images, and agreement with a reference decoder.

    POSEJOB_TEST_DATA=DIR python -m benchmarks.accuracy [--model NAME] [--height H ...]

DIR holds `coco/images/`, `coco/person_keypoints.json`, `reference_poses_h256.json`, `videos/` and `images/`.

The reference is Lightweight OpenPose's decoder (upsampling 4). It reports the corner of the upsampled point, a square
of 2 network pixels; posejob reports positions with pixel centres at .5, so its positions are one network pixel further.
INT8 networks answer differently on CPUs without VNNI, where products saturate; ONEDNN_MAX_CPU_ISA=AVX2 makes any CPU
answer like those.
"""

import argparse
import contextlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from jobs.discover import Source
from jobs.frames import probe, read_frames
from jobs.plan import Chunk, VideoPlan, frame_range
from jobs.spec import Selection
from models.registry import DEFAULT_MODEL, Network, find_network
from models.runtime import PoseRuntime
from posecore.geometry import Letterbox, network_size
from posecore.oks import oks
from posecore.pose import DecodeParams, Poses, decode_poses
from posecore.preprocess import letterbox_image

# COCO's 17 keypoints in the order of COCO-18, which has a neck in place 1.
COCO17 = [0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]


def main() -> None:
    """Print AP at each height, then the agreement with the reference at height 256."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--height", type=int, nargs="*", default=[256, 368])
    arguments = parser.parse_args()
    data = Path(os.environ.get("POSEJOB_TEST_DATA", ""))
    if not (data / "coco" / "person_keypoints.json").is_file():
        raise SystemExit("POSEJOB_TEST_DATA must name a folder with coco/person_keypoints.json")
    network = find_network(arguments.model)
    runtime = PoseRuntime(network, "CPU", len(os.sched_getaffinity(0)))
    for height in arguments.height:
        ap, ap50, ap75 = average_precision(data / "coco", runtime, network, height)
        print(f"{network.name}, height {height}: AP {ap:.4f}, AP50 {ap50:.4f}, AP75 {ap75:.4f}")
    for line in agreement(data, runtime, network):
        print(line)


def find_people(
    pictures: Iterable[tuple[Any, np.ndarray]], runtime: PoseRuntime, network: Network, height: int
) -> Iterator[tuple[Any, Poses, Letterbox]]:
    """(tag, poses, transform) of each (tag, (H, W, 3) BGR picture)."""
    manifest = network.manifest

    def prepared() -> Iterator[tuple[tuple[Any, Letterbox], np.ndarray]]:
        for tag, picture in pictures:
            size = (picture.shape[1], picture.shape[0])
            letterbox = Letterbox.fit(size, network_size(size, height, manifest.stride))
            yield (tag, letterbox), letterbox_image(picture, letterbox, manifest.pad)

    for (tag, letterbox), fields in runtime.infer(prepared()):
        yield tag, decode_poses(fields, letterbox, manifest.skeleton, DecodeParams()), letterbox


def average_precision(coco: Path, runtime: PoseRuntime, network: Network, height: int) -> tuple[float, float, float]:
    """COCO keypoint AP, AP50, AP75 by pycocotools: one scale, no flip."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(coco / "person_keypoints.json"))
    images = [(image["id"], coco / "images" / image["file_name"]) for image in truth.dataset["images"]]
    pictures = ((tag, cv2.imread(str(path))) for tag, path in images)
    results = []
    for tag, poses, _ in find_people(pictures, runtime, network, height):
        for xy, found, score in zip(poses.xy_src, poses.found, poses.score, strict=True):
            keypoints = _as_coco(xy, found)
            results.append({"image_id": tag, "category_id": 1, "keypoints": keypoints, "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50, ap75 = evaluation.stats[:3]
    return float(ap), float(ap50), float(ap75)


def _as_coco(xy: np.ndarray, found: np.ndarray) -> list[float]:
    keypoints = np.zeros((17, 3))
    for k, place in enumerate(COCO17):
        if place is not None and found[k]:
            keypoints[place] = (*xy[k], 1)
    return [float(v) for v in keypoints.ravel()]


def agreement(data: Path, runtime: PoseRuntime, network: Network) -> Iterator[str]:
    """Lines that compare us with the reference, people matched by OKS.

    A keypoint that only the reference has counts as 0; the area is that of the reference's keypoints. `same people` are
    the matches above 0.5.
    """
    reference = json.loads((data / "reference_poses_h256.json").read_text())["poses"]
    similarity: list[float] = []
    equal = 0
    n_frames = 0
    for name, frames in reference.items():
        numbers = [int(number) for number in frames]
        here: list[float] = []
        n_equal = 0
        for number, poses, letterbox in find_people(_frames(data, name, numbers), runtime, network, 256):
            theirs = _reference_xy(frames[str(number)], 1 / letterbox.scale)
            here += _matched(poses, theirs, network.manifest.skeleton.sigmas)
            n_equal += len(poses) == len(theirs)
        yield _line(name, here, n_equal, len(numbers))
        similarity, equal, n_frames = similarity + here, equal + n_equal, n_frames + len(numbers)
    yield _line("all", similarity, equal, n_frames)


def _line(name: str, similarity: list[float], equal: int, n_frames: int) -> str:
    values = np.array(similarity)
    same = values[values > 0.5]
    return (
        f"{name}: mean OKS {values.mean():.4f} of {len(values)} matched people, {same.mean():.4f} of the {len(same)} "
        f"same people, median {np.median(values):.4f}; people counts equal in {equal} of {n_frames} frames"
    )


def _frames(data: Path, name: str, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    if name.endswith(".jpg"):
        yield 0, cv2.imread(str(data / "images" / name))
        return
    source = Source(data / "videos" / name)
    index = probe(source)
    chunk = Chunk("", 0, len(index))
    for frame in read_frames(frame_range(VideoPlan(source, index, (chunk,), len(index)), chunk, Selection())):
        if frame.number in numbers and frame.image is not None:
            yield frame.number, frame.image


def _reference_xy(people: list[list[list[float] | None]], shift: float) -> np.ndarray:
    """(N, 18, 2) in our coordinates, NaN where the reference has no keypoint."""
    missing = [np.nan] * 3
    xy = np.array([[missing if k is None else k for k in person] for person in people]).reshape(-1, 18, 3)[..., :2]
    return xy + shift


def _matched(poses: Poses, theirs: np.ndarray, sigmas: tuple[float, ...]) -> list[float]:
    if not len(poses) or not len(theirs):
        return []
    area = np.maximum((np.nanmax(theirs, axis=1) - np.nanmin(theirs, axis=1)).prod(axis=1), 1)
    matrix = oks(poses.xy_src, theirs, area, sigmas)
    ours, reference = linear_sum_assignment(-matrix)
    return [float(v) for v in matrix[ours, reference]]


if __name__ == "__main__":
    main()
