"""What happens during a job, as facts for whoever watches: the bar, the plain lines, the tests."""

from collections.abc import Callable
from dataclasses import dataclass

from jobs.executors.base import UnitFailure
from jobs.manifest import VideoReport
from jobs.plan import Plan
from jobs.worker import UnitReport


@dataclass(frozen=True)
class Note:
    """A line worth telling."""

    text: str


@dataclass(frozen=True, eq=False)
class Planned:
    """The plan stands. frames_done: selected frames that earlier runs have already done."""

    plan: Plan
    frames_done: int


@dataclass(frozen=True)
class UnitDone:
    """A chunk was done or given up. n_frames: selected frames in it."""

    result: UnitReport | UnitFailure
    n_frames: int


@dataclass(frozen=True)
class VideoDone:
    """A video was published, or could not be opened."""

    report: VideoReport


Event = Note | Planned | UnitDone | VideoDone
Observer = Callable[[Event], None]
