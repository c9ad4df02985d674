"""The only door to PyAV: open a file, hand out its packets, decode them. FFmpeg's errors end here."""

import logging
import math
import struct
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import av
import av.filter
import numpy as np
from av.container import InputContainer
from av.packet import Packet as AvPacket
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream

from jobs.discover import shown
from jobs.errors import VideoOpenError
from jobs.frames.containers import begins_like_mp4, is_cut_short
from jobs.frames.values import can_be_read, first_lower

# For those who pass them on without a door of their own.
Container: TypeAlias = InputContainer
Picture: TypeAlias = VideoFrame
Stream: TypeAlias = VideoStream
if TYPE_CHECKING:
    Packet: TypeAlias = AvPacket[VideoStream]
else:
    Packet = AvPacket

# A picture of more pixels than this is refused: a few bytes of header must not claim gigabytes. 16384 x 8192 fits.
MAX_PIXELS = 1 << 27

# Containers whose frames lie in the file itself. Playlists (hls, concat, ...) read other files and addresses and are
# not among them.
_FORMATS = (
    "3gp,3g2,asf,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mj2,mjpeg,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,rm,"
    "vob,webm,wtv,yuv4mpegpipe"
)

# Many decoders conceal an error and tell of it in the log alone: of 150 flipped bits in FFV1 with checksums 149 were
# noticed with the log and 1 without. Only errors are listened to, and every codec has one thread: FFmpeg's log takes
# the GIL, which other threads of a decoder would wait for. Where nobody listens, it is silent as it was.
av.logging.set_level(av.logging.ERROR)
av.logging.set_skip_repeated(False)
logging.getLogger("libav").addHandler(logging.NullHandler())

CUT_SHORT = "the file is cut short"

# Pictures of 8 bits with the planes of Y, U and V. Others, filters convert otherwise than PyAV.
_FILTERED = [f"{kind}{sampling}p" for kind in ("yuv", "yuvj") for sampling in (420, 422, 444)]

# Said at the level of errors of streams in which every pixel is right.
_HARMLESS = ("mmco: unref short failure", "unable to decode APP fields", "SEI type")


class ReadError(Exception):
    """The packets end before the file does. lost: the disk does not give the rest of it."""

    def __init__(self, reason: str, lost: bool) -> None:
        super().__init__(reason, lost)
        self.reason, self.lost = reason, lost


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Container, Stream]]:
    """A file and the stream of it that is the video. Raises VideoOpenError."""
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    try:
        # Titles in latin-1 are common, and nothing here reads them.
        with av.logging.Capture() as log:
            container = av.open(f"file:{path}", options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        said = " ".join(line for _, _, line in log)
        if "moov atom not found" in said and begins_like_mp4(path):
            reason = "no moov: the recording or the copy of it was not finished"
        elif "whitelist" in said:
            reason = "a picture, a playlist or another kind of file that is not read as a video"
        else:
            reason = _reason(error)
        raise VideoOpenError(shown(path), f"not a video that can be read ({reason})") from error
    with container:
        yield container, _video_stream(container, path)


def _video_stream(container: Container, path: Path) -> Stream:
    streams = [s for s in container.streams.video if not s.disposition & s.disposition.__class__.attached_pic]
    if not streams:
        kinds = sorted({"a cover picture" if s.type == "video" else s.type for s in container.streams}) or ["nothing"]
        raise VideoOpenError(shown(path), f"no video stream in it, only {', '.join(kinds)}")
    best = container.streams.best("video")
    stream = best if isinstance(best, VideoStream) and best in streams else streams[0]
    if stream.codec_context is None:
        raise VideoOpenError(shown(path), "a video stream of unknown kind, or too short to tell")
    # Actors fill the cores; one thread also makes errors strike the same frame every time.
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS), "err_detect": "crccheck"}
    return stream


class Header(NamedTuple):
    """What a file says of itself and of its video. A stream of a closed container answers with whatever lies in its
    memory, so this is a copy.

    container: FFmpeg's names for it. stream_id: the video's number in the file. start: first time stamp, in units of
    `time_base`. rate: average frames per second. n_frames: 0 if it does not say. b_frames: whether frames are stored in
    another order than shown; known once a frame was decoded.
    """

    container: str
    duration_s: float | None
    stream_id: int
    start: int
    time_base: Fraction
    rate: Fraction | None
    n_frames: int
    codec: str
    extradata: bytes
    b_frames: bool


def header(container: Container, stream: Stream) -> Header:
    """What the file says by now: a decoder may have learned more."""
    codec = stream.codec_context
    return Header(
        container=container.format.name,
        duration_s=container.duration / 1e6 if container.duration else None,
        stream_id=stream.id,
        start=stream.start_time or 0,
        time_base=stream.time_base or Fraction(1, 1000),
        rate=stream.average_rate,
        n_frames=stream.frames,
        codec=codec.name,
        extradata=codec.extradata or b"",
        b_frames=bool(codec.has_b_frames),
    )


def listed_times(stream: Stream) -> "array[int]":
    """Decoding times of the frames that the file lists; as an array because a day of video has millions."""
    return array("q", (entry.timestamp for entry in stream.index_entries if not entry.is_discard))


class Demuxed(NamedTuple):
    """A packet. wrong: with its data, before: with the file just before it; in words, None if nothing is."""

    packet: Packet
    wrong: str | None
    before: str | None


def packets(container: Container, stream: Stream) -> Iterator[Demuxed]:
    """The stream's packets from where the container stands to the end of the file. Raises ReadError."""
    source, in_place = iter(container.demux(stream)), _InPlace(container, stream)
    before: str | None = None
    while True:
        with av.logging.Capture() as log:
            try:
                packet = next(source, None)
            except av.FFmpegError as error:
                # Demuxers call it an input error as well if what they read makes no sense.
                lost = isinstance(error, OSError) and not can_be_read(_path(container))
                raise ReadError(_reason(error), lost) from error
        # Parsers are heard as well; what they have to say of a packet, the decoder says again.
        before = before or _first_error([line for line in log if line[1] == container.format.name])
        # PyAV ends a stream with an empty packet, which would flush the decoder for good.
        if packet is not None and packet.size:
            yield Demuxed(packet, _wrong(container, packet), in_place(packet) or before)
            before = None
        elif packet is None:
            break
    if before:
        raise ReadError(before, lost=False)


def seek(container: Container, stream: Stream, pts: int) -> bool:
    """Go to a key frame at or before `pts`, by what the file says of itself.

    False if it says nonsense, or nothing. Where the container stands then nobody knows: open the file anew.
    """
    try:
        container.seek(pts, stream=stream)
    except av.FFmpegError:
        return False
    return True


def _wrong(container: Container, packet: Packet) -> str | None:
    if packet.is_corrupt:
        return "the container marks a packet as corrupt"
    # Parsers take that mark off.
    at_end = packet.pos is not None and packet.pos + packet.size >= container.size
    return CUT_SHORT if at_end and cut_short(container) else None


def cut_short(container: Container) -> bool:
    """Whether the file is shorter than it says, of containers that FFmpeg does not check."""
    return is_cut_short(_path(container), container.format.name)


def _path(container: Container) -> Path:
    return Path(container.name.removeprefix("file:"))


class _InPlace:
    """Gives packets of an AVI their times by its index.

    FFmpeg counts an AVI's packets as it finds them: behind one that is lost, all are early by one, but only until it
    seeks.
    """

    def __init__(self, container: Container, stream: Stream) -> None:
        self._index = stream.index_entries if container.format.name == "avi" else None
        self._times: dict[int, int] | None = None
        self._shift: int | None = None

    def __call__(self, packet: Packet) -> str | None:
        """Correct a packet; says so if others are missing before it."""
        if packet.pos is None or packet.dts is None or (time := self._time(packet.pos, packet.dts)) is None:
            return None
        shift = time - packet.dts
        n_lost, self._shift = shift - (shift if self._shift is None else self._shift), shift
        if shift:
            packet.dts = time
            packet.pts = None if packet.pts is None else packet.pts + shift
        return f"{n_lost:,} frames before it are not in the file" if n_lost > 0 else None

    def _time(self, pos: int, dts: int) -> int | None:
        """The time that the index gives for the packet at a byte."""
        if not self._index:
            return None
        # The index points at the header of 8 bytes before the data.
        if (at := self._index.search_timestamp(dts, any_frame=True)) >= 0 and self._index[at].pos + 8 == pos:
            return self._index[at].timestamp
        # All of it is read only where a packet is not in its place: a day of video has millions of entries.
        if self._times is None:
            self._times = {entry.pos + 8: entry.timestamp for entry in self._index}
        return self._times.get(pos)


def decode(stream: Stream, packet: Packet | None) -> tuple[list[Picture], str | None]:
    """The pictures that the decoder gives for a packet, or at the end (None), and what it complains of."""
    pictures: list[Picture] = []
    complaint = None
    with av.logging.Capture() as log:
        try:
            pictures = stream.codec_context.decode(packet)
        except av.error.EOFError:
            pass
        except av.FFmpegError as error:
            complaint = _reason(error)
    return pictures, _first_error(log) or complaint


class ToBgr:
    """Turns the pictures of a stream into arrays.

    Ordinary ones go through a filter of FFmpeg's, which fills the same memory again and again. PyAV's `to_ndarray` asks
    for memory twice for each picture, 6 MB each at 1080p, which leaves gaps in that of a long-lived process: a worker
    had 420 to 730 MB at its peak in place of 310; and it sets up each conversion anew (0.2 ms). The bits are the same.
    """

    def __init__(self) -> None:
        self._graph: av.filter.Graph | None = None
        self._form: object = None

    def __call__(self, picture: Picture) -> tuple[np.ndarray | None, str | None]:
        """(H, W, 3) uint8 BGR as stored, None if there is no way to it; and what is wrong, None if nothing is."""
        try:
            return self._convert(picture), None
        except av.FFmpegError:
            self._form = None
        # Some ways to store colours FFmpeg knows by name alone; a flipped bit may name them, too. The shapes are right.
        picture.colorspace = Colorspace.ITU601
        try:
            return picture.to_ndarray(format="bgr24"), "its colours cannot be converted, and were taken for common ones"
        except av.FFmpegError as error:
            return None, f"cannot be converted ({_reason(error)})"

    def _convert(self, picture: Picture) -> np.ndarray:
        if picture.format.name not in _FILTERED:
            return picture.to_ndarray(format="bgr24")
        form = picture.width, picture.height, picture.format.name, picture.colorspace, picture.color_range
        if form != self._form:
            self._graph, self._form = _bgr_graph(picture), form
        assert self._graph is not None
        self._graph.push(picture)
        converted = cast(Picture, self._graph.pull())
        plane = converted.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        return rows[: picture.height, : 3 * picture.width].reshape(picture.height, picture.width, 3)


def _bgr_graph(picture: Picture) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1, 1000)
    )
    # As PyAV does it: how colours are spread over the pixels that share them, the lines of interlaced pictures apart.
    graph.link_nodes(
        source, graph.add("scale", "flags=bilinear:interl=-1"), graph.add("format", "bgr24"), graph.add("buffersink")
    )
    graph.configure()
    return graph


class Orientation(NamedTuple):
    """How a stored picture becomes upright: left and right are exchanged if it is mirrored, then it is turned.

    rotation: degrees counter-clockwise; 0, 90, 180 or 270.
    """

    rotation: int
    mirrored: bool


def orientation(picture: Picture) -> Orientation:
    """What the file says of how a picture is to be shown, as players do it: by quarter turns.

    A pixel at (x, y), y downwards, is shown at (a x + c y, b x + d y). PyAV's own `rotation` looks at a and b alone.
    """
    # PyAV's types know of motion vectors alone.
    matrix = cast(Mapping[str, Any], picture.side_data).get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation(0, mirrored=False)
    a, b, _, c, d, *_ = struct.unpack_from("=9i", bytes(matrix))
    area = a * d - b * c
    if not area:
        return Orientation(0, mirrored=False)  # shows nothing at all: not meant so
    # The exchange of left and right, which comes first, changes the signs of a and b.
    degrees = math.degrees(-math.atan2(b, a) if area > 0 else -math.atan2(-b, -a))
    return Orientation(round(degrees / 90) * 90 % 360, mirrored=area < 0)


def _first_error(log: list[tuple[int, str, str]]) -> str | None:
    return next((first_lower(line.strip().rstrip(".")) for _, _, line in log if not line.startswith(_HARMLESS)), None)


def _reason(error: Exception) -> str:
    return first_lower(getattr(error, "strerror", None) or str(error))
