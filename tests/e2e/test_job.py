"""The whole path: codec, split, OpenVINO, grouping, Parquet; with Ray where it matters."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from jobs.executors.base import Layout
from jobs.executors.ray import RayExecutor
from jobs.ledger import SUCCESS, Ledger
from jobs.run import JobReport, run_job
from jobs.spec import Moment, RunSpec, Selection
from jobs.worker import WorkerSpec
from models.errors import ModelError
from models.registry import find_network
from posecore import read_frames, read_poses
from posecore.skeleton import COCO18
from tests.conftest import RunSerially
from tests.fixtures.media import N_FRAMES, ORDERED, UNORDERED, write_clip
from tests.fixtures.stick_figures import Scene, crossing, entering_leaving, occluded, walkers, write_video

K = len(COCO18.keypoints)
SCENES: dict[str, Callable[[], Scene]] = {
    "walkers": lambda: walkers(40, 3, (854, 480)),
    "crossing": lambda: crossing(40),
    "entering-leaving": lambda: entering_leaving(40, (320, 240)),
    "occluded": lambda: occluded(40, (480, 854)),
}


@contextmanager
def on_ray(worker: WorkerSpec, layout: Layout) -> Iterator[RayExecutor]:
    """Actors on the session's Ray, whatever the machine has."""
    yield RayExecutor(worker, layout)


def keypoints_of(row: dict[str, Any]) -> np.ndarray:
    """(18, 2), NaN where null."""
    parts = [[row[f"{name}_{axis}"] for axis in "xy"] for name in COCO18.keypoints]
    return np.array(parts, dtype=np.float64)


def content(out: Path) -> dict[str, bytes]:
    return {
        f"{path.parent.name}/{path.name}": path.read_bytes()
        for kind in ("poses", "frames")
        for path in (out / kind).iterdir()
    }


class TestDrawnFigures:
    """Every visible keypoint is found within 4 px at 256 px height, nobody is lost and nobody invented."""

    @pytest.fixture(scope="class", params=list(SCENES))
    @classmethod
    def scene_and_rows(
        cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, run_serially: RunSerially
    ) -> tuple[Scene, dict[int, list[np.ndarray]]]:
        folder = tmp_path_factory.mktemp(request.param)
        scene = SCENES[request.param]()
        write_video(folder / "scene.mp4", scene.pictures())
        run_serially([folder / "scene.mp4"], folder / "out", chunk_frames=15)
        rows: dict[int, list[np.ndarray]] = {i: [] for i in range(scene.n_frames)}
        for row in read_poses(folder / "out").to_pylist():
            rows[row["frame"]].append(keypoints_of(row))
        return scene, rows

    def test_every_visible_keypoint_is_found_in_its_place(self, scene_and_rows: Any):
        scene, rows = scene_and_rows
        for frame, people in enumerate(scene.truth()):
            for person in people:
                for part in parts_in_sight(person):
                    away = [np.linalg.norm(xy - person.xy, axis=1)[part].max() for xy in rows[frame]]
                    assert np.nanmin([np.inf, *away]) < 4 * scene.scale, f"frame {frame}: {away}"

    def test_nobody_is_invented(self, scene_and_rows: Any):
        """Each row is part of one person who is there, and no keypoint of a person is in two rows."""
        scene, rows = scene_and_rows
        for frame, people in enumerate(scene.truth()):
            claimed = np.zeros((len(people), K), dtype=int)
            for xy in rows[frame]:
                seen = ~np.isnan(xy[:, 0])
                away = [np.linalg.norm(xy - person.xy, axis=1)[seen].max() for person in people]
                assert min(away) < 12 * scene.scale, f"frame {frame}: a person made of parts of others"
                claimed[np.argmin(away)] += seen
            assert claimed.max(initial=0) <= 1, f"frame {frame}: one person twice"


def parts_in_sight(person: Any) -> list[list[int]]:
    """Keypoints of a person that hang together by visible limbs, three or more: what is found as one. Where the middle
    of a person is hidden, the parts to either side of it are people of their own for a network that looks at pixels."""
    part_of = list(range(K))
    for limb, shown in zip(COCO18.limbs, person.limbs_visible, strict=True):
        if shown and not limb.redundant and person.visible[[limb.source, limb.target]].all():
            joined = part_of[limb.target]
            part_of = [part_of[limb.source] if part == joined else part for part in part_of]
    parts = [[k for k in range(K) if part_of[k] == part] for part in set(part_of)]
    return [part for part in parts if len(part) >= 3]


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
class TestTheSameWhateverTheDivision:
    @pytest.fixture(scope="class")
    @classmethod
    def videos(cls, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
        folder = tmp_path_factory.mktemp("videos")
        write_video(folder / "crossing.mp4", crossing(50).pictures(), gop=20, options={"crf": "10", "bf": "2"})
        write_clip(folder, "blotches", ORDERED["hevc-open-gop"])
        write_clip(folder, "counted", UNORDERED["mpeg-program-stream"])
        return sorted(folder.iterdir())

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, videos: list[Path], tmp_path_factory: pytest.TempPathFactory, run_serially: RunSerially) -> Any:
        out = tmp_path_factory.mktemp("reference") / "out"
        run_serially(videos, out, chunk_frames=100_000)
        return content(out)

    @pytest.mark.parametrize(("chunk_frames", "workers"), [(17, 1), (17, 2), (100, 2), (100_000, 2)])
    def test_tables_are_byte_identical(
        self, videos: list[Path], reference: Any, tmp_path: Path, colour_network: Path, chunk_frames: int, workers: int
    ):
        inputs = tuple(str(video) for video in videos)
        spec = RunSpec(inputs, tmp_path, str(colour_network), workers=workers, chunk_frames=chunk_frames)
        assert run_job(spec, on_ray, lambda event: None).exit_code == 0
        assert content(tmp_path) == reference


class TestGoingOn:
    @pytest.fixture
    def video(self, tmp_path: Path) -> Path:
        write_video(
            path := tmp_path / "walk.mp4",
            walkers(40, 1, (192, 144)).pictures(),
            gop=10,
            options={"crf": "10", "sc_threshold": "0"},
        )
        return path

    @pytest.mark.parametrize("after", [0, 1, 3])
    def test_a_stopped_job_does_only_what_is_missing(
        self, video: Path, tmp_path: Path, run_serially: RunSerially, serial: Any, after: int
    ):
        whole = run_serially([video], tmp_path / "whole", chunk_frames=10)
        out = tmp_path / "out"
        with pytest.raises(KeyboardInterrupt):
            run_serially([video], out, chunk_frames=10, start=stopping(serial, after))
        assert len(Ledger(out).committed()) == after
        assert not (out / SUCCESS).exists()
        rest = run_serially([video], out, chunk_frames=10)
        assert rest.n_inferred == whole.n_inferred - 10 * after
        assert content(out) == content(tmp_path / "whole")

    def test_a_re_run_with_another_chunk_length_keeps_the_plan(
        self, video: Path, tmp_path: Path, run_serially: RunSerially, serial: Any
    ):
        out = tmp_path / "out"
        with pytest.raises(KeyboardInterrupt):
            run_serially([video], out, chunk_frames=10, start=stopping(serial, 2))
        assert run_serially([video], out, chunk_frames=7).n_inferred == 20

    def test_a_finished_job_is_not_done_again(self, video: Path, tmp_path: Path, run_serially: RunSerially):
        first = run_serially([video], tmp_path / "out")
        again = run_serially([video], tmp_path / "out", start=None)
        assert again.again
        assert again.videos == first.videos

    def test_working_folders_are_gone_when_the_job_is_done(
        self, video: Path, tmp_path: Path, run_serially: RunSerially
    ):
        run_serially([video], out := tmp_path / "out")
        assert sorted(path.name for path in out.iterdir()) == [
            "_SUCCESS",
            "frames",
            "manifest.json",
            "plan.json",
            "poses",
        ]


def stopping(serial: Any, after: int) -> Any:
    """An executor that is interrupted when `after` units are done."""

    @contextmanager
    def start(worker: Any, layout: Any) -> Iterator[Any]:
        with serial(worker, layout) as executor:
            yield Stopping(executor, after)

    return start


class Stopping:
    def __init__(self, executor: Any, after: int) -> None:
        self.executor, self.after = executor, after

    def run(self, units: Any) -> Iterator[Any]:
        results = self.executor.run(units)
        for _ in range(self.after):
            yield next(results)
        raise KeyboardInterrupt


class TestOptions:
    @pytest.fixture(scope="class")
    @classmethod
    def video(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("options") / "two.mp4"
        write_video(path, walkers(30, 2, (640, 480)).pictures(), fps=10)
        return path

    @pytest.mark.parametrize(
        ("selection", "expected"),
        [
            (Selection(every=7), [0, 7, 14, 21, 28]),
            (Selection(start=Moment(10, None), stop=Moment(13, None)), [10, 11, 12]),
            (Selection(start=Moment(None, 1.0), stop=Moment(None, 1.3)), [10, 11, 12]),
            (Selection(every=4, start=Moment(5, None)), [8, 12, 16, 20, 24, 28]),
        ],
    )
    def test_frames_that_are_not_selected_are_rows_with_status_skipped(
        self, video: Path, tmp_path: Path, run_serially: RunSerially, selection: Selection, expected: list[int]
    ):
        report = run_serially([video], tmp_path, selection=selection, chunk_frames=9)
        frames = read_frames(tmp_path, to="pandas")
        assert frames["frame"].tolist() == list(range(30))
        assert frames.loc[frames["status"] == "ok", "frame"].tolist() == expected
        assert set(frames["status"]) == {"ok", "skipped"}
        assert frames.loc[frames["status"] == "skipped", "n_people"].isna().all()
        assert report.n_inferred == len(expected)

    def test_max_people_and_min_score(self, video: Path, tmp_path: Path, run_serially: RunSerially):
        run_serially([video], tmp_path / "all")
        run_serially([video], tmp_path / "one", max_people=1)
        run_serially([video], tmp_path / "none", min_score=1.0)
        everyone, best = (read_poses(tmp_path / name, to="pandas") for name in ("all", "one"))
        assert everyone.groupby("frame").size().eq(2).all()
        assert everyone.groupby("frame")["score"].apply(lambda s: s.is_monotonic_decreasing).all()
        assert best["score"].tolist() == everyone.loc[everyone["person"] == 0, "score"].tolist()
        assert len(read_poses(tmp_path / "none")) == 0


class TestInputs:
    def test_one_bad_video_does_not_stop_the_others(self, walk: Path, tmp_path: Path, run_serially: RunSerially):
        (empty := tmp_path / "empty.mp4").touch()
        (text := tmp_path / "text.mp4").write_text("no video")
        report = run_serially([empty, walk, text, tmp_path / "nowhere.mp4"], tmp_path / "out")
        assert {video.uri.rsplit("/")[-1]: video.status for video in report.videos} == {
            "empty.mp4": "failed",
            "text.mp4": "failed",
            "walk.mp4": "ok",
        }
        assert [problem for _, problem in report.problems] == ["no such file or folder"]
        assert report.exit_code == 1
        assert len(read_frames(tmp_path / "out")) == 12

    def test_pictures_of_a_folder_are_one_video(self, tmp_path: Path, run_serially: RunSerially):
        folder = tmp_path / "pictures"
        folder.mkdir()
        for i, size in enumerate([(640, 480), (480, 640), (320, 240)]):
            cv2.imwrite(str(folder / f"{i}.png"), walkers(5, 1, size).frame(2)[0])
        (folder / "3.png").write_bytes(b"no picture")
        report = run_serially([folder], tmp_path / "out")
        frames = read_frames(tmp_path / "out", to="pandas")
        assert frames["source"].tolist() == ["0.png", "1.png", "2.png", "3.png"]
        assert frames["n_people"].tolist()[:3] == [1, 1, 1]
        assert frames["time_s"].isna().all()
        assert [video.status for video in report.videos] == ["degraded"]
        assert report.videos[0].problems == ("frame 3 (3.png): decode_error: not a picture that OpenCV can read",)

    def test_a_video_that_changes_its_size_keeps_its_people(self, tmp_path: Path, run_serially: RunSerially):
        """Positions are in the pixels of each frame's own size."""
        scenes = [walkers(8, 1, (480, 360)), walkers(8, 1, (360, 480))]
        for i, scene in enumerate(scenes):
            write_video(tmp_path / f"{i}.ts", scene.pictures(), pts=list(range(100 * i, 100 * i + 8)))
        joined = tmp_path / "joined.ts"
        joined.write_bytes((tmp_path / "0.ts").read_bytes() + (tmp_path / "1.ts").read_bytes())
        run_serially([joined], tmp_path / "out", chunk_frames=5)
        rows = read_poses(tmp_path / "out").to_pylist()
        truth = [person for scene in scenes for (person,) in scene.truth()]
        assert [row["frame"] for row in rows] == list(range(16))
        for row, person in zip(rows, truth, strict=True):
            away = np.linalg.norm(keypoints_of(row) - person.xy, axis=1)[person.visible]
            assert np.nanmax(away) < 8

    def test_two_videos_of_one_name_stay_apart(self, walk: Path, tmp_path: Path, run_serially: RunSerially):
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "walk.mp4").write_bytes(walk.read_bytes())
        report = run_serially([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
        assert len({video.video_id for video in report.videos}) == 2
        assert len(read_frames(tmp_path / "out", video="walk")) == 24

    def test_times_of_a_variable_frame_rate_are_kept(self, tmp_path: Path, run_serially: RunSerially):
        path = write_clip(tmp_path, "vfr", ORDERED["variable-rate"])
        run_serially([path], tmp_path / "out")
        pts = np.array(ORDERED["variable-rate"].pts)
        times = read_frames(tmp_path / "out")["time_s"].to_numpy()
        assert times == pytest.approx((pts - pts[0]) / 1000, abs=1e-12)
        assert len(times) == N_FRAMES


def posejob(*arguments: str | Path, cwd: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    """The command as a user runs it: a process of its own, which starts a Ray of its own."""
    command = Path(sys.executable).with_name("posejob")
    variables = {**os.environ, **env}
    return subprocess.run(
        [command, *map(str, arguments)],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


@pytest.mark.ray
class TestTheCommand:
    def test_in_a_folder_with_modules_of_our_names(self, walk: Path, colour_network: Path, tmp_path: Path):
        """The user's own `models/`, `models.py` and `jobs.py` are neither imported nor in the way."""
        trap = "raise SystemExit('the user\\'s own module was imported')\n"
        for name in ("models.py", "jobs.py"):
            (tmp_path / name).write_text(trap)
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "__init__.py").write_text(trap)
        # Even a PYTHONPATH that puts them first.
        done = posejob("submit", walk, "--model", colour_network, "--out", "out", cwd=tmp_path, PYTHONPATH=".")
        assert done.returncode == 0, done.stderr
        assert "1 video, 12 frames" in done.stdout
        notebook = "import posecore; print(len(posecore.read_poses('out')))"
        read = subprocess.run(
            [sys.executable, "-c", notebook], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert int(read.stdout) > 0
        assert posejob("verify", "out", cwd=tmp_path).stdout == "out: whole\n"

    def test_stdout_is_data_even_when_names_are_strange(self, walk: Path, colour_network: Path, tmp_path: Path):
        strange = tmp_path / os.fsdecode(b"two\nlines \xff.mp4")
        strange.write_bytes(walk.read_bytes())
        done = posejob("submit", strange, "--model", colour_network, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["frames"] == 12
        assert "Traceback" not in done.stderr


def real_network() -> str | None:
    try:
        return find_network("human-pose-estimation-0001", fetch=False).name
    except ModelError:
        return None


def reference_data() -> Path | None:
    data = os.environ.get("POSEJOB_TEST_DATA")
    return Path(data) if data and Path(data, "reference_poses_h256.json").is_file() else None


@pytest.mark.skipif(real_network() is None, reason="human-pose-estimation-0001 is not here (posejob models fetch)")
@pytest.mark.skipif(reference_data() is None, reason="POSEJOB_TEST_DATA names no folder with reference poses")
class TestTheRealNetwork:
    @pytest.fixture(scope="class")
    @classmethod
    def report_and_out(
        cls, tmp_path_factory: pytest.TempPathFactory, run_serially: RunSerially
    ) -> tuple[JobReport, Path]:
        data, name = reference_data(), real_network()
        assert data is not None
        assert name is not None
        out = tmp_path_factory.mktemp("real") / "out"
        return run_serially([data / "videos" / "solo_dance.mp4"], out, model=name, selection=Selection(every=10)), out

    def test_one_dancer_in_every_frame(self, report_and_out: tuple[JobReport, Path]):
        report, out = report_and_out
        assert report.exit_code == 0
        frames = read_frames(out, to="pandas")
        assert len(frames) == 314
        assert (frames.loc[frames["status"] == "ok", "n_people"] >= 1).all()

    def test_she_is_where_the_reference_decoder_finds_her(self, report_and_out: tuple[JobReport, Path]):
        """Both within a few pixels of 240: the reference reports corners of 2-pixel squares, we centres."""
        _, out = report_and_out
        data = reference_data()
        assert data is not None
        reference = json.loads((data / "reference_poses_h256.json").read_text())["poses"]["solo_dance.mp4"]
        away = []
        for row in read_poses(out).to_pylist():
            if row["person"] == 0:
                theirs = np.array([[k[:2] if k else [np.nan] * 2 for k in p] for p in reference[str(row["frame"])]])
                distances = np.linalg.norm(keypoints_of(row) - theirs, axis=2)
                away += list(distances[np.nanmedian(distances, axis=1).argmin()])
        assert np.nanmedian(away) < 2
        assert np.nanpercentile(away, 95) < 5
