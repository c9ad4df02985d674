"""How long will it take? Measured, not guessed: the network is run for a second on this machine."""

import time
from collections import Counter
from collections.abc import Iterator

import numpy as np

from jobs.executors.base import usable_cpus
from jobs.run import Prepared
from models.runtime import PoseRuntime
from posecore.geometry import network_size

_MEASURE_S = 1.0
# The whole job with decoding, grouping and Parquet, over the network alone.
_OVERHEAD = 1.15


def seconds_a_frame(job: Prepared) -> float | None:
    """Seconds per frame with all CPUs of this machine at the most frequent network input; None if there is no frame."""
    sizes: Counter[tuple[int, int]] = Counter()
    for video in job.plan.videos:
        if video.index is not None:
            # Pictures of a folder have a size each; 4:3 stands for them.
            sizes[video.index.size or (640, 480)] += video.n_selected
    if not sizes.total():
        return None
    manifest = job.network.manifest
    width, height = network_size(sizes.most_common(1)[0][0], job.plan.options.height, manifest.stride)
    runtime = PoseRuntime(job.network, job.device, usable_cpus())
    runtime.prepare(width, height)
    blank = np.zeros((height, width, 3), np.uint8)
    began = time.perf_counter()
    frames = 0
    for _ in runtime.infer((None, blank) for _ in _until(began + _MEASURE_S)):
        frames += 1
    return (time.perf_counter() - began) / frames * _OVERHEAD


def _until(end: float) -> Iterator[None]:
    while time.perf_counter() < end:
        yield
