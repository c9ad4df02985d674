"""What the driver can do at most: workers that do nothing, as many chunks as asked.

    python -m benchmarks.dispatch [--chunks 1000 10000 100000] [--actors 1 4 16 64] [--videos 10000] [--json]

First the dispatcher alone: chunks of 128 frames go to actors on simulated CPUs and come back. Then whole jobs of many
short videos, whose workers commit rows without having read a frame: planning, committing, merging, the manifest.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from jobs.discover import Source
from jobs.executors.base import Layout
from jobs.executors.ray import RayExecutor, private_ray
from jobs.frames import FrameRange
from jobs.run import run_job
from jobs.sink import chunk_bytes
from jobs.spec import RunSpec
from jobs.worker import UnitReport, WorkerSpec, WorkUnit, tables_without_reading
from tests.fixtures.colour_network import write_network
from tests.fixtures.stick_figures import walkers, write_video

CHUNK_FRAMES = 128


class Idle:
    """A worker that answers at once."""

    def __init__(self, spec: object) -> None:
        pass

    def setup(self) -> None:
        pass

    def run(self, unit: WorkUnit) -> UnitReport:
        n = len(unit.frames.pts)
        return UnitReport(unit.key, n, n, 0, 0.0, "CPU")


class Scribe:
    """A worker that commits rows without having read a frame."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec

    def setup(self) -> None:
        pass

    def run(self, unit: WorkUnit) -> UnitReport:
        tables = tables_without_reading(unit, self._spec.network.manifest.skeleton, "nothing is read")
        self._spec.ledger.commit_chunk(unit.key, chunk_bytes(*tables))
        n = len(unit.frames.pts)
        return UnitReport(unit.key, n, n, 0, 0.0, "CPU")


def units(n: int) -> Iterator[WorkUnit]:
    """Chunks of one long video, made as they are asked for, as a job makes them."""
    source = Source(Path("/videos/a-long-one.mp4"))
    pts, key = np.arange(CHUNK_FRAMES) * 512, np.arange(CHUNK_FRAMES) % 25 == 0
    wanted, size = np.ones(CHUNK_FRAMES, bool), (1920, 1080)
    for i in range(n):
        first = i * CHUNK_FRAMES
        at = pts + 512 * first
        frames = FrameRange(
            source, first, at, key, wanted, int(at[0]), 0, (None,), 0, True, True, Fraction(1, 12800), 25.0
        )
        yield WorkUnit(f"{i:032x}", "a-long-one-0123456789ab", frames, size, 0)


def dispatch(n_chunks: int, n_actors: int) -> dict[str, Any]:
    """Chunks per second, and what the driver needs. The start of the actors is not counted."""
    executor = RayExecutor(None, Layout(n_actors, 1), Idle)  # type: ignore[arg-type]
    me = psutil.Process()
    done, began, cpu = -10 * n_actors, 0.0, 0.0
    before = me.memory_info().rss
    for _ in executor.run(units(n_chunks + 10 * n_actors)):
        if done == 0:
            began, cpu = time.perf_counter(), time.process_time()
        done += 1
    wall = time.perf_counter() - began
    return {
        "chunks": n_chunks,
        "actors": n_actors,
        "chunks_per_s": round(n_chunks / wall),
        "driver_cpu_ms_per_chunk": round(1000 * (time.process_time() - cpu) / n_chunks, 3),
        "driver_grew_mb": round((me.memory_info().rss - before) / 2**20, 1),
        "driver_peak_mb": _peak_mb(),
    }


def many_videos(folder: Path, n_videos: int) -> dict[str, Any]:
    """A whole job of short videos."""
    model = write_network(folder).with_suffix(".xml")
    clip = folder / "clip.mp4"
    write_video(clip, walkers(12, 1, (96, 64)).pictures(), gop=12, options={"bf": "0"})
    videos = folder / "videos"
    videos.mkdir()
    for i in range(n_videos):
        shutil.copy(clip, videos / f"{i:06}.mp4")

    @contextmanager
    def start(worker: WorkerSpec, layout: Layout) -> Iterator[RayExecutor]:
        yield RayExecutor(worker, Layout(2, 1), Scribe)

    began, cpu = time.perf_counter(), time.process_time()
    run_job(RunSpec((str(videos),), folder / "out", str(model)), start, lambda event: None)
    wall = time.perf_counter() - began
    return {
        "videos": n_videos,
        "videos_per_s": round(n_videos / wall, 1),
        "driver_cpu_ms_per_video": round(1000 * (time.process_time() - cpu) / n_videos, 2),
        "driver_peak_mb": _peak_mb(),
    }


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Measure and print a line each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chunks", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--actors", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--videos", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    results = []

    def show(result: dict[str, Any]) -> None:
        results.append(result)
        if not asked.json:
            print(", ".join(f"{name} {value:,}" for name, value in result.items()), flush=True)

    with private_ray(max(asked.actors, default=2)):
        for n_actors in asked.actors:
            show(dispatch(10_000, n_actors))
        for n_chunks in asked.chunks:
            show(dispatch(n_chunks, 2))
        for n_videos in asked.videos:
            with tempfile.TemporaryDirectory(prefix="dispatch-") as name:
                show(many_videos(Path(name), n_videos))
    if asked.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
