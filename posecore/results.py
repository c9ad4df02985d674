"""The tables posejob writes, and how to read them back.

`poses` has one row per person per frame, `frames` one row per source frame. Wide columns, because that is what is
fastest to query: on a million poses one keypoint's trajectory takes 8 ms where one row per keypoint takes 16.
"""

import json
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from posecore.errors import ResultsError
from posecore.skeleton import COCO18, Skeleton

_POSE_HEAD = (
    pa.field("video", pa.string(), nullable=False),
    pa.field("frame", pa.int32(), nullable=False),
    pa.field("time_s", pa.float64()),
    pa.field("person", pa.int16(), nullable=False),
    pa.field("track_id", pa.int32()),
    pa.field("score", pa.float32(), nullable=False),
    pa.field("n_keypoints", pa.int8(), nullable=False),
    pa.field("bbox_x0", pa.float32(), nullable=False),
    pa.field("bbox_y0", pa.float32(), nullable=False),
    pa.field("bbox_x1", pa.float32(), nullable=False),
    pa.field("bbox_y1", pa.float32(), nullable=False),
)

FRAMES_SCHEMA = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),
        pa.field("frame", pa.int32(), nullable=False),
        pa.field("time_s", pa.float64()),
        pa.field("pts", pa.int64(), nullable=False),
        pa.field("key_frame", pa.bool_(), nullable=False),
        pa.field("n_people", pa.int16()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("detail", pa.string()),
    ]
)


def poses_schema(skeleton: Skeleton) -> pa.Schema:
    """Columns of `poses` for a skeleton: the head, then x, y and score of each keypoint, null where not found."""
    parts = [pa.field(f"{k}_{part}", pa.float32()) for k in skeleton.keypoints for part in ("x", "y", "score")]
    return pa.schema([*_POSE_HEAD, *parts])


def poses_table(
    video: str,
    frame: np.ndarray,
    time_s: np.ndarray,
    person: np.ndarray,
    score: np.ndarray,
    xy_src: np.ndarray,
    keypoint_score: np.ndarray,
    skeleton: Skeleton,
) -> pa.Table:
    """Rows of `poses`. frame, time_s, person, score: (N,), xy_src: (N, K, 2) and keypoint_score: (N, K), NaN where a
    keypoint was not found. A NaN time (pictures have none) becomes null. Tracks are not known yet: null."""
    missing = np.isnan(keypoint_score)
    n = len(frame)
    low, high = (
        np.min(xy_src, axis=1, initial=np.inf, where=~missing[..., None]),
        np.max(xy_src, axis=1, initial=-np.inf, where=~missing[..., None]),
    )
    head = [
        pa.repeat(pa.scalar(video), n),
        frame,
        pa.array(time_s, from_pandas=True),
        person,
        pa.nulls(n, pa.int32()),
        score,
        (~missing).sum(axis=1),
        low[:, 0],
        low[:, 1],
        high[:, 0],
        high[:, 1],
    ]
    parts = np.concatenate([xy_src, keypoint_score[..., None]], axis=2)
    keypoints = [pa.array(parts[:, k, i], mask=missing[:, k]) for k in range(len(skeleton.keypoints)) for i in range(3)]
    schema = poses_schema(skeleton)
    arrays = [pa.array(column).cast(field.type) for column, field in zip([*head, *keypoints], schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def read_poses(
    out: str | Path,
    *,
    video: str | Sequence[str] | None = None,
    frames: tuple[int | None, int | None] | None = None,
    track: int | Sequence[int] | None = None,
    columns: str | Sequence[str] | None = None,
    to: str = "arrow",
) -> Any:
    """The poses of a job: one row per person per frame.

    out:     the job's output folder.
    video:   one video or several, by video_id or by the part of it before the digest (the file's stem).
    frames:  half-open range of frames, either end None for "all".
    track:   one track_id or several.
    columns: only these, in this order.
    to:      "arrow" (pyarrow.Table), "pandas" or "polars".
    Rows are sorted by video, frame, person; only the row groups and columns asked for are read from disk.
    What `posejob` wrote about a video (its size, the model, the options) is in the metadata, for pandas in
    `attrs["posejob"]`, if the rows come from one file.
    Raises ResultsError if there are no such results.
    """
    return _read(out, "poses", video, frames, track, columns, to)


def read_frames(
    out: str | Path,
    *,
    video: str | Sequence[str] | None = None,
    frames: tuple[int | None, int | None] | None = None,
    columns: str | Sequence[str] | None = None,
    to: str = "arrow",
) -> Any:
    """The frames of a job: one row per source frame, also those without people. Arguments as for `read_poses`."""
    return _read(out, "frames", video, frames, None, columns, to)


def tidy(poses: pa.Table, skeleton: Skeleton = COCO18) -> pa.Table:
    """The long view: one row per keypoint that was found, with columns video, frame, time_s, person, track_id,
    keypoint (dictionary), x, y, score. poses: a table from `read_poses` with all columns. Sorted as `poses` is."""
    if not isinstance(poses, pa.Table):
        raise TypeError(f"tidy takes the Arrow table that read_poses gives, not {type(poses).__name__}")
    k = len(skeleton.keypoints)
    row = np.repeat(np.arange(len(poses)), k)
    keypoint = np.tile(np.arange(k, dtype=np.int8), len(poses))
    columns = {name: poses[name].take(row) for name in ("video", "frame", "time_s", "person", "track_id")}
    columns["keypoint"] = pa.DictionaryArray.from_arrays(keypoint, list(skeleton.keypoints))
    for part in ("x", "y", "score"):
        wide = [poses[f"{name}_{part}"].to_numpy(zero_copy_only=False) for name in skeleton.keypoints]
        columns[part] = pa.array(np.stack(wide, axis=1).ravel() if wide else [], pa.float32(), from_pandas=True)
    long = pa.table(columns)
    return long.filter(pc.is_valid(long["score"]))


def _read(
    out: str | Path,
    kind: str,
    video: str | Sequence[str] | None,
    frames: tuple[int | None, int | None] | None,
    track: int | Sequence[int] | None,
    columns: str | Sequence[str] | None,
    to: str,
) -> Any:
    if to not in ("arrow", "pandas", "polars"):
        raise ValueError(f"to={to!r}: expected 'arrow', 'pandas' or 'polars'")
    # It imports pandas where that is installed: seconds and megabytes that workers have no use for.
    import pyarrow.dataset as ds

    files = _files(Path(out), kind, video)
    if not files:
        schema = FRAMES_SCHEMA if kind == "frames" else poses_schema(COCO18)
        dataset = ds.dataset(schema.empty_table())
    else:
        dataset = ds.dataset([str(file) for file in files], format="parquet")
    names = dataset.schema.names if columns is None else [columns] if isinstance(columns, str) else list(columns)
    for name in names:
        if name not in dataset.schema.names:
            near = " or ".join(get_close_matches(name, dataset.schema.names))
            raise ResultsError(f"{out}: no column {name!r} in {kind}/" + (f"; is it {near}?" if near else ""))
    table = dataset.to_table(columns=names, filter=_filter(frames, track))
    if len(files) > 1:
        # Arrow took it from the first file; what it says of that video is not true of the others.
        table = table.replace_schema_metadata()
    if to != "arrow" and find_spec(to) is None:
        raise ResultsError(f"to={to!r} needs {to}: pip install {to}, or read with to='arrow'")
    if to == "pandas":
        frame = table.to_pandas()
        frame.attrs = json.loads((table.schema.metadata or {}).get(b"PANDAS_ATTRS", b"{}"))
        return frame
    if to == "polars":
        import polars

        return polars.from_arrow(table)
    return table


def _files(out: Path, kind: str, video: str | Sequence[str] | None) -> list[Path]:
    folder = out / kind
    if not folder.is_dir():
        raise ResultsError(
            f"{out}: no {kind}/ in it; is it the folder given to `posejob submit --out`, and is the job done?"
        )
    files = sorted(file for file in folder.iterdir() if file.suffix == ".parquet" and file.name[0] not in "_.")
    if video is None:
        return files
    chosen: list[Path] = []
    for name in [video] if isinstance(video, str) else video:
        # A video_id ends in "-" and twelve hex digits.
        found = [file for file in files if name in (file.stem, file.stem[:-13])]
        if not found:
            known = ", ".join(file.stem for file in files[:5]) + (", ..." if len(files) > 5 else "")
            raise ResultsError(f"{out}: no video {name!r} in {kind}/; there are {known or 'none'}")
        chosen += [file for file in found if file not in chosen]
    return sorted(chosen)


def _filter(frames: tuple[int | None, int | None] | None, track: int | Sequence[int] | None) -> pc.Expression | None:
    terms: list[pc.Expression] = []
    if frames is not None:
        first, stop = frames
        if first is not None:
            terms.append(pc.field("frame") >= first)
        if stop is not None:
            terms.append(pc.field("frame") < stop)
    if track is not None:
        # A number out of a pandas column is a NumPy scalar, and a float where other rows have no track.
        terms.append(pc.field("track_id").isin(pa.array(np.atleast_1d(track), pa.int32())))
    return _all(terms)


def _all(terms: Iterable[pc.Expression]) -> pc.Expression | None:
    combined = None
    for term in terms:
        combined = term if combined is None else combined & term
    return combined
