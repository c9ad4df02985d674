"""What a file promises and does not hold, from the bytes of its container alone.

A demuxer gives what it can read and keeps silent about the rest: a file cut short looks like a shorter video. Most
containers say how long they are, count their packets or lay their parts end to end, and that can be checked. Nothing
is decoded here, and nothing is said of a file of which nothing is known: raw streams, program streams, and recordings
whose header was never given a length.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

# Damage in more places than this is summed up.
_PLACES = 4


def file_doubts(path: Path, container: str, stream_id: int) -> tuple[str, ...]:
    """One line for each promise that the file does not keep.

    container: FFmpeg's name for it. stream_id: the video's number in the file, which is its PID in a transport stream.
    """
    kind = container.partition(",")[0]
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if kind == "mpegts":
                lines = list(_transport_stream(file, size, stream_id))
            else:
                lines = list(_CHECKS[kind](file, size)) if kind in _CHECKS else []
    except OSError as error:
        lines = [f"cannot be read to its end ({error.strerror})"]
    except (IndexError, ValueError, struct.error):
        # Bytes were asked for that were there a moment ago.
        lines = ["became shorter while it was read"]
    return (*lines[:_PLACES], *([f"and {len(lines) - _PLACES:,} more places"] if len(lines) > _PLACES else []))


def is_cut_short(path: Path, container: str) -> bool:
    """Whether the file is shorter than it says, of containers that say so in a few bytes."""
    kind = container.partition(",")[0]
    return kind in ("avi", "gif") and bool(file_doubts(path, container, 0))


def _ends_early(missing: int) -> str:
    return f"the file ends {missing:,} bytes before the end that its header gives"


def _unreadable(at: int, what: str) -> str:
    return f"what stands at byte {at:,} is not {what}"


# --- MP4, MOV, 3GP: boxes end to end --------------------------------------------------------------------------------


def begins_like_mp4(path: Path) -> bool:
    """Whether the first box of a file is one that MP4 or MOV begins with."""
    try:
        with path.open("rb") as file:
            return file.read(8)[4:] in (b"ftyp", b"mdat", b"wide", b"free", b"skip")
    except OSError:
        return False


def _boxes(file: BinaryIO, size: int) -> Iterator[str]:
    at = 0
    while at + 8 <= size:
        length, kind = struct.unpack(">I4s", _read(file, at, 8))
        if not kind.isalnum() and kind.strip(b" \xa9"):
            # Some writers leave bytes behind the last box; FFmpeg stops reading boxes here as well.
            return
        if length == 1 and at + 16 <= size:
            (length,) = struct.unpack(">Q", _read(file, at + 8, 8))
        if length == 0:
            return  # up to the end of the file
        if length < 8:
            return
        if at + length > size:
            yield _ends_early(at + length - size)
        at += length


# --- Matroska, WebM: elements end to end, with checksums in Matroska ------------------------------------------------

_SEGMENT, _CLUSTER, _CRC32 = 0x18538067, 0x1F43B675, 0xBF
_CRC32_BYTES = 6  # with its ID and length


def _matroska(file: BinaryIO, size: int) -> Iterator[str]:
    """The segment and its clusters are gone into, so that everything else lies end to end."""
    at, limit, last, told = 0, size, size, False
    while at < last:
        kind, start, end = _element(file, at)
        whole = end is not None and end <= size
        if kind == _SEGMENT:
            if end is not None and end > size:
                told = True
                yield _ends_early(end - size)
            # What stands behind the segment is not of the video.
            at, last = start, min(size, end or size)
        elif end is not None and whole and kind > 0xFFFFFF and not _checksum_fits(file, start, end):
            # Elements with IDs of four bytes are those that may begin with a checksum.
            yield f"the checksum of bytes {start:,} to {end:,} does not fit"
            at = end
        elif kind == _CLUSTER:
            # One of unknown length (end None) ends where the next one begins.
            at, limit = start, end if end is not None and whole else size
        elif end is None or end > limit:
            if limit < size:
                # The next cluster begins where this one was to end.
                yield _unreadable(at, "Matroska")
                at = limit
            elif not kind or end is None:
                yield _unreadable(at, "Matroska")
                return
            else:
                if not told:
                    yield _ends_early(end - size)
                return
        else:
            at = end
        if at >= limit:
            limit = size


def _element(file: BinaryIO, at: int) -> tuple[int, int, int | None]:
    """ID, start and end (None: unknown) of the content of the element at a byte; ID 0 if there is none."""
    head = _read(file, at, 12)
    n_id = 9 - head[0].bit_length()
    rest = head[n_id:]
    if n_id > 4 or not rest or not rest[0]:
        return 0, at, None
    n = 9 - rest[0].bit_length()
    if len(rest) < n:
        return 0, at, None
    ones = (1 << 7 * n) - 1
    length = int.from_bytes(rest[:n], "big") & ones
    start = at + n_id + n
    return int.from_bytes(head[:n_id], "big"), start, None if length == ones else start + length


def _checksum_fits(file: BinaryIO, start: int, end: int) -> bool:
    """Whether an element is what its checksum says; True if it has none."""
    head = _read(file, start, _CRC32_BYTES)
    if head[:2] != bytes([_CRC32, 0x84]):
        return True
    crc, left = 0, end - start - _CRC32_BYTES
    while left > 0 and (data := file.read(min(left, 1 << 20))):
        crc, left = zlib.crc32(data, crc), left - len(data)
    return crc == int.from_bytes(head[2:], "little")


# --- AVI: RIFF lists end to end -------------------------------------------------------------------------------------


def _riff(file: BinaryIO, size: int) -> Iterator[str]:
    at = 0
    while at + 12 <= size:
        name, length = struct.unpack("<4sI", _read(file, at, 8))
        if name != b"RIFF" or length in (0, 0xFFFFFFFF):
            return  # behind the last list, or written without going back to its header
        if at + 8 + length > size:
            yield _ends_early(at + 8 + length - size)
        at += 8 + length + length % 2


# --- MPEG transport stream: packets of one length, counted per stream -----------------------------------------------

_SYNC, _PACKETS_AT_A_TIME = 0x47, 20_000


def _transport_stream(file: BinaryIO, size: int, pid: int) -> Iterator[str]:
    length, at = _packet_length(_read(file, 0, 4 * 208))
    if not length:
        return
    last, n_breaks, first_break, n_marked = -1, 0, 0, 0
    block = _PACKETS_AT_A_TIME
    while at + length <= size:
        n = min(block, (size - at) // length)
        packets = np.frombuffer(_read(file, at, n * length), np.uint8).reshape(-1, length)
        wrong = np.flatnonzero(packets[:, 0] != _SYNC)
        packets = packets[: wrong[0]] if len(wrong) else packets
        broken, marked, last = _continuity(packets, pid, last)
        n_marked += marked
        if len(broken) and not n_breaks:
            first_break = at + int(broken[0]) * length
        n_breaks += len(broken)
        at += len(packets) * length
        # Where damage is dense, what lies behind it is not read anew each time.
        block = max(16, 2 * len(packets)) if len(wrong) else min(2 * block, _PACKETS_AT_A_TIME)
        if len(wrong):
            found = _next_sync(file, at + 1, size, length)
            yield f"bytes {at:,} to {found:,} are not a transport stream"
            # What was lost there has been told.
            at, last = found, -1
    # Of 192 bytes the first four are a time that stands before the packet: the last one has but 188.
    if at < size and (length, size - at) != (192, 188):
        yield f"the file ends in the middle of a packet, after {size - at} of 188 bytes"
    if n_breaks:
        more = f" and in {n_breaks - 1:,} more places" if n_breaks > 1 else ""
        yield (
            f"the count of the video's packets breaks at byte {first_break:,}{more}: packets are lost, or recordings "
            "are joined"
        )
    if n_marked:
        yield f"{n_marked:,} of the video's packets were marked as damaged when they were received"


def _packet_length(head: bytes) -> tuple[int, int]:
    """(bytes of a packet, where the first sync byte is); (0, 0) if there is no regular stream at the beginning."""
    for length in (188, 192, 204):
        for start in range(length):
            if len(head) > start + 2 * length and all(head[start + i * length] == _SYNC for i in range(3)):
                return length, start
    return 0, 0


def _next_sync(file: BinaryIO, at: int, size: int, length: int) -> int:
    """Where three sync bytes stand in a row, or as many as there is room for at the end of the file."""
    window = 1 << 12
    while at < size:
        data = np.frombuffer(_read(file, at, min(size - at, window)), np.uint8)
        synced = data == _SYNC
        for step in (length, 2 * length):
            synced[:-step] &= data[step:] == _SYNC
        # What the next two of a row would be read with is looked at again.
        n = len(data) if at + len(data) >= size else len(data) - 2 * length
        where = np.flatnonzero(synced[:n])
        if len(where):
            return at + int(where[0])
        at, window = at + n, min(2 * window, 1 << 20)
    return size


def _continuity(packets: np.ndarray, pid: int, last: int) -> tuple[np.ndarray, int, int]:
    """(which of all packets come after a break, how many are marked as damaged, last count).

    packets: (N, length) uint8. last: count of the stream's packet before these, -1 if there is none. A count may
    stand still once, for a packet sent twice, and start anew where the stream says so.
    """
    ours = np.flatnonzero(((packets[:, 1] & 0x1F).astype(int) << 8 | packets[:, 2]) == pid)
    mine = packets[ours]
    marked = int((mine[:, 1] >> 7).sum())
    control = mine[:, 3] >> 4 & 3
    anew = (control & 2 > 0) & (mine[:, 4] > 0) & (mine[:, 5] & 0x80 > 0)
    carrying = control & 1 > 0
    ours, anew, mine = ours[carrying], anew[carrying], mine[carrying]
    counts = mine[:, 3].astype(int) & 15
    if not len(counts):
        return ours, marked, last
    steps = np.diff(counts, prepend=last) % 16
    # Clocks in the first bytes of a packet sent twice may differ.
    again = np.ones(len(mine), dtype=bool)
    again[1:] = (mine[1:, 12:188] == mine[:-1, 12:188]).all(axis=1)
    broken = ((steps > 1) | (steps == 0) & ~again) & ~anew
    if last < 0:
        broken[0] = False
    return ours[broken], marked, int(counts[-1])


# --- FLV: tags end to end -------------------------------------------------------------------------------------------


def _flv(file: BinaryIO, size: int) -> Iterator[str]:
    head = _read(file, 0, 9)
    at = int.from_bytes(head[5:9], "big") + 4
    promised = _flv_size(_read(file, at, 4096))
    if promised > size:
        yield _ends_early(promised - size)
    while at + 11 <= size:
        tag = _read(file, at, 11)
        if tag[0] & 0x1F not in (8, 9, 18):
            yield _unreadable(at, "FLV")
            return
        at += 11 + int.from_bytes(tag[1:4], "big")
        if at > size and promised <= size:
            yield _ends_early(at - size)
        at += 4


def _flv_size(data: bytes) -> int:
    """`filesize` of onMetaData, a double behind its name and type; 0 if it is not there."""
    _, name, rest = data.partition(b"\x00\x08filesize\x00")
    (size,) = struct.unpack(">d", rest[:8]) if name and len(rest) >= 8 else (0.0,)
    return int(size) if 0 < size < 1 << 53 else 0


# --- ASF (WMV), GIF -------------------------------------------------------------------------------------------------

_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def _asf(file: BinaryIO, size: int) -> Iterator[str]:
    """The file's length stands behind the 16 bytes of object ID, 8 of its length and 16 of file ID; flags further on
    say whether it is a broadcast, which has none."""
    head = _read(file, 0, 1 << 16)
    at = head.find(_FILE_PROPERTIES)
    if 0 <= at <= len(head) - 104:
        (promised,) = struct.unpack_from("<Q", head, at + 40)
        (flags,) = struct.unpack_from("<I", head, at + 88)
        if not flags & 1 and promised > size:
            yield _ends_early(promised - size)


def _gif(file: BinaryIO, size: int) -> Iterator[str]:
    if not _read(file, max(0, size - 4096), 4096).rstrip(b"\0").endswith(b";"):
        yield "the file ends without the mark that ends a GIF"


def _read(file: BinaryIO, at: int, n: int) -> bytes:
    file.seek(at)
    return file.read(n)


_CHECKS: dict[str, Callable[[BinaryIO, int], Iterator[str]]] = {
    "mov": _boxes,
    "matroska": _matroska,
    "avi": _riff,
    "flv": _flv,
    "asf": _asf,
    "gif": _gif,
}
