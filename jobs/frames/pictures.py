"""Folders of pictures: every picture is a frame, in the order of their names."""

import hashlib
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from jobs.discover import Source, shown
from jobs.errors import InputLost, VideoOpenError
from jobs.frames.ffmpeg import MAX_PIXELS
from jobs.frames.values import (
    DECODE_ERROR,
    OK,
    SKIPPED,
    Frame,
    FrameIndex,
    FrameRange,
    check_regular,
    file_state,
    first_lower,
)

_TOO_LARGE = f"of more than {MAX_PIXELS:,} pixels, which is not read"


def index_pictures(source: Source) -> FrameIndex:
    """Index a folder of pictures. One that cannot be read is a frame all the same."""
    assert source.images is not None
    digest = hashlib.sha256()
    states, unreadable = [], set()
    for name in source.images:
        states.append(file_state(source.path / name))
        try:
            data = _read_bytes(source.path / name)
        except VideoOpenError:
            unreadable.add(name)
            data = b""
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + zlib.crc32(data).to_bytes(4, "big"))
    n = len(source.images)
    every = np.ones(n, dtype=bool)
    return FrameIndex(
        pts=np.arange(n),
        key=every,
        entry=every,
        ordered=True,
        stamped=True,
        size=None,
        rotation=0,
        time_base=Fraction(1),
        fps=None,
        codec="images",
        fingerprint=digest.hexdigest(),
        states=tuple(states),
        unreadable=frozenset(unreadable),
    )


def read_pictures(wanted: FrameRange) -> Iterator[Frame]:
    """The pictures of a range, each once. InputLost if one cannot be read that could be when it was planned."""
    images = wanted.source.images
    assert images is not None
    for i, (pts, name) in enumerate(zip(wanted.pts, images, strict=True)):
        image, status, detail = None, SKIPPED, None
        if wanted.wanted[i]:
            image, detail = _read_image(wanted.source.path / name, name in wanted.unreadable)
            status = OK if image is not None else DECODE_ERROR
        printable = shown(name)
        yield Frame(wanted.first + i, int(pts), True, image, status, printable, detail)


def _read_bytes(path: Path) -> bytes:
    """Raises VideoOpenError."""
    check_regular(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise VideoOpenError(shown(path), f"cannot be read ({first_lower(error.strerror)})") from error


def _read_image(path: Path, unreadable: bool) -> tuple[np.ndarray | None, str | None]:
    """Pixels, upright as EXIF says, or what is wrong. unreadable: it was when the job was planned."""
    try:
        data = _read_bytes(path)
    except VideoOpenError as error:
        if not unreadable:
            raise InputLost(error.video, error.problem) from error
        return None, error.problem
    if problem := _refused(data):
        return None, problem
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        # Workers' OpenCV refuses by itself, before it takes the memory.
        if "pixels" in str(error).lower():
            return None, _TOO_LARGE
        return None, f"cannot be read ({first_lower(str(error).splitlines()[-1])[:120]})"
    if image is None:
        return None, "not a picture that OpenCV can read"
    return (None, _TOO_LARGE) if image.shape[0] * image.shape[1] > MAX_PIXELS else (image, None)


def _refused(data: bytes) -> str | None:
    """Why a picture is not given to OpenCV. It would fill up a JPEG that is cut short, depending on its version; and
    take the memory that the few bytes of a PNG claim."""
    # Within coded pixels these marks cannot occur: what ends the last scan stands behind what begins it.
    if data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        return "a JPEG that is cut short"
    if data.startswith(b"\x89PNG"):
        width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
        if width * height > MAX_PIXELS:
            return _TOO_LARGE
    return None
