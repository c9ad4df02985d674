"""A job's tables, written as `posejob` writes them. Every value tells where it belongs:

keypoint k of person p in frame f is at (100 f + k + .5, 1000 p + 2 k + .25) with score (k + 1) / 32: exact in float32.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import posecore
from jobs.sink import write_parquet
from posecore import read_frames, read_poses, tidy
from posecore.errors import ResultsError
from posecore.results import FRAMES_SCHEMA, poses_schema, poses_table
from posecore.skeleton import COCO18, Limb, Skeleton

# From DESIGN.md, section 4. A column here is (name, type, may be null).
POSES_HEAD = [
    ("video", "string", False),
    ("frame", "int32", False),
    ("time_s", "double", True),
    ("person", "int16", False),
    ("track_id", "int32", True),
    ("score", "float", False),
    ("n_keypoints", "int8", False),
    ("bbox_x0", "float", False),
    ("bbox_y0", "float", False),
    ("bbox_x1", "float", False),
    ("bbox_y1", "float", False),
]
FRAMES = [
    ("video", "string", False),
    ("frame", "int32", False),
    ("time_s", "double", True),
    ("pts", "int64", False),
    ("key_frame", "bool", False),
    ("n_people", "int16", True),
    ("status", "string", False),
    ("source", "string", True),
    ("detail", "string", True),
]
KEYPOINTS = [
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
]  # fmt: skip

# By frame, how many people are in it. Two videos have the same stem.
WALK, JUMP, OTHER_WALK = "walk-0123456789ab", "jump-ba9876543210", "walk-ffff00000000"
PEOPLE = {WALK: [2, 0, 1, 3], JUMP: [1, 1], OTHER_WALK: [1]}

MISSING = ("left_wrist", "nose")


def xy(frame: int, person: int) -> np.ndarray:
    k = np.arange(18)
    return np.stack([100 * frame + k + 0.5, 1000 * person + 2 * k + 0.25], axis=1).astype(np.float32)


def poses_of(video: str, people: Sequence[int], missing: Sequence[str] = MISSING, timed: bool = True) -> pa.Table:
    """Everybody lacks the same keypoints. Frame f is at f / 8 s."""
    frame = np.repeat(np.arange(len(people)), people)
    person = np.concatenate([np.arange(n) for n in people])
    lacking = np.isin(KEYPOINTS, missing)
    xy_src = np.array([xy(f, p) for f, p in zip(frame, person, strict=True)], np.float32).reshape(-1, 18, 2)
    score = np.tile((np.arange(18, dtype=np.float32) + 1) / 32, (len(frame), 1))
    xy_src[:, lacking], score[:, lacking] = np.nan, np.nan
    time_s = frame / 8 if timed else np.full(len(frame), np.nan)
    return poses_table(video, frame, time_s, person, 1 - person / 4, xy_src, score, COCO18)


def frames_of(video: str, people: Sequence[int]) -> pa.Table:
    n = len(people)
    numbers = list(range(n))
    times, key_frame = [f / 8 for f in numbers], [f == 0 for f in numbers]
    return pa.table(
        [[video] * n, numbers, times, numbers, key_frame, people, ["ok"] * n, [None] * n, [None] * n],
        schema=FRAMES_SCHEMA,
    )


def write_job(out: Path, people: dict[str, list[int]]) -> None:
    for video, counts in people.items():
        poses = poses_of(video, counts)
        tracks = pa.array([None if p == 2 else 10 + p for p in poses["person"].to_pylist()], pa.int32())
        poses = poses.set_column(4, poses.schema.field("track_id"), tracks)
        for kind, table in (("poses", poses), ("frames", frames_of(video, counts))):
            (out / kind).mkdir(parents=True, exist_ok=True)
            write_parquet(out / kind / f"{video}.parquet", [table], table.schema, {"video": {"video_id": video}})


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    write_job(folder, PEOPLE)
    return folder


def keys(table: pa.Table) -> list[tuple[str, int, int]]:
    return list(zip(*(table[name].to_pylist() for name in ("video", "frame", "person")), strict=True))


def truth(*videos: str) -> list[tuple[str, int, int]]:
    """The rows that `poses` has of some videos, in the order of reading."""
    return [(v, f, p) for v in sorted(videos) for f, n in enumerate(PEOPLE[v]) for p in range(n)]


def columns(schema: pa.Schema) -> list[tuple[str, str, bool]]:
    return [(field.name, str(field.type), field.nullable) for field in schema]


# The tables


def test_columns_of_poses_are_the_contracts():
    parts = [(f"{keypoint}_{part}", "float", True) for keypoint in KEYPOINTS for part in ("x", "y", "score")]
    assert columns(poses_schema(COCO18)) == POSES_HEAD + parts


def test_columns_of_frames_are_the_contracts():
    assert columns(FRAMES_SCHEMA) == FRAMES


def test_another_skeleton_has_its_own_columns():
    stick = Skeleton("stick", ("top", "end"), (Limb(0, 1, (0, 1)),), (0.1, 0.1))
    assert columns(poses_schema(stick))[11:] == [
        (name, "float", True) for name in ("top_x", "top_y", "top_score", "end_x", "end_y", "end_score")
    ]


def test_a_table_of_poses_has_the_schema_of_poses():
    assert poses_of(WALK, [2]).schema.equals(poses_schema(COCO18))
    assert poses_of(WALK, [0]).schema.equals(poses_schema(COCO18))


def test_keypoints_are_in_their_columns():
    row = poses_of(WALK, [0, 0, 0, 2]).slice(1).to_pylist()[0]
    for k, keypoint in enumerate(KEYPOINTS):
        found = [row[f"{keypoint}_{part}"] for part in ("x", "y", "score")]
        if keypoint in MISSING:
            assert found == [None, None, None], keypoint
        else:
            assert found == [300 + k + 0.5, 1000 + 2 * k + 0.25, (k + 1) / 32], keypoint


def test_a_missing_keypoint_is_null_never_nan_and_never_0():
    table = poses_of(WALK, [1, 1])
    for column in table.columns[11:]:
        values = column.drop_null().to_numpy()
        assert np.all(np.isfinite(values) & (values > 0))
    nulls = {name for name in table.schema.names[11:] if table[name].null_count}
    assert nulls == {f"{keypoint}_{part}" for keypoint in MISSING for part in ("x", "y", "score")}
    assert all(table[name].null_count == 2 for name in nulls)


def test_the_row_says_who_and_when():
    row = poses_of(WALK, [0, 2]).slice(1).to_pylist()[0]
    head = {name: row[name] for name in ("video", "frame", "time_s", "person", "track_id", "score")}
    assert head == {"video": WALK, "frame": 1, "time_s": 0.125, "person": 1, "track_id": None, "score": 0.75}


def test_the_box_is_around_the_keypoints_found():
    # The nose has the lowest x and y, the left ear the highest.
    row = poses_of(WALK, [0, 2], missing=("nose", "left_ear", "left_hip")).slice(1).to_pylist()[0]
    assert row["n_keypoints"] == 15
    assert [row[f"bbox_{side}"] for side in ("x0", "y0", "x1", "y1")] == [101.5, 1002.25, 116.5, 1032.25]


def test_all_keypoints_found():
    row = poses_of(WALK, [1], missing=()).to_pylist()[0]
    assert None not in [row[name] for name in poses_schema(COCO18).names[11:]]
    assert row["n_keypoints"] == 18


def test_pictures_have_no_time():
    assert poses_of(WALK, [2], timed=False)["time_s"].to_pylist() == [None, None]


# Reading them back


def test_all_there_is(out: Path):
    poses, frames = read_poses(out), read_frames(out)
    assert keys(poses) == truth(WALK, JUMP, OTHER_WALK)
    assert columns(poses.schema) == columns(poses_schema(COCO18))
    assert columns(frames.schema) == FRAMES
    assert list(zip(*(frames[name].to_pylist() for name in ("video", "frame", "n_people")), strict=True)) == [
        (video, frame, n) for video in sorted(PEOPLE) for frame, n in enumerate(PEOPLE[video])
    ]


def test_what_is_read_is_what_was_written(out: Path):
    read, written = read_poses(out, video=WALK), poses_of(WALK, PEOPLE[WALK])
    assert read.drop_columns("track_id").equals(written.drop_columns("track_id"))


@pytest.mark.parametrize(
    ("video", "expected"),
    [
        (WALK, [WALK]),
        ("jump", [JUMP]),
        ("walk", [WALK, OTHER_WALK]),  # one name, two folders: both
        ([JUMP, OTHER_WALK], [JUMP, OTHER_WALK]),
        ((OTHER_WALK, "jump"), [JUMP, OTHER_WALK]),
        ([WALK, "walk", WALK], [WALK, OTHER_WALK]),  # nothing twice
        ([], []),
    ],
)
def test_videos_by_id_and_by_stem(out: Path, video: str | Sequence[str], expected: list[str]):
    assert keys(read_poses(out, video=video)) == truth(*expected)
    read = read_frames(out, video=video)["video"].to_pylist()
    assert read == [name for name in sorted(expected) for _ in PEOPLE[name]]


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ((2, 4), [2, 3]),
        ((0, 3), [0, 1, 2]),  # the stop is not in it
        ((1, None), [1, 2, 3]),
        ((None, 2), [0, 1]),
        ((None, None), [0, 1, 2, 3]),
        ((1, 2), [1]),
        ((2, 2), []),
        ((None, 0), []),
        ((50, 60), []),
    ],
)
def test_ranges_of_frames(out: Path, frames: tuple[int | None, int | None], expected: list[int]):
    assert read_frames(out, video=WALK, frames=frames)["frame"].to_pylist() == expected
    assert keys(read_poses(out, video=WALK, frames=frames)) == [row for row in truth(WALK) if row[1] in expected]


@pytest.mark.parametrize("track", [11, [11], (11, 99), np.int64(11), np.float64(11.0), np.array([11])])
def test_a_track(out: Path, track: int | Sequence[int]):
    # Frames 0 and 3 of one video have a second person. Numbers taken from a pandas column are NumPy's.
    assert keys(read_poses(out, track=track)) == [(WALK, 0, 1), (WALK, 3, 1)]


def test_several_tracks_and_none(out: Path):
    assert keys(read_poses(out, track=[10, 11])) == [row for row in truth(*PEOPLE) if row[2] < 2]
    assert keys(read_poses(out, track=[])) == []


def test_filters_add_up(out: Path):
    assert keys(read_poses(out, video="walk", frames=(1, None), track=10)) == [(WALK, 2, 0), (WALK, 3, 0)]


@pytest.mark.parametrize(
    ("names", "expected"), [(["neck_y", "frame"], ["neck_y", "frame"]), ("frame", ["frame"]), ((), [])]
)
def test_columns_asked_for(out: Path, names: str | Sequence[str], expected: list[str]):
    # The column of a filter need not be among them.
    table = read_poses(out, video=JUMP, frames=(1, 2), track=10, columns=names)
    assert table.schema.names == expected
    assert table.to_pydict() == {name: {"neck_y": [2.25], "frame": [1]}[name] for name in expected}
    assert read_frames(out, columns="status").schema.names == ["status"]


def test_pandas(out: Path):
    poses = read_poses(out, video=WALK, to="pandas")
    assert isinstance(poses, pd.DataFrame)
    pd.testing.assert_frame_equal(poses, read_poses(out, video=WALK).to_pandas())
    assert list(zip(poses["video"], poses["frame"], poses["person"], strict=True)) == truth(WALK)
    assert poses["nose_x"].isna().all()
    assert isinstance(read_frames(out, to="pandas"), pd.DataFrame)


def test_polars(out: Path):
    poses = read_poses(out, video=WALK, to="polars")
    assert isinstance(poses, pl.DataFrame)
    assert poses.select("video", "frame", "person").rows() == truth(WALK)
    assert poses["nose_x"].null_count() == len(poses)
    assert poses["neck_x"].to_list() == read_poses(out, video=WALK)["neck_x"].to_pylist()
    assert isinstance(read_frames(out, to="polars"), pl.DataFrame)


def test_nothing_else_than_these_three(out: Path):
    with pytest.raises(ValueError, match=r"^to='numpy': expected 'arrow', 'pandas' or 'polars'$"):
        read_poses(out, to="numpy")


def test_pandas_reads_what_the_job_was(out: Path):
    said = {"posejob": {"video": {"video_id": WALK}}}
    assert pd.read_parquet(out / "poses" / f"{WALK}.parquet").attrs == said
    assert pd.read_parquet(out / "frames" / f"{WALK}.parquet").attrs == said
    assert read_poses(out, video=WALK, columns=["frame"], to="pandas").attrs == said
    assert read_frames(out, video=WALK, to="pandas").attrs == said


def test_what_is_said_of_one_video_is_not_said_of_several(out: Path):
    assert read_poses(out, video=[JUMP, WALK], to="pandas").attrs == {}
    assert read_poses(out, video=[JUMP, WALK]).schema.metadata is None


@pytest.mark.parametrize(("read", "kind"), [(read_poses, "poses"), (read_frames, "frames")])
def test_not_a_jobs_folder(tmp_path: Path, read, kind: str):
    message = f"{tmp_path}: no {kind}/ in it; is it the folder given to `posejob submit --out`, and is the job done?"
    with pytest.raises(ResultsError, match=f"^{re.escape(message)}$"):
        read(str(tmp_path))


@pytest.mark.parametrize("video", ["run", [WALK, "run"], ["run"]])
def test_an_unknown_video(out: Path, video: str | list[str]):
    message = f"{out}: no video 'run' in poses/; there are {JUMP}, {WALK}, {OTHER_WALK}"
    with pytest.raises(ResultsError, match=f"^{re.escape(message)}$"):
        read_poses(out, video=video)


@pytest.mark.parametrize("video", ["wal", "walk-", "WALK", "walk-0123456789a", ""])
def test_part_of_a_name_is_another_name(out: Path, video: str):
    with pytest.raises(ResultsError, match=f"no video '{video}' in frames/"):
        read_frames(out, video=video)


def test_of_many_videos_the_message_names_five(tmp_path: Path):
    videos = {f"v{i}-{i:012x}": [1] for i in range(6)}
    write_job(tmp_path, videos)
    with pytest.raises(ResultsError, match=f"there are {', '.join(list(videos)[:5])}, ...$"):
        read_poses(tmp_path, video="w")


def test_an_unknown_column(out: Path):
    message = f"{out}: no column 'left_elbow' in poses/; is it left_elbow_y or left_elbow_x or left_elbow_score?"
    with pytest.raises(ResultsError, match=f"^{re.escape(message)}$"):
        read_poses(out, columns=["frame", "left_elbow"])
    with pytest.raises(ResultsError, match=f"^{re.escape(str(out))}: no column 'qqq' in frames/$"):
        read_frames(out, columns="qqq")


def test_a_job_without_videos_has_empty_tables(tmp_path: Path):
    for kind in ("poses", "frames"):
        (tmp_path / kind).mkdir()
    for to in ("arrow", "pandas", "polars"):
        assert len(read_poses(tmp_path, frames=(0, 5), track=1, to=to)) == 0
    assert columns(read_poses(tmp_path).schema) == columns(poses_schema(COCO18))
    assert columns(read_frames(tmp_path).schema) == FRAMES
    with pytest.raises(ResultsError, match=r"there are none$"):
        read_poses(tmp_path, video="walk")


def test_a_video_with_nobody_in_it(tmp_path: Path):
    write_job(tmp_path, {WALK: [0, 0]})
    poses = read_poses(tmp_path, video="walk")
    assert len(poses) == 0
    assert columns(poses.schema) == columns(poses_schema(COCO18))
    assert len(tidy(poses)) == 0
    assert read_frames(tmp_path)["n_people"].to_pylist() == [0, 0]


def test_working_files_are_not_results(tmp_path: Path):
    write_job(tmp_path, {WALK: [1]})
    for name in ("_x-0123456789ab.parquet", ".x-0123456789ab.parquet", "walk-0123456789ab.parquet.tmp", "notes.txt"):
        (tmp_path / "poses" / name).write_bytes(b"not Parquet")
    assert keys(read_poses(tmp_path)) == [(WALK, 0, 0)]
    with pytest.raises(ResultsError, match="no video '_x' in"):
        read_poses(tmp_path, video="_x")


# The long view


def test_tidy_has_a_row_for_each_keypoint_found(out: Path):
    poses = read_poses(out)
    expected = [
        (
            *(row[name] for name in ("video", "frame", "time_s", "person", "track_id")),
            keypoint,
            *(row[f"{keypoint}_{part}"] for part in ("x", "y", "score")),
        )
        for row in poses.to_pylist()
        for keypoint in KEYPOINTS
        if keypoint not in MISSING
    ]
    long = tidy(poses)
    assert long.schema.names == ["video", "frame", "time_s", "person", "track_id", "keypoint", "x", "y", "score"]
    assert [tuple(row.values()) for row in long.to_pylist()] == expected
    assert len(expected) == len(poses) * 16


def test_tidy_keeps_the_types():
    long = tidy(poses_of(WALK, [1], timed=False))
    assert [str(field.type) for field in long.schema] == [
        "string", "int32", "double", "int16", "int32", "dictionary<values=string, indices=int8, ordered=0>",
        "float", "float", "float",
    ]  # fmt: skip
    assert {value for name in ("time_s", "track_id") for value in long[name].to_pylist()} == {None}


# How it is imported


def test_importing_posecore_does_not_import_pyarrow(tmp_path: Path):
    code = "import sys, posecore; print('pyarrow' in sys.modules); posecore.read_poses; print('pyarrow' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]


def test_posecore_has_what_it_says_and_nothing_else():
    assert {name: getattr(posecore, name) for name in posecore.__all__} == {
        "read_frames": read_frames,
        "read_poses": read_poses,
        "tidy": tidy,
    }
    with pytest.raises(AttributeError, match=r"^module 'posecore' has no attribute 'write_poses'$"):
        _ = posecore.write_poses
