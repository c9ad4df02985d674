import contextlib
import hashlib
import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import OutputError
from jobs.ledger import MANIFEST, PLAN, SUCCESS, Ledger, seal, sha256
from jobs.run import StartExecutor
from jobs.sink import write_parquet
from jobs.verify import Progress, progress, verify
from posecore.results import FRAMES_SCHEMA
from tests.conftest import RunSerially

FLIPS = 50
CHUNK = 4  # of 12 frames


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, walk: Path, run_serially: RunSerially) -> Path:
    """A job that was done: two videos, one of which could not be opened. Not to be changed."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "empty.mp4").touch()
    run_serially([walk, folder / "empty.mp4"], folder / "out", chunk_frames=CHUNK)
    return folder / "out"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(finished, tmp_path / "out")


@pytest.fixture(scope="module")
def video_id(finished: Path) -> str:
    return next((finished / "poses").iterdir()).stem


PUBLISHED = [PLAN, MANIFEST, SUCCESS, "poses/*.parquet", "frames/*.parquet"]


@pytest.fixture(params=PUBLISHED)
def file(request: pytest.FixtureRequest, out: Path) -> Path:
    """Each of a job's files."""
    (path,) = out.glob(request.param)
    return path


@pytest.fixture(scope="module")
def uri(walk: Path) -> str:
    return walk.as_uri()


def line(out: Path, file: Path, uri: str) -> str:
    """How a problem with a file begins."""
    of = f" (of {uri})" if file.suffix == ".parquet" else ""
    return f"{file.relative_to(out)}{of}: "


def accusations(out: Path) -> list[str]:
    """What is said to be damaged. Beside a damaged manifest there are also files that it no longer proves."""
    return [problem for problem in verify(Ledger(out)) if not problem.endswith("the manifest no longer proves it")]


def test_a_finished_job_is_whole(finished: Path):
    assert {path.name for path in finished.iterdir()} == {PLAN, MANIFEST, SUCCESS, "poses", "frames"}
    assert verify(Ledger(finished)) == []


def test_a_folder_is_whole_wherever_it_was_moved_to(out: Path):
    assert verify(Ledger(out.rename(out.with_name("elsewhere")))) == []


def test_every_file_of_the_job_is_under_test(finished: Path):
    files = {path for path in finished.rglob("*") if path.is_file()}
    assert files == {path for pattern in PUBLISHED for path in finished.glob(pattern)}


# Damage


def test_a_flipped_bit_is_found_in_whatever_file_it_is(out: Path, file: Path, uri: str):
    whole = file.read_bytes()
    rng = random.Random(file.suffix)
    unnoticed = []
    for at in [0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(FLIPS))]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        problems = accusations(out)
        if len(problems) != 1 or not problems[0].startswith(line(out, file, uri)):
            unnoticed.append((at, problems))
    assert unnoticed == []


def test_every_byte_of_the_seal_counts(out: Path):
    whole = (out / SUCCESS).read_bytes()
    found = set()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        (out / SUCCESS).write_bytes(damaged)
        found.add(tuple(verify(Ledger(out))))
    assert found == {(f"{SUCCESS}: changed since the job was done",)}


def test_a_damaged_seal_does_not_hide_a_damaged_table(out: Path, video_id: str, uri: str):
    for name in (SUCCESS, f"poses/{video_id}.parquet"):
        data = bytearray((out / name).read_bytes())
        data[30] ^= 1
        (out / name).write_bytes(data)
    assert verify(Ledger(out)) == [
        f"{SUCCESS}: changed since the job was done",
        f"poses/{video_id}.parquet (of {uri}): content changed since the job was done",
    ]


@pytest.mark.parametrize("seal", [b"", b"yes\n"])
def test_a_seal_that_seals_nothing(out: Path, seal: bytes):
    (out / SUCCESS).write_bytes(seal)
    assert verify(Ledger(out)) == [f"{MANIFEST} or {SUCCESS}: changed since the job was done"]


@pytest.mark.parametrize("keep", [0.0, 0.5, -1])
def test_a_truncated_file_is_found(out: Path, file: Path, uri: str, keep: float):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if keep >= 0 else -1])
    (problem,) = accusations(out)
    # Half a seal proves nothing.
    assert problem.removeprefix(f"{MANIFEST} or ").startswith(line(out, file, uri))


def test_bytes_too_many_are_found(out: Path, file: Path, uri: str):
    file.write_bytes(file.read_bytes() + b"\n")
    (problem,) = accusations(out)
    assert problem.startswith(line(out, file, uri))


@pytest.mark.parametrize("pattern", [pattern for pattern in PUBLISHED if pattern != SUCCESS])
def test_a_missing_file_is_found(out: Path, pattern: str, uri: str):
    (file,) = out.glob(pattern)
    file.unlink()
    assert verify(Ledger(out)) == [line(out, file, uri) + "missing"]


def test_tables_missing_beside_a_manifest_that_is_missing_too(out: Path, video_id: str, uri: str):
    (out / MANIFEST).unlink()
    (out / "poses" / f"{video_id}.parquet").unlink()
    assert verify(Ledger(out)) == [f"{MANIFEST}: missing", f"poses/{video_id}.parquet (of {uri}): missing"]


def test_a_folder_in_place_of_a_file(out: Path, video_id: str, uri: str):
    path = out / "poses" / f"{video_id}.parquet"
    path.unlink()
    path.mkdir()
    (problem,) = verify(Ledger(out))
    assert problem.startswith(f"poses/{video_id}.parquet (of {uri}): ")


def test_every_damaged_file_has_its_line(out: Path, video_id: str, uri: str):
    (out / "poses" / f"{video_id}.parquet").unlink()
    (out / "frames" / f"{video_id}.parquet").write_bytes(b"")
    size = (out / PLAN).stat().st_size
    (out / PLAN).write_bytes(b"{}")
    problems = verify(Ledger(out))
    assert problems[0] == f"{PLAN}: 2 bytes, the manifest says {size}"
    assert problems[1] == f"poses/{video_id}.parquet (of {uri}): missing"
    frames = re.escape(f"frames/{video_id}.parquet (of {uri})")
    assert re.fullmatch(rf"{frames}: 0 bytes, the manifest says \d+", problems[2])


@pytest.mark.parametrize("kind", ["poses", "frames"])
def test_a_table_that_is_not_of_the_job_is_found(out: Path, kind: str):
    (out / kind / "other-0123456789ab.parquet").touch()
    assert verify(Ledger(out)) == [f"{kind}/other-0123456789ab.parquet: not part of this job"]


def test_what_is_the_users_is_no_problem(out: Path):
    (out / "notes.txt").touch()
    (out / "poses" / "notes.txt").touch()
    assert verify(Ledger(out)) == []


# Forgery: what the digests cannot tell, because the manifest was made to fit


def reseal(out: Path, change: dict[str, Any]) -> None:
    """Let the manifest say something else, and seal it again."""
    manifest = json.loads((out / MANIFEST).read_text()) | change
    text = json.dumps(manifest).encode()
    (out / MANIFEST).write_bytes(text)
    (out / SUCCESS).write_bytes(seal(text))


def test_rows_other_than_the_manifest_says(out: Path, video_id: str, uri: str):
    path = out / "frames" / f"{video_id}.parquet"
    write_parquet(path, [FRAMES_SCHEMA.empty_table()], FRAMES_SCHEMA, {})
    files = json.loads((out / MANIFEST).read_text())["files"]
    for file in files:
        if file["path"] == f"frames/{video_id}.parquet":
            file |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
    reseal(out, {"files": files})
    assert verify(Ledger(out)) == [f"frames/{video_id}.parquet (of {uri}): 0 rows, the manifest says 12"]
    for file in files:
        if file["path"] == f"frames/{video_id}.parquet":
            file |= {"rows": 0}
    reseal(out, {"files": files})
    assert verify(Ledger(out)) == [f"frames/{video_id}.parquet (of {uri}): 0 rows, the plan says 12"]


def test_a_planned_video_that_the_manifest_does_not_know(out: Path, video_id: str):
    videos = json.loads((out / MANIFEST).read_text())["videos"]
    reseal(out, {"videos": [video for video in videos if video["video_id"] != video_id]})
    assert verify(Ledger(out)) == [f"{video_id}: planned, but not in the manifest"]


# A stranger's folder: nothing outside it is read, and nothing it says commands the terminal


@pytest.fixture
def touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files outside the output folder that Python opens, looks at or removes."""
    names: list[str] = []
    inside = str(tmp_path / "out")

    def watch(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def watched(path: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(path, (str, os.PathLike)) and not os.path.abspath(path).startswith(inside):
                names.append(os.fspath(path))
            return call(path, *args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    for name in ("open", "stat", "lstat", "unlink", "rename", "scandir", "listdir"):
        watch(os, name)
    return names


OUTSIDE = ["../canary", "/etc/passwd", "poses/../../canary", "frames/a/../../../canary", "poses/\0.parquet", "",
           "../" * 2000 + "etc/passwd", "poses/walk-0123456789ab.parquet/../x", "_chunks/x.chunk", "poses/x.parquet",
           "x" * 100_000, "poses/\x1b[31mred-0123456789ab.parquet"]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE, ids=range(len(OUTSIDE)))
def test_a_manifest_that_names_other_files(out: Path, touched: list[str], path: str):
    (out.parent / "canary").write_text("secret")
    file = {"path": path, "bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest(), "rows": None}
    files = json.loads((out / MANIFEST).read_text())["files"]
    reseal(out, {"files": [*files, file]})
    (line,) = verify(Ledger(out))
    assert line.startswith(f"{MANIFEST}: not written by posejob (")
    assert line.isprintable()
    assert len(line) < 300
    assert touched == []


HOSTILE: list[Any] = [None, 7, -1.5, "\x1b[31m", [], {}, [[]], [None], {"a": "b"}, [{"path": []}], True, "x" * 100_000]


@pytest.mark.parametrize("part", ["files", "videos", "options", "model"])
@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_a_manifest_of_other_things_than_a_manifests(out: Path, part: str, value: Any):
    reseal(out, {part: value})
    lines = verify(Ledger(out))
    assert lines
    assert all(line.isprintable() and len(line) < 1000 for line in lines)


@pytest.mark.parametrize("part", ["video_id", "uri", "status", "frames", "people", "frame_status", "problems"])
@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_a_manifest_with_a_video_that_is_none(out: Path, part: str, value: Any):
    videos = json.loads((out / MANIFEST).read_text())["videos"]
    videos[0][part] = value
    reseal(out, {"videos": videos})
    assert all(line.isprintable() and len(line) < 1000 for line in verify(Ledger(out)))
    with contextlib.suppress(OutputError):
        progress(Ledger(out))


@pytest.mark.parametrize("text", ["[" * 500_000, '{"files": ' * 200_000, "9" * 500_000, '"\\ud800"', "\0"])
@pytest.mark.parametrize("name", [MANIFEST, PLAN])
def test_a_text_made_to_break_the_parser(out: Path, name: str, text: str):
    (out / name).write_text(text)
    if name == MANIFEST:
        (out / SUCCESS).write_bytes(seal(text.encode()))
    else:
        files = json.loads((out / MANIFEST).read_text())["files"]
        files[0] |= {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        reseal(out, {"files": files})
    (line,) = verify(Ledger(out))
    assert re.fullmatch(rf"{name}: not written by posejob( \(.*\))?", line)
    assert line.isprintable()
    with pytest.raises(OutputError, match=r"its plan\.json or manifest\.json is damaged$"):
        progress(Ledger(out))


def test_a_name_on_disk_that_would_command_the_terminal(out: Path):
    (out / "poses" / "\x1b[2Jx.parquet").touch()
    assert verify(Ledger(out)) == [r"poses/\x1b[2Jx.parquet: not part of this job"]


@pytest.mark.parametrize("look", [verify, progress])
@pytest.mark.parametrize("name", [PLAN, MANIFEST, SUCCESS, "poses", "frames", "poses/*.parquet"])
def test_links_are_refused(out: Path, look: Any, name: str):
    (file,) = out.glob(name)
    file.rename(out.parent / "elsewhere")
    file.symlink_to(out.parent / "elsewhere")
    with pytest.raises(OutputError, match=r"is a symbolic link, which posejob does not follow; remove the link$"):
        look(Ledger(out))


# Nothing to verify


def test_a_job_that_is_not_done(out: Path):
    (out / SUCCESS).unlink()
    with pytest.raises(OutputError) as caught:
        verify(Ledger(out))
    assert str(caught.value) == f"output folder {out}: its job is not done; run the same `posejob submit` again"


@pytest.mark.parametrize("look", [verify, progress])
def test_a_folder_without_a_job(tmp_path: Path, look: Any):
    for out in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(OutputError) as caught:
            look(Ledger(out))
        assert str(caught.value) == f"output folder {out}: no posejob job in it"


@pytest.mark.parametrize("look", [verify, progress])
def test_a_file_in_place_of_a_folder(tmp_path: Path, look: Any):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file: is a file, not a folder$"):
        look(Ledger(tmp_path / "file"))


# How far?


def test_progress_before_during_and_after(
    tmp_path: Path, walk: Path, run_serially: RunSerially, stopping: StartExecutor
):
    out = tmp_path / "out"
    seen: list[Progress] = []

    def watch(event: Any) -> None:
        seen.append(progress(Ledger(out)))

    with pytest.raises(KeyboardInterrupt):
        run_serially([walk], out, watch, stopping, chunk_frames=CHUNK)
    run_serially([walk], out, watch, chunk_frames=CHUNK)
    seen.append(progress(Ledger(out)))

    ((video_id, *_),) = seen[0].videos
    chunks = [state.chunks for state in seen]
    assert chunks == [(0, 3), (1, 3), (1, 3), (2, 3), (3, 3), (3, 3), (3, 3)]
    assert seen[1] == Progress(done=False, videos=((video_id, 1, 3, 12),), statuses={})
    assert [state.done for state in seen] == [False] * 6 + [True]
    assert seen[-1] == Progress(done=True, videos=((video_id, 3, 3, 12),), statuses={"ok": 1})


def test_progress_of_a_finished_job(finished: Path, video_id: str):
    state = progress(Ledger(finished))
    assert state.done
    assert state.statuses == {"ok": 1, "failed": 1}
    assert state.chunks == (3, 3)
    assert sorted(video[1:] for video in state.videos) == [(0, 0, 0), (3, 3, 12)]


@pytest.mark.parametrize("name", [PLAN, MANIFEST])
@pytest.mark.parametrize("text", ["{", "[]", "7", "null", '{"videos": [7]}'])
def test_progress_of_a_damaged_folder(out: Path, name: str, text: str):
    (out / name).write_text(text)
    with pytest.raises(OutputError) as caught:
        progress(Ledger(out))
    assert str(caught.value) == f"output folder {out}: its plan.json or manifest.json is damaged"
