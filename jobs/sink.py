"""Tables on disk: what a worker hands over for a chunk, and the Parquet files users get."""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import SinkError
from jobs.frames import DECODE_ERROR, SUSPECT, Frame
from posecore.results import FRAMES_SCHEMA

Table: TypeAlias = pa.Table  # for those who pass tables on without a door to PyArrow of their own

_DIGEST_BYTES = 32

# What a merge holds in memory: 17 MB of poses, and what it writes them with: 4 MB, or 10 MB in pages of 1 MB, which
# would hold a whole column.
ROW_GROUP_ROWS = 61_440
_PIECE_ROWS = 4_096
_PAGE_BYTES = 1 << 16

# Arrow's own allocator keeps much of what it was given back: a merge took 62 MB with it, 40 MB without.
pa.set_memory_pool(pa.system_memory_pool())


def frames_table(video_id: str, frames: list[Frame], times: np.ndarray, n_people: list[int | None]) -> Table:
    """Rows of `frames`. times: (F,) seconds, NaN where there is none. n_people: None where nobody looked."""
    columns = {
        "video": pa.repeat(pa.scalar(video_id), len(frames)),
        "frame": [frame.number for frame in frames],
        "time_s": pa.array(times, pa.float64(), from_pandas=True),
        "pts": [frame.pts for frame in frames],
        "key_frame": [frame.key for frame in frames],
        "n_people": n_people,
        "status": [frame.status for frame in frames],
        "source": [frame.source for frame in frames],
        "detail": [frame.detail for frame in frames],
    }
    return pa.table(columns, schema=FRAMES_SCHEMA)


@dataclass(frozen=True)
class FrameCounts:
    """What rows of `frames` add up to. bad: (frame, source, status, detail) of those that were not read right."""

    people: int
    statuses: dict[str, int]
    bad: list[tuple[int, str | None, str, str | None]]


def count_frames(frames: Table) -> FrameCounts:
    """Count rows of `frames`."""
    statuses = {entry["values"]: entry["counts"] for entry in frames["status"].value_counts().to_pylist()}
    bad = frames.filter(pc.is_in(frames["status"], pa.array([SUSPECT, DECODE_ERROR])))
    rows = [tuple(row.values()) for row in bad.select(["frame", "source", "status", "detail"]).to_pylist()]
    return FrameCounts(pc.sum(frames["n_people"]).as_py() or 0, statuses, rows)


def chunk_bytes(poses: Table, frames: Table) -> bytes:
    """Both tables of a chunk as one blob, so that they are published by one act: two Arrow streams, then the SHA-256
    of what went before."""
    blob = io.BytesIO()
    for table in (poses, frames):
        with pa.ipc.new_stream(blob, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
            stream.write_table(table)
    data = blob.getvalue()
    return data + hashlib.sha256(data).digest()


def chunk_is_whole(blob: bytes) -> bool:
    """Whether these are the bytes of a chunk as a worker wrote it."""
    return hashlib.sha256(blob[:-_DIGEST_BYTES]).digest() == blob[-_DIGEST_BYTES:]


def read_chunk(path: Path) -> tuple[pa.Table, Table]:
    """(poses, frames) of a chunk. Raises SinkError if it is not what a worker wrote."""
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise SinkError(f"{path}: cannot be read ({error.strerror})") from error
    if not chunk_is_whole(blob):
        raise SinkError(f"{path}: damaged on disk while the job ran; run the same command again")
    source = pa.BufferReader(blob[:-_DIGEST_BYTES])
    poses = pa.ipc.open_stream(source).read_all()
    return poses, pa.ipc.open_stream(source).read_all()


def write_parquet(path: Path, tables: Iterable[Table], schema: pa.Schema, metadata: dict[str, Any]) -> int:
    """Write tables of one schema as one Parquet file; returns its rows. Memory: one row group.

    The file depends on the rows alone, not on how they are spread over the tables: row groups are cut by count.
    """
    text = _text(metadata)
    # pandas fills DataFrame.attrs from this key.
    schema = schema.with_metadata({"posejob": text, "PANDAS_ATTRS": json.dumps({"posejob": metadata}, sort_keys=True)})
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    strings = [field.name for field in schema if pa.types.is_string(field.type)]
    rows = 0
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=strings,
        column_encoding=None,
        use_byte_stream_split=floats,
        data_page_size=_PAGE_BYTES,
        write_page_checksum=True,
        write_page_index=True,
    ) as writer:
        for group in _row_groups(tables, schema):
            writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
            rows += len(group)
            del group  # or it would live on while the next one is gathered
    return rows


def read_parquet(path: Path, schema: pa.Schema, metadata: dict[str, Any]) -> tuple[int, Iterator[Table]]:
    """Rows of a file that `write_parquet` wrote with this schema and metadata, and its row groups. Raises SinkError if
    it is not such a file."""
    with _reading(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        found = file.schema_arrow
        if not found.equals(schema) or (found.metadata or {}).get(b"posejob") != _text(metadata).encode():
            raise SinkError(f"{path}: not a table of this job")
        return file.metadata.num_rows, _row_groups_of(file, path)


def _row_groups_of(file: pq.ParquetFile, path: Path) -> Iterator[Table]:
    with file, _reading(path):
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def count_rows(path: Path) -> int:
    """Rows of a Parquet file after reading every page with its checksum. Raises SinkError if one does not fit."""
    with _reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        return sum(len(batch) for batch in file.iter_batches())


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise SinkError(f"{path}: not readable as Parquet ({str(error).splitlines()[0][:120]})") from error


def _text(metadata: dict[str, Any]) -> str:
    return json.dumps(metadata, sort_keys=True)


def _row_groups(tables: Iterable[Table], schema: pa.Schema) -> Iterator[Table]:
    """Re-cut tables into row groups of ROW_GROUP_ROWS, the last of which is what is left.

    They consist of pieces of _PIECE_ROWS. A piece is copied together as soon as it is complete and a row group never
    is: what is held is one row group.
    """
    group: list[Table] = []
    held: list[Table] = []
    n = 0
    for table in tables:
        held.append(table.cast(schema))
        n += len(table)
        while n >= _PIECE_ROWS:
            whole = pa.concat_tables(held)
            group.append(whole.slice(0, _PIECE_ROWS).combine_chunks())
            held, n = [whole.slice(_PIECE_ROWS)], n - _PIECE_ROWS
            if len(group) * _PIECE_ROWS == ROW_GROUP_ROWS:
                complete, group = pa.concat_tables(group), []
                yield complete
                del complete
    if n:
        group.append(pa.concat_tables(held).combine_chunks())
    if group:
        yield pa.concat_tables(group)
