"""How fast is this machine, and what is lost around the network? `posejob bench`.

Measured in turn, several rounds: the network alone (no video, no grouping), which is the limit; one worker in this
process; the whole command, in its steady state and from its start to its end. A machine's speed drifts, so only speeds
of one round are set against each other.
"""

import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from jobs.errors import ConfigError, WorkerError
from jobs.executors.base import layout, usable_cpus
from jobs.frames import read_frames
from jobs.ledger import Ledger, chunk_name
from jobs.plan import Plan, VideoPlan
from jobs.run import Prepared, prepare, work_unit
from jobs.sink import chunk_bytes
from jobs.spec import Moment, RunSpec, Selection
from jobs.worker import PoseWorker, Rows, WorkerSpec
from models.runtime import PoseRuntime, network_alone
from posecore.geometry import Letterbox, network_size
from posecore.grouping import group_people
from posecore.limbs import match_limbs, score_limbs
from posecore.peaks import find_peaks
from posecore.pose import DecodeParams, decode_poses
from posecore.preprocess import letterbox_image

LIMIT, WORKER, STEADY, WHOLE = "network alone", "worker", "job, steady", "job, whole"
KINDS = (LIMIT, WORKER, STEADY, WHOLE)
_POLL_S, _LOOK_S = 0.02, 1.0
# By each worker: the first one is not counted, because it waits for the network to be compiled.
_CHUNKS_EACH = 5


@dataclass(frozen=True)
class Pace:
    """Frames done in some time. wall_s, cpu_s: seconds; cpu_s of all processes together."""

    frames: int
    wall_s: float
    cpu_s: float

    @property
    def fps(self) -> float:
        return self.frames / self.wall_s

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per frame."""
        return 1000 * self.cpu_s / self.frames


@dataclass
class Bench:
    """What was measured. paces: by kind, one per round. stages: milliseconds of CPU per frame, one after the other."""

    video: str
    size: tuple[int, int]
    fps: float
    model: str
    network_size: tuple[int, int]
    device: str
    cpus: int
    paces: dict[str, list[Pace]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    stages: dict[str, float] = field(default_factory=dict)

    def fps_of(self, kind: str) -> float:
        return statistics.median(pace.fps for pace in self.paces[kind])

    def cpu_ms_of(self, kind: str) -> float:
        return statistics.median(pace.cpu_ms for pace in self.paces[kind])

    def of_the_limit(self, kind: str) -> float:
        """Median over the rounds of this speed over the network's alone, of the same round."""
        pairs = zip(self.paces[kind], self.paces[LIMIT], strict=True)
        return statistics.median(pace.fps / limit.fps for pace, limit in pairs)

    @property
    def hour_s(self) -> float:
        """Seconds that the whole command takes for an hour of the video."""
        whole = self.paces[WHOLE]
        start_up = statistics.median(pace.wall_s - pace.frames / self.fps_of(STEADY) for pace in whole)
        return max(0.0, start_up) + 3600 * self.fps / self.fps_of(STEADY)

    def to_json(self) -> dict[str, Any]:
        return {
            "video": self.video,
            "size": self.size,
            "fps": self.fps,
            "model": self.model,
            "network_size": self.network_size,
            "device": self.device,
            "cpus": self.cpus,
            "speeds": {
                kind: {
                    "frames_per_s": round(self.fps_of(kind), 2),
                    "of_the_limit": round(self.of_the_limit(kind), 3),
                    "cpu_ms_per_frame": round(self.cpu_ms_of(kind), 3),
                    "rounds": [[pace.frames, round(pace.wall_s, 3), round(pace.cpu_s, 3)] for pace in paces],
                }
                for kind, paces in self.paces.items()
            },
            "cpu_ms_per_frame_by_stage": {stage: round(ms, 3) for stage, ms in self.stages.items()},
        }


def measure(spec: RunSpec, rounds: int, seconds: float, report: Callable[[str], None]) -> Bench:
    """Measure on one video. spec: a job on it; its `out` and `selection` are not used.

    seconds: about how long each speed of a round is measured. report: called with a line before each.
    Raises ConfigError, ModelError, and WorkerError if the job does not end well.
    """
    with tempfile.TemporaryDirectory(prefix="posejob-bench-") as name:
        folder = Path(name)
        job = prepare(replace(spec, out=folder / "out", selection=Selection()), lambda event: None)
        video = _only_video(job)
        index = video.index
        assert index is not None
        assert index.size is not None
        manifest, cpus = job.network.manifest, usable_cpus()
        shape = network_size(index.size, job.plan.options.height, manifest.stride)
        bench = Bench(video.source.uri, index.size, index.fps or 0.0, job.network.name, shape, job.device, cpus)
        report("calibrating")
        limit = Pace(*network_alone(job.network, job.device, cpus, shape, 2.0))
        least = _CHUNKS_EACH * layout(cpus, None).workers * spec.chunk_frames
        spec = _long_enough(spec, job, video, max(least, round(limit.fps * seconds)), folder)
        job = prepare(replace(spec, out=folder / "out"), lambda event: None)
        for number in range(rounds):
            told = f"round {number + 1} of {rounds}: "
            report(told + LIMIT)
            bench.paces[LIMIT].append(Pace(*network_alone(job.network, job.device, cpus, shape, seconds)))
            report(told + WORKER)
            bench.paces[WORKER].append(_worker_alone(job, folder / f"worker-{number}", seconds))
            report(told + "the whole job")
            steady, whole = _whole_job(spec, job.plan, folder / f"job-{number}")
            bench.paces[STEADY].append(steady)
            bench.paces[WHOLE].append(whole)
        report("each stage by itself")
        bench.stages = _stages(job, folder / "stages")
        return bench


def _only_video(job: Prepared) -> VideoPlan:
    videos = [video for video in job.plan.videos if video.index is not None and video.index.size is not None]
    if len(job.plan.videos) != 1 or not videos:
        raise ConfigError("posejob bench measures on one video that can be read")
    return videos[0]


def _long_enough(spec: RunSpec, job: Prepared, video: VideoPlan, n_frames: int, folder: Path) -> RunSpec:
    """A job on about `n_frames` frames of the video: on its beginning, or on copies if it is shorter."""
    copies = round(n_frames / video.n_selected)
    if copies <= 1:
        return replace(spec, selection=Selection(stop=Moment(min(n_frames, video.n_selected), None)))
    source = folder / "copies"
    source.mkdir()
    for i in range(copies):
        shutil.copy(video.source.path, source / f"{i}{video.source.path.suffix}")
    return replace(spec, inputs=(str(source),), selection=Selection())


def _worker_alone(job: Prepared, out: Path, seconds: float) -> Pace:
    """One worker with all CPUs in this process, for about as long as asked."""
    ledger = Ledger(out)
    ledger.prepare()
    worker = PoseWorker(WorkerSpec(job.network, job.device, usable_cpus(), job.plan.options, ledger))
    selection = job.plan.options.selection
    units = [work_unit(video, chunk, selection) for video in job.plan.videos for chunk in video.chunks]
    worker.run(units[-1])
    began, cpu, frames = time.perf_counter(), time.process_time(), 0
    for unit in units[:-1] or units:
        frames += worker.run(unit).n_inferred
        if time.perf_counter() - began > seconds:
            break
    return Pace(frames, time.perf_counter() - began, time.process_time() - cpu)


def _whole_job(spec: RunSpec, plan: Plan, out: Path) -> tuple[Pace, Pace]:
    """(steady, whole) of the real command. Steady: from the time each worker has done a chunk to the last commit."""
    words = ["submit", *spec.inputs, "--out", out, "--model", spec.model, "--device", spec.device]
    words += ["--height", plan.options.height, "--chunk-frames", plan.chunk_frames]
    if spec.selection.stop is not None:
        words += ["--to", spec.selection.stop]
    command = [sys.executable, "-m", "posejob", *map(str, words)]
    n_frames = {chunk_name(chunk.key): chunk.n_frames for video in plan.videos for chunk in video.chunks}
    n_workers = layout(usable_cpus(), None).workers
    began, cpu = time.perf_counter(), _Cpu()
    looked = began
    commits: list[tuple[float, float]] = []
    done: dict[str, int] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        tree = psutil.Process(process.pid)
        while process.poll() is None:
            new = [name for name in n_frames.keys() - done.keys() if (out / name).exists()]
            # Looking at processes costs more than waiting for files: only when there is something to note.
            if new or time.perf_counter() - looked > _LOOK_S:
                looked = time.perf_counter()
                cpu.look(tree)
            for name in new:
                done[name] = n_frames[name]
                commits.append((looked, cpu.seconds))
            time.sleep(_POLL_S)
        assert process.stderr is not None
        if process.returncode:
            raise WorkerError(f"the job ended with exit code {process.returncode}: {process.stderr.read()[-300:]}")
    ended = time.perf_counter()
    if len(commits) <= n_workers:
        raise ConfigError("the video is read in one go; a job on it has no steady state to be measured")
    (first, first_cpu), (last, last_cpu) = commits[n_workers - 1], commits[-1]
    frames = sum(list(done.values())[n_workers:])
    return (
        Pace(frames, last - first, last_cpu - first_cpu),
        Pace(plan.n_selected, ended - began, cpu.seconds),
    )


class _Cpu:
    """CPU seconds of a process and all that came from it, also of those that have ended."""

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}

    @property
    def seconds(self) -> float:
        return sum(self._seen.values())

    def look(self, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = one.cpu_times()
                    self._seen[one.pid] = times.user + times.system


def _stages(job: Prepared, out: Path) -> dict[str, float]:
    """Milliseconds of CPU per frame of each stage, one stage after the other, over the first chunk."""
    manifest, options, params = job.network.manifest, job.plan.options, DecodeParams()
    skeleton, ledger = manifest.skeleton, Ledger(out)
    ledger.prepare()
    runtime = PoseRuntime(job.network, job.device, 1)
    video = job.plan.videos[0]
    unit = work_unit(video, video.chunks[0], options.selection)
    rows = Rows(unit, skeleton)
    spent = dict.fromkeys(("decode", "resize", "infer", "peaks", "limbs", "group", "commit"), 0.0)

    @contextlib.contextmanager
    def timing(stage: str) -> Iterator[None]:
        began = time.process_time()
        yield
        spent[stage] += time.process_time() - began

    frames = read_frames(unit.frames)
    while True:
        with timing("decode"):
            frame = next(frames, None)
        if frame is None:
            break
        if frame.image is None:
            rows.add(frame, None)
            continue
        size = (frame.image.shape[1], frame.image.shape[0])
        letterbox = Letterbox.fit(size, network_size(unit.size or size, options.height, manifest.stride))
        runtime.prepare(*letterbox.net)
        with timing("resize"):
            picture = letterbox_image(frame.image, letterbox, manifest.pad)
        with timing("infer"):
            ((_, fields),) = runtime.infer([(None, picture)])
        with timing("peaks"):
            peaks = find_peaks(fields, params.peaks)
        with timing("limbs"):
            candidates = score_limbs(peaks, fields, skeleton, params.limbs)
            limbs = match_limbs(candidates, len(peaks), len(skeleton.limbs))
        with timing("group"):
            group_people(peaks, limbs, skeleton, params.group)
        rows.add(frame, decode_poses(fields, letterbox, skeleton, params))
    with timing("commit"):
        ledger.commit_chunk(unit.key, chunk_bytes(*rows.tables()))
    return {stage: 1000 * seconds / len(rows.frames) for stage, seconds in spent.items()}
