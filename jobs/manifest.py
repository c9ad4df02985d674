"""The manifest: written, and read back with doubt, because it may be damaged or a stranger's."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from jobs import __version__
from jobs.discover import VIDEO_ID, shown
from jobs.ledger import MANIFEST, PLAN, SUCCESS, TABLES, seal, table_names
from jobs.spec import Options
from models.registry import Network

T = TypeVar("T")

VIDEO_STATUSES = VIDEO_OK, VIDEO_DEGRADED, VIDEO_FAILED = "ok", "degraded", "failed"

# What `json.loads` and a look into what it gives may raise.
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)

_SEAL = re.compile(rb'\{"manifest_sha256": "[0-9a-f]{64}"\}\n')
_FILE = re.compile(rf"{re.escape(PLAN)}|({'|'.join(TABLES)})/{VIDEO_ID.pattern}\.parquet")


@dataclass(frozen=True)
class PublishedFile:
    """A file as the manifest lists it."""

    path: str
    bytes: int
    sha256: str
    rows: int | None


@dataclass(frozen=True)
class VideoReport:
    """How a video ended. n_people: rows of `poses`. statuses: frames by status. problems: one line each."""

    video_id: str
    uri: str
    status: str
    n_frames: int
    n_people: int
    statuses: dict[str, int]
    problems: tuple[str, ...]
    files: tuple[PublishedFile, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "video_id": self.video_id,
            "uri": self.uri,
            "status": self.status,
            "frames": self.n_frames,
            "people": self.n_people,
            "frame_status": self.statuses,
            "problems": list(self.problems),
            "files": [file.path for file in self.files],
        }


@dataclass(frozen=True)
class Manifest:
    """What a finished job consists of. files: by path, which is always that of a file in the output folder."""

    files: dict[str, PublishedFile]
    videos: tuple[VideoReport, ...]
    options: dict[str, Any]
    model_digest: str


# What a manifest says of the run rather than of the job.
_OF_THE_RUN = ("device", "execution_devices", "began", "ended", "frames_inferred")


def manifest_bytes(
    plan: PublishedFile,
    options: Options,
    network: Network,
    videos: Sequence[VideoReport],
    of_the_run: dict[str, Any],
) -> bytes:
    """Content of manifest.json. of_the_run: what it says of the run rather than of the job, all of _OF_THE_RUN."""
    manifest = {
        "posejob": __version__,
        "model": {
            "name": network.name,
            "digest": network.digest,
            "license": network.manifest.license,
            "files": {file.path: file.sha384 for file in network.files},
        },
        **{name: of_the_run[name] for name in _OF_THE_RUN},
        "options": options.to_json(),
        "videos": [video.to_json() for video in videos],
        "files": [vars(file) for file in (plan, *(file for video in videos for file in video.files))],
    }
    return (json.dumps(manifest, indent=1) + "\n").encode()


def tell_the_same(found: bytes | None, ours: bytes) -> bool:
    """Whether a manifest that nobody has sealed says of the job what ours says."""
    mine = json.loads(ours)
    try:
        return bool(json.loads(found or b"") | {name: mine[name] for name in _OF_THE_RUN} == mine)
    except UNREADABLE:
        return False


def read_manifest(data: bytes) -> Manifest:
    """Parse and check a manifest. Raises ValueError with a printable line if posejob did not write it."""
    try:
        raw = json.loads(data)
        files = {file.path: file for file in map(_file, _a(raw["files"], list))}
        videos = tuple(_video(video, files) for video in _a(raw["videos"], list))
        return Manifest(files, videos, _a(raw["options"], dict), _a(raw["model"]["digest"], str))
    except UNREADABLE as error:
        raise ValueError(shown(f"{error or type(error).__name__}")[:200]) from error


def seal_problem(found: bytes | None, manifest: bytes | None) -> str | None:
    """What is wrong with `_SUCCESS` and the manifest it should seal, either None if it is not there."""
    if manifest is None:
        return f"{MANIFEST}: missing"
    if found is None:
        return f"{SUCCESS}: missing"
    expected = seal(manifest)
    if found == expected:
        return None
    if proves(found, manifest):
        return f"{SUCCESS}: changed since the job was done"
    if _SEAL.fullmatch(found):
        return f"{MANIFEST}: changed since the job was done"
    return f"{MANIFEST} or {SUCCESS}: changed since the job was done"


def proves(found: bytes | None, manifest: bytes | None) -> bool:
    """Whether a seal, itself damaged perhaps, still shows that the manifest is whole: of another manifest's digest four
    digits in 64 would agree, not three in four."""
    if found is None or manifest is None:
        return False
    expected = seal(manifest)
    return 4 * sum(a == b for a, b in zip(found, expected, strict=False)) >= 3 * len(expected)


def _file(raw: dict[str, Any]) -> PublishedFile:
    path, rows = _a(raw["path"], str), raw["rows"]
    if not _FILE.fullmatch(path):
        raise ValueError(f"it lists {path!r:.80}, which is no file of a job")
    return PublishedFile(path, _a(raw["bytes"], int), _a(raw["sha256"], str), None if rows is None else _a(rows, int))


def _video(raw: dict[str, Any], files: dict[str, PublishedFile]) -> VideoReport:
    video_id, status = _a(raw["video_id"], str), _a(raw["status"], str)
    if not VIDEO_ID.fullmatch(video_id) or status not in VIDEO_STATUSES:
        raise ValueError(f"it has a video {video_id!r:.80} with status {status!r:.80}")
    return VideoReport(
        video_id=video_id,
        uri=shown(_a(raw["uri"], str)),
        status=status,
        n_frames=_a(raw["frames"], int),
        n_people=_a(raw["people"], int),
        statuses={shown(_a(name, str)): _a(n, int) for name, n in _a(raw["frame_status"], dict).items()},
        problems=tuple(shown(_a(line, str)) for line in _a(raw["problems"], list)),
        files=tuple(files[name] for name in table_names(video_id) if name in files),
    )


def _a(value: Any, kind: type[T]) -> T:
    if type(value) is not kind:
        raise ValueError(f"{value!r:.80} in place of a {kind.__name__}")
    return value
