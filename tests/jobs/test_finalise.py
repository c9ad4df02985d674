from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import ConfigError, InputLost, OutputError, SinkError
from jobs.executors.base import UnitFailure
from jobs.ledger import MANIFEST, SUCCESS, Ledger
from jobs.sink import chunk_bytes, read_chunk
from jobs.spec import Moment, Selection
from models.errors import ModelDamaged
from posecore import read_frames
from tests.conftest import RunSerially


class Failing:
    """An executor that gives up every unit whose first frame is `first`, with a reason that may change."""

    def __init__(self, executor: Any, first: int, reason: str) -> None:
        self.executor, self.first, self.reason = executor, first, reason

    def run(self, units: Any) -> Iterator[Any]:
        for unit in units:
            if unit.frames.first == self.first:
                yield UnitFailure(unit.key, self.reason)
            else:
                yield from self.executor.run([unit])


@pytest.fixture
def failing(serial: Any) -> Any:
    def make(first: int, reason: str) -> Any:
        @contextmanager
        def start(worker: Any, layout: Any) -> Iterator[Failing]:
            with serial(worker, layout) as executor:
                yield Failing(executor, first, reason)

        return start

    return make


def test_a_chunk_given_up_is_rows_and_the_video_is_degraded(
    walk: Path, tmp_path: Path, run_serially: RunSerially, failing: Any
):
    report = run_serially([walk], tmp_path, chunk_frames=6, start=failing(6, "the worker hung"))
    frames = read_frames(tmp_path, to="pandas")
    assert frames["status"].tolist() == ["ok"] * 6 + ["decode_error"] * 6
    assert frames["time_s"].is_monotonic_increasing
    assert report.exit_code == 1
    assert [video.status for video in report.videos] == ["degraded"]
    assert report.videos[0].problems == ("frame 6 and 5 more: decode_error: the worker hung",)


def test_a_video_without_one_readable_frame_is_failed(
    walk: Path, tmp_path: Path, run_serially: RunSerially, failing: Any
):
    report = run_serially([walk], tmp_path, start=failing(0, "out of memory"))
    assert [video.status for video in report.videos] == ["failed"]
    assert len(read_frames(tmp_path)) == 12


def test_a_job_stopped_after_giving_up_goes_on_to_the_same_end(
    walk: Path, tmp_path: Path, run_serially: RunSerially, failing: Any, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr("jobs.run._Run._publish_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_serially([walk], tmp_path, chunk_frames=6, start=failing(6, "the worker hung"))
    report = run_serially([walk], tmp_path, chunk_frames=6)
    assert [video.status for video in report.videos] == ["degraded"]
    assert (tmp_path / SUCCESS).exists()


def test_a_job_stopped_between_manifest_and_seal_keeps_the_manifest(
    walk: Path, tmp_path: Path, run_serially: RunSerially
):
    run_serially([walk], tmp_path)
    before = (tmp_path / MANIFEST).read_bytes()
    (tmp_path / SUCCESS).unlink()
    # The chunks went with `_SUCCESS` there; without it they are still there.
    run_serially([walk], tmp_path)
    assert (tmp_path / MANIFEST).read_bytes() == before


def test_a_folder_taken_over_by_another_job_is_left_alone(
    walk: Path, tmp_path: Path, run_serially: RunSerially, failing: Any
):
    """Somebody starts another job with --overwrite while this one is at its second chunk."""

    @contextmanager
    def start(worker: Any, layout: Any) -> Iterator[Any]:
        with failing(-1, "")(worker, layout) as executor:
            yield Meddling(executor, tmp_path / "plan.json")

    with pytest.raises(OutputError, match="another job has taken it over; nothing more is written"):
        run_serially([walk], tmp_path, chunk_frames=6, start=start)
    assert not (tmp_path / SUCCESS).exists()


class Meddling:
    def __init__(self, executor: Any, plan: Path) -> None:
        self.executor, self.plan = executor, plan

    def run(self, units: Any) -> Iterator[Any]:
        results = self.executor.run(units)
        yield next(results)
        self.plan.write_text("{}")
        yield from results


def test_the_slower_of_two_equal_runs_reports_what_the_faster_one_did(
    walk: Path, tmp_path: Path, run_serially: RunSerially, serial: Any
):
    """The faster one finishes, and cleans up, while the slower one is at its first chunk."""

    @contextmanager
    def start(worker: Any, layout: Any) -> Iterator[Any]:
        run_serially([walk], tmp_path, chunk_frames=6)
        with serial(worker, layout) as executor:
            yield executor

    report = run_serially([walk], tmp_path, chunk_frames=6, start=start)
    assert report.again
    assert report.exit_code == 0


def test_an_input_that_goes_away_stops_the_job_and_records_nothing_about_it(
    walk: Path, tmp_path: Path, run_serially: RunSerially, serial: Any
):
    video = tmp_path / "video.mp4"
    video.write_bytes(walk.read_bytes())
    kept = tmp_path / "kept.mp4"

    @contextmanager
    def start(worker: Any, layout: Any) -> Iterator[Any]:
        video.rename(kept)
        with serial(worker, layout) as executor:
            yield executor

    with pytest.raises(InputLost, match="no such file or directory"):
        run_serially([video], tmp_path / "out", start=start)
    kept.rename(video)
    assert run_serially([video], tmp_path / "out").exit_code == 0


def test_the_seal_comes_last(walk: Path, tmp_path: Path, run_serially: RunSerially, monkeypatch: pytest.MonkeyPatch):
    """Whoever sees a name sees everything that it vouches for."""
    published: list[str] = []
    link = Ledger._publish

    def note(ledger: Ledger, tmp: Path, name: str) -> bool:
        published.append(name.split("/")[0])
        return link(ledger, tmp, name)

    monkeypatch.setattr(Ledger, "_publish", note)
    run_serially([walk], tmp_path, chunk_frames=6)
    assert published == ["plan.json", "_chunks", "_chunks", "poses", "frames", "manifest.json", "_SUCCESS"]


def test_a_chunk_with_other_frames_than_planned_is_not_published(
    walk: Path, tmp_path: Path, run_serially: RunSerially, stopping: Any
):
    with pytest.raises(KeyboardInterrupt):
        run_serially([walk], tmp_path, chunk_frames=6, start=stopping)
    (key,) = Ledger(tmp_path).committed()
    chunk = tmp_path / "_chunks" / f"{key}.chunk"
    poses, frames = read_chunk(chunk)
    chunk.write_bytes(chunk_bytes(poses, frames.slice(1)))
    with pytest.raises(SinkError, match="holds 5 frames, planned are 0 to 5"):
        run_serially([walk], tmp_path, chunk_frames=6)
    chunk.write_bytes(chunk_bytes(poses.slice(1), frames))
    with pytest.raises(SinkError, match="11 poses, but the frames count 12 people"):
        run_serially([walk], tmp_path, chunk_frames=6)


def test_a_network_changed_since_it_was_found_is_not_run(
    walk: Path, tmp_path: Path, run_serially: RunSerially, colour_network: Path, serial: Any
):
    for suffix in (".xml", ".bin", ".toml"):
        (tmp_path / f"net{suffix}").write_bytes(colour_network.with_suffix(suffix).read_bytes())

    @contextmanager
    def start(worker: Any, layout: Any) -> Iterator[Any]:
        weights = tmp_path / "net.bin"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        with serial(worker, layout) as executor:
            yield executor

    with pytest.raises(ModelDamaged, match=r"net\.bin: SHA-384 is"):
        run_serially([walk], tmp_path / "out", model=str(tmp_path / "net.xml"), start=start)


def test_nothing_selected_is_a_mistake_and_claims_no_folder(walk: Path, tmp_path: Path, run_serially: RunSerially):
    with pytest.raises(ConfigError, match="no frame is selected"):
        run_serially([walk], tmp_path / "out", selection=Selection(start=Moment(100, None)))
    assert not (tmp_path / "out").exists()


def interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


def test_a_chunk_damaged_during_the_run_is_named_and_nothing_is_published(
    walk: Path, tmp_path: Path, run_serially: RunSerially, serial: Any
):
    @contextmanager
    def start(worker: Any, layout: Any) -> Iterator[Any]:
        with serial(worker, layout) as executor:
            yield Damaging(executor, tmp_path / "_chunks")

    with pytest.raises(SinkError, match=r"chunk: damaged on disk while the job ran; run the same command again"):
        run_serially([walk], tmp_path, chunk_frames=6, start=start)
    assert not list((tmp_path / "poses").iterdir())
    assert not list((tmp_path / "_tmp").iterdir())
    assert run_serially([walk], tmp_path, chunk_frames=6).n_inferred == 6


class Damaging:
    def __init__(self, executor: Any, chunks: Path) -> None:
        self.executor, self.chunks = executor, chunks

    def run(self, units: Any) -> Iterator[Any]:
        *results, last = self.executor.run(units)
        for chunk in [*self.chunks.iterdir()][:1]:
            data = bytearray(chunk.read_bytes())
            data[len(data) // 2] ^= 1
            chunk.write_bytes(data)
        yield from [*results, last]
