"""The plan: which videos, cut into which chunks, for which network and options. It is the job's identity.

A chunk is keyed by what it is (the source's fingerprint, its range, the network's digest, the options), so any number
of workers on any number of re-runs agree on what is done and what is missing.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from jobs import __version__
from jobs.discover import Source
from jobs.errors import OutputError
from jobs.frames import FrameIndex, FrameRange
from jobs.spec import Options, Selection
from models.registry import Network

PLAN_FORMAT = 1


@dataclass(frozen=True)
class Chunk:
    """Frames [first, stop) of a video. key: hex digest of everything that decides its result."""

    key: str
    first: int
    stop: int

    @property
    def n_frames(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True, eq=False)
class VideoPlan:
    """A source with its index and chunks; or, if it cannot be opened, with the problem."""

    source: Source
    index: FrameIndex | None
    chunks: tuple[Chunk, ...]
    n_selected: int
    problem: str | None = None

    @property
    def video_id(self) -> str:
        return self.source.video_id

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"video_id": self.video_id, "uri": self.source.uri}
        if self.index is None:
            return data | {"problem": self.problem}
        return data | {
            "fingerprint": self.index.fingerprint,
            "frames": len(self.index),
            "selected": self.n_selected,
            "ordered": self.index.ordered,
            "size": self.index.size,
            "codec": self.index.codec,
            "chunks": [[chunk.first, chunk.stop, chunk.key] for chunk in self.chunks],
            **({"doubts": list(self.index.doubts)} if self.index.doubts else {}),
        }


@dataclass(frozen=True, eq=False)
class Plan:
    """A whole job."""

    model: str
    model_digest: str
    options: Options
    chunk_frames: int
    videos: tuple[VideoPlan, ...]

    @property
    def n_chunks(self) -> int:
        return sum(len(video.chunks) for video in self.videos)

    @property
    def n_frames(self) -> int:
        """Frames of all videos that can be opened."""
        return sum(len(video.index) for video in self.videos if video.index is not None)

    @property
    def n_selected(self) -> int:
        """Frames to infer."""
        return sum(video.n_selected for video in self.videos)

    @cached_property
    def text(self) -> bytes:
        """Content of plan.json: the same for the same job, in every process."""
        data = {
            "format": PLAN_FORMAT,
            "posejob": __version__,
            "model": {"name": self.model, "digest": self.model_digest},
            "options": self.options.to_json(),
            "chunk_frames": self.chunk_frames,
            "videos": [video.to_json() for video in self.videos],
        }
        return (json.dumps(data | {"sha256": _seal(data)}, indent=1) + "\n").encode()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of plan.json."""
        return hashlib.sha256(self.text).hexdigest()


def make_plan(
    videos: Iterable[tuple[Source, FrameIndex | str]], network: Network, options: Options, chunk_frames: int
) -> Plan:
    """Plan a job over sources and their indices; a string in place of an index says why there is none."""
    planned = tuple(_plan_video(source, index, network, options, chunk_frames) for source, index in videos)
    return Plan(network.name, network.digest, options, chunk_frames, planned)


def _plan_video(
    source: Source, index: FrameIndex | str, network: Network, options: Options, chunk_frames: int
) -> VideoPlan:
    if isinstance(index, str):
        return VideoPlan(source, None, (), 0, index)
    wanted = options.selection.wanted(np.arange(len(index)), index.time_s)
    ranges = plan_ranges(index, wanted, chunk_frames)
    chunks = tuple(Chunk(_chunk_key(source, index, network, options, r), *r) for r in ranges)
    return VideoPlan(source, index, chunks, int(wanted.sum()))


def plan_ranges(index: FrameIndex, wanted: np.ndarray, chunk_frames: int) -> list[tuple[int, int]]:
    """Cut the span of wanted frames into half-open ranges of about `chunk_frames` frames.

    A cut falls on the key frame nearest to where it is due if one lies within half a chunk, because decoding can begin
    there; else where it is due, and whoever reads the chunk decodes the frames from the last key frame on as a
    run-up. Where that is longer than a chunk, the chunk grows to its length. A source whose frames are known by
    counting alone is one range.
    """
    frames = np.flatnonzero(wanted)
    if not len(frames):
        return []
    first, stop = int(frames[0]), int(frames[-1]) + 1
    if not index.ordered:
        return [(0, len(index))]
    entries = np.flatnonzero(index.entry)
    ranges = []
    while stop - first > chunk_frames * 3 // 2:
        # As long as its run-up: where key frames are rare, all run-ups together stay within twice the video.
        length = max(chunk_frames, first - (index.anchor(first) or 0))
        if stop - first <= length * 3 // 2:
            break
        due = first + length
        reach = (chunk_frames - 1) // 2
        near = entries[slice(*np.searchsorted(entries, (due - reach, due + reach + 1)))]
        cut = int(near[np.argmin(np.abs(near - due))]) if len(near) else due
        ranges.append((first, cut))
        first = cut
    return [*ranges, (first, stop)]


def frame_range(video: VideoPlan, chunk: Chunk, selection: Selection) -> FrameRange:
    """What a worker needs in order to read a chunk."""
    index = video.index
    assert index is not None
    part = slice(chunk.first, chunk.stop)
    anchor = index.anchor(chunk.first)
    images = video.source.images
    return FrameRange(
        # Of a hundred thousand pictures a worker is told the names of its own.
        source=video.source if images is None else replace(video.source, images=images[part]),
        first=chunk.first,
        pts=index.pts[part],
        key=index.key[part],
        wanted=selection.wanted(np.arange(chunk.first, chunk.stop), index.times(part)),
        anchor=None if anchor is None else int(index.pts[anchor]),
        run_up=chunk.first - (anchor or 0),
        states=index.states if images is None else index.states[part],
        rotation=index.rotation,
        mirrored=index.mirrored,
        ordered=index.ordered,
        stamped=index.stamped,
        time_base=index.time_base,
        fps=index.fps,
        unreadable=index.unreadable,
    )


def check_same_job(old_text: bytes, new: Plan, out: str) -> str:
    """Raise OutputError saying what differs if plan.json in the output folder belongs to another job. Returns the name
    that its network went by."""
    try:
        old = json.loads(old_text)
        name = old["model"]["name"]
        if type(name) is not str:
            raise ValueError("a name that is none")
        current = json.loads(new.text)
        differences = list(_differences(old, current))
        seal = old.pop("sha256")
        if not differences and (old["videos"] != current["videos"] or seal != _seal(old)):
            raise ValueError("not what was written")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OutputError(
            out, "its plan.json is damaged; use another folder, or --overwrite to start afresh"
        ) from error
    if differences:
        listed = "; ".join(differences[:3]) + ("; ..." if len(differences) > 3 else "")
        raise OutputError(out, f"holds another job: {listed}; use another folder, or --overwrite to start afresh")
    return name


def _seal(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def planned_chunk_frames(old_text: bytes) -> int | None:
    """The chunk length an earlier run chose, so that a re-run finds its chunks; None if the text does not say."""
    try:
        value = json.loads(old_text)["chunk_frames"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return value if isinstance(value, int) and value > 0 else None


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterable[str]:
    if old["format"] != new["format"] or old["posejob"] != new["posejob"]:
        yield f"posejob was {old['posejob']}, is {new['posejob']}"
    if old["model"]["digest"] != new["model"]["digest"]:
        yield f"model was {old['model']['name']}, is {new['model']['name']}" + (
            " with other content" if old["model"]["name"] == new["model"]["name"] else ""
        )
    for name, value in new["options"].items():
        if old["options"].get(name) != value:
            was, now = ("not given" if v is None else v for v in (old["options"].get(name), value))
            yield f"--{name.replace('_', '-')} was {was}, is {now}"
    before = {video["video_id"]: video for video in old["videos"]}
    after = {video["video_id"]: video for video in new["videos"]}
    for video_id, video in before.items():
        if video_id not in after:
            yield f"{video['uri']} is no longer among the inputs"
    for video_id, video in after.items():
        if video_id not in before:
            yield f"{video['uri']} is new among the inputs"
        elif _content(before[video_id]) != _content(video):
            yield f"{video['uri']} has changed"


def _content(video: dict[str, Any]) -> dict[str, Any]:
    """What the plan says of a video itself; the rest follows from it and the options."""
    return {name: value for name, value in video.items() if name not in ("selected", "chunks")}


def _chunk_key(source: Source, index: FrameIndex, network: Network, options: Options, frames: tuple[int, int]) -> str:
    what = [__version__, source.uri, index.fingerprint, network.digest, options.to_json(), frames]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
