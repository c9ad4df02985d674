"""Every kind of input that docs/inputs.md lists becomes what it says there: alone, and all of them in one job."""

import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pyarrow.parquet as pq
import pytest

from jobs.errors import ConfigError, OutputError
from jobs.manifest import VideoReport
from jobs.report import plan_text
from jobs.run import JobReport, prepare
from jobs.spec import RunSpec
from posecore import read_frames
from tests.conftest import RunSerially
from tests.fixtures.bad_media import KINDS, Inputs
from tests.fixtures.reading import time_limit

DOCUMENT = Path(__file__).parents[2] / "docs" / "inputs.md"


@dataclass(frozen=True)
class Row:
    """A row of the table. status: ok, degraded, failed, not used or refused. frames: how many of each status, over all
    `videos`. line: part of what the user reads, None for nothing."""

    status: str
    frames: Counter[str]
    videos: int
    line: str | None


def table() -> dict[str, Row]:
    rows = {}
    for text in DOCUMENT.read_text().splitlines():
        if match := re.fullmatch(r"\| `([a-z0-9-]+)` \| [^|]+ \| ([^|]+) \| (?:`([^`]+)`)? ?\|", text):
            kind, outcome, line = match.groups()
            assert kind not in rows
            status, _, counts = outcome.partition(": ")
            frames = Counter({name: int(number) for number, name in re.findall(r"(\d+) ([a-z_]+)", counts)})
            videos = frames.pop("videos", 1)
            rows[kind] = Row(status, frames, videos, line)
    return rows


ROWS = table()
FILES = [kind for kind, row in ROWS.items() if row.status in ("ok", "degraded", "failed")]
NO_INPUTS = [kind for kind, row in ROWS.items() if row.status in ("not used", "refused")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inputs]:
    """The inputs of every kind, each kind in a folder of its own."""
    root = tmp_path_factory.mktemp("corpus")
    inputs = {}
    for kind, make in KINDS.items():
        (root / kind).mkdir()
        inputs[kind] = make(root / kind)
    return inputs


@pytest.fixture
def inputs(corpus: dict[str, Inputs], request: pytest.FixtureRequest) -> Inputs:
    kind = request.param
    if not corpus[kind]:
        pytest.skip("POSEJOB_TEST_DATA names no folder that has it")
    if kind == "no-permission" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    return corpus[kind]


def run(run_serially: RunSerially, inputs: Inputs, out: Path) -> JobReport:
    with time_limit():
        return run_serially(inputs, out, height=64)


def rows_of(out: Path, video: VideoReport) -> list[str]:
    """The statuses in the published table of frames."""
    paths = [file.path for file in video.files if file.path.startswith("frames/")]
    return [status for path in paths for status in pq.read_table(out / path)["status"].to_pylist()]


def contents(out: Path, video: VideoReport) -> list[bytes]:
    return [(out / file.path).read_bytes() for file in video.files]


def test_the_table_and_the_generators_have_the_same_kinds():
    assert list(ROWS) == list(KINDS)
    assert len(ROWS) >= 102


@pytest.mark.parametrize(("kind", "inputs"), [(kind, kind) for kind in FILES], indirect=["inputs"], ids=FILES)
def test_what_the_table_says(kind: str, inputs: Inputs, tmp_path: Path, run_serially: RunSerially):
    row = ROWS[kind]
    report = run(run_serially, inputs, tmp_path / "out")
    lines = [line for video in report.videos for line in video.problems]
    assert {video.status for video in report.videos} == {row.status}, lines
    assert len(report.videos) == row.videos
    assert report.exit_code == (0 if row.status == "ok" else 1)
    statuses = Counter(status for video in report.videos for status in rows_of(tmp_path / "out", video))
    assert statuses == row.frames, lines
    assert statuses == sum((Counter(video.statuses) for video in report.videos), Counter())
    assert row.line in lines[0] if row.line else not lines
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(("kind", "inputs"), [(kind, kind) for kind in NO_INPUTS], indirect=["inputs"], ids=NO_INPUTS)
def test_what_is_no_input_is_refused_before_work(kind: str, inputs: Inputs, tmp_path: Path, run_serially: RunSerially):
    out = Path(inputs[0]).parent if kind == "in-the-output-folder" else tmp_path / "out"
    line = ROWS[kind].line
    assert line
    with pytest.raises((ConfigError, OutputError), match=re.escape(line)):
        run(run_serially, inputs, out)


def test_the_doubts_about_a_file_are_in_its_tables(
    corpus: dict[str, Inputs], tmp_path: Path, run_serially: RunSerially
):
    report = run(run_serially, corpus["truncated-mp4"], tmp_path / "out")
    (video,) = report.videos
    for file in video.files:
        metadata = json.loads(pq.read_schema(tmp_path / "out" / file.path).metadata[b"posejob"])
        assert metadata["video"]["doubts"] == list(video.problems[: len(metadata["video"]["doubts"])])
        assert len(metadata["video"]["doubts"]) == 2


def test_they_are_in_the_plan_that_is_shown(corpus: dict[str, Inputs], tmp_path: Path, colour_network: Path):
    spec = RunSpec(tuple(map(str, corpus["truncated-mkv"])), tmp_path / "out", str(colour_network))
    text = plan_text(prepare(spec, lambda event: None).plan, None)
    assert "\n    damaged: the file ends " in text


class TestAllInOneJob:
    @pytest.fixture(scope="class")
    @classmethod
    def job(
        cls, corpus: dict[str, Inputs], tmp_path_factory: pytest.TempPathFactory, run_serially: RunSerially
    ) -> tuple[JobReport, Path]:
        everything = [text for kind, given in corpus.items() if kind != "in-the-output-folder" for text in given]
        out = tmp_path_factory.mktemp("all") / "out"
        return run(run_serially, everything, out), out

    def test_every_kind_ends_as_it_does_alone(self, job: tuple[JobReport, Path], corpus: dict[str, Inputs]):
        report, _ = job
        assert report.exit_code == 1
        ended: dict[str, list[VideoReport]] = {kind: [] for kind in ROWS}
        for video in report.videos:
            parts = Path(unquote(video.uri.removeprefix("file://"))).parts
            ended[next((kind for kind in ROWS if kind in parts), "device")].append(video)
        for kind in FILES:
            if not corpus[kind] or (kind == "no-permission" and os.geteuid() == 0):
                continue
            assert {video.status for video in ended[kind]} == {ROWS[kind].status}, kind
            counted = sum((Counter(video.statuses) for video in ended[kind]), Counter())
            assert counted == ROWS[kind].frames, kind
        not_used = [line for kind, row in ROWS.items() if row.status == "not used" and (line := row.line)]
        assert [problem for _, problem in report.problems] == not_used

    def test_the_good_ones_come_out_as_alone(
        self, job: tuple[JobReport, Path], corpus: dict[str, Inputs], tmp_path: Path, run_serially: RunSerially
    ):
        report, out = job
        together = {video.video_id: contents(out, video) for video in report.videos}
        good = [text for kind, row in ROWS.items() if row.status == "ok" for text in corpus[kind]]
        alone = run(run_serially, good, tmp_path / "out")
        assert alone.exit_code == 0
        for video in alone.videos:
            assert contents(tmp_path / "out", video) == together[video.video_id], video.uri

    def test_every_frame_of_every_video_has_one_row(self, job: tuple[JobReport, Path]):
        report, out = job
        frames = read_frames(out, to="pandas")
        for video_id, part in frames.groupby("video"):
            assert part["frame"].tolist() == list(range(len(part))), video_id
        assert len(frames) == sum(video.n_frames for video in report.videos)
