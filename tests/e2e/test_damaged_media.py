"""What holds wherever a file is cut and whichever bit of it is flipped.

Small by default; POSEJOB_DAMAGE_EXAMPLES=1000 looks at that many places for each test.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.discover import Source
from jobs.errors import VideoOpenError
from jobs.frames import DECODE_ERROR, OK, SUSPECT, Frame, FrameIndex, probe
from tests.fixtures.bad_media import clip, faststart, packets
from tests.fixtures.media import checksum
from tests.fixtures.reading import read_in_chunks, time_limit

# By default the same few places every time; a long search takes others every time.
EXAMPLES = int(os.environ.get("POSEJOB_DAMAGE_EXAMPLES", "0"))
damage = settings(
    max_examples=EXAMPLES or 25,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

B_FRAMES = (("crf", "20"), ("bf", "2"))

# Files that say how long they are.
TELLING: dict[str, Callable[[], bytes]] = {
    "h264.mp4": lambda: faststart(clip("mp4", options=B_FRAMES)),
    "h264.mov": lambda: clip("mov", options=B_FRAMES),
    "hevc.mp4": lambda: faststart(clip("mp4", "libx265", (("x265-params", "log-level=none:hash=1"),))),
    "h264.mkv": lambda: clip("mkv", options=B_FRAMES),
    "vp9.webm": lambda: clip("webm", "libvpx-vp9"),
    "mpeg4.avi": lambda: clip("avi", "mpeg4", (("bf", "2"),)),
    "h264.avi": lambda: clip("avi", options=B_FRAMES),
    "mjpeg.avi": lambda: clip("avi", "mjpeg", pix_fmt="yuvj420p"),
    "ffv1.mkv": lambda: clip("mkv", "ffv1", (("level", "3"), ("slicecrc", "1"))),
    "flv.flv": lambda: clip("flv", "flv"),
    "wmv.wmv": lambda: clip("wmv", "wmv2"),
    "gif.gif": lambda: clip("gif", "gif", pix_fmt="rgb8"),
}
# Files of which the beginning is a right file of its own.
MUTE: dict[str, Callable[[], bytes]] = {
    "h264.ts": lambda: clip("ts"),
    "mpeg2.ts": lambda: clip("ts", "mpeg2video"),
    "mpeg2.mpg": lambda: clip("mpg", "mpeg2video"),
    "raw.h264": lambda: clip("h264"),
}
TS_PACKET = 188
EVERY = TELLING | MUTE
# Every bit of a frame's data is under a checksum.
CHECKED = ["ffv1.mkv", "h264.mkv", "hevc.mp4"]


@dataclass(frozen=True)
class Outcome:
    """index: None if the file cannot be used, for the reason `line`."""

    index: FrameIndex | None
    frames: list[Frame]
    line: str

    @property
    def noticed(self) -> bool:
        return (
            self.index is None
            or bool(self.index.doubts)
            or any(f.status in (SUSPECT, DECODE_ERROR) for f in self.frames)
        )

    @property
    def pictures(self) -> dict[int, int]:
        return {frame.number: checksum(frame.image) for frame in self.frames if frame.image is not None}


def read(path: Path, data: bytes) -> Outcome:
    """What becomes of a file, and what holds for whatever becomes of it."""
    outcome = _read(path, data)
    lines = [outcome.line] if outcome.index is None else list(outcome.index.doubts)
    assert all(line and line.isprintable() for line in lines)
    return outcome


def _read(path: Path, data: bytes) -> Outcome:
    path.write_bytes(data)
    with time_limit():
        try:
            index = probe(Source(path))
        except VideoOpenError as error:
            return Outcome(None, [], error.problem)
        # Two chunks: the second one is got at by seeking.
        frames = read_in_chunks(Source(path), index, 6)
    # Frames that are known by counting alone may turn out to be more than were planned.
    assert [frame.number for frame in frames] == list(range(len(frames)))
    assert len(frames) == len(index) or (not index.ordered and len(frames) > len(index))
    for frame in frames:
        assert frame.status in (OK, SUSPECT, DECODE_ERROR)
        assert frame.status == OK or frame.detail
        assert (frame.image is None) == (frame.status == DECODE_ERROR)
    return Outcome(index, frames, "")


@cache
def whole(name: str, folder: Path) -> Outcome:
    outcome = read(folder / f"whole-{name}", EVERY[name]())
    assert not outcome.noticed, "a healthy file"
    return outcome


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def differing(outcome: Outcome, original: Outcome) -> list[int]:
    """Places of the frames that are called ok and are not what they are in the whole file."""
    theirs = original.pictures
    if outcome.index is not None and outcome.index.ordered:
        by_time = {frame.pts: checksum(frame.image) for frame in original.frames if frame.image is not None}
        return [f.number for f in outcome.frames if f.status == OK and by_time.get(f.pts) != checksum(_image(f))]
    return [f.number for f in outcome.frames if f.status == OK and theirs.get(f.number) != checksum(_image(f))]


def _image(frame: Frame):
    assert frame.image is not None
    return frame.image


def _cut_anywhere(folder: Path, name: str, data: st.DataObject) -> tuple[Outcome, Outcome]:
    """What becomes of a file that is cut at some byte, and of the whole one."""
    stored, original = TELLING[name](), whole(name, folder)
    return read(folder / name, stored[: data.draw(st.integers(1, len(stored) - 1))]), original


class TestCuts:
    @pytest.mark.parametrize("name", TELLING)
    @damage
    @given(data=st.data())
    def test_a_cut_is_noticed_and_what_is_called_ok_is_right(self, folder: Path, name: str, data: st.DataObject):
        outcome, original = _cut_anywhere(folder, name, data)
        assert outcome.noticed
        assert differing(outcome, original) == []

    @pytest.mark.parametrize("name", MUTE)
    @damage
    @given(data=st.data())
    def test_without_a_header_the_last_frame_alone_is_in_doubt(self, folder: Path, name: str, data: st.DataObject):
        """Nobody can tell a stream that ends with a packet from a shorter one, and decoders do not always notice that
        the last frame's data end too early. Every other frame is right; and a transport stream that ends within a
        packet is noticed."""
        stored, original = MUTE[name](), whole(name, folder)
        cut = data.draw(
            st.integers(1, len(stored) - 1) | st.integers(1, len(stored) // TS_PACKET).map(TS_PACKET.__mul__)
        )
        outcome = read(folder / name, stored[:cut])
        assert set(differing(outcome, original)) <= {len(outcome.frames) - 1}
        if name.endswith(".ts") and cut % TS_PACKET:
            assert outcome.noticed

    @pytest.mark.parametrize("name", ["h264.mp4", "mpeg4.avi", "mjpeg.avi"])
    @damage
    @given(data=st.data())
    def test_frames_that_are_listed_and_lost_have_their_rows(self, folder: Path, name: str, data: st.DataObject):
        outcome, original = _cut_anywhere(folder, name, data)
        if outcome.index is not None:
            assert [frame.pts for frame in outcome.frames] == [frame.pts for frame in original.frames]


class TestFlips:
    @pytest.mark.parametrize("name", EVERY)
    @damage
    @given(data=st.data())
    def test_every_planned_frame_has_one_row_whatever_is_flipped(self, folder: Path, name: str, data: st.DataObject):
        """Also in headers; `read` holds what is to be promised."""
        read(folder / name, _flipped(EVERY[name](), data))

    @pytest.mark.parametrize("name", CHECKED)
    @damage
    @given(data=st.data())
    def test_under_a_checksum_no_flip_changes_a_picture_unnoticed(self, folder: Path, name: str, data: st.DataObject):
        original, stored = whole(name, folder), EVERY[name]()
        start, size = data.draw(st.sampled_from(packets(stored)))
        outcome = read(folder / name, _flipped(stored, data, start, start + size))
        assert outcome.noticed or outcome.pictures == original.pictures


def _flipped(stored: bytes, data: st.DataObject, start: int = 0, stop: int | None = None) -> bytes:
    last = (len(stored) if stop is None else stop) - 1
    at, bit = data.draw(st.integers(start, last)), data.draw(st.integers(0, 7))
    return stored[:at] + bytes([stored[at] ^ 1 << bit]) + stored[at + 1 :]
