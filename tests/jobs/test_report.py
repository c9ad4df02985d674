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


def on_a_terminal(arguments: list[str], folder: Path, term: str) -> tuple[int, str]:
    """Exit status of a run, and everything it wrote to the terminal it had."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": term, "COLUMNS": "120", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = bytearray()
    # A terminal whose other end is closed is an error on Linux, and the end of the text.
    while part := read(ours):
        written += part
    os.close(ours)
    return process.wait(), written.decode()


def read(handle: int) -> bytes:
    try:
        return os.read(handle, 65536)
    except OSError:
        return b""
