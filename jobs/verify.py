"""Is an output folder whole? And how far is a job that is not done?"""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from jobs.errors import OutputError, SinkError
from jobs.ledger import MANIFEST, PLAN, SUCCESS, Ledger, seal, sha256
from jobs.sink import count_rows


def verify(ledger: Ledger) -> list[str]:
    """What is wrong with a finished job's folder, a line each; nothing if it is whole.

    `_SUCCESS` seals the manifest, the manifest seals every file by size and SHA-256, Parquet pages carry checksums of
    their own, and the rows must be those of the plan. Raises OutputError if the folder holds no finished job.
    """
    found, text = ledger.read_bytes(SUCCESS), ledger.read_bytes(MANIFEST)
    if found is None:
        done = (
            "its job is not done; run the same `posejob submit` again" if ledger.read(PLAN) else "no posejob job in it"
        )
        raise OutputError(str(ledger.out), done)
    if text is None:
        return [f"{MANIFEST}: missing"]
    if found != seal(text):
        return [f"{MANIFEST} or {SUCCESS}: changed since the job was done"]
    try:
        manifest = json.loads(text)
        problems = [problem for file in manifest["files"] if (problem := _check_file(ledger, file))]
        if not problems:
            problems += _check_plan(manifest, json.loads(ledger.read(PLAN) or ""))
    except (ValueError, KeyError, TypeError):
        return [f"{MANIFEST}: not written by posejob"]
    listed = {file["path"] for file in manifest["files"]}
    for folder in ("poses", "frames"):
        present = {f"{folder}/{path.name}" for path in ledger.path(folder).glob("*.parquet")}
        problems += [f"{name}: not part of this job" for name in sorted(present - listed)]
    return problems


def _check_file(ledger: Ledger, file: dict[str, Any]) -> str | None:
    path = ledger.path(file["path"])
    try:
        size = path.stat().st_size
        if size != file["bytes"]:
            return f"{file['path']}: {size} bytes, the manifest says {file['bytes']}"
        if sha256(path) != file["sha256"]:
            return f"{file['path']}: content changed since the job was done"
        if file["rows"] is not None and (rows := count_rows(path)) != file["rows"]:
            return f"{file['path']}: {rows} rows, the manifest says {file['rows']}"
    except FileNotFoundError:
        return f"{file['path']}: missing"
    except OSError as error:
        return f"{file['path']}: cannot be read ({error.strerror})"
    except SinkError as error:
        return str(error)
    return None


def _check_plan(manifest: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    """Whether the manifest is of this plan, and every planned frame has its row."""
    problems = []
    if manifest["options"] != plan["options"] or manifest["model"]["digest"] != plan["model"]["digest"]:
        problems.append(f"{MANIFEST}: is of another job than {PLAN}")
    rows = {file["path"]: file["rows"] for file in manifest["files"]}
    known = {video["video_id"] for video in manifest["videos"]}
    for video in plan["videos"]:
        if video["video_id"] not in known:
            problems.append(f"{video['video_id']}: planned, but not in the manifest")
        name = f"frames/{video['video_id']}.parquet"
        # Frames known by counting alone are planned by their packets; some codecs need two for a frame.
        if video.get("ordered") and rows.get(name) != video["frames"]:
            problems.append(f"{name}: {rows.get(name)} rows, the plan says {video['frames']}")
    return problems


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
    text = ledger.read(PLAN)
    if text is None:
        raise OutputError(str(ledger.out), "no posejob job in it")
    done = ledger.read(SUCCESS) is not None
    try:
        plan = json.loads(text)
        manifest = json.loads(ledger.read(MANIFEST) or "{}") if done else {}
        committed = ledger.committed()
        videos = tuple(
            (
                video["video_id"],
                sum(done or key in committed for *_, key in video.get("chunks", [])),
                len(video.get("chunks", [])),
                video.get("frames", 0),
            )
            for video in plan["videos"]
        )
        statuses = Counter(video["status"] for video in manifest.get("videos", []))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(str(ledger.out), "its plan.json or manifest.json is damaged") from error
    return Progress(done, videos, dict(statuses))
