"""A small job to be disturbed, what it gives undisturbed, and what must hold at every moment."""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from jobs.events import Event
from jobs.executors.base import Layout
from jobs.executors.serial import SerialExecutor
from jobs.ledger import MANIFEST, SUCCESS, Ledger
from jobs.run import run_job
from jobs.spec import RunSpec
from jobs.verify import verify
from jobs.worker import WorkerSpec
from posecore import read_frames, read_poses
from posecore.errors import PosejobError
from tests.chaos.failpoints import Order, install
from tests.fixtures.colour_network import write_network
from tests.fixtures.stick_figures import walkers, write_video

# Whatever is killed, a run comes to its end within this; a tenth of it is usual.
PATIENCE_S = 180.0

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.chaos.job", "models.runtime", "jobs.run"])


@dataclass(frozen=True)
class Job:
    """folder: where inputs, network and outputs are. reference: the published tables of an undisturbed run by name."""

    folder: Path
    reference: dict[str, bytes]

    CHUNK_FRAMES = 4

    @property
    def inputs(self) -> tuple[str, ...]:
        return (str(self.folder / "videos"),)

    @property
    def model(self) -> str:
        return str(self.folder / "colour-network.xml")

    @property
    def plan(self) -> dict[str, Any]:
        """plan.json of every run."""
        return json.loads((self.folder / "reference" / "plan.json").read_text())

    def command(self, out: Path) -> list[str]:
        """What a user would type after `posejob`."""
        options = {"--out": out, "--model": self.model, "--chunk-frames": self.CHUNK_FRAMES, "--height": 144}
        return ["submit", *self.inputs, *(str(word) for option in options.items() for word in option)]

    def spec(self, out: Path) -> RunSpec:
        return RunSpec(inputs=self.inputs, out=out, model=self.model, chunk_frames=self.CHUNK_FRAMES, height=144)

    def spawn(self, out: Path, order: Order | None = None) -> ForkServerProcess:
        """The job in a process of its own, without Ray. Its exit code is posejob's."""
        process = _FORKS.Process(target=_run, args=(self.spec(out), order))
        process.start()
        return process

    def run(self, out: Path, order: Order | None = None) -> int:
        """`spawn`, to its end. A negative answer is the signal that ended it."""
        process = self.spawn(out, order)
        process.join(PATIENCE_S)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError("the job is stuck")
        return process.exitcode

    def faults(self, out: Path) -> list[str]:
        """What is wrong with a folder whose job should be done."""
        found = list(self.faults_in_sight(out))
        if not (out / SUCCESS).exists():
            return [*found, "no _SUCCESS"]
        found += verify(Ledger(out))
        there = {str(path.relative_to(out)) for path in out.rglob("*")}
        expected = {"plan.json", MANIFEST, SUCCESS, "poses", "frames", *self.reference}
        found += [f"{name} is missing" for name in sorted(expected - there)]
        found += [f"{name} is left over" for name in sorted(there - expected)]
        planned = sum(video["frames"] for video in json.loads((out / "plan.json").read_text())["videos"])
        rows = read_frames(out).select(["video", "frame"]).to_pylist()
        distinct = {tuple(row.values()) for row in rows}
        if not len(rows) == len(distinct) == planned:
            found.append(f"{len(rows)} rows, {len(distinct)} distinct, {planned} planned")
        return found

    def faults_in_sight(self, out: Path) -> Iterator[str]:
        """What a reader could see at this moment that is not a part of the right answer.

        Readers of Parquet do not see names that begin with `_`.
        """
        for kind in ("poses", "frames"):
            for name in _names(out / kind):
                with contextlib.suppress(FileNotFoundError):
                    if (out / kind / name).read_bytes() != self.reference.get(f"{kind}/{name}"):
                        yield f"{kind}/{name} is not that of the undisturbed run"
        if (out / SUCCESS).exists():
            yield from verify(Ledger(out))
            poses = read_poses(out)
            if len(poses) != sum(read_frames(out)["n_people"].to_pylist()):
                yield f"a finished job with {len(poses)} poses"

    @contextmanager
    def read_meanwhile(self, out: Path) -> Iterator[list[str]]:
        """Read the folder as fast as it goes while the block lasts; the list fills with what was seen wrong."""
        seen: list[str] = []
        over = threading.Event()

        def read() -> None:
            while not over.is_set():
                seen.extend(self.faults_in_sight(out))
                over.wait(0.02)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield seen
        finally:
            over.set()
            reader.join()


def make_job(folder: Path, length: int = 1) -> Job:
    """Two videos, one with B-frames and chunks that begin within a GOP; `length` times 13 chunks."""
    write_network(folder)
    (folder / "videos").mkdir()
    options = {"crf": "20", "sc_threshold": "0"}
    for name, n_frames, people, b_frames in (("a.mp4", 32, 1, "0"), ("b.mkv", 20, 2, "2")):
        pictures = list(walkers(n_frames, people, (192, 144)).pictures()) * length
        write_video(folder / "videos" / name, pictures, gop=8, options=options | {"bf": b_frames})
    job = Job(folder, {})
    if code := job.run(folder / "reference"):
        raise RuntimeError(f"the undisturbed run ended with {code}")
    for path in (folder / "reference").glob("*/*.parquet"):
        job.reference[f"{path.parent.name}/{path.name}"] = path.read_bytes()
    return job


def wait_for_stop(process: ForkServerProcess) -> None:
    """Until a process has stopped itself (SIGSTOP)."""
    deadline = time.monotonic() + PATIENCE_S
    status = Path(f"/proc/{process.pid}/stat")
    while status.read_text().rsplit(")", 1)[1].split()[0] != "T":
        if process.exitcode is not None or time.monotonic() > deadline:
            raise TimeoutError("the process did not stop")
        time.sleep(0.01)


def _run(spec: RunSpec, order: Order | None) -> None:
    """Body of a forked process: the job with a worker in this process, exit codes as from the command line."""
    # A group of its own: what the terminal or the test runner gets does not reach it.
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if order:
        install(order)
    try:
        report = run_job(spec, _in_process, _ignore)
    except PosejobError as error:
        print(f"posejob: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(report.exit_code)


@contextmanager
def _in_process(worker: WorkerSpec, layout: Layout) -> Iterator[SerialExecutor]:
    yield SerialExecutor(worker)


def _ignore(event: Event) -> None:
    pass


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith("_")]
    except FileNotFoundError:
        return []
