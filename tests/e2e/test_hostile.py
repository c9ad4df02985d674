"""Inputs made to harm: only the file that was named is read, no connection opened, memory and time are bounded."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest

from jobs.discover import discover
from jobs.errors import VideoOpenError
from jobs.frames import MAX_PIXELS, probe
from posecore import read_frames
from tests.conftest import RunSerially

ROOT = Path(__file__).parents[2]


class Listener:
    """Counts who connects to a port of this machine, and shows them the door."""

    def __init__(self) -> None:
        self.calls = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._socket.accept()
                self.calls += 1
                caller.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


# Files that name other files


def atom(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def reference_movie(url: str) -> bytes:
    """A QuickTime movie that is nothing but the address of another one."""
    where = url.encode() + b"\0"
    reference = atom(b"rdrf", b"\0\0\0\0", b"url ", struct.pack(">I", len(where)), where)
    return atom(b"ftyp", b"qt  \0\0\0\0qt  ") + atom(b"moov", atom(b"rmra", atom(b"rmda", reference)))


def with_external_data(movie: bytes, kind: bytes, target: str) -> bytes:
    """A movie whose samples are said to lie in another file. The data reference grows; so do the atoms around it."""
    where = target.encode() + b"\0"
    if kind == b"alis":
        # A Macintosh's alias: volume and file name are not needed; one folder up and one down; the path is tag 2.
        path = f"disk:{target}".encode()
        head = bytes(130) + struct.pack(">HH", 1, 1) + bytes(16)
        where = head + struct.pack(">HH", 2, len(path)) + path + bytes(len(path) % 2) + b"\xff\xff\0\0"
    entry = atom(kind, b"\0\0\0\0", where)
    at = movie.index(b"dref") - 4
    (size,) = struct.unpack(">I", movie[at : at + 4])
    data = bytearray(movie[:at] + atom(b"dref", b"\0\0\0\0\0\0\0\1", entry) + movie[at + size :])
    growth = 16 + len(entry) - size
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        start = data.index(parent) - 4
        data[start : start + 4] = struct.pack(">I", struct.unpack(">I", data[start : start + 4])[0] + growth)
    return bytes(data)


def ebml(ident: int, content: bytes) -> bytes:
    return ident.to_bytes((ident.bit_length() + 7) // 8, "big") + (1 << 56 | len(content)).to_bytes(8, "big") + content


def linked_segment(target: str) -> bytes:
    """A Matroska file without a picture, which goes on in another file."""
    names = ebml(0x3C83AB, target.encode()) + ebml(0x3E83BB, target.encode())
    uids = ebml(0x3CB923, b"1" * 16) + ebml(0x3EB923, b"2" * 16)
    info = ebml(0x1549A966, ebml(0x2AD7B1, b"\x0f\x42\x40") + ebml(0x4D80, b"x") + ebml(0x5741, b"x") + names + uids)
    return ebml(0x1A45DFA3, ebml(0x4282, b"matroska")) + ebml(0x18538067, info)


def playlists(target: str) -> dict[str, bytes]:
    """Files of all kinds that say: what is to be seen is in `target`, a path or an address."""
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>'
        '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1" codecs="avc1" width="192" '
        f'height="144"><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>'
    )
    imf = (
        '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016">'
        f"<Id>urn:uuid:0</Id><SegmentList><Segment><Resource>{target}</Resource></Segment></SegmentList>"
        "</CompositionPlaylist>"
    )
    texts = {
        "m3u8": f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{target}\n#EXT-X-ENDLIST\n",
        "m3u8-map": f'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MAP:URI="{target}"\n#EXTINF:1,\n{target}\n',
        "m3u8-key": f'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXTINF:1,\na.ts\n',
        "m3u": f"#EXTM3U\n#EXTINF:1,x\n{target}\n",
        "mpd": dash,
        "ffconcat": f"ffconcat version 1.0\nfile '{target}'\n",
        "concat": f"file '{target}'\n",
        "xspf": f'<playlist xmlns="http://xspf.org/ns/0/"><trackList><track><location>{target}</location></track>'
        "</trackList></playlist>",
        "asx": f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
        "asf-reference": f"[Reference]\r\nRef1={target}\r\n",
        "pls": f"[playlist]\nFile1={target}\nNumberOfEntries=1\n",
        "smil": f'<smil><body><video src="{target}"/></body></smil>',
        "svg": '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="9">'
        f'<image xlink:href="{target}" width="9" height="9"/></svg>',
        "html": f'<!doctype html><html><body><img src="{target}"><video src="{target}"></video></body></html>',
        "imf": imf,
        "rtsp": f"RTSPtext\r{target}\r",
        "smil-text": f'SMILtext<smil><body><video src="{target}"/></body></smil>',
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        f"a=control:{target}\na=rtpmap:96 H264/90000\n",
        "subviewer": f"{{1}}{{2}}{target}\n",
        "idx": f"# VobSub index file, v7 (do not modify this line!)\nid: en, index: 0\n# {target}\n",
        "ram": f"{target}\n",
        "avisynth": f'FFmpegSource2("{target}")\n',
    }
    files = {name: text.encode() for name, text in texts.items()}
    return files | {"rmra": reference_movie(target), "matroska-link": linked_segment(target)}


def movie(path: Path) -> bytes:
    """Write a movie with one frame; returns the same movie without its data, which is zeros."""
    with av.open(str(path), "w", format="mov") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame(64, 48, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    (size,) = struct.unpack(">I", data[start - 8 : start - 4])
    data[start : start + size - 8] = bytes(size - 8)
    return bytes(data)


def test_the_bait_works_on_those_who_take_it(walk: Path, tmp_path: Path, listener: Listener):
    """What is tested below would be seen: FFmpeg left to itself reads the other file and calls the listener."""
    (tmp_path / "secret.mp4").write_bytes(walk.read_bytes())
    taken = []
    for name, content in playlists("secret.mp4").items():
        (tmp_path / f"x.{name}").write_bytes(content)
        with contextlib.suppress(av.FFmpegError), av.open(str(tmp_path / f"x.{name}")) as container:
            taken += [name for stream in container.streams.video for _ in container.decode(stream)][:1]
    assert "ffconcat" in taken
    alis = tmp_path / "alis.mov"
    alis.write_bytes(with_external_data(movie(tmp_path / "robbed.data"), b"alis", "robbed.data"))
    with av.open(str(alis), options={"enable_drefs": "1"}) as container:
        assert len([*container.decode(video=0)]) == 1
    with pytest.raises(av.FFmpegError):
        av.open(f"http://127.0.0.1:{listener.port}/x.mp4")
    assert listener.calls == 1


def test_no_file_leads_to_another_file_or_address(
    walk: Path, tmp_path: Path, listener: Listener, run_serially: RunSerially
):
    """Under whatever name: the content decides what FFmpeg takes it for, and sometimes the name."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    secret = inputs / "secret.data"
    secret.write_bytes(walk.read_bytes())
    targets = ["secret.data", str(secret), secret.as_uri(), f"http://127.0.0.1:{listener.port}/x.mp4",
               f"tcp://127.0.0.1:{listener.port}", f"hls+http://127.0.0.1:{listener.port}/x.m3u8"]  # fmt: skip
    robbed, files = movie(inputs / "robbed.data"), []
    for i, target in enumerate([*targets, "robbed.data"]):
        drefs = {f"dref-{kind}": with_external_data(robbed, kind.encode(), target) for kind in ("alis", "url ")}
        for j, (kind, content) in enumerate((playlists(target) | drefs).items()):
            # Each kind under its own name and one that lies; over the targets it gets all of those.
            for suffix in (kind, ("mp4", "mkv", "ts", "avi", "jpg", "mov")[(i + j) % 6]):
                files.append(inputs / f"{kind}{i}.{suffix}")
                files[-1].write_bytes(content)
    report = run_serially([*files], tmp_path / "out")
    assert len(report.videos) > 200
    assert {video.status for video in report.videos} == {"failed"}
    assert sum(video.n_people for video in report.videos) == 0
    assert set(read_frames(tmp_path / "out")["status"].to_pylist()) <= {"decode_error"}
    assert listener.calls == 0


def test_names_are_names(walk: Path, tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch):
    """What FFmpeg would take for a protocol is the name of a file, or of nothing."""
    monkeypatch.chdir(tmp_path)
    Path("a").write_bytes(walk.read_bytes())
    names = [f"http://127.0.0.1:{listener.port}/x.mp4", f"tcp://127.0.0.1:{listener.port}", "concat:a|a", "pipe:0", "-",
             "subfile,,start,0,end,0,,:a", "file:a", "async:a", "cache:a", "crypto:a", "fd:0",
             "data:video/mp4;base64,AA", f"rtsp://127.0.0.1:{listener.port}/x", "hls+file:a", "concatf:a", "tee:a",
             "md5:a", "lavfi:testsrc", "ftp://127.0.0.1/x", "s3://bucket/x.mp4", "unix:a"]  # fmt: skip
    found = discover(names, Path("out"))
    assert found.sources == ()
    assert [text for text, _ in found.problems] == names
    # And where there is such a file, that is what is read.
    for name in ("concat:a|a", "pipe:0", "-", "subfile,,start,0,end,0,,:a", "data:video", "frame%03d.png", "-.jpg"):
        Path(name).write_bytes(b"no video in this file" * 9)
        (source,) = discover([name], Path("out")).sources
        if source.images is None:
            with pytest.raises(VideoOpenError, match="not a video that can be read"):
                probe(source)
        Path(name).write_bytes(walk.read_bytes())
        if source.images is None:
            assert len(probe(source)) == 12
    assert listener.calls == 0


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
@pytest.mark.parametrize("name", ["x.mp4", "x.jpg"])
def test_what_is_no_file_is_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None], name: str, run_serially: RunSerially
):
    make(tmp_path / name)
    report = run_serially([tmp_path / name], tmp_path / "out")
    assert report.videos[0].problems == ("not a regular file; videos are read from files only",)


# Files that claim to be larger than any memory


def png(width: int, height: int) -> bytes:
    """A grey picture of zeros: megabytes of pixels in a few bytes."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeeze = zlib.compressobj(1)
    pixels = b"".join(squeeze.compress(bytes(width + 1)) for _ in range(min(height, 12_000))) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", pixels) + part(b"IEND", b"")


def with_count(movie: bytes, kind: bytes, at: int, value: int) -> bytes:
    data = bytearray(movie)
    start = data.index(kind) + 4 + at
    data[start : start + 4] = struct.pack(">I", value)
    return bytes(data)


def bombs(folder: Path, walk: bytes) -> None:
    for name, size in (("wide", (50_000, 50_000)), ("large", (12_000, 12_000))):
        (folder / name).mkdir()
        (folder / name / "bomb.png").write_bytes(png(*size))
    (folder / "huge.y4m").write_bytes(b"YUV4MPEG2 W60000 H60000 F25:1 Ip A1:1 C420\nFRAME\n" + bytes(10_000))
    (folder / "huge.gif").write_bytes(
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
        + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\2\x44\1\0;"
    )  # fmt: skip
    (folder / "stsz.mp4").write_bytes(with_count(walk, b"stsz", 8, 1 << 31))
    (folder / "stts.mp4").write_bytes(with_count(walk, b"stts", 4, (1 << 31) - 1))
    (folder / "stts-run.mp4").write_bytes(with_count(walk, b"stts", 8, (1 << 31) - 1))
    (folder / "stsc.mp4").write_bytes(with_count(walk, b"stsc", 4, (1 << 31) - 1))
    (folder / "stco.mp4").write_bytes(with_count(walk, b"stco", 4, (1 << 32) - 1))
    (folder / "dref.mp4").write_bytes(with_count(walk, b"dref", 4, (1 << 31) - 1))
    deep = b""
    for _ in range(50_000):
        deep = struct.pack(">I4s", 8, b"moov") + deep
    (folder / "deep.mp4").write_bytes(atom(b"ftyp", b"isom\0\0\0\0isom") + nested(b"udta", 3000) + deep)
    element = b""
    for _ in range(2000):
        element = ebml(0x1254C367, element)
    head = ebml(0x1A45DFA3, ebml(0x4282, b"matroska"))
    (folder / "deep.mkv").write_bytes(head + ebml(0x18538067, element))
    (folder / "unending.mkv").write_bytes(head + b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" * 20_000)
    for suffix in ("mp4", "mkv", "ts", "avi"):
        with (folder / f"zeros.{suffix}").open("wb") as file:
            file.truncate(1 << 30)


def nested(kind: bytes, depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = atom(kind, content)
    return content


CHILD = """
import json, resource, sys, time
from pathlib import Path
from jobs.executors.serial import SerialExecutor
from jobs.run import run_job
from jobs.spec import RunSpec
from contextlib import contextmanager

@contextmanager
def start(worker, layout):
    yield SerialExecutor(worker)

folder, model, walk = sys.argv[1:]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
run_job(RunSpec((walk,), Path(folder, "out-before"), model), start, lambda event: None)
before, began = peak(), time.monotonic()
report = run_job(RunSpec((folder + "/bombs",), Path(folder, "out"), model), start, lambda event: None)
print(json.dumps({
    "mb": peak() - before,
    "seconds": time.monotonic() - began,
    "videos": {video.uri.rsplit("/", 1)[1]: [video.status, *video.problems] for video in report.videos},
}))
"""


def test_bombs_take_neither_memory_nor_time(walk: Path, colour_network: Path, tmp_path: Path):
    (tmp_path / "bombs").mkdir()
    bombs(tmp_path / "bombs", walk.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), str(colour_network), str(walk)],
        cwd=ROOT,
        # As the workers of a real job have it.
        env=os.environ | {"OPENCV_IO_MAX_IMAGE_PIXELS": str(MAX_PIXELS)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    result = json.loads(done.stdout)
    videos = result["videos"]
    assert len(videos) == len([*(tmp_path / "bombs").iterdir()])
    assert result["mb"] < 300
    assert result["seconds"] < 30
    for name in ("wide", "large", "huge.y4m", "huge.gif", "deep.mp4", "deep.mkv", "unending.mkv", "stsz.mp4",
                 "zeros.mp4", "zeros.mkv", "zeros.ts", "zeros.avi"):  # fmt: skip
        assert videos[name][0] == "failed", name
        assert videos[name][1], name
