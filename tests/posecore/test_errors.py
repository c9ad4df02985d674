import ast
import importlib
import importlib.util
import inspect
import pickle
import socket
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

from posecore.errors import PosejobError, reason

ROOT = Path(__file__).parents[2]
PACKAGES = ("posecore", "models", "jobs")
SAMPLES = {str: "text", int: 7, float: 0.5, bool: True, Path: Path("folder/file"), type(None): None}

for package in PACKAGES:
    if importlib.util.find_spec(f"{package}.errors"):
        importlib.import_module(f"{package}.errors")


def descendants(branch: type[PosejobError]) -> Iterator[type[PosejobError]]:
    for child in branch.__subclasses__():
        if child.__module__.split(".")[0] in PACKAGES:
            yield child
            yield from descendants(child)


def sample(annotation: Any) -> Any:
    """A value of the annotated type."""
    if annotation in SAMPLES:
        return SAMPLES[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return sample(args[0])
    if origin is tuple:
        return tuple(sample(arg) for arg in args if arg is not Ellipsis)
    if origin is list:
        return [sample(args[0])]
    raise AssertionError(f"no sample of {annotation}; add one to SAMPLES")


def construct(error: type[PosejobError]) -> PosejobError:
    if error.__init__ is Exception.__init__:
        return error("one line")
    hints = get_type_hints(error.__init__)
    names = list(inspect.signature(error.__init__).parameters)[1:]
    return error(*(sample(hints[name]) for name in names))


ERRORS = sorted(descendants(PosejobError), key=lambda error: (error.__module__, error.__name__))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_survives_the_way_between_processes(error: type[PosejobError]):
    made = construct(error)
    rebuilt = pickle.loads(pickle.dumps(made))
    assert type(rebuilt) is error
    assert rebuilt.args == made.args
    assert str(rebuilt) == str(made)
    assert vars(rebuilt) == vars(made)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_is_one_line(error: type[PosejobError]):
    assert str(construct(error)).splitlines() == [str(construct(error))]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied", "/a/file"), "permission denied"),
        (OSError(28, "[Errno 28] Error writing bytes to file. Detail: [errno 28]"), "no space left on device"),
        (socket.gaierror(-2, "Name or service not known"), "name or service not known"),
        (OSError("not a regular file"), "not a regular file"),
        (TimeoutError(), "TimeoutError"),
    ],
    ids=["Python", "PyArrow", "resolver", "ours", "nothing"],
)
def test_a_reason_is_the_systems_words(error: OSError, words: str):
    assert reason(error) == words


@pytest.mark.parametrize("package", PACKAGES)
def test_no_error_hides_outside_its_packages_errors_module(package: str):
    known = {error.__name__ for error in ERRORS} | {PosejobError.__name__}
    hidden = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        if path != ROOT / package / "errors.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and known & {ast.unparse(base).split(".")[-1] for base in node.bases}
    ]
    assert hidden == []
