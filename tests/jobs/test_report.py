import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from contextlib import contextmanager
import jobs.cli
from jobs.executors.serial import SerialExecutor

@contextmanager
def serial(worker, layout):
    yield SerialExecutor(worker)

jobs.cli._start_ray = serial
jobs.cli.app(sys.argv[1:])
"""


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_progress_on_a_terminal(walk: Path, colour_network: Path, tmp_path: Path, term: str):
    arguments = ["submit", str(walk), "nowhere.mp4", "--model", str(colour_network), "--chunk-frames", "6"]
    status, shown = on_a_terminal(arguments, tmp_path, term)
    assert "Traceback" not in shown
    assert "not used: nowhere.mp4: no such file or folder" in shown
    assert "1 video, 12 frames in 2 chunks" in shown
    assert "results in posejob-out" in shown
    assert status == 1
    if term != "dumb":
        assert re.search(r"inferring.*12/12 frames +[\d.]+/s", shown)


def test_names_are_shown_as_they_are(walk: Path, colour_network: Path, tmp_path: Path):
    arguments = ["submit", str(walk), "a:dog:.mp4", "[red]b.mp4", "--model", str(colour_network)]
    _, shown = on_a_terminal(arguments, tmp_path, "xterm-256color")
    assert "not used: a:dog:.mp4: no such file or folder" in shown
    assert "not used: [red]b.mp4: no video or picture matches this pattern" in shown


def test_a_terminal_that_goes_away_ends_no_job(walk: Path, colour_network: Path, tmp_path: Path):
    """As that of a job which its shell has disowned."""
    ours, theirs = pty.openpty()
    process = start(["submit", str(walk), "--model", str(colour_network)], tmp_path, "xterm", theirs, theirs)
    os.close(theirs)
    assert read(ours)
    os.close(ours)
    assert process.wait() == 2  # the summary on stdout is lost
    assert (tmp_path / "posejob-out" / "_SUCCESS").exists()


@pytest.mark.parametrize("forced", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_a_reader_that_goes_away_ends_no_job(
    walk: Path, colour_network: Path, tmp_path: Path, forced: str, monkeypatch: pytest.MonkeyPatch
):
    """As in `posejob submit ... 2>&1 | head -1`, also where colours are wanted wherever it is."""
    monkeypatch.setenv(forced, "1")
    ours, theirs = os.pipe()
    process = start(["submit", str(walk), "--model", str(colour_network)], tmp_path, "xterm", theirs, theirs)
    os.close(theirs)
    first = read(ours)
    os.close(ours)
    assert process.wait() == 0
    assert (tmp_path / "posejob-out" / "_SUCCESS").exists()
    assert first.startswith(b"1 video, 12 frames")


def on_a_terminal(arguments: list[str], folder: Path, term: str) -> tuple[int, str]:
    """Exit status of a run, and everything it wrote to the terminal it had."""
    ours, theirs = pty.openpty()
    process = start(arguments, folder, term, theirs, theirs)
    os.close(theirs)
    written = bytearray()
    # A terminal whose other end is closed is an error on Linux, and the end of the text.
    while part := read(ours):
        written += part
    os.close(ours)
    return process.wait(), written.decode()


def start(arguments: list[str], folder: Path, term: str, out: int, err: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "TERM": term, "COLUMNS": "120", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err)


def read(handle: int) -> bytes:
    try:
        return os.read(handle, 65536)
    except OSError:
        return b""
