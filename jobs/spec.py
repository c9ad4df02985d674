"""What a run is asked to do, validated once by the command line and passed down."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.errors import ConfigError

_MAX = 1_000_000_000


@dataclass(frozen=True)
class Moment:
    """A point in a video: a frame number, or seconds since its first frame. One of the two is None."""

    frame: int | None
    seconds: float | None

    def __str__(self) -> str:
        return f"{self.frame}" if self.frame is not None else f"{self.seconds}s"


_SECONDS = re.compile(r"(\d+(?:\.\d*)?|\.\d+)s")
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d*)?)")
# Before a point, more digits than a float holds. Python refuses to read 4,301 of them, and floats end at 309.
_TOO_LONG = re.compile(r"(?<![\d.])\d{16}")


def parse_moment(text: str, flag: str) -> Moment:
    """`120` (a frame), `12.5s` or `00:01:23.5`. Raises ConfigError naming the flag."""
    if _TOO_LONG.search(text):
        raise ConfigError(f"{flag} {text[:20]!r}...: expected numbers of no more than 15 digits")
    if text.isascii() and text.isdigit():
        return Moment(int(text), None)
    if match := _SECONDS.fullmatch(text):
        return Moment(None, float(match[1]))
    if match := _CLOCK.fullmatch(text):
        return Moment(None, int(match[1] or 0) * 3600 + int(match[2]) * 60 + float(match[3]))
    raise ConfigError(f"{flag} {text!r}: expected a frame number (120), seconds (12.5s) or a time (00:01:23.5)")


@dataclass(frozen=True)
class Selection:
    """Which frames of a video are looked at: every `every`-th by frame number, within [start, stop)."""

    every: int = 1
    start: Moment | None = None
    stop: Moment | None = None

    def wanted(self, frame: np.ndarray, time_s: np.ndarray) -> np.ndarray:
        """(F,) bool for frame numbers and times (F,); pictures have no time (NaN) and are selected by number alone."""
        chosen: np.ndarray = frame % self.every == 0
        if self.start is not None:
            chosen &= ~_before(frame, time_s, self.start)
        if self.stop is not None:
            chosen &= _before(frame, time_s, self.stop) | (np.isnan(time_s) & (self.stop.frame is None))
        return chosen


def _before(frame: np.ndarray, time_s: np.ndarray, moment: Moment) -> np.ndarray:
    if moment.frame is not None:
        return np.asarray(frame < moment.frame)
    # Times come from rationals and from decimal text; a microsecond covers the rounding of both.
    return np.asarray(time_s < (moment.seconds or 0.0) - 1e-6)


@dataclass(frozen=True)
class Options:
    """Everything but the frames and the network that decides what the tables say.

    height:     network input height, pixels.
    max_people: keep this many best-scored people per frame; None keeps all.
    min_score:  keep people whose pose score reaches this.
    """

    height: int
    selection: Selection = Selection()
    max_people: int | None = None
    min_score: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """A flat dictionary, the same for the same options in every process."""
        data = asdict(self)
        selection = data.pop("selection")
        for end in ("start", "stop"):
            moment = getattr(self.selection, end)
            selection[end] = None if moment is None else str(moment)
        return data | {"every": selection["every"], "from": selection["start"], "to": selection["stop"]}


@dataclass(frozen=True)
class RunSpec:
    """A validated `posejob submit`.

    inputs:       as typed: files, folders, globs.
    out:          output folder.
    model:        name or path of the network.
    device:       as typed.
    height:       network height, None for the network's default.
    workers:      number of workers, None to let the machine decide.
    chunk_frames: aimed-at length of a chunk.
    """

    inputs: tuple[str, ...]
    out: Path
    model: str
    device: str = "CPU"
    height: int | None = None
    selection: Selection = Selection()
    max_people: int | None = None
    min_score: float = 0.0
    workers: int | None = None
    chunk_frames: int = 128
    overwrite: bool = False

    def __post_init__(self) -> None:
        for flag, value in (
            ("--workers", self.workers),
            ("--chunk-frames", self.chunk_frames),
            ("--every", self.selection.every),
            ("--height", self.height),
            ("--max-people", self.max_people),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{flag} {value}: expected a whole number from 1 up")
            if value is not None and value > _MAX:
                raise ConfigError(f"{flag} {value}: expected no more than {_MAX:,}")
        if not 0 <= self.min_score <= 1:
            raise ConfigError(f"--min-score {self.min_score}: expected a number between 0 and 1")
        start, stop = self.selection.start, self.selection.stop
        if start and stop and _empty(start, stop):
            raise ConfigError(f"--from {start} --to {stop}: nothing lies between them")


def _empty(start: Moment, stop: Moment) -> bool:
    if start.frame is not None and stop.frame is not None:
        return stop.frame <= start.frame
    if start.seconds is not None and stop.seconds is not None:
        return stop.seconds <= start.seconds
    return False
