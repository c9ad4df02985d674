"""Is an output folder whole? And how far is a job that is not done?"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from jobs.discover import VIDEO_ID, shown
from jobs.errors import OutputError, SinkError
from jobs.ledger import MANIFEST, PLAN, SUCCESS, TABLES, Ledger, sha256, table_names
from jobs.manifest import UNREADABLE, Manifest, PublishedFile, proves, read_manifest, seal_problem
from jobs.sink import count_rows
from posecore.errors import reason


def verify(ledger: Ledger) -> list[str]:
    """What is wrong with a finished job's folder, a printable line each; nothing if it is whole.

    `_SUCCESS` seals the manifest, the manifest seals every file by size and SHA-256, Parquet pages carry checksums of
    their own, and the rows must be those of the plan. A line names the file, and for a table the video. Raises
    OutputError if the folder holds no finished job.
    """
    ledger.refuse_links()
    success, text, plan = (ledger.read_bytes(name) for name in (SUCCESS, MANIFEST, PLAN))
    if success is None:
        done = "no posejob job in it" if plan is None else "its job is not done; run the same `posejob submit` again"
        raise OutputError(str(ledger.out), done)
    uris = _uris(text) | _uris(plan)
    problem = seal_problem(success, text)
    problems = [problem] if problem else []
    if not proves(success, text):
        return problems + [_with_video(line, uris) for line in _unproven(ledger, plan)]
    try:
        manifest = read_manifest(text or b"")
    except ValueError as error:
        return [*problems, f"{MANIFEST}: not written by posejob ({error})"]
    problems += [line for file in manifest.files.values() if (line := _check_file(ledger, file))]
    if not problems:
        try:
            problems += _check_plan(manifest, json.loads(plan or b""))
        except UNREADABLE:
            problems += [f"{PLAN}: not written by posejob"]
    for folder in TABLES:
        present = {f"{folder}/{path.name}" for path in ledger.path(folder).glob("*.parquet")}
        problems += [f"{shown(name)}: not part of this job" for name in sorted(present - manifest.files.keys())]
    return [_with_video(line, uris) for line in problems]


def _unproven(ledger: Ledger, plan: bytes | None) -> list[str]:
    """What can be said without a manifest to believe: its digests, as far as they are left, still prove files."""
    try:
        videos = [video["video_id"] for video in json.loads(plan or b"")["videos"] if "chunks" in video]
        names = [name for video_id in videos if VIDEO_ID.fullmatch(video_id) for name in table_names(video_id)]
    except UNREADABLE:
        names = []
    proofs, lines = ledger.digests(), []
    for name in (PLAN, *names):
        digest = ledger.digest(name)
        if digest is None:
            lines.append(f"{name}: missing")
        elif proofs and digest not in proofs:
            lines.append(f"{name}: the manifest no longer proves it")
    return lines


def _check_file(ledger: Ledger, file: PublishedFile) -> str | None:
    path = ledger.path(file.path)
    try:
        size = path.lstat().st_size
        if size != file.bytes:
            return f"{file.path}: {size} bytes, the manifest says {file.bytes}"
        if sha256(path) != file.sha256:
            return f"{file.path}: content changed since the job was done"
        if file.rows is not None and (rows := count_rows(path)) != file.rows:
            return f"{file.path}: {rows} rows, the manifest says {file.rows}"
    except FileNotFoundError:
        return f"{file.path}: missing"
    except OSError as error:
        return f"{file.path}: cannot be read ({reason(error)})"
    except SinkError as error:
        return f"{file.path}: {shown(str(error).removeprefix(f'{path}: '))}"
    return None


def _check_plan(manifest: Manifest, plan: dict[str, Any]) -> list[str]:
    """Whether the manifest is of this plan, and every planned frame has its row."""
    problems = []
    if manifest.options != plan["options"] or manifest.model_digest != plan["model"]["digest"]:
        problems.append(f"{MANIFEST}: is of another job than {PLAN}")
    rows = {file.path: file.rows for file in manifest.files.values()}
    known = {video.video_id for video in manifest.videos}
    for video in plan["videos"]:
        video_id = video["video_id"]
        if video_id not in known:
            problems.append(f"{shown(video_id)}: planned, but not in the manifest")
            continue
        if "chunks" in video:
            problems += [
                f"{name}: planned, but not in the manifest" for name in table_names(video_id) if name not in rows
            ]
        name = f"frames/{video_id}.parquet"
        # Frames known by counting alone are planned by their packets; some codecs need two for a frame.
        if video.get("ordered") and rows.get(name, video["frames"]) != video["frames"]:
            problems.append(f"{name}: {rows[name]} rows, the plan says {shown(str(video['frames']))}")
    return problems


def _uris(text: bytes | None) -> dict[str, str]:
    """The URI of each video_id in a plan or a manifest, if it can be read. The digits at the end of a video_id prove
    it."""
    try:
        videos = [(video["video_id"], video["uri"]) for video in json.loads(text or b"")["videos"]]
        return {
            video_id: shown(uri)
            for video_id, uri in videos
            if video_id[-12:] == hashlib.sha256(uri.encode()).hexdigest()[:12]
        }
    except UNREADABLE:
        return {}


def _with_video(line: str, uris: dict[str, str]) -> str:
    """A line about a table with the URI of the video it is of."""
    name, _, problem = line.partition(": ")
    uri = uris.get(name.partition("/")[2].removesuffix(".parquet"))
    return f"{name} (of {uri}): {problem}" if uri else line


@dataclass(frozen=True)
class Progress:
    """How far a job is. videos: (video_id, chunks done, chunks, frames) each; done: `_SUCCESS` is there."""

    done: bool
    videos: tuple[tuple[str, int, int, int], ...]
    statuses: dict[str, int]

    @property
    def chunks(self) -> tuple[int, int]:
        """Chunks done and chunks in all."""
        return sum(video[1] for video in self.videos), sum(video[2] for video in self.videos)


def progress(ledger: Ledger) -> Progress:
    """How far the job in a folder is, from the folder alone. Raises OutputError if there is none."""
    ledger.refuse_links()
    text = ledger.read_bytes(PLAN)
    if text is None:
        raise OutputError(str(ledger.out), "no posejob job in it")
    success, sealed = ledger.read_bytes(SUCCESS), ledger.read_bytes(MANIFEST)
    done = success is not None
    try:
        committed = ledger.committed()
        videos = tuple(_how_far(ledger, video, committed, done) for video in json.loads(text)["videos"])
        statuses = Counter(video.status for video in read_manifest(sealed or b"").videos) if done else {}
    except UNREADABLE as error:
        raise OutputError(str(ledger.out), "its plan.json or manifest.json is damaged") from error
    return Progress(done, videos, dict(statuses))


def _how_far(ledger: Ledger, video: dict[str, Any], committed: set[str], done: bool) -> tuple[str, int, int, int]:
    chunks, frames = video.get("chunks", []), video.get("frames", 0)
    if not VIDEO_ID.fullmatch(video["video_id"]) or type(frames) is not int:
        raise ValueError("not written by posejob")
    # While a job that was done is being repaired, the chunks of the tables that were kept are gone.
    done = done or all(ledger.path(name).is_file() for name in table_names(video["video_id"]))
    return video["video_id"], sum(done or key in committed for *_, key in chunks), len(chunks), frames
