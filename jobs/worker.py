"""A worker: takes a chunk, reads its frames, finds the people in them, commits the result."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from jobs.discover import shown
from jobs.frames import DECODE_ERROR, SKIPPED, Frame, FrameRange, check_unchanged, read_frames, seconds
from jobs.ledger import Ledger
from jobs.sink import Table, chunk_bytes, frames_table
from jobs.spec import Options
from models.registry import Network
from models.runtime import PoseRuntime
from posecore.geometry import Letterbox, network_size
from posecore.pose import DecodeParams, Poses, decode_poses
from posecore.preprocess import letterbox_image
from posecore.results import poses_table
from posecore.skeleton import Skeleton


@dataclass(frozen=True, eq=False)
class WorkUnit:
    """A chunk as it travels to a worker.

    size:      (width, height) of the video, upright, which decides the network's input; None for pictures, where each
               decides its own.
    start_pts: of the video's first frame, where time is 0; None for pictures, which have no time.
    """

    key: str
    video_id: str
    frames: FrameRange
    size: tuple[int, int] | None
    start_pts: int | None

    @property
    def n_decoded(self) -> int:
        """Frames to decode, the run-up included."""
        return self.frames.run_up + len(self.frames.pts)


@dataclass(frozen=True)
class UnitReport:
    """What became of a chunk. device: what really executed. seconds: wall time from order to commit."""

    key: str
    n_frames: int
    n_inferred: int
    n_people: int
    seconds: float
    device: str


@dataclass(frozen=True, eq=False)
class WorkerSpec:
    """All a worker needs to begin; cheap to pickle."""

    network: Network
    device: str
    threads: int
    options: Options
    ledger: Ledger


class PoseWorker:
    """Runs work units one after the other. The same class serves in process and inside a Ray actor."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self._runtime: PoseRuntime | None = None

    def setup(self) -> None:
        """Check the network's bytes and open the device. Raises ModelError."""
        self.spec.network.check()
        # The worker's CPUs belong to the network; OpenCV would start a thread per CPU of the machine.
        cv2.setNumThreads(1)
        self._runtime = PoseRuntime(self.spec.network, self.spec.device, self.spec.threads)

    def run(self, unit: WorkUnit) -> UnitReport:
        """Infer a unit and commit it. Raises SinkError, InferenceError; damage in a video is a row, not an error."""
        if self._runtime is None:
            self.setup()
        assert self._runtime is not None
        began = time.perf_counter()
        manifest, options = self.spec.network.manifest, self.spec.options
        rows = Rows(unit, manifest.skeleton)
        for (frames, letterbox), fields in self._runtime.infer(self._pictures(unit, rows)):
            poses = decode_poses(fields, letterbox, manifest.skeleton, DecodeParams())
            for frame in frames:
                rows.add(frame, poses.select(options.min_score, options.max_people))
        check_unchanged(unit.frames)
        self.spec.ledger.commit_chunk(unit.key, chunk_bytes(*rows.tables()))
        return UnitReport(
            key=unit.key,
            n_frames=len(rows.frames),
            n_inferred=len(rows.poses),
            n_people=sum(len(poses) for poses in rows.poses.values()),
            seconds=time.perf_counter() - began,
            device=self._runtime.execution_device,
        )

    def _pictures(self, unit: WorkUnit, rows: "Rows") -> Iterator[tuple[tuple[list[Frame], Letterbox], np.ndarray]]:
        """Frames as the network takes them. Those that follow each other and give the same picture, to the last bit,
        are asked about once: still scenes in screen recordings, frames repeated to fill a rate."""
        manifest, height = self.spec.network.manifest, self.spec.options.height
        alike: list[Frame] = []
        before: tuple[Letterbox, np.ndarray] | None = None
        for frame in read_frames(unit.frames):
            if frame.image is None:
                rows.add(frame, None)
                continue
            size = (frame.image.shape[1], frame.image.shape[0])
            letterbox = Letterbox.fit(size, network_size(unit.size or size, height, manifest.stride))
            picture = letterbox_image(frame.image, letterbox, manifest.pad)
            # The picture is all that is needed from here on; several 4K frames in flight would be 25 MB each.
            frame = replace(frame, image=None)
            if before and before[0] == letterbox and np.array_equal(before[1], picture):
                # The answer is not there yet: it comes after the next picture that differs was taken.
                alike.append(frame)
                continue
            alike, before = [frame], (letterbox, picture)
            yield (alike, letterbox), picture


def tables_without_reading(unit: WorkUnit, skeleton: Skeleton, reason: str) -> tuple[Table, Table]:
    """(poses, frames) of a unit that no worker could do: the frames that were wanted are `decode_error`."""
    rows, frames = Rows(unit, skeleton), unit.frames
    for i, (pts, key, wanted) in enumerate(zip(frames.pts, frames.key, frames.wanted, strict=True)):
        number = frames.first + i
        name = None if frames.source.images is None else shown(frames.source.images[i])
        status, detail = (DECODE_ERROR, reason) if wanted else (SKIPPED, None)
        rows.add(Frame(number, int(pts), bool(key), None, status, name, detail), None)
    return rows.tables()


@dataclass
class Rows:
    """The rows of a chunk, gathered in whatever order frames come and written in order of frame."""

    unit: WorkUnit
    skeleton: Skeleton
    frames: dict[int, Frame] = field(default_factory=dict)
    poses: dict[int, Poses] = field(default_factory=dict)

    def add(self, frame: Frame, poses: Poses | None) -> None:
        self.frames[frame.number] = frame
        if poses is not None:
            self.poses[frame.number] = poses

    def tables(self) -> tuple[Table, Table]:
        frames = [self.frames[number] for number in sorted(self.frames)]
        pts = np.array([frame.pts for frame in frames], dtype=np.int64)
        return self._poses_table(frames, self._times(pts)), frames_table(
            self.unit.video_id,
            frames,
            self._times(pts),
            [len(self.poses[f.number]) if f.number in self.poses else None for f in frames],
        )

    def _times(self, pts: np.ndarray) -> np.ndarray:
        if self.unit.start_pts is None:
            return np.full(len(pts), np.nan)
        # Frames known by counting come all in one chunk, and the first one read is where time begins.
        start = self.unit.start_pts if self.unit.frames.ordered or not len(pts) else int(pts[0])
        return seconds(pts, start, self.unit.frames.time_base)

    def _poses_table(self, frames: list[Frame], times: np.ndarray) -> Table:
        seen = [
            (frame, time_s, self.poses[frame.number])
            for frame, time_s in zip(frames, times, strict=True)
            if frame.number in self.poses
        ]
        counts = [len(poses) for _, _, poses in seen]
        k = len(self.skeleton.keypoints)
        return poses_table(
            video=self.unit.video_id,
            frame=np.repeat([frame.number for frame, _, _ in seen], counts).astype(np.int32),
            time_s=np.repeat([time_s for _, time_s, _ in seen], counts).astype(np.float64),
            person=np.concatenate([np.arange(n) for n in counts] or [np.arange(0)]).astype(np.int16),
            score=np.concatenate([poses.score for *_, poses in seen] or [np.empty(0, np.float32)]),
            xy_src=np.concatenate([poses.xy_src for *_, poses in seen] or [np.empty((0, k, 2), np.float32)]),
            keypoint_score=np.concatenate(
                [poses.keypoint_score for *_, poses in seen] or [np.empty((0, k), np.float32)]
            ),
            skeleton=self.skeleton,
        )
