"""Storage that runs full, is read-only, has no hard links, spans mounts: on real file systems where they can be had."""

import datetime
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs import run as run_module
from jobs.errors import SinkError
from jobs.ledger import MANIFEST, SUCCESS, Ledger
from jobs.run import StartExecutor
from jobs.verify import verify
from tests.conftest import RunSerially

ROOT = Path(__file__).parents[2]
KEPT = "posejob: what is done is kept; run the same command again when this is mended"


def can_mount() -> bool:
    """Whether a user can have mounts of their own here: a user namespace."""
    if shutil.which("unshare") is None:
        return False
    try_it = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(try_it, capture_output=True, check=False).returncode == 0


mounts = pytest.mark.skipif(not can_mount(), reason="no mounts without root here (unshare -rm)")

# Runs steps with mounts of its own, in one process because it takes longer to start than a job: `["sh", script]`, or
# `["posejob", stem, argument...]` with the disk at /mnt filled to the last byte before `stem` is written.
DRIVER = """
import json, os, subprocess, sys
from contextlib import contextmanager
from typer.testing import CliRunner
from jobs import cli
from jobs.executors.serial import SerialExecutor
from jobs.ledger import Ledger

@contextmanager
def start(worker, layout):
    yield SerialExecutor(worker)

@contextmanager
def filling(ledger, stem):
    if fill_before and fill_before in stem and not os.path.exists("/mnt/ballast"):
        with open("/mnt/ballast", "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
    with temporary(ledger, stem) as tmp:
        yield tmp

cli._start_ray, temporary, Ledger._temporary = start, Ledger._temporary, filling
ended = []
for kind, *rest in json.load(sys.stdin):
    if kind == "sh":
        done = subprocess.run(rest, shell=True, capture_output=True, text=True)
        ended.append([done.returncode, done.stdout, done.stderr])
    else:
        fill_before, *arguments = rest
        result = CliRunner().invoke(cli.app, arguments)
        ended.append([result.exit_code, result.stdout, result.stderr])
json.dump(ended, sys.stdout)
"""
Ended = tuple[int, str, str]


def in_a_namespace(steps: list[list[str]]) -> list[Ended]:
    """(exit code, stdout, stderr) of each step."""
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", DRIVER],
        input=json.dumps(steps),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=170,
    )
    return [(code, out, err) for code, out, err in json.loads(done.stdout)]


def snapshot(out: Path) -> dict[str, bytes]:
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in out.glob("*/*.parquet")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, walk: Path, run_serially: RunSerially) -> dict[str, bytes]:
    """The tables as they ought to be."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run_serially([walk], out, chunk_frames=4)
    return snapshot(out)


# Full


@mounts
def test_a_full_disk_and_then_more_room(walk: Path, colour_network: Path, tmp_path: Path, whole: dict[str, bytes]):
    """Filled to the last byte just before a chunk is committed, before a table, the manifest and the seal are."""
    submit = ["submit", str(walk), "--model", str(colour_network), "--out", "/mnt/out", "--chunk-frames", "4"]
    steps, n_left = [], {".chunk": 12, "walk-": 0, MANIFEST: 0, SUCCESS: 0}
    for stem in n_left:
        steps += [
            ["sh", "mount -t tmpfs -o size=1m none /mnt"],
            ["posejob", stem, *submit],
            ["sh", "find /mnt/out -type f; rm /mnt/ballast"],
            ["posejob", "", *submit, "--json"],
            ["sh", f"cp -r /mnt/out '{tmp_path}/out{stem}'"],
        ]
    ended = in_a_namespace(steps)
    for i, (stem, n_inferred) in enumerate(n_left.items()):
        _, (code, _, said), (_, listed, _), (again, summary, _), _ = ended[5 * i : 5 * i + 5]
        problem, advice = said.splitlines()[-2:]
        assert code == 2
        assert problem.startswith("posejob: /mnt/out/")
        assert problem.endswith("cannot be stored (no space left on device)")
        assert advice == KEPT
        assert SUCCESS not in listed
        assert "_tmp/" not in listed
        assert again == 0
        assert json.loads(summary)["frames_inferred"] == n_inferred
        assert snapshot(tmp_path / f"out{stem}") == whole
        assert verify(Ledger(tmp_path / f"out{stem}")) == []


@mounts
@pytest.mark.ray
def test_a_full_disk_under_the_real_command(walk: Path, colour_network: Path, tmp_path: Path, whole: dict[str, bytes]):
    """Its Ray and all: room for the chunks, none for the tables."""
    command = f"{Path(sys.executable).with_name('posejob')} submit {walk} --model {colour_network} --chunk-frames 4"
    _, (code, _, said), _, (again, summary, _), _ = in_a_namespace(
        [
            ["sh", "mount -t tmpfs -o size=40k none /mnt"],
            ["sh", f"{command} --out /mnt/out"],
            ["sh", "mount -o remount,size=1m /mnt"],
            ["sh", f"{command} --out /mnt/out --json"],
            ["sh", f"cp -r /mnt/out {tmp_path}"],
        ]
    )
    problem, advice = [line for line in said.splitlines() if line.startswith("posejob: ")]
    assert code == 2
    assert problem.startswith("posejob: /mnt/out/")
    assert problem.endswith("cannot be stored (no space left on device)")
    assert advice == KEPT
    assert "Traceback" not in said
    assert again == 0
    assert json.loads(summary)["frames_inferred"] < 12
    assert snapshot(tmp_path / "out") == whole


@pytest.mark.parametrize(("call", "code"), [("link", errno.EDQUOT), ("link", errno.EIO), ("fsync", errno.ENOSPC)])
def test_storage_that_fails_at_every_step_in_turn(
    walk: Path, tmp_path: Path, run_serially: RunSerially, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch,
    code: int, call: str
):  # fmt: skip
    """Quota, a file too large, a broken disk: one step further at each attempt, and what is done stays done."""
    real, out, left = getattr(os, call), tmp_path / "out", 0

    def failing(*args: Any) -> Any:
        nonlocal left
        left -= 1
        # From here on, as a full disk does; the probes of a folder come first and are not meant.
        if left < 0 and "_probe" not in str(args[-1]):
            raise OSError(code, os.strerror(code))
        return real(*args)

    def attempt() -> str | None:
        try:
            run_serially([walk], out, chunk_frames=4)
        except SinkError as error:
            return str(error)
        return None

    monkeypatch.setattr(os, call, failing)
    refusals, step = [], 4
    left = step
    while (said := attempt()) is not None:
        refusals.append(said)
        assert not (out / SUCCESS).exists()
        assert all(data == whole[name] for name, data in snapshot(out).items())
        left = step * (len(refusals) + 1)
    assert len(refusals) > 1
    assert all(said.startswith(str(out)) for said in refusals)
    assert all(said.endswith(f"cannot be stored ({os.strerror(code).lower()})") for said in refusals)
    assert snapshot(out) == whole
    assert verify(Ledger(out)) == []


def test_files_that_may_not_grow(walk: Path, tmp_path: Path, run_serially: RunSerially, whole: dict[str, bytes]):
    """A limit on the size of files stands in for a small disk where nothing can be mounted."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
    try:
        with pytest.raises(SinkError, match=r"cannot be stored \(file too large\)$"):
            run_serially([walk], tmp_path / "out", chunk_frames=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert snapshot(tmp_path / "out") == {}
    assert run_serially([walk], tmp_path / "out", chunk_frames=4).exit_code == 0
    assert snapshot(tmp_path / "out") == whole


# Other kinds of file systems


@mounts
def test_places_where_nothing_can_be_published(walk: Path, colour_network: Path):
    """Each is refused before any work."""
    mounts = """
        mount -t tmpfs none /mnt && mkdir -p /mnt/own/poses /mnt/bind/poses /mnt/other /mnt/ro &&
        mount -t tmpfs none /mnt/own/poses && mount --bind /mnt/other /mnt/bind/poses &&
        mount -t tmpfs -o ro none /mnt/ro
    """
    submit = ["submit", str(walk), "--model", str(colour_network), "--out"]
    places = ["own", "bind", "ro", "ro/deep/below"]
    (mounted, *_), *ended = in_a_namespace(
        [["sh", mounts], *(["posejob", "", *submit, f"/mnt/{place}"] for place in places)]
    )
    mount = "poses is a mount of its own, and results are put there by a hard link; unmount it or choose another folder"
    read_only = "cannot write there (read-only file system); choose a folder you can write to"
    assert mounted == 0
    assert ended == [
        (2, "", f"posejob: output folder /mnt/{place}: {problem}\n")
        for place, problem in zip(places, [mount, mount, read_only, read_only], strict=True)
    ]


@mounts
def test_input_and_output_apart_and_results_that_became_read_only(
    walk: Path, colour_network: Path, tmp_path: Path, whole: dict[str, bytes]
):
    folder = walk.parent
    mounts = f"""
        mount -t tmpfs none /mnt && cp {walk} /mnt && mount --bind /mnt {folder} &&
        mount -o remount,ro,bind {folder} && mount -t tmpfs none /mnt
    """
    submit = ["submit", str(walk), "--model", str(colour_network), "--out", "/mnt/out", "--chunk-frames", "4"]
    (mounted, *_), first, _, again, verified, _ = in_a_namespace(
        [
            ["sh", mounts],
            ["posejob", "", *submit],
            ["sh", "mount -o remount,ro /mnt"],
            ["posejob", "", *submit],
            ["posejob", "", "verify", "/mnt/out"],
            ["sh", f"cp -r /mnt/out {tmp_path}"],
        ]
    )
    assert (mounted, first[0]) == (0, 0)
    assert again[0] == 0
    assert "all of it done by an earlier run, nothing to do" in again[1]
    assert verified == (0, "/mnt/out: whole\n", "")
    assert snapshot(tmp_path / "out") == whole


# The clock


def test_nothing_depends_on_the_clock(
    walk: Path, tmp_path: Path, run_serially: RunSerially, stopping: StartExecutor, monkeypatch: pytest.MonkeyPatch
):
    """It falls by a day at each look, and the files are of tomorrow."""
    now = [time.time()]

    class Falling(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Falling":
            now[0] -= 86_400
            return cls.fromtimestamp(now[0], tz)

    video, out = tmp_path / walk.name, tmp_path / "out"
    video.write_bytes(walk.read_bytes())
    run_serially([video], tmp_path / "expected")
    expected = snapshot(tmp_path / "expected")
    monkeypatch.setattr(run_module, "datetime", Falling)
    monkeypatch.setattr(time, "time", lambda: Falling.now().timestamp())
    os.utime(video, (4e9, 4e9))
    with pytest.raises(KeyboardInterrupt):
        run_serially([video], out, start=stopping, chunk_frames=4)
    for path in out.rglob("*"):
        os.utime(path, (4e9, 4e9))
    assert run_serially([video], out, chunk_frames=4).n_inferred == 8
    assert run_serially([video], out).again
    assert snapshot(out) == expected
    assert verify(Ledger(out)) == []
