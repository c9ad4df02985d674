"""What is known of frames before and after their pixels are read, and of the file they come from."""

import errno
import os
import stat
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np

from jobs.discover import Source, shown
from jobs.errors import VideoOpenError

OK, SKIPPED, SUSPECT, DECODE_ERROR = "ok", "skipped", "suspect", "decode_error"

FileState = tuple[int, int, int]

# What the target of a link that leads nowhere is said to be.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def file_state(path: Path) -> FileState | None:
    """Size, time of change and inode: what differs when a file is replaced or written to. None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """What is known of a source before its pixels are read.

    pts:         (F,) int64, presentation time of each frame in units of `time_base`, rising; picture numbers for
                 pictures. Reckoned where the source has none (see `ordered`).
    key:         (F,) bool, decoding can begin here.
    entry:       (F,) bool, a key frame after which every frame decodes as if from the start (an H.264 recovery point
                 is a key frame but may refer back).
    ordered:     every packet had a time stamp of its own. If not, frames are known by counting alone, and the source is
                 read in one go.
    stamped:     the time stamps there are can be believed.
    size:        (width, height) upright; None for pictures, which have one each.
    rotation:    degrees counter-clockwise that the stored picture is turned by to be upright; 0, 90, 180 or 270.
    mirrored:    its left and right are exchanged before it is turned.
    fps:         average frames per second, for display only.
    fingerprint: hex digest of what the packets (or pictures) are made of.
    states:      of the file while it was read, one; of each picture, F.
    doubts:      what the file promises and does not hold, one line each.
    unreadable:  names of the files that could not be read, or not to their end. What they lack is damage; what cannot
                 be got of others later on is a disturbance of the job.
    """

    pts: np.ndarray
    key: np.ndarray
    entry: np.ndarray
    ordered: bool
    stamped: bool
    size: tuple[int, int] | None
    rotation: int
    time_base: Fraction
    fps: float | None
    codec: str
    fingerprint: str
    states: tuple[FileState | None, ...]
    doubts: tuple[str, ...] = ()
    mirrored: bool = False
    unreadable: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def time_s(self) -> np.ndarray:
        """(F,) float64 seconds since the first frame; NaN for pictures."""
        return self.times(slice(None))

    def times(self, part: slice) -> np.ndarray:
        """`time_s[part]`, without computing the rest: hours of video have thousands of chunks."""
        pts = self.pts[part]
        if self.size is None:
            return np.full(len(pts), np.nan)
        return seconds(pts, int(self.pts[0]) if len(self) else 0, self.time_base)

    @cached_property
    def _keys(self) -> np.ndarray:
        return np.flatnonzero(self.key)

    def anchor(self, frame: int) -> int | None:
        """The frame to start decoding at in order to get `frame` right, None for the start of the file.

        A key frame that is no entry needs the key frame before it as a run-up.
        """
        n = int(np.searchsorted(self._keys, frame, side="right"))
        if n and not self.entry[self._keys[n - 1]]:
            n -= 1
        return int(self._keys[n - 1]) if n > 1 else None


def seconds(pts: np.ndarray, start: int, time_base: Fraction) -> np.ndarray:
    """True presentation time in seconds, float64, from integers: one rounding, no drift."""
    return (pts - start) * time_base.numerator / time_base.denominator


@dataclass(frozen=True, eq=False)
class FrameRange:
    """Which frames to read: what travels to a worker instead of frames.

    source:   of a folder of pictures, those of the range alone.
    first:    number of the first frame.
    pts, key: (n,) of these frames, as planned. A source that is not `ordered` is read to its end, whatever is planned.
    wanted:   (n,) bool, whose pixels are needed.
    anchor:   pts to seek to, None to start at the beginning.
    run_up:   frames to decode before the first one of the range.
    states:   of the file when it was planned, one; of the pictures, n. What is read of another file under its name is
              not committed: see `check_unchanged`.
    unreadable: files that could not be read even when they were planned.
    """

    source: Source
    first: int
    pts: np.ndarray
    key: np.ndarray
    wanted: np.ndarray
    anchor: int | None
    run_up: int
    states: tuple[FileState | None, ...]
    rotation: int
    ordered: bool
    stamped: bool
    time_base: Fraction
    fps: float | None
    mirrored: bool = False
    unreadable: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Frame:
    """One source frame.

    image:  (H, W, 3) uint8 BGR, upright; None if it was not wanted or could not be read.
    status: ok, skipped (not wanted), suspect (decoded after damage) or decode_error (not decoded).
    source: file name, for pictures.
    detail: what is wrong, in words.
    """

    number: int
    pts: int
    key: bool
    image: np.ndarray | None
    status: str
    source: str | None = None
    detail: str | None = None


def check_regular(path: Path) -> None:
    """Raise VideoOpenError unless `path` is a readable regular file with something in it: a pipe would hang."""
    try:
        status = path.stat()
    except OSError as error:
        # Not `Path.is_symlink`, which raises where the folder may not be looked into.
        dangling = error.errno in _NOT_THERE and os.path.islink(path)
        raise VideoOpenError(
            shown(path), "a link to a file that is not there" if dangling else first_lower(error.strerror)
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoOpenError(shown(path), "not a regular file; videos are read from files only")
    if status.st_size == 0:
        raise VideoOpenError(shown(path), "empty file (0 bytes); copy or record it again")
    if not os.access(path, os.R_OK):
        raise VideoOpenError(shown(path), "no permission to read it")


def can_be_read(path: Path) -> bool:
    """Whether the disk gives all of a file. Reads it."""
    try:
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    except OSError:
        return False
    return True


def frame_ticks(time_base: Fraction, fps: Fraction | float | None) -> int:
    """A frame's nominal duration in units of the time base, at least 1."""
    return max(1, round(1 / (Fraction(fps or 25) * time_base)))


def reckon_pts(pts: list[int | None], ticks: int) -> list[int]:
    """Rising time stamps for frames in the order they come: their own where that is later than the frame before, else
    one nominal frame later."""
    reckoned: list[int] = []
    for stamp in pts:
        least = reckoned[-1] + 1 if reckoned else None
        if stamp is not None and (least is None or stamp >= least):
            reckoned.append(stamp)
        else:
            reckoned.append(reckoned[-1] + ticks if reckoned else 0)
    return reckoned


def first_lower(text: str | None) -> str:
    """An error's text as the end of a line."""
    if not text:
        return "unknown error"
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]
