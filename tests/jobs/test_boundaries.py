"""One library, one door: which modules of jobs and models import what takes a door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOORS = {
    "ray": {"jobs/executors/ray.py"},
    "av": {"jobs/frames/ffmpeg.py"},
    "pyarrow": {"jobs/sink.py", "posecore/results.py"},
    "typer": {"jobs/cli.py"},
    "openvino": {"models/runtime.py"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("library", DOORS)
def test_one_library_one_door(library: str):
    modules = [path for package in ("jobs", "models", "posecore") for path in (ROOT / package).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix() for path in modules if library in imported(path)}
    assert found == DOORS[library]
