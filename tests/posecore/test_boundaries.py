"""Who may import whom, seen from a fresh interpreter, where indirect imports show too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROBE = """
import importlib, pkgutil, sys
package, left_out, *unwanted = sys.argv[1:]
names = [m.name for m in pkgutil.walk_packages(importlib.import_module(package).__path__, package + ".")]
assert names, "nothing was looked at"
for name in names:
    if name != left_out:
        importlib.import_module(name)
print(*sorted(set(unwanted) & set(sys.modules)))
"""


def run(code: str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_posecore_stands_alone(tmp_path: Path):
    assert run(PROBE, "posecore", "", "ray", "openvino", "av", "typer", "jobs", "models", cwd=tmp_path).split() == []


def test_only_the_results_need_pyarrow(tmp_path: Path):
    assert run(PROBE, "posecore", "posecore.results", "pyarrow", cwd=tmp_path).split() == []


def test_models_know_nothing_of_jobs_and_videos(tmp_path: Path):
    assert run(PROBE, "models", "", "ray", "av", "typer", "jobs", cwd=tmp_path).split() == []


@pytest.mark.parametrize("decoy", ["models.py", "jobs.py", "models/__init__.py"])
def test_posecore_is_not_hurt_by_a_notebooks_neighbours(tmp_path: Path, decoy: str):
    path = tmp_path / decoy
    path.parent.mkdir(exist_ok=True)
    path.write_text("raise RuntimeError('a file of the user was run')")
    assert run(PROBE, "posecore", "", "models", "jobs", cwd=tmp_path).split() == []
