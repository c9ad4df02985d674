"""What a run makes of what it finds in the folder: the same job, another job, damage, a stranger's folder."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from jobs.errors import OutputError, SinkError
from jobs.events import Event, Note
from jobs.ledger import MANIFEST, PLAN, SUCCESS, Ledger, seal
from jobs.repair import look
from jobs.run import StartExecutor
from jobs.spec import Moment, Selection
from jobs.verify import verify
from tests.conftest import RunSerially


def tables(out: Path) -> dict[str, bytes]:
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in out.glob("*/*.parquet")}


class Notes(list[str]):
    """An observer that keeps the notes."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            self.append(event.text)


# Another job?


@dataclass
class Job:
    """inputs: a.mp4, shots/ with three pictures, net.xml."""

    folder: Path
    out: Path
    run: RunSerially

    def submit(self, *more: str, drop: str = "", **spec: Any) -> Any:
        inputs = [self.folder / name for name in ("a.mp4", "shots", *more) if name != drop]
        return self.run(inputs, self.out, **{"chunk_frames": 4, "model": str(self.folder / "net.xml")} | spec)


@pytest.fixture(scope="module", params=["finished", "unfinished"])
def job(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    walk: Path,
    colour_network: Path,
    run_serially: RunSerially,
    stopping: StartExecutor,
) -> Job:
    """A job that is done, or was stopped. Tests leave inputs and results as they were."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "a.mp4").write_bytes(walk.read_bytes())
    (folder / "b.mp4").write_bytes(walk.read_bytes())
    (folder / "shots").mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / "shots" / f"{i}.png"), np.full((48, 64, 3), 50 * i, np.uint8))
    for suffix in (".xml", ".bin", ".toml"):
        (folder / f"net{suffix}").write_bytes(colour_network.with_suffix(suffix).read_bytes())
    made = Job(folder, folder / "out", run_serially)
    if request.param == "finished":
        made.submit()
    else:
        with pytest.raises(KeyboardInterrupt):
            made.submit(start=stopping)
    return made


Change = Callable[[Path], AbstractContextManager[Any]]


def rewritten(name: str, change: Callable[[bytes], bytes] | None) -> Change:
    """Another file under a name that was there, or was not; and back again."""

    @contextmanager
    def during(folder: Path) -> Iterator[None]:
        path = folder / name
        before = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        if change is not None:
            path.write_bytes(change(before or b""))
        yield
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)

    return during


def touched(name: str) -> Change:
    @contextmanager
    def during(folder: Path) -> Iterator[None]:
        os.utime(folder / name)
        yield

    return during


def other_pixel(data: bytes) -> bytes:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    image[0, 0] ^= 1
    return bytes(cv2.imencode(".png", image)[1])


def other_byte(data: bytes) -> bytes:
    at = data.index(b"mdat") + 3000
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def upside_down(data: bytes) -> bytes:
    """The same packets; the track's matrix turns the picture by 180 degrees."""
    at = data.index(b"tkhd") + 44
    turned = np.array([-1, 0, 0, 0, -1]) * 0x10000
    return data[:at] + turned.astype(">i4").tobytes() + data[at + 20 :]


def same(folder: Path) -> AbstractContextManager[None]:
    return nullcontext()


CHANGES: dict[str, tuple[Change, dict[str, Any], str]] = {
    "a byte of a video": (rewritten("a.mp4", other_byte), {}, "/a.mp4 has changed"),
    "a video's rotation": (rewritten("a.mp4", upside_down), {}, "/a.mp4 has changed"),
    "a video that is none now": (rewritten("a.mp4", lambda data: b""), {}, "/a.mp4 has changed"),
    "a pixel of a picture": (rewritten("shots/1.png", other_pixel), {}, "/shots has changed"),
    "a picture more": (rewritten("shots/9.png", lambda data: b"?"), {}, "/shots has changed"),
    "a picture less": (rewritten("shots/2.png", None), {}, "/shots has changed"),
    "a video more": (same, {"more": ["b.mp4"]}, "/b.mp4 is new among the inputs"),
    "a video less": (same, {"drop": "a.mp4"}, "/a.mp4 is no longer among the inputs"),
    "a network": (rewritten("net.bin", lambda data: data + b"?"), {}, "net.xml with other content"),
    "a network's call": (
        rewritten("net.toml", lambda d: d.replace(b"[0, 0, 0]", b"[1, 0, 0]", 1)),
        {},
        "other content",
    ),
    "height": (same, {"height": 128}, "--height was 256, is 128"),
    "every": (same, {"selection": Selection(every=2)}, "--every was 1, is 2"),
    "from": (same, {"selection": Selection(start=Moment(1, None))}, "--from was not given, is 1"),
    "to": (same, {"selection": Selection(stop=Moment(None, 0.3))}, "--to was not given, is 0.3s"),
    "max-people": (same, {"max_people": 2}, "--max-people was not given, is 2"),
    "min-score": (same, {"min_score": 0.5}, "--min-score was 0.0, is 0.5"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_job_is_refused_and_says_what_differs(job: Job, name: str):
    change, spec, difference = CHANGES[name]
    before = {path: path.read_bytes() for path in job.out.rglob("*") if path.is_file()}
    with change(job.folder), pytest.raises(OutputError) as caught:
        job.submit(*spec.get("more", []), **{key: value for key, value in spec.items() if key != "more"})
    assert "holds another job: " in str(caught.value)
    assert difference in str(caught.value)
    assert str(caught.value).endswith("; use another folder, or --overwrite to start afresh")
    assert {path: path.read_bytes() for path in job.out.rglob("*") if path.is_file()} == before


# Last of those that use `job`, because it ends it.
def test_the_same_content_is_the_same_job(job: Job):
    rewrite = [rewritten(name, lambda data: data) for name in ("a.mp4", "shots/0.png", "net.bin", "net.toml")]
    for change in [touched("a.mp4"), touched("shots/1.png"), touched("net.xml"), *rewrite]:
        with change(job.folder):
            report = job.submit(workers=1, device="cpu")
        assert report.exit_code == 0
        assert report.totals()["frames"] == 15
        assert report.again == (report.n_inferred == 0)
    assert verify(Ledger(job.out)) == []


# Damage in a job that is not done


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


CHUNK_DAMAGES = [flip, link, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(path.read_bytes()[:-1])]


@pytest.mark.parametrize("damage", CHUNK_DAMAGES, ids=["flipped", "link", "empty", "truncated"])
def test_a_chunk_damaged_between_two_runs_is_computed_again(
    walk: Path, tmp_path: Path, run_serially: RunSerially, stopping: StartExecutor, damage: Callable[[Path], None]
):
    run_serially([walk], tmp_path / "whole", chunk_frames=6)
    out, notes = tmp_path / "out", Notes()
    with pytest.raises(KeyboardInterrupt):
        run_serially([walk], out, start=stopping, chunk_frames=6)
    (key,) = Ledger(out).committed()
    damage(out / "_chunks" / f"{key}.chunk")
    assert run_serially([walk], out, notes, chunk_frames=6).n_inferred == 12
    assert notes == [f"repairing _chunks/{key}.chunk (of {walk.as_uri()}): damaged, computed again"]
    assert tables(out) == tables(tmp_path / "whole")


def test_a_table_damaged_before_the_job_was_done_is_made_again(
    walk: Path, tmp_path: Path, run_serially: RunSerially, monkeypatch: pytest.MonkeyPatch
):
    run_serially([walk], tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("jobs.run._Run._publish_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_serially([walk], out)
    (table,) = (out / "poses").iterdir()
    flip(table)
    assert run_serially([walk], out).n_inferred == 0
    assert tables(out) == tables(tmp_path / "whole")
    assert verify(Ledger(out)) == []


def test_a_damaged_manifest_of_a_job_stopped_before_the_seal_is_not_sealed(
    walk: Path, tmp_path: Path, run_serially: RunSerially
):
    run_serially([walk], tmp_path)
    (tmp_path / SUCCESS).unlink()
    text = (tmp_path / MANIFEST).read_bytes()
    (tmp_path / MANIFEST).write_bytes(text.replace(b'"status": "ok"', b'"status": "oj"'))
    assert [video.status for video in run_serially([walk], tmp_path).videos] == ["ok"]
    assert b'"oj"' not in (tmp_path / MANIFEST).read_bytes()
    assert verify(Ledger(tmp_path)) == []


def interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


def test_a_working_folder_that_cannot_be_removed_is_no_failure(
    walk: Path, tmp_path: Path, run_serially: RunSerially, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*args: Any) -> None:
        raise PermissionError(13, os.strerror(13))

    notes = Notes()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "clean", refuse)
        assert run_serially([walk], tmp_path, notes).exit_code == 0
    assert notes == ["_chunks and _tmp are no longer needed and cannot be removed (permission denied)"]
    assert run_serially([walk], tmp_path).again
    assert {path.name for path in tmp_path.iterdir()} == {PLAN, MANIFEST, SUCCESS, "poses", "frames"}


# A stranger's folder


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", [PLAN, MANIFEST, SUCCESS, "poses", "frames", "_chunks", "_tmp", "poses/*.parquet"])
def test_a_link_in_the_folder_stops_everything(
    walk: Path, tmp_path: Path, run_serially: RunSerially, name: str, overwrite: bool
):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    run_serially([walk], out)
    (out / "_chunks").mkdir()
    (out / "_tmp").mkdir()
    (file,) = out.glob(name)
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    before = [*elsewhere.rglob("*")]
    with pytest.raises(OutputError, match=r"is a symbolic link, which posejob does not follow; remove the link$"):
        run_serially([walk], out, overwrite=overwrite)
    assert [*elsewhere.rglob("*")] == before
    assert file.is_symlink()


def test_the_folder_itself_may_be_a_link(walk: Path, tmp_path: Path, run_serially: RunSerially):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    run_serially([walk], tmp_path / "link")
    assert run_serially([walk], tmp_path / "link").again
    assert run_serially([walk], tmp_path / "link", overwrite=True).n_inferred == 12
    assert verify(Ledger(tmp_path / "real")) == []


def test_a_manifest_that_lists_other_files_is_not_believed(walk: Path, tmp_path: Path, run_serially: RunSerially):
    """Nothing of it is read or removed, and the job is mended."""
    out = tmp_path / "out"
    run_serially([walk], out)
    whole = tables(out)
    (canary := tmp_path / "canary.parquet").write_bytes(b"mine")
    manifest = json.loads((out / MANIFEST).read_text())
    for file in manifest["files"][1:]:
        file |= {"path": f"poses/../../{canary.name}", "bytes": 4, "sha256": "0" * 64}
    text = json.dumps(manifest).encode()
    (out / MANIFEST).write_bytes(text)
    (out / SUCCESS).write_bytes(seal(text))
    assert run_serially([walk], out).n_inferred == 12
    assert tables(out) == whole
    assert verify(Ledger(out)) == []
    assert canary.read_bytes() == b"mine"


@pytest.mark.parametrize("text", ["[" * 200_000, '{"format": ' * 100_000, "\0", '{"videos": [{"video_id": "../x"}]}'])
def test_a_plan_made_to_break_the_parser_is_refused(walk: Path, tmp_path: Path, run_serially: RunSerially, text: str):
    (tmp_path / PLAN).write_text(text)
    with pytest.raises(OutputError, match=r"its plan\.json is damaged; use another folder, or --overwrite"):
        run_serially([walk], tmp_path)
    assert run_serially([walk], tmp_path, overwrite=True).exit_code == 0


def test_a_folder_in_place_of_a_table_is_told(walk: Path, tmp_path: Path, run_serially: RunSerially):
    run_serially([walk], tmp_path)
    (table,) = (tmp_path / "poses").iterdir()
    table.unlink()
    table.mkdir()
    with pytest.raises(SinkError, match=r"poses/.*\.parquet: cannot be stored \(is a directory\)$"):
        run_serially([walk], tmp_path)
    table.rmdir()
    assert run_serially([walk], tmp_path).exit_code == 0
    assert verify(Ledger(tmp_path)) == []


# Other runs of the same command


def during_a_look(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """`act` happens when the next run has looked at the folder, before it does anything about it."""

    def slow(*args: Any) -> Any:
        monkeypatch.setattr("jobs.run.look", look)
        found = look(*args)
        act()
        return found

    monkeypatch.setattr("jobs.run.look", slow)


def test_nothing_is_computed_again_when_another_run_ends_the_job_meanwhile(
    walk: Path, tmp_path: Path, run_serially: RunSerially, stopping: StartExecutor, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(KeyboardInterrupt):
        run_serially([walk], tmp_path, start=stopping, chunk_frames=4)
    during_a_look(monkeypatch, lambda: run_serially([walk], tmp_path, chunk_frames=4))
    assert run_serially([walk], tmp_path, chunk_frames=4).again


def test_who_finds_a_job_done_takes_nothing_away_from_one_that_was_begun_afresh(
    walk: Path, tmp_path: Path, run_serially: RunSerially, stopping: StartExecutor, monkeypatch: pytest.MonkeyPatch
):
    def begin_afresh() -> None:
        with pytest.raises(KeyboardInterrupt):
            run_serially([walk], tmp_path, start=stopping, chunk_frames=4, overwrite=True)

    run_serially([walk], tmp_path, chunk_frames=4)
    during_a_look(monkeypatch, begin_afresh)
    assert run_serially([walk], tmp_path, chunk_frames=4).again
    assert len(Ledger(tmp_path).committed()) == 1


@pytest.mark.parametrize("name", ['"nale": "x"', '"name": ["x"]', '"name": "iuman-pose"'])
def test_a_plan_with_another_name_than_was_written_is_refused(
    walk: Path, tmp_path: Path, run_serially: RunSerially, stopping: StartExecutor, name: str
):
    with pytest.raises(KeyboardInterrupt):
        run_serially([walk], tmp_path, start=stopping, chunk_frames=4)
    text = (tmp_path / PLAN).read_text()
    (tmp_path / PLAN).write_text(re.sub('"name": "[^"]*"', name, text, count=1))
    with pytest.raises(OutputError, match=r"its plan\.json is damaged"):
        run_serially([walk], tmp_path, chunk_frames=4)
