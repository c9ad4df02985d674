"""What frames a source has, and the pixels of any range of them.

A video is planned from its packets alone, without decoding: discarded packets are dropped, the others sorted by
presentation time stamp (pts), and frame i is the i-th pts. A range of frames is then read by seeking to a keyframe at
or before it and decoding up to its end; frames are known by their pts, so damage shifts nothing and a range yields
what decoding from the start would yield.

    values      what is known of frames
    ffmpeg      the only door to PyAV
    containers  what a file promises and does not hold
    index       from packets to a FrameIndex
    decoding    from a FrameRange to frames
    pictures    the same for folders of pictures
"""

from collections.abc import Iterator

from jobs.discover import Source, shown
from jobs.errors import InputLost
from jobs.frames.decoding import read_all, read_range
from jobs.frames.ffmpeg import MAX_PIXELS
from jobs.frames.index import index_video
from jobs.frames.pictures import index_pictures, read_pictures
from jobs.frames.values import (
    DECODE_ERROR,
    OK,
    SKIPPED,
    SUSPECT,
    Frame,
    FrameIndex,
    FrameRange,
    file_state,
    seconds,
)

__all__ = [
    "DECODE_ERROR",
    "MAX_PIXELS",
    "OK",
    "SKIPPED",
    "SUSPECT",
    "Frame",
    "FrameIndex",
    "FrameRange",
    "check_unchanged",
    "file_state",
    "probe",
    "read_frames",
    "seconds",
]


def probe(source: Source) -> FrameIndex:
    """Index a source. Reads it once, or twice where something is wrong with it, and decodes one frame, for its size and
    rotation. Raises VideoOpenError."""
    return index_video(source.path) if source.images is None else index_pictures(source)


def read_frames(wanted: FrameRange) -> Iterator[Frame]:
    """The frames of a range, each once; in rising order unless the source is damaged. Damage never raises; InputLost if
    a file that could be read when it was planned cannot be read any more."""
    if wanted.source.images is not None:
        return read_pictures(wanted)
    return read_range(wanted) if wanted.ordered else read_all(wanted)


def check_unchanged(wanted: FrameRange) -> None:
    """Raise InputLost unless the files are those that were planned."""
    folder, names = wanted.source.path, wanted.source.images
    paths = [folder] if names is None else [folder / name for name in names]
    for path, planned in zip(paths, wanted.states, strict=True):
        if file_state(path) != planned:
            raise InputLost(shown(path), "changed or went away while the job ran")
