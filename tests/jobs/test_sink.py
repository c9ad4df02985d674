import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import sink
from jobs.errors import SinkError
from jobs.sink import chunk_bytes, count_rows, read_chunk, write_parquet
from posecore.results import FRAMES_SCHEMA, poses_schema, poses_table
from posecore.skeleton import COCO18

METADATA = {"schema": 1, "video": {"video_id": "walk-0123456789ab", "size": [640, 480]}, "unicode": "ö"}


def poses(n: int) -> pa.Table:
    """n rows that differ, a third of the keypoints missing."""
    rng = np.random.default_rng(0)
    score = rng.uniform(0.1, 1.0, (n, 18)).astype(np.float32)
    score[rng.uniform(size=score.shape) < 1 / 3] = np.nan
    score[:, 0] = 1
    frame = np.arange(n) // 2
    xy = rng.uniform(0, 640, (n, 18, 2)).astype(np.float32)
    return poses_table("walk", frame, frame / 25, np.arange(n) % 2, score[:, 0], xy, score, COCO18)


def frames(n: int) -> pa.Table:
    numbers = list(range(n))
    detail = [None if i % 3 else f"frame {i}" for i in numbers]
    return pa.table(
        [["walk"] * n, numbers, numbers, numbers, [True] * n, numbers, ["ok"] * n, [None] * n, detail],
        schema=FRAMES_SCHEMA,
    )


# Chunks


@pytest.mark.parametrize("n", [0, 1, 50])
def test_a_chunk_comes_back_as_it_was(tmp_path: Path, n: int):
    chunk = tmp_path / "a.chunk"
    chunk.write_bytes(chunk_bytes(poses(2 * n), frames(n)))
    assert read_chunk(chunk) == (poses(2 * n), frames(n))
    assert [table.schema for table in read_chunk(chunk)] == [poses_schema(COCO18), FRAMES_SCHEMA]


def test_a_chunk_is_the_same_bytes_however_its_tables_lie_in_memory():
    scattered = pa.concat_tables([poses(9).slice(0, 4), poses(9).slice(4)]).combine_chunks()
    assert chunk_bytes(scattered, frames(5)) == chunk_bytes(poses(9), frames(5))


def complaint(read: Callable[[Path], Any], path: Path) -> str:
    """What a reader has against a file; nothing if it takes it."""
    try:
        read(path)
    except SinkError as error:
        return str(error)
    return ""


def test_a_flipped_bit_anywhere_in_a_chunk_is_found(tmp_path: Path):
    whole = chunk_bytes(poses(2).select(["frame", "score"]), frames(1).select(["frame", "detail"]))
    chunk = tmp_path / "a.chunk"
    complaints = set()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        chunk.write_bytes(damaged)
        complaints.add(complaint(read_chunk, chunk))
    assert complaints == {f"{chunk}: damaged on disk while the job ran; run the same command again"}


@pytest.mark.parametrize("left", [0, 1, 31, 32, 33, -1])
def test_a_truncated_chunk_is_found(tmp_path: Path, left: int):
    chunk = tmp_path / "a.chunk"
    chunk.write_bytes(chunk_bytes(poses(2), frames(1))[:left])
    with pytest.raises(SinkError, match=r"a\.chunk: damaged on disk"):
        read_chunk(chunk)


def test_a_chunk_that_is_not_there(tmp_path: Path):
    with pytest.raises(SinkError, match=r"a\.chunk: cannot be read \(No such file or directory\)$"):
        read_chunk(tmp_path / "a.chunk")


# Parquet

N = 40


@pytest.fixture(scope="module", params=["poses", "frames"])
def rows(request: pytest.FixtureRequest) -> pa.Table:
    return poses(N) if request.param == "poses" else frames(N)


@pytest.fixture
def file(tmp_path: Path, rows: pa.Table) -> Path:
    path = tmp_path / "a.parquet"
    assert write_parquet(path, [rows], rows.schema, METADATA) == N
    return path


@contextmanager
def small_groups() -> Iterator[None]:
    """Row groups of 16 rows, gathered in pieces of 4."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sink, "ROW_GROUP_ROWS", 16)
        patch.setattr(sink, "_PIECE_ROWS", 4)
        yield


@pytest.fixture(scope="module")
def in_one_table(tmp_path_factory: pytest.TempPathFactory, rows: pa.Table) -> Path:
    """The rows in small groups, written from one table."""
    path = tmp_path_factory.mktemp("whole") / "a.parquet"
    with small_groups():
        write_parquet(path, [rows], rows.schema, METADATA)
    return path


@given(cuts=st.lists(st.integers(0, N), max_size=12))
def test_the_file_depends_on_the_rows_alone(rows: pa.Table, in_one_table: Path, cuts: list[int]):
    edges = [0, *sorted(cuts), N]
    parts = [rows.slice(a, b - a) for a, b in pairwise(edges)]
    path = in_one_table.with_name("b.parquet")
    with small_groups():
        assert write_parquet(path, iter(parts), rows.schema, METADATA) == N
    assert path.read_bytes() == in_one_table.read_bytes()


def test_row_groups_are_cut_by_count(in_one_table: Path):
    metadata = pq.read_metadata(in_one_table)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [16, 16, 8]


@pytest.mark.parametrize(("n", "groups"), [(0, []), (1, [1]), (16, [16]), (32, [16, 16]), (33, [16, 16, 1])])
def test_row_groups_at_the_limits(tmp_path: Path, n: int, groups: list[int]):
    path = tmp_path / "a.parquet"
    with small_groups():
        assert write_parquet(path, [frames(n)], FRAMES_SCHEMA, {}) == n
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == groups


def test_one_row_group_is_held_at_a_time(tmp_path: Path):
    held: list[int] = []

    def rows() -> Iterator[pa.Table]:
        for _ in range(30):
            held.append(pa.total_allocated_bytes() - before)
            yield poses(1_000)

    group = poses(5_000).nbytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sink, "ROW_GROUP_ROWS", 5_000)
        patch.setattr(sink, "_PIECE_ROWS", 1_000)
        before = pa.total_allocated_bytes()
        write_parquet(tmp_path / "a.parquet", rows(), poses_schema(COCO18), {})
    assert group / 2 < max(held) < 1.5 * group


def test_row_groups_consist_of_whole_pieces():
    assert sink.ROW_GROUP_ROWS % sink._PIECE_ROWS == 0


def test_the_rows_are_what_was_written(file: Path, rows: pa.Table):
    assert pq.read_table(file) == rows
    assert pq.read_schema(file).equals(rows.schema)
    assert count_rows(file) == N


@pytest.mark.parametrize("tables", [[], [frames(0)], [frames(0), frames(0)]], ids=["no table", "one", "two"])
def test_a_table_without_rows_is_a_file_with_the_schema(tmp_path: Path, tables: list[pa.Table]):
    path = tmp_path / "a.parquet"
    assert write_parquet(path, tables, FRAMES_SCHEMA, {}) == count_rows(path) == 0
    assert pq.read_table(path) == frames(0)


def test_the_metadata_says_what_the_table_is(file: Path):
    stored = pq.read_schema(file).metadata
    assert json.loads(stored[b"posejob"]) == METADATA
    assert json.loads(stored[b"PANDAS_ATTRS"]) == {"posejob": METADATA}
    assert pd.read_parquet(file).attrs == {"posejob": METADATA}


def test_the_order_of_the_metadata_changes_nothing(file: Path, rows: pa.Table):
    other = file.with_name("b.parquet")
    write_parquet(other, [rows], rows.schema, dict(reversed(METADATA.items())))
    assert other.read_bytes() == file.read_bytes()


def columns(file: Path) -> list[Any]:
    metadata = pq.read_metadata(file)
    return [
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]


def test_columns_are_encoded_as_in_the_contract(file: Path, rows: pa.Table):
    assert {column.compression for column in columns(file)} == {"ZSTD"}
    for column in columns(file):
        kind = rows.schema.field(column.path_in_schema).type
        assert ("BYTE_STREAM_SPLIT" in column.encodings) == pa.types.is_floating(kind)
        assert column.has_dictionary_page == pa.types.is_string(kind)


def test_a_flipped_bit_in_any_column_is_found_by_its_page_checksum(file: Path):
    whole = file.read_bytes()
    for column in columns(file):
        first = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        damaged = bytearray(whole)
        damaged[first + column.total_compressed_size - 1] ^= 1  # the last byte of its last page
        file.write_bytes(damaged)
        said = complaint(count_rows, file)
        assert said.startswith(f"{file}: not readable as Parquet ("), column.path_in_schema
        assert "CRC" in said
        assert len(said.splitlines()) == 1


def test_what_is_no_parquet_is_said_in_one_line(tmp_path: Path):
    path = tmp_path / "a.parquet"
    for content in (b"", b"text", b"PAR1" * 10):
        path.write_bytes(content)
        with pytest.raises(SinkError, match=r"a\.parquet: not readable as Parquet \(.+\)$"):
            count_rows(path)
    with pytest.raises(SinkError, match=r"missing\.parquet: not readable as Parquet"):
        count_rows(tmp_path / "missing.parquet")


def test_a_table_of_another_schema_is_not_written(tmp_path: Path):
    with pytest.raises(ValueError, match="schema"):
        write_parquet(tmp_path / "a.parquet", [poses(2)], FRAMES_SCHEMA, {})
