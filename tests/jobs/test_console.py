"""Output that cannot be written to never ends a job; a child process each, because it is about its descriptors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SAYS = "from jobs.console import say, tell; tell('progress'); print(say('result'), file=open('answer', 'w'))"


@pytest.mark.parametrize(
    ("redirected", "answer"),
    [("", True), ("| true", True), (">/dev/full", False), ("2>/dev/full", True), ("2>&-", True)],
)
def test_it_goes_on(tmp_path: Path, redirected: str, answer: bool):
    command = f"set -o pipefail; '{sys.executable}' -c \"$SAYS\" {redirected}"
    environment = os.environ | {"SAYS": SAYS, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, (tmp_path / "answer").read_text().strip()) == (0, str(answer))
