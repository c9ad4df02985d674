"""From chunks to the files users get: check that every planned frame is there once, merge, publish."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs import __version__
from jobs.discover import shown
from jobs.errors import SinkError
from jobs.frames import DECODE_ERROR, OK, SKIPPED, SUSPECT, Frame
from jobs.ledger import Ledger, chunk_name, sha256, table_names
from jobs.manifest import VIDEO_DEGRADED, VIDEO_FAILED, VIDEO_OK, PublishedFile, VideoReport
from jobs.plan import Chunk, Plan, VideoPlan
from jobs.sink import Table, count_frames, frames_table, read_chunk, read_parquet, write_parquet
from posecore.results import FRAMES_SCHEMA, poses_schema
from posecore.skeleton import Skeleton

SCHEMA_VERSION = 1

_SKIPPED_AT_A_TIME = 4096


def failed_video(video: VideoPlan) -> VideoReport:
    """The report of a video that could not be opened."""
    return VideoReport(video.video_id, video.source.uri, VIDEO_FAILED, 0, 0, {}, (video.problem or "",), ())


def finalise_video(ledger: Ledger, plan: Plan, video: VideoPlan, skeleton: Skeleton) -> VideoReport:
    """Merge a video's chunks and publish its tables.

    Raises SinkError if a chunk is missing or damaged, or if the frames are not those of the plan.
    """
    parts = _Parts(ledger, video, poses_schema(skeleton).empty_table())
    metadata = _metadata(plan, video, skeleton)
    names = table_names(video.video_id)
    with ledger.publishing(names[0]) as tmp:
        n_people = write_parquet(tmp, (poses for poses, _ in parts), poses_schema(skeleton), metadata)
        poses_file = _published(names[0], tmp, n_people)
    tally = _Tally(video)
    with ledger.publishing(names[1]) as tmp:
        n_frames = write_parquet(tmp, tally.watch(frames for _, frames in parts), FRAMES_SCHEMA, metadata)
        tally.check(n_people)
        frames_file = _published(names[1], tmp, n_frames)
    return _report(video, tally, poses_file, frames_file)


def kept_video(ledger: Ledger, plan: Plan, video: VideoPlan, skeleton: Skeleton) -> VideoReport | None:
    """The report of a video whose tables are published and whole, from the tables themselves; None if they are not
    those of this plan."""
    metadata = _metadata(plan, video, skeleton)
    schemas = (poses_schema(skeleton), FRAMES_SCHEMA)
    names = table_names(video.video_id)
    tally = _Tally(video)
    try:
        (n_people, _), (n_frames, groups) = (
            read_parquet(ledger.path(name), schema, metadata) for name, schema in zip(names, schemas, strict=True)
        )
        for _ in tally.watch(groups):
            pass
        tally.check(n_people)
        poses_file, frames_file = (
            _published(name, ledger.path(name), rows) for name, rows in zip(names, (n_people, n_frames), strict=True)
        )
    except (SinkError, OSError):
        return None
    return _report(video, tally, poses_file, frames_file)


def _report(video: VideoPlan, tally: "_Tally", poses_file: PublishedFile, frames_file: PublishedFile) -> VideoReport:
    return VideoReport(
        video_id=video.video_id,
        uri=video.source.uri,
        status=tally.video_status(),
        n_frames=tally.n_frames,
        n_people=tally.n_people,
        statuses=dict(sorted(tally.statuses.items())),
        problems=tally.problems(),
        files=(poses_file, frames_file),
    )


def _published(name: str, path: Path, rows: int) -> PublishedFile:
    return PublishedFile(name, path.stat().st_size, sha256(path), rows)


@dataclass(frozen=True)
class _Parts:
    """A video's tables from its first frame to its last, chunk by chunk; can be iterated more than once."""

    ledger: Ledger
    video: VideoPlan
    no_poses: Table

    def __iter__(self) -> Iterator[tuple[Table, Table]]:
        index = self.video.index
        assert index is not None
        at = 0
        for chunk in self.video.chunks:
            if at < chunk.first:
                yield from self._skipped(at, chunk.first)
            yield self._chunk(chunk)
            at = chunk.stop
        if at < len(index):
            yield from self._skipped(at, len(index))

    def _chunk(self, chunk: Chunk) -> tuple[Table, Table]:
        path = self.ledger.path(chunk_name(chunk.key))
        poses, frames = read_chunk(path)
        numbers = frames["frame"].to_numpy()
        index = self.video.index
        assert index is not None
        planned = np.arange(chunk.first, chunk.stop) if index.ordered else np.arange(len(numbers))
        if not np.array_equal(numbers, planned):
            raise SinkError(f"{path}: holds {len(numbers)} frames, planned are {chunk.first} to {chunk.stop - 1}")
        return poses, frames

    def _skipped(self, first: int, stop: int) -> Iterator[tuple[Table, Table]]:
        """Rows for frames outside all chunks, which nobody asked for; not hours of them at a time."""
        index, names = self.video.index, self.video.source.images
        assert index is not None
        for at in range(first, stop, _SKIPPED_AT_A_TIME):
            part = range(at, min(at + _SKIPPED_AT_A_TIME, stop))
            frames = [
                Frame(i, int(index.pts[i]), bool(index.key[i]), None, SKIPPED, shown(names[i]) if names else None)
                for i in part
            ]
            times = index.times(slice(part.start, part.stop))
            yield self.no_poses, frames_table(self.video.video_id, frames, times, [None] * len(frames))


class _Tally:
    """Counts what passes by and checks it against the plan."""

    def __init__(self, video: VideoPlan) -> None:
        self.video = video
        self.statuses: Counter[str] = Counter()
        self.details: dict[tuple[str, str | None], tuple[str, int]] = {}
        self.n_frames = self.n_people = 0

    def watch(self, tables: Iterator[Table]) -> Iterator[Table]:
        for table in tables:
            self._count(table)
            yield table

    def _count(self, table: Table) -> None:
        counts = count_frames(table)
        self.n_frames += len(table)
        self.n_people += counts.people
        self.statuses.update(counts.statuses)
        for frame, source, status, detail in counts.bad:
            where = f"frame {frame}" + (f" ({source})" if source else "")
            first, count = self.details.get((status, detail), (where, 0))
            self.details[status, detail] = (first, count + 1)

    def check(self, n_pose_rows: int) -> None:
        index = self.video.index
        assert index is not None
        if index.ordered and self.n_frames != len(index):
            raise SinkError(f"{self.video.source.uri}: {self.n_frames} frames in the chunks, {len(index)} in the plan")
        if self.n_people != n_pose_rows:
            raise SinkError(
                f"{self.video.source.uri}: {n_pose_rows} poses, but the frames count {self.n_people} people"
            )

    def video_status(self) -> str:
        assert self.video.index is not None
        bad = self.statuses[SUSPECT] + self.statuses[DECODE_ERROR]
        if bad and not self.statuses[OK] + self.statuses[SUSPECT]:
            return VIDEO_FAILED
        return VIDEO_DEGRADED if bad or self.video.index.doubts else VIDEO_OK

    def problems(self) -> tuple[str, ...]:
        """What is wrong with the file as a whole, then with its frames."""
        lines = []
        for (status, detail), (first, count) in self.details.items():
            more = f" and {count - 1} more" if count > 1 else ""
            lines.append(f"{first}{more}: {status}: {detail}")
        assert self.video.index is not None
        rest = [f"and {len(lines) - 10} more kinds of damage"] if len(lines) > 10 else []
        return (*self.video.index.doubts, *lines[:10], *rest)


def _metadata(plan: Plan, video: VideoPlan, skeleton: Skeleton) -> dict[str, Any]:
    """What a reader needs to understand a table by itself."""
    index = video.index
    assert index is not None
    return {
        "schema": SCHEMA_VERSION,
        "posejob": __version__,
        "model": {"name": plan.model, "digest": plan.model_digest},
        "skeleton": {
            "name": skeleton.name,
            "keypoints": list(skeleton.keypoints),
            "limbs": [[limb.source, limb.target] for limb in skeleton.limbs],
        },
        "video": {
            "video_id": video.video_id,
            "uri": video.source.uri,
            "size": index.size,
            "rotation": index.rotation,
            "fps": index.fps,
            "time_base": [index.time_base.numerator, index.time_base.denominator],
            "start_pts": int(index.pts[0]),
            "frames": len(index),
            "codec": index.codec,
            "doubts": list(index.doubts),
        },
        "units": "pixels of the upright frame, origin top left, pixel centres at .5; seconds since the first frame",
        "options": plan.options.to_json(),
    }
