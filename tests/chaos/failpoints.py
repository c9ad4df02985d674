"""Named steps of the commit path, and what can be made to happen there.

Nothing in posejob knows of this. Python announces to an audit hook each file that is opened, linked or removed, before
it is; a step is such an announcement. A step that the code no longer takes leaves no mark, and its test fails.

Imported by every process of a job under test (`hooks/sitecustomize.py`), so only by what is cheap.
"""

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

VARIABLE = "POSEJOB_CHAOS"


@dataclass(frozen=True)
class Step:
    """event: as `sys.addaudithook` has it, `write` and `flush` for files opened to be written and to be flushed; `*`
    for all that changes a folder. path: pattern of the path it is about, in the output folder. nth: which one."""

    event: str
    path: str
    nth: int = 1


WORKER_STEPS = {
    "chunk: before write": Step("write", "_tmp/*.chunk.*"),
    "chunk: written, not flushed": Step("flush", "_tmp/*.chunk.*"),
    "chunk: before link": Step("os.link", "_chunks/*.chunk"),
    "chunk: after link": Step("flush", "_chunks"),
    "chunk: before its copy is removed": Step("os.remove", "_tmp/*.chunk.*"),
}
DRIVER_STEPS = {
    "folder: before it is tried": Step("os.link", "poses/_probe.*"),
    "plan: before write": Step("write", "_tmp/plan.json.*"),
    "plan: written, not flushed": Step("flush", "_tmp/plan.json.*"),
    "plan: before link": Step("os.link", "plan.json"),
    "plan: after link": Step("flush", "."),
    "poses: half of the chunks merged": Step("open", "_chunks/*", nth=3),
    "poses: written, not flushed": Step("flush", "_tmp/*.parquet.*"),
    "poses: before link": Step("os.link", "poses/*.parquet"),
    "poses: after link": Step("flush", "poses"),
    "frames: written, not flushed": Step("flush", "_tmp/*.parquet.*", nth=2),
    "frames: before link": Step("os.link", "frames/*.parquet"),
    "frames: after link": Step("flush", "frames"),
    "second video: before link": Step("os.link", "poses/*.parquet", nth=2),
    "manifest: before write": Step("write", "_tmp/manifest.json.*"),
    "manifest: written, not flushed": Step("flush", "_tmp/manifest.json.*"),
    "manifest: before link": Step("os.link", "manifest.json"),
    "manifest: after link": Step("os.remove", "_tmp/manifest.json.*"),
    "success: before write": Step("write", "_tmp/_SUCCESS.*"),
    "success: before link": Step("os.link", "_SUCCESS"),
    "success: after link": Step("os.remove", "_tmp/_SUCCESS.*"),
    "clean: before the working folders become one": Step("os.rename", "_tmp"),
    "clean: before they are removed": Step("shutil.rmtree", "_chunks"),
}
STEPS = WORKER_STEPS | DRIVER_STEPS

_CHANGES = {"write", "flush", "os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


@dataclass(frozen=True)
class Order:
    """What is to happen at a step.

    out:     the job's output folder.
    act:     kill (SIGKILL), tear (half of the file is lost, then SIGKILL), stop (SIGSTOP), hang, segfault, memory, or
             note (nothing but the mark).
    mark:    a file per time that it happened, with the process in it: `<mark>.0`, `<mark>.1`, ...
    times:   how often it happens at most, in all processes together.
    workers: it happens in Ray's workers only.
    """

    step: Step
    out: Path
    act: str
    mark: Path
    times: int = 1
    workers: bool = False

    def happened(self) -> int:
        return len(list(self.mark.parent.glob(f"{self.mark.name}.*")))

    def happened_in(self, pid: int) -> bool:
        return str(pid) in {mark.read_text() for mark in self.mark.parent.glob(f"{self.mark.name}.*")}


def environment(orders: list[Order]) -> dict[str, str]:
    """Variables that bring orders to a process and all it starts."""
    here = Path(__file__).resolve().parent
    data = [asdict(order) | {"out": str(order.out), "mark": str(order.mark)} for order in orders]
    return {VARIABLE: json.dumps(data), "PYTHONPATH": os.pathsep.join([str(here / "hooks"), str(here.parents[1])])}


def orders_from_environment() -> list[Order]:
    """What `environment` was given, in a process that has the variables."""
    return [
        Order(**data | {"step": Step(**data["step"]), "out": Path(data["out"]), "mark": Path(data["mark"])})
        for data in json.loads(os.environ.get(VARIABLE, "[]"))
    ]


def install(order: Order) -> None:
    """Carry the order out in this process."""
    if order.workers and not any(word.endswith("default_worker.py") for word in sys.orig_argv):
        return
    passed = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal passed
        path = _path(order.step.event, event, args)
        if path is None:
            return
        inside = os.path.relpath(path, order.out)
        if inside.startswith("..") or not fnmatch(inside, order.step.path):
            return
        passed += 1
        if passed >= order.step.nth and _may(order):
            _act(order.act, path)

    sys.addaudithook(hook)


def _path(wanted: str, event: str, args: tuple[Any, ...]) -> str | None:
    """The path an event is about, None if it is not the wanted event."""
    if event == "open":
        path, mode, flags = args
        if mode is None:
            event = "flush"
        elif flags & (os.O_WRONLY | os.O_RDWR):
            event = "write"
    else:
        path = args[1] if event == "os.link" else args[0] if args else None
    if isinstance(path, int) or not (event == wanted or (wanted == "*" and event in _CHANGES)):
        return None
    return os.fsdecode(path)


def _may(order: Order) -> bool:
    for i in range(order.times):
        try:
            with open(f"{order.mark}.{i}", "x") as mark:
                mark.write(str(os.getpid()))
        except FileExistsError:
            continue
        return True
    return False


def _act(act: str, path: str) -> None:
    match act:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "tear":
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hang":
            time.sleep(3600)
        case "segfault":
            # Ray would write down where it happened, which takes seconds.
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGSEGV)
        case "memory":
            raise MemoryError
        case "note":
            pass
        case _:
            raise ValueError(act)
