"""From a FrameRange to frames: seek, decode, and say of each frame whether it can be trusted."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial

import cv2
import numpy as np

from jobs.discover import shown
from jobs.errors import InputLost, VideoOpenError
from jobs.frames.ffmpeg import (
    CUT_SHORT,
    Container,
    Demuxed,
    Packet,
    Picture,
    ReadError,
    Stream,
    ToBgr,
    cut_short,
    decode,
    header,
    open_video,
    packets,
    seek,
)
from jobs.frames.values import (
    DECODE_ERROR,
    OK,
    SKIPPED,
    SUSPECT,
    Frame,
    FrameRange,
    can_be_read,
    check_regular,
    frame_ticks,
    reckon_pts,
)


class _Damage:
    """Whether what is decoded can be trusted: not after an error, until the next key frame.

    Packets are judged as they are sent and frames as they come out, which with B-frames is later and in another order;
    the time stamp joins the two.
    """

    def __init__(self) -> None:
        self.last: str | None = None
        self._detail: str | None = None
        self._before_key: str | None = None
        self._key_pts: int | None = None
        self._leading = False
        self._doubts: dict[int | None, str | None] = {}
        self._sent: set[int | None] = set()
        self._misplaced: str | None = None
        self._unreadable: str | None = None

    def send(self, found: Demuxed) -> None:
        """Note what is known of a packet before it is decoded."""
        packet, wrong, before = found
        self._sent.add(packet.pts)
        if before:
            self.strike(before)
        if packet.is_keyframe:
            self._before_key, self._detail, self._key_pts = self._detail, None, packet.pts
        # Frames shown before a key frame but sent after it refer to the frames before it.
        self._leading = packet.pts is not None and self._key_pts is not None and packet.pts < self._key_pts
        if wrong:
            self.strike(wrong)
        self._doubts[packet.pts] = self._before_key if self._leading else self._detail

    def strike(self, detail: str) -> None:
        """Doubt what is sent from here on."""
        self._detail = self.last = detail
        if self._leading:
            self._before_key = detail

    def break_off(self, error: ReadError) -> None:
        """No more packets can be read."""
        detail = f"the file cannot be read further ({error.reason})"
        self.strike(detail)
        if error.lost:
            self._unreadable = detail

    def complain(self, packet: Packet | None, complaint: str) -> None:
        """The decoder found something wrong with a packet, or at the end with those before."""
        self.strike(complaint)
        if packet is not None:
            self._doubts[packet.pts] = complaint

    def end(self, cut: str | None) -> None:
        """No more packets come, and they had no times of their own. cut: the file has lost its end.

        Frames that the decoder held back for others take the places of those that are lost.
        """
        self._misplaced = cut or self.last

    def why_missing(self, pts: int) -> str:
        """Why there is no picture of a planned frame."""
        if self._sent and pts not in self._sent:
            return self._unreadable or "its data is not in the file"
        return self.last or "the decoder gave no frame for it"

    def judge(self, frame: Picture) -> tuple[str, str | None]:
        """Status and detail of a frame."""
        doubt = self._doubts.pop(frame.pts, self._detail)
        if frame.is_corrupt:
            self.strike("the decoder marks a frame as corrupt")
            return SUSPECT, self.last
        if doubt is None and self._misplaced:
            return SUSPECT, f"may be out of place: {self._misplaced}"
        return (OK, None) if doubt is None else (SUSPECT, f"follows damage: {doubt}")


class _Delivery:
    """Which frames of a range have been handed out."""

    def __init__(self, wanted: FrameRange) -> None:
        self._range = wanted
        self._to_bgr = ToBgr()
        self._place = {int(pts): i for i, pts in enumerate(wanted.pts)}
        self.missing = int(wanted.wanted.sum())

    def take(self, frame: Picture, status: str, detail: str | None) -> Frame | None:
        """The frame, if it is a wanted one that has not been handed out."""
        pts = frame.pts
        if pts is None or (i := self._place.get(pts)) is None or not self._range.wanted[i]:
            return None
        del self._place[pts]
        self.missing -= 1
        image, status, detail = _upright(frame, self._to_bgr, self._range, status, detail)
        return _planned_frame(self._range, i, status, detail, image)

    def rest(self, damage: _Damage) -> Iterator[Frame]:
        """A row for each frame that was not wanted or never came."""
        for pts, i in sorted(self._place.items()):
            if self._range.wanted[i]:
                yield _planned_frame(self._range, i, DECODE_ERROR, damage.why_missing(pts))
            else:
                yield _planned_frame(self._range, i, SKIPPED, None)


def _planned_frame(
    wanted: FrameRange, i: int, status: str, detail: str | None, image: np.ndarray | None = None
) -> Frame:
    return Frame(wanted.first + i, int(wanted.pts[i]), bool(wanted.key[i]), image, status, detail=detail)


def read_range(wanted: FrameRange) -> Iterator[Frame]:
    """Frames that are known by their time stamps."""
    delivery, damage = _Delivery(wanted), _Damage()
    if delivery.missing:
        for frame in _decode(wanted, damage):
            if delivered := delivery.take(frame, *damage.judge(frame)):
                yield delivered
            if not delivery.missing or (frame.pts is not None and frame.pts > wanted.pts[-1]):
                break
    yield from delivery.rest(damage)


def read_all(wanted: FrameRange) -> Iterator[Frame]:
    """Frames in the order the decoder gives them, their numbers by counting."""
    damage, to_bgr, ticks = _Damage(), ToBgr(), frame_ticks(wanted.time_base, wanted.fps)
    planned, number = len(wanted.pts), 0
    last: list[int] = []
    for frame in _decode(wanted, damage):
        status, detail = damage.judge(frame)
        last = reckon_pts([*last, frame.pts if wanted.stamped else None], ticks)[-1:]
        if wanted.wanted[min(number, planned - 1)]:
            if last[0] != frame.pts:
                detail = detail or "no usable time stamp; reckoned from the frame rate"
            image, status, detail = _upright(frame, to_bgr, wanted, status, detail)
            yield Frame(number, last[0], bool(frame.key_frame), image, status, detail=detail)
        else:
            yield Frame(number, last[0], bool(frame.key_frame), None, SKIPPED)
        number += 1
    lost = f"the decoder gave {number} of {planned} frames" + (f" ({damage.last})" if damage.last else "")
    for i in range(number, planned):
        last = reckon_pts([*last, None], ticks)[-1:]
        yield Frame(i, last[0], False, None, DECODE_ERROR, detail=lost)


def _decode(wanted: FrameRange, damage: _Damage) -> Iterator[Picture]:
    """Frames from the anchor on. What the file holds never raises; InputLost if it can no longer be read as it could be
    when it was planned."""
    path = wanted.source.path
    try:
        check_regular(path)
    except VideoOpenError as error:
        raise InputLost(error.video, error.problem) from error
    try:
        # Each way in a file that is opened anew: where a seek that failed has left it, nobody knows.
        for begin in _ways_to(wanted.anchor):
            with open_video(path) as (container, stream):
                if source := begin(container, stream):
                    yield from _decode_from(container, stream, source, wanted, damage)
                    return
    except VideoOpenError as error:
        # It could be opened when it was planned: what fails now is the machine, unless the disk failed then as well.
        failing = isinstance(error.__cause__, (OSError, MemoryError)) or not can_be_read(path)
        if failing and not wanted.unreadable:
            raise InputLost(error.video, error.problem) from error
        damage.strike(error.problem)


def _decode_from(
    container: Container, stream: Stream, source: Iterator[Demuxed], wanted: FrameRange, damage: _Damage
) -> Iterator[Picture]:
    """Decode packets, noting damage on the way."""
    anchor = wanted.anchor
    while True:
        try:
            found = next(source, None)
        except ReadError as error:
            if error.lost and not wanted.unreadable:
                raise InputLost(shown(wanted.source.path), error.reason) from error
            damage.break_off(error)
            found = None
        if found is not None:
            damage.send(found)
        elif not wanted.ordered or header(container, stream).container in ("avi", "mpeg"):
            damage.end(CUT_SHORT if cut_short(container) else None)
        packet = found.packet if found else None
        pictures, complaint = decode(stream, packet)
        # What is shown before the anchor refers to frames that were not sent, and nobody asks for it.
        if complaint and not (packet and anchor is not None and packet.pts is not None and packet.pts < anchor):
            damage.complain(packet, complaint)
        yield from pictures
        if packet is None:
            return


def _ways_to(anchor: int | None) -> tuple[Callable[[Container, Stream], Iterator[Demuxed] | None], ...]:
    """How to get at the packets of a range: the next way where one gives None. The last one always gives them."""
    if anchor is None:
        return (packets,)
    return partial(_sought, anchor=anchor), partial(_passed_over, anchor=anchor), packets


def _sought(container: Container, stream: Stream, anchor: int) -> Iterator[Demuxed] | None:
    """Packets from the anchor on, found by seeking.

    Containers seek by decoding time, by byte position or by guess, so a seek may land too late: it is repeated from
    further back until the first key frame it finds is not after the anchor.
    """
    # Start with a second, end at the beginning of the file.
    head = header(container, stream)
    margin, reach = round(1 / head.time_base), anchor - head.start
    for back in (0, margin, 4 * margin, 16 * margin, reach):
        if not seek(container, stream, max(anchor - back, anchor - reach)):
            return None
        if found := _from_key_frame(packets(container, stream), anchor):
            return found
    return None


def _passed_over(container: Container, stream: Stream, anchor: int) -> Iterator[Demuxed] | None:
    """Packets from the anchor on, found by reading all before it, which is much faster than decoding it."""
    return _from_key_frame(packets(container, stream), anchor)


def _from_key_frame(source: Iterator[Demuxed], pts: int) -> Iterator[Demuxed] | None:
    """Packets from the key frame with this time stamp on, None if a later one comes first."""
    with contextlib.suppress(ReadError):
        for found in source:
            packet = found.packet
            if packet.is_keyframe and packet.pts is not None:
                if packet.pts == pts:
                    return itertools.chain([found], source)
                if packet.pts > pts:
                    break
    return None


def _upright(
    frame: Picture, to_bgr: ToBgr, wanted: FrameRange, status: str, detail: str | None
) -> tuple[np.ndarray | None, str, str | None]:
    """Pixels of a decoded frame, with its status and detail, which the pixels may have something to add to."""
    image, wrong = to_bgr(frame)
    if image is None:
        return None, DECODE_ERROR, wrong
    if wanted.mirrored:
        image = cv2.flip(image, 1)
    turn = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}
    image = cv2.rotate(image, turn[wanted.rotation]) if wanted.rotation in turn else image
    return image, SUSPECT if wrong else status, detail or wrong
