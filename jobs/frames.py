"""The only door to PyAV: what frames a source has, and the pixels of any range of them.

A video is planned from its packets alone, without decoding: discarded packets are dropped, the others sorted by
presentation time stamp (pts), and frame i is the i-th pts. A range of frames is then read by seeking to a keyframe at
or before it and decoding up to its end; frames are known by their pts, so damage shifts nothing and a range yields
what decoding from the start would yield.
"""

import hashlib
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from jobs.discover import Source, shown
from jobs.errors import InputLost, VideoOpenError

# A picture of more pixels than this is refused: a few bytes of header must not claim gigabytes. 16384 x 8192 fits.
MAX_PIXELS = 1 << 27

# Containers whose frames lie in the file itself. Playlists (hls, concat, ...) read other files and addresses and are
# not among them.
_FORMATS = (
    "3gp,3g2,asf,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mj2,mjpeg,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,rm,"
    "vob,webm,wtv,yuv4mpegpipe"
)

OK, SKIPPED, SUSPECT, DECODE_ERROR = "ok", "skipped", "suspect", "decode_error"


FileState = tuple[int, int, int]


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
    fps:         average frames per second, for display only.
    fingerprint: hex digest of what the packets (or pictures) are made of.
    state:       of the file while it was read; None for pictures.
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
    state: FileState | None

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def time_s(self) -> np.ndarray:
        """(F,) float64 seconds since the first frame; NaN for pictures."""
        if self.size is None:
            return np.full(len(self), np.nan)
        return seconds(self.pts, int(self.pts[0]) if len(self) else 0, self.time_base)

    def anchor(self, frame: int) -> int | None:
        """The frame to start decoding at in order to get `frame` right, None for the start of the file.

        A key frame that is no entry needs the key frame before it as a run-up.
        """
        keys = np.flatnonzero(self.key[: frame + 1])
        if len(keys) and not self.entry[keys[-1]]:
            keys = keys[:-1]
        return int(keys[-1]) if len(keys) > 1 else None


def seconds(pts: np.ndarray, start: int, time_base: Fraction) -> np.ndarray:
    """True presentation time in seconds, float64, from integers: one rounding, no drift."""
    return (pts - start) * time_base.numerator / time_base.denominator


@dataclass(frozen=True, eq=False)
class FrameRange:
    """Which frames to read: what travels to a worker instead of frames.

    first:    number of the first frame.
    pts, key: (n,) of these frames, as planned. A source that is not `ordered` is read to its end, whatever is planned.
    wanted:   (n,) bool, whose pixels are needed.
    anchor:   pts to seek to, None to start at the beginning.
    run_up:   frames to decode before the first one of the range.
    state:    of the file when it was planned; another file under its name is not read. None for pictures.
    """

    source: Source
    first: int
    pts: np.ndarray
    key: np.ndarray
    wanted: np.ndarray
    anchor: int | None
    run_up: int
    state: FileState | None
    rotation: int
    ordered: bool
    stamped: bool
    time_base: Fraction
    fps: float | None


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


def probe(source: Source) -> FrameIndex:
    """Index a source. Reads it once, decodes one frame (for its size and rotation). Raises VideoOpenError."""
    if source.images is not None:
        return _index_images(source)
    check_regular(source.path)
    state = file_state(source.path)
    with closing(_open(source.path)) as container:
        stream = _video_stream(container, source.path)
        return _index_packets(container, stream, source.path, state)


def read_frames(wanted: FrameRange) -> Iterator[Frame]:
    """The frames of a range, each once; in rising order unless the source is damaged. Damage never raises."""
    if wanted.source.images is not None:
        return _read_images(wanted)
    if not wanted.ordered:
        return _read_all(wanted)
    return _read_range(wanted)


def check_unchanged(wanted: FrameRange) -> None:
    """Raise InputLost unless the file is the one that was planned."""
    if wanted.state is not None and file_state(wanted.source.path) != wanted.state:
        raise InputLost(shown(wanted.source.path), "changed or went away while the job ran")


def check_regular(path: Path) -> None:
    """Raise VideoOpenError unless `path` is a readable regular file with something in it: a pipe would hang."""
    try:
        status = path.stat()
    except OSError as error:
        dangling = path.is_symlink() and not path.exists()
        raise VideoOpenError(
            shown(path), "a link to a file that is not there" if dangling else _lower(error.strerror)
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoOpenError(shown(path), "not a regular file; videos are read from files only")
    if status.st_size == 0:
        raise VideoOpenError(shown(path), "empty file (0 bytes); copy or record it again")
    if not os.access(path, os.R_OK):
        raise VideoOpenError(shown(path), "no permission to read it")


# --- video: index ---------------------------------------------------------------------------------------------------


def _open(path: Path) -> InputContainer:
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    try:
        # Titles in latin-1 are common, and nothing here reads them.
        return av.open(f"file:{path}", options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        raise VideoOpenError(shown(path), f"not a video that can be read ({_reason(error)})") from error


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & s.disposition.__class__.attached_pic]
    if not streams:
        kinds = sorted({str(s.type) for s in container.streams}) or ["nothing"]
        raise VideoOpenError(shown(path), f"no video stream in it, only {', '.join(kinds)}")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    # Actors fill the cores; one thread also makes errors strike the same frame every time.
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def _index_packets(container: InputContainer, stream: VideoStream, path: Path, state: FileState | None) -> FrameIndex:
    pts: list[int | None] = []
    dts: list[int] = []
    key: list[bool] = []
    entry: list[bool] = []
    lengths = _h264_length_bytes(stream)
    digest = hashlib.sha256()
    first: VideoFrame | None = None
    codec = stream.codec_context.name
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            data = memoryview(packet)
            # A checksum a packet finds any change that is not made on purpose at a tenth of SHA-256's cost.
            digest.update(
                f"{packet.pts},{packet.dts},{packet.size},{int(packet.is_keyframe)},{zlib.crc32(data)};".encode()
            )
            if first is None:
                first = _first_frame(packet)
            if packet.is_discard:
                continue
            pts.append(packet.pts)
            dts += [] if packet.dts is None else [packet.dts]
            key.append(bool(packet.is_keyframe))
            entry.append(bool(packet.is_keyframe) and _is_entry(codec, packet, lengths))
    except av.FFmpegError as error:
        if not pts:
            raise VideoOpenError(shown(path), f"cannot be read ({_reason(error)})") from error
        # What comes before the damage is planned; the rest does not exist for FFmpeg either.
    if not pts:
        raise VideoOpenError(shown(path), "the video stream has no frames")
    if first is None:
        first = _flush_first(stream)
    if first is None:
        raise VideoOpenError(shown(path), f"none of its {len(pts)} frames can be decoded ({codec})")

    rotation = round(first.rotation / 90) * 90 % 360
    size = (first.width, first.height) if rotation % 180 == 0 else (first.height, first.width)
    stamped = _has_presentation_times(container, stream)
    if not stamped:
        pts = [None] * len(pts)
    known = [p for p in pts if p is not None]
    # A decoding time that falls is a clock set back (files joined, a broadcast restarted): no order by time stamp.
    ordered = len(set(known)) == len(pts) and all(a <= b for a, b in pairwise(dts))
    time_base, fps = stream.time_base or Fraction(1, 1000), stream.average_rate
    if ordered:
        order = np.argsort(np.array(known, dtype=np.int64), kind="stable")
        stamps = np.array(known, dtype=np.int64)[order]
    else:
        order = np.arange(len(pts))
        stamps = np.array(reckon_pts(pts, frame_ticks(time_base, fps)), dtype=np.int64)
    return FrameIndex(
        pts=stamps,
        key=np.array(key)[order],
        entry=np.array(entry)[order],
        ordered=ordered,
        stamped=stamped,
        size=size,
        rotation=rotation,
        time_base=time_base,
        fps=float(fps) if fps else None,
        codec=codec,
        fingerprint=digest.hexdigest(),
        state=state,
    )


def _has_presentation_times(container: InputContainer, stream: VideoStream) -> bool:
    """AVI has decoding times only. For H.264 and HEVC with B-frames FFmpeg passes those off as presentation times, and
    sorting by them would shuffle the frames. To be asked after the first frame was decoded, when B-frames are known."""
    codec = stream.codec_context
    return container.format.name != "avi" or codec.name not in ("h264", "hevc") or not codec.has_b_frames


def _first_frame(packet: Any) -> VideoFrame | None:
    try:
        return next((frame for frame in packet.decode() if isinstance(frame, VideoFrame)), None)
    except av.FFmpegError:
        return None


def _flush_first(stream: VideoStream) -> VideoFrame | None:
    """Codecs with a delay give the only frame of a very short video when they are told that no more will come."""
    try:
        return next(iter(stream.codec_context.decode(None)), None)
    except av.FFmpegError:
        return None


def _is_entry(codec: str, packet: Any, length_bytes: int) -> bool:
    """Whether every frame shown from this key frame on decodes right when decoding starts here.

    So for all codecs but H.264, whose containers also mark recovery points (open GOPs, intra refresh) as key: only
    instantaneous decoder refreshes (NAL unit type 5) are safe.
    """
    return codec != "h264" or 5 in _h264_nal_types(bytes(packet), length_bytes)


def _h264_length_bytes(stream: VideoStream) -> int:
    """Bytes of the length before each NAL unit, as the AVC configuration says; 0 for a byte stream with start codes."""
    extradata = stream.codec_context.extradata or b""
    return (extradata[4] & 3) + 1 if len(extradata) > 4 and extradata[0] == 1 else 0


def _h264_nal_types(data: bytes, length_bytes: int) -> set[int]:
    """NAL unit types in a packet."""
    if not length_bytes:
        return {part[0] & 31 for part in data.split(b"\0\0\1")[1:] if part}
    types, at = set(), 0
    while at + length_bytes < len(data):
        types.add(data[at + length_bytes] & 31)
        at += length_bytes + int.from_bytes(data[at : at + length_bytes], "big")
    return types


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


# --- video: pixels --------------------------------------------------------------------------------------------------


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

    def send(self, packet: Any) -> None:
        """Note what is known of a packet before it is decoded."""
        if packet.is_keyframe:
            self._before_key, self._detail, self._key_pts = self._detail, None, packet.pts
        # Frames shown before a key frame but sent after it refer to the frames before it.
        self._leading = None not in (packet.pts, self._key_pts) and packet.pts < self._key_pts
        if packet.is_corrupt:
            self.strike("the container marks a packet as corrupt")
        self._doubts[packet.pts] = self._before_key if self._leading else self._detail

    def strike(self, detail: str) -> None:
        """Doubt what is sent from here on."""
        self._detail = self.last = detail
        if self._leading:
            self._before_key = detail

    def judge(self, frame: VideoFrame) -> tuple[str, str | None]:
        """Status and detail of a frame."""
        doubt = self._doubts.pop(frame.pts, self._detail)
        if frame.is_corrupt:
            self.strike("the decoder marks a frame as corrupt")
            return SUSPECT, self.last
        return (OK, None) if doubt is None else (SUSPECT, f"follows damage: {doubt}")


class _Delivery:
    """Which frames of a range have been handed out."""

    def __init__(self, wanted: FrameRange) -> None:
        self._range = wanted
        self._place = {int(pts): i for i, pts in enumerate(wanted.pts)}
        self.missing = int(wanted.wanted.sum())

    def take(self, frame: VideoFrame, status: str, detail: str | None) -> Frame | None:
        """The frame, if it is a wanted one that has not been handed out."""
        pts = frame.pts
        if pts is None or (i := self._place.get(pts)) is None or not self._range.wanted[i]:
            return None
        del self._place[pts]
        self.missing -= 1
        return _planned_frame(self._range, i, status, detail, _upright(frame, self._range.rotation))

    def rest(self, detail: str) -> Iterator[Frame]:
        """A row for each frame that was not wanted or never came."""
        for i in sorted(self._place.values()):
            asked = self._range.wanted[i]
            yield _planned_frame(self._range, i, DECODE_ERROR if asked else SKIPPED, detail if asked else None)


def _planned_frame(
    wanted: FrameRange, i: int, status: str, detail: str | None, image: np.ndarray | None = None
) -> Frame:
    return Frame(wanted.first + i, int(wanted.pts[i]), bool(wanted.key[i]), image, status, detail=detail)


def _read_range(wanted: FrameRange) -> Iterator[Frame]:
    delivery, damage = _Delivery(wanted), _Damage()
    if delivery.missing:
        for frame in _decode(wanted, damage):
            if delivered := delivery.take(frame, *damage.judge(frame)):
                yield delivered
            if not delivery.missing or (frame.pts is not None and frame.pts > wanted.pts[-1]):
                break
    yield from delivery.rest(damage.last or "the decoder gave no frame for it")


def _read_all(wanted: FrameRange) -> Iterator[Frame]:
    """Frames in the order the decoder gives them, their numbers by counting."""
    damage, ticks = _Damage(), frame_ticks(wanted.time_base, wanted.fps)
    planned, number = len(wanted.pts), 0
    last: list[int] = []
    for frame in _decode(wanted, damage):
        status, detail = damage.judge(frame)
        last = reckon_pts([*last, frame.pts if wanted.stamped else None], ticks)[-1:]
        if wanted.wanted[min(number, planned - 1)]:
            if last[0] != frame.pts:
                detail = detail or "no usable time stamp; reckoned from the frame rate"
            image = _upright(frame, wanted.rotation)
            yield Frame(number, last[0], bool(frame.key_frame), image, status, detail=detail)
        else:
            yield Frame(number, last[0], bool(frame.key_frame), None, SKIPPED)
        number += 1
    lost = f"the decoder gave {number} of {planned} frames" + (f" ({damage.last})" if damage.last else "")
    for i in range(number, planned):
        last = reckon_pts([*last, None], ticks)[-1:]
        yield Frame(i, last[0], False, None, DECODE_ERROR, detail=lost)


def _decode(wanted: FrameRange, damage: _Damage) -> Iterator[VideoFrame]:
    """Frames from the anchor on. What the file holds never raises; InputLost if the file cannot be got at any more."""
    path = wanted.source.path
    try:
        check_regular(path)
    except VideoOpenError as error:
        raise InputLost(error.video, error.problem) from error
    try:
        with closing(_open(path)) as container:
            yield from _decode_from(container, _video_stream(container, path), wanted.anchor, damage)
    except VideoOpenError as error:
        damage.strike(error.problem)


def _decode_from(
    container: InputContainer, stream: VideoStream, anchor: int | None, damage: _Damage
) -> Iterator[VideoFrame]:
    """Decode from the key frame with pts `anchor`, noting damage on the way."""
    packets = _packets_from(container, stream, anchor)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                raise InputLost(shown(container.name.removeprefix("file:")), _reason(error)) from error
            damage.strike(f"the file cannot be read further ({_reason(error)})")
            packet = None
        if packet is not None:
            damage.send(packet)
        try:
            yield from stream.codec_context.decode(packet)
        except av.FFmpegError as error:
            if not isinstance(error, av.error.EOFError):
                damage.strike(_reason(error))
        if packet is None:
            return


def _packets_from(container: InputContainer, stream: VideoStream, anchor: int | None) -> Iterator[Any]:
    """Packets from the key frame with pts `anchor` on, or all of them.

    Containers seek by decoding time, by byte position or by guess, so a seek may land too late: it is repeated from
    further back until the first key frame it finds is not after the anchor; packets before the anchor are dropped.
    """
    if anchor is not None:
        # Start with a second, end at the beginning of the file.
        margin, reach = round(1 / (stream.time_base or 1)), anchor - (stream.start_time or 0)
        for back in (0, margin, 4 * margin, 16 * margin, reach):
            container.seek(max(anchor - back, anchor - reach), stream=stream)
            packets = _without_empty(container.demux(stream))
            for packet in packets:
                if packet.is_keyframe and packet.pts is not None:
                    if packet.pts == anchor:
                        yield packet
                        yield from packets
                        return
                    if packet.pts > anchor:
                        break
        container.seek(stream.start_time or 0, stream=stream)
    yield from _without_empty(container.demux(stream))


def _without_empty(packets: Iterator[Any]) -> Iterator[Any]:
    """PyAV ends a stream with an empty packet, which would flush the decoder for good."""
    return (packet for packet in packets if packet.size)


def _upright(frame: VideoFrame, rotation: int) -> np.ndarray:
    image = frame.to_ndarray(format="bgr24")
    turn = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}
    return cv2.rotate(image, turn[rotation]) if rotation in turn else image


def _reason(error: Exception) -> str:
    return _lower(getattr(error, "strerror", None) or str(error))


def _lower(text: str | None) -> str:
    return text[:1].lower() + text[1:] if text else "unknown error"


# --- pictures -------------------------------------------------------------------------------------------------------


def _index_images(source: Source) -> FrameIndex:
    assert source.images is not None
    digest = hashlib.sha256()
    for name in source.images:
        try:
            data = (source.path / name).read_bytes()
        except OSError:
            data = b""
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + zlib.crc32(data).to_bytes(4, "big"))
    n = len(source.images)
    every = np.ones(n, dtype=bool)
    return FrameIndex(
        np.arange(n), every, every, True, True, None, 0, Fraction(1), None, "images", digest.hexdigest(), None
    )


def _read_images(wanted: FrameRange) -> Iterator[Frame]:
    images = wanted.source.images
    assert images is not None
    for i, pts in enumerate(wanted.pts):
        name = images[wanted.first + i]
        image, status, detail = None, SKIPPED, None
        if wanted.wanted[i]:
            image, detail = _read_image(wanted.source.path / name)
            status = OK if image is not None else DECODE_ERROR
        printable = shown(name)
        yield Frame(wanted.first + i, int(pts), True, image, status, printable, detail)


def _read_image(path: Path) -> tuple[np.ndarray | None, str | None]:
    """Pixels, upright as EXIF says, or what is wrong."""
    try:
        check_regular(path)
        image = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_COLOR)
    except VideoOpenError as error:
        return None, error.problem
    except (OSError, cv2.error) as error:
        return None, f"cannot be read ({_lower(str(error).splitlines()[-1])[:120]})"
    if image is None:
        return None, "not a picture that OpenCV can read"
    return image, None
