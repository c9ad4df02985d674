"""What every executor promises, and the decisions all of them share."""

import os
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from jobs.errors import JobError, VideoError
from jobs.worker import UnitReport, WorkUnit
from models.errors import InferenceError, ModelError

MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class UnitFailure:
    """A unit that was given up after MAX_ATTEMPTS. reason: the last error, one line."""

    key: str
    reason: str


class Worker(Protocol):
    """What an executor drives: `PoseWorker`, or a stand-in that fails on purpose."""

    def setup(self) -> None: ...

    def run(self, unit: WorkUnit) -> UnitReport: ...


class Executor(Protocol):
    """Runs work units somewhere."""

    def run(self, units: Iterable[WorkUnit]) -> Generator[UnitReport | UnitFailure]:
        """One answer per unit, in any order. Units are taken from the iterable as room becomes free.

        Raises what no other worker could do better: a damaged network, an output folder that cannot be written to.
        """
        ...


class Verdict(Enum):
    """What to do about a unit that failed."""

    RETRY = "retry"
    GIVE_UP = "give up"
    STOP = "stop"


def verdict(error: Exception, attempts: int) -> Verdict:
    """Decide after a unit's `attempts`-th failure.

    What may be the unit's own fault (a frame that breaks inference, a crash, a hang) is given up in the end, and the
    job goes on. What would strike every unit alike (the network, the output folder) stops the job; storage gets its
    retries first.
    """
    if isinstance(error, ModelError) and not isinstance(error, InferenceError):
        return Verdict.STOP
    if attempts < MAX_ATTEMPTS:
        return Verdict.RETRY
    shared = isinstance(error, JobError) and not isinstance(error, VideoError)
    return Verdict.STOP if shared else Verdict.GIVE_UP


def one_line(error: Exception) -> str:
    """What happened, without advice on how to debug it."""
    if isinstance(error, MemoryError):
        return "out of memory"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def deadline_s(n_frames: int) -> float:
    """How long a unit may run before its worker counts as hung: two minutes, and as much as a slow machine needs.

    2 s a frame is half the speed of the VGG19 network on one core of 2018.
    """
    return 120 + 2 * n_frames


@dataclass(frozen=True)
class Layout:
    """How a machine is divided: `workers` processes of `threads` CPUs each."""

    workers: int
    threads: int


def layout(cpus: int, workers: int | None) -> Layout:
    """Divide `cpus`. By default four or so CPUs to a worker: enough that one thread of decoding and grouping keeps them
    busy, few enough that it does not become the limit. Never more workers than CPUs."""
    count = min(cpus, workers) if workers else max(1, round(cpus / 4))
    return Layout(count, max(1, cpus // count))


def usable_cpus() -> int:
    """CPUs this process may use: its affinity, and the quota of its control group."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cpus = min(cpus, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cpus
