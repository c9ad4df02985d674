"""From a file's packets to a FrameIndex."""

import hashlib
import zlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jobs.discover import shown
from jobs.errors import VideoOpenError
from jobs.frames.containers import file_doubts
from jobs.frames.ffmpeg import (
    Container,
    Header,
    Packet,
    Picture,
    ReadError,
    Stream,
    decode,
    header,
    listed_times,
    open_video,
    orientation,
    packets,
)
from jobs.frames.values import FrameIndex, can_be_read, check_regular, file_state, frame_ticks, reckon_pts

_NO_PTS = -(1 << 63)

# An AVI that is cut short counts its frames in four bytes of header, and each that it counts gets a row. It is believed
# up to a recording of an hour of which nothing is left, or one of which a tenth is.
_LOST_AT_LEAST, _LOST_PER_FRAME = 100_000, 10


def index_video(path: Path) -> FrameIndex:
    """Index a video file. Raises VideoOpenError."""
    check_regular(path)
    state = file_state(path)
    with open_video(path) as (container, stream):
        read = _read_packets(container, stream)
        head = header(container, stream)
        doubts = file_doubts(path, head.container, head.stream_id)
        lost = _lost(head, stream, read, cut_short=bool(doubts))
    # What is whole is not read twice.
    unreadable = bool(doubts or read.ended) and not can_be_read(path)
    doubts += tuple(_index_doubts(head, read, lost, known=bool(doubts), unreadable=unreadable))
    if not read.pts:
        raise VideoOpenError(shown(path), _without_frames(read, lost))
    if (first := read.first) is None:
        n_frames, why = len(read.pts) + len(lost), "; ".join((head.codec, *doubts[:1]))
        raise VideoOpenError(shown(path), f"none of its {n_frames} frames can be decoded ({why})")
    stamped = _has_presentation_times(head)
    rotation, mirrored = orientation(first)
    turned = f"{rotation} mirrored" if mirrored else f"{rotation}"
    said = f"{head.codec} {head.time_base} {head.rate} {first.width}x{first.height} {turned} {head.extradata.hex()}"
    pts, key, entry, ordered = _placed(read, lost, stamped, frame_ticks(head.time_base, head.rate))
    return FrameIndex(
        pts=pts,
        key=key,
        entry=entry,
        ordered=ordered,
        stamped=stamped,
        size=(first.width, first.height) if rotation % 180 == 0 else (first.height, first.width),
        rotation=rotation,
        mirrored=mirrored,
        time_base=head.time_base,
        fps=float(head.rate) if head.rate else None,
        codec=head.codec,
        fingerprint=read.fingerprint(said, lost),
        states=(state,),
        doubts=doubts,
        unreadable=frozenset([path.name] if unreadable else []),
    )


@dataclass
class _Read:
    """What was read of the packets, in their order; packets that are not to be shown count for the digest alone.

    pts:   _NO_PTS where a packet has none. These are arrays because a day of video has millions.
    first: the first picture that came out when the packets were decoded up to there.
    dts:   of the packets that have one.
    all_dts: the same, also of packets that are not to be shown.
    wrong: what FFmpeg found wrong with the file first.
    ended: why reading stopped, if not at the end of the file.
    """

    pts: "array[int]" = field(default_factory=lambda: array("q"))
    dts: "array[int]" = field(default_factory=lambda: array("q"))
    all_dts: "array[int]" = field(default_factory=lambda: array("q"))
    key: bytearray = field(default_factory=bytearray)
    entry: bytearray = field(default_factory=bytearray)
    first: Picture | None = None
    wrong: str | None = None
    ended: str | None = None
    digest: Any = field(default_factory=hashlib.sha256)

    def fingerprint(self, header: str, lost: list[int]) -> str:
        """Of what the packets are made of, of what the header says of them, and of what is missing."""
        self.digest.update(header.encode())
        if lost:
            self.digest.update(f"lost {lost}".encode())
        return str(self.digest.hexdigest())


def _read_packets(container: Container, stream: Stream) -> _Read:
    read, head = _Read(), header(container, stream)
    lengths = _h264_length_bytes(head.extradata)
    try:
        for packet, _, before in packets(container, stream):
            read.wrong = read.wrong or before
            data = memoryview(packet)
            # A checksum a packet finds any change that is not made on purpose at a tenth of SHA-256's cost.
            read.digest.update(
                f"{packet.pts},{packet.dts},{packet.size},{int(packet.is_keyframe)},{zlib.crc32(data)};".encode()
            )
            if read.first is None:
                read.first = next(iter(decode(stream, packet)[0]), None)
            if packet.dts is not None:
                read.all_dts.append(packet.dts)
            if packet.is_discard:
                continue
            read.pts.append(_NO_PTS if packet.pts is None else packet.pts)
            if packet.dts is not None:
                read.dts.append(packet.dts)
            read.key.append(bool(packet.is_keyframe))
            read.entry.append(bool(packet.is_keyframe) and _is_entry(head.codec, packet, lengths))
    except ReadError as error:
        read.ended = error.reason
    if read.first is None and read.pts:
        read.first = next(iter(decode(stream, None)[0]), None)
    return read


def _placed(read: _Read, lost: list[int], stamped: bool, ticks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """(pts, key, entry, ordered) of a FrameIndex."""
    stamps = np.array(read.pts)
    # A decoding time that falls is a clock set back (files joined, a broadcast restarted): no order by time stamp.
    ordered = (
        stamped
        and not (stamps == _NO_PTS).any()
        and len(np.unique(stamps)) == len(stamps)
        and bool((np.diff(np.array(read.dts)) >= 0).all())
    )
    # Nothing can be decoded from a frame that is not there.
    key, entry = (np.frombuffer(flags + bytes(len(lost)), dtype=bool) for flags in (read.key, read.entry))
    if not ordered:
        known = [None if not stamped or p == _NO_PTS else p for p in read.pts]
        return np.array(reckon_pts(known + [None] * len(lost), ticks), dtype=np.int64), key, entry, False
    stamps = np.append(stamps, np.array(_lost_pts(read.pts, read.dts, lost, ticks), dtype=np.int64))
    order = np.argsort(stamps, kind="stable")
    return stamps[order], key[order], entry[order], True


def _lost(head: Header, stream: Stream, read: _Read, cut_short: bool) -> list[int]:
    """Decoding times of the frames that the container lists and the file does not hold.

    MP4 and MOV list every frame at the beginning or the end, AVI at the end. An AVI that is cut off has lost its list,
    but not the number of frames in its header.
    """
    if not head.container.startswith(("mov", "avi")):
        return []
    listed = listed_times(stream)
    n_lost = len(listed) - len(read.pts)
    lost = sorted((Counter(listed) - Counter(read.all_dts)).elements()) if n_lost > 0 else []
    if len(lost) != n_lost > 0:
        lost = list(listed[-n_lost:])
    end = _last(read, lost) + 1
    believed = _LOST_PER_FRAME * len(read.pts) + _LOST_AT_LEAST
    if head.container == "avi" and cut_short and head.n_frames - end <= believed:
        lost += range(end, head.n_frames)
    return lost


def _last(read: _Read, lost: list[int]) -> int:
    """The last decoding time, which in an AVI is the number of a frame."""
    return max(max(read.all_dts, default=-1), max(lost, default=-1))


def _index_doubts(head: Header, read: _Read, lost: list[int], known: bool, unreadable: bool) -> list[str]:
    """What the header promises and the packets do not hold. known: that the file is damaged is known already.
    unreadable: the disk does not give all of it."""
    lines = []
    if lost:
        why = f"cannot be read ({read.ended})" if unreadable and read.ended else "are not in the file"
        lines.append(f"{len(lost):,} of {len(lost) + len(read.pts):,} frames {why}")
    if head.container == "avi" and head.n_frames > (end := _last(read, lost) + 1):
        lines.append(f"the header counts {head.n_frames:,} frames, the last one is number {end:,}")
    if lost:
        return lines
    if read.wrong and not known:
        lines.append(f"parts of the file are damaged ({read.wrong})")
    if read.ended and not known:
        lines.append(f"cannot be read further than {len(read.pts):,} frames ({read.ended})")
    # The header's length is that of all streams and may be rounded: no more than the measure of a loss.
    if (known or lines) and head.container.startswith(("matroska", "flv", "asf")) and head.duration_s:
        last_s = max((p for p in read.pts if p != _NO_PTS), default=0) * head.time_base
        lines.append(f"the header gives {head.duration_s:.2f} s, the last frame is at {float(last_s):.2f} s")
    return lines


def _lost_pts(known: Sequence[int], dts: Sequence[int], lost: list[int], ticks: int) -> list[int]:
    """Presentation times of frames of which the decoding times alone are known.

    Mostly the frames of a video are shown at the times at which they are decoded, later by a constant and in another
    order; the times that nobody else has are then theirs. Else they are reckoned from the frame rate.
    """
    if not lost:
        return []
    later = min(known) - min(dts)
    free = sorted({time + later for time in (*dts, *lost)} - set(known))
    return free if len(free) == len(lost) else [max(known) + ticks * (i + 1) for i in range(len(lost))]


def _without_frames(read: _Read, lost: list[int]) -> str:
    if read.ended:
        return f"cannot be read ({read.ended})"
    return f"none of its {len(lost):,} frames are in the file" if lost else "the video stream has no frames"


def _has_presentation_times(head: Header) -> bool:
    """AVI has decoding times only. For H.264 and HEVC with B-frames FFmpeg passes those off as presentation times, and
    sorting by them would shuffle the frames."""
    return head.container != "avi" or head.codec not in ("h264", "hevc") or not head.b_frames


def _is_entry(codec: str, packet: Packet, length_bytes: int) -> bool:
    """Whether every frame shown from this key frame on decodes right when decoding starts here.

    So for all codecs but H.264, whose containers also mark recovery points (open GOPs, intra refresh) as key: only
    instantaneous decoder refreshes (NAL unit type 5) are safe.
    """
    return codec != "h264" or 5 in _h264_nal_types(bytes(packet), length_bytes)


def _h264_length_bytes(extradata: bytes) -> int:
    """Bytes of the length before each NAL unit, as the AVC configuration says; 0 for a byte stream with start codes."""
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
