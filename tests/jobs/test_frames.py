import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from jobs.discover import Source, discover
from jobs.errors import InputLost, VideoOpenError
from jobs.frames import (
    DECODE_ERROR,
    OK,
    SKIPPED,
    SUSPECT,
    FrameIndex,
    check_unchanged,
    probe,
)
from jobs.frames.ffmpeg import ToBgr
from jobs.frames.values import reckon_pts
from jobs.plan import Chunk as PlanChunk
from jobs.plan import VideoPlan, frame_range
from jobs.spec import Selection
from tests.fixtures.bad_media import with_matrix
from tests.fixtures.media import N_FRAMES, ORDERED, UNORDERED, Clip, blotches, checksum, decode_all, write_clip
from tests.fixtures.reading import EVERY_FRAME, as_decoded, read_in_chunks, real_clips
from tests.fixtures.stick_figures import write_video


@pytest.fixture(scope="module", params=list(ORDERED))
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips"), request.param, ORDERED[request.param])


class TestEveryCodec:
    def test_the_index_is_what_decoding_gives(self, clip: Path):
        index = probe(Source(clip))
        assert index.ordered
        assert index.pts.tolist() == [pts for pts, _ in decode_all(clip)]
        assert len(index) == N_FRAMES

    @pytest.mark.parametrize("chunk_frames", [5, 17, 1000])
    def test_reading_in_chunks_is_decoding_from_the_start(self, clip: Path, chunk_frames: int):
        source = Source(clip)
        frames = read_in_chunks(source, probe(source), chunk_frames)
        assert [frame.number for frame in frames] == list(range(N_FRAMES))
        assert {frame.status for frame in frames} == {OK}
        assert as_decoded(frames) == decode_all(clip)


@pytest.mark.parametrize("name", UNORDERED)
def test_frames_without_time_stamps_are_counted(tmp_path: Path, name: str):
    path = write_clip(tmp_path, name, UNORDERED[name])
    source = Source(path)
    index = probe(source)
    frames = read_in_chunks(source, index, 5)
    assert not index.ordered
    assert [frame.number for frame in frames] == list(range(N_FRAMES))
    assert [picture for _, picture in as_decoded(frames)] == [picture for _, picture in decode_all(path)]
    assert (np.diff([frame.pts for frame in frames]) > 0).all()


def test_reckoned_time_stamps_rise_and_keep_what_is_usable():
    assert reckon_pts([None, 10, 10, None, 5, 40], ticks=3) == [0, 10, 13, 16, 19, 40]


def test_times_are_true_presentation_times(tmp_path: Path):
    index = probe(Source(write_clip(tmp_path, "vfr", ORDERED["variable-rate"])))
    pts = ORDERED["variable-rate"].pts
    assert pts is not None
    assert index.time_s.tolist() == pytest.approx([(p - pts[0]) / 1000 for p in pts], abs=1e-12)


def test_unwanted_frames_are_skipped_without_pixels(tmp_path: Path):
    source = Source(write_clip(tmp_path, "clip", ORDERED["h264-bframes"]))
    frames = read_in_chunks(source, probe(source), 20, Selection(every=3))
    assert [frame.number for frame in frames if frame.status == OK] == list(range(0, N_FRAMES, 3))
    assert {frame.status for frame in frames if frame.image is None} == {SKIPPED}


class TestOrientation:
    """The stored picture's quarter at the top left is white, that at the top right is grey."""

    @pytest.fixture(scope="class")
    @classmethod
    def stored(cls, tmp_path_factory: pytest.TempPathFactory) -> bytes:
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[:24, :32], picture[:24, 32:] = 255, 128
        write_video(path := tmp_path_factory.mktemp("stored") / "stored.mp4", [picture] * 3)
        return path.read_bytes()

    @staticmethod
    def first(path: Path, data: bytes) -> tuple[FrameIndex, np.ndarray]:
        path.write_bytes(data)
        index = probe(source := Source(path))
        image = read_in_chunks(source, index, 100)[0].image
        assert image is not None
        return index, image

    @pytest.mark.parametrize("scale", [1, 2, 0.5])
    @pytest.mark.parametrize(
        ("matrix", "rotation", "mirrored"),
        [
            ((1, 0, 0, 1), 0, False),
            ((0, 1, -1, 0), 270, False),
            ((-1, 0, 0, -1), 180, False),
            ((0, -1, 1, 0), 90, False),
            ((-1, 0, 0, 1), 0, True),
            ((1, 0, 0, -1), 180, True),
            ((0, 1, 1, 0), 90, True),
            ((0, -1, -1, 0), 270, True),
        ],
    )
    def test_frames_are_read_as_the_matrix_shows_them(
        self,
        tmp_path: Path,
        stored: bytes,
        matrix: tuple[int, int, int, int],
        rotation: int,
        mirrored: bool,
        scale: float,
    ):
        a, b, c, d = matrix
        index, image = self.first(tmp_path / "a.mp4", with_matrix(stored, *(scale * value for value in matrix)))
        assert (index.rotation, index.mirrored) == (rotation, mirrored)
        assert index.size == (image.shape[1], image.shape[0]) == ((48, 64) if rotation % 180 else (64, 48))

        def at(x: int, y: int) -> int:
            """Brightness of the corner in a direction."""
            return int(image[0 if y < 0 else -1, 0 if x < 0 else -1].mean())

        for corner, brightness in {(-1, -1): 255, (1, -1): 128, (-1, 1): 0, (1, 1): 0}.items():
            x, y = corner
            assert at(a * x + c * y, b * x + d * y) == pytest.approx(brightness, abs=8)

    @pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 0, 1, 0), (0, 1, 0, 1)])
    def test_a_matrix_that_shows_nothing_is_not_meant_so(
        self, tmp_path: Path, stored: bytes, matrix: tuple[int, int, int, int]
    ):
        _, plain = self.first(tmp_path / "plain.mp4", stored)
        index, image = self.first(tmp_path / "a.mp4", with_matrix(stored, *matrix))
        assert (index.rotation, index.mirrored) == (0, False)
        assert np.array_equal(image, plain)

    def test_a_mirrored_file_is_another(self, tmp_path: Path, stored: bytes):
        plain, _ = self.first(tmp_path / "plain.mp4", stored)
        mirrored, _ = self.first(tmp_path / "a.mp4", with_matrix(stored, -1, 0, 0, 1))
        assert plain.fingerprint != mirrored.fingerprint


class TestColours:
    @pytest.mark.parametrize("matrix", ["YCgCo", "bt2020c"])
    @pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
    def test_that_cannot_be_converted_are_taken_for_common_ones(self, tmp_path: Path, matrix: str, pix_fmt: str):
        """Grey is grey in all of them."""
        grey = [np.full((48, 64, 3), 50 * i, np.uint8) for i in range(4)]
        options = {"crf": "20", "x264-params": f"colormatrix={matrix}"}
        write_video(path := tmp_path / "a.mp4", grey, pix_fmt=pix_fmt, options=options)
        frames = read_in_chunks(Source(path), probe(Source(path)), 100)
        assert {(frame.status, frame.detail) for frame in frames} == {
            (SUSPECT, "its colours cannot be converted, and were taken for common ones")
        }
        assert [frame.image.mean() for frame in frames if frame.image is not None] == pytest.approx(
            [0, 50, 100, 150], abs=8
        )

    def test_without_any_way_to_them_the_frame_is_lost(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        path = write_clip(tmp_path, "clip", ORDERED["h264-bframes"], n_frames=5)
        index = probe(Source(path))
        monkeypatch.setattr(ToBgr, "__call__", lambda self, picture: (None, "cannot be converted (why)"))
        frames = read_in_chunks(Source(path), index, 100)
        assert [(frame.status, frame.detail) for frame in frames] == [(DECODE_ERROR, "cannot be converted (why)")] * 5

    @pytest.mark.parametrize("size", [(96, 64), (95, 63)])
    @pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "nv12", "gray"])
    def test_they_are_those_that_pyav_gives(self, pix_fmt: str, size: tuple[int, int]):
        """To the bit, in one stream that changes how it is coded at every frame."""
        to_bgr = ToBgr()
        noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
        for matrix, full in itertools.product((1, 2, 4, 5, 6, 7, 9), (0, 1, 2)):
            frame = av.VideoFrame.from_ndarray(noise, format="bgr24").reformat(format=pix_fmt)
            frame.colorspace, frame.color_range = matrix, full
            image, wrong = to_bgr(frame)
            assert wrong is None
            assert np.array_equal(image, frame.to_ndarray(format="bgr24"))


def test_a_change_of_size_in_mid_stream_is_read(tmp_path: Path):
    write_video(tmp_path / "a.ts", blotches(10, (96, 64)))
    write_video(tmp_path / "b.ts", blotches(10, (64, 96)), pts=list(range(100, 110)))
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    source = Source(joined)
    frames = read_in_chunks(source, probe(source), 7)
    sizes = [frame.image.shape[:2] for frame in frames if frame.image is not None]
    assert sizes == [(64, 96)] * 10 + [(96, 64)] * 10


class TestDamage:
    @pytest.fixture
    def damaged(self, tmp_path: Path) -> Path:
        """Frames 12 to 23 are one GOP; the packet of frame 15 is overwritten with zeros."""
        path = write_clip(tmp_path, "clip", Clip("mkv", "libx264", {"crf": "20", "bf": "0", "sc_threshold": "0"}))
        zero_packet(path, 15)
        return path

    @pytest.mark.parametrize("chunk_frames", [4, 1000])
    def test_every_frame_has_a_row_and_what_follows_damage_is_suspect(self, damaged: Path, chunk_frames: int):
        source = Source(damaged)
        frames = read_in_chunks(source, probe(source), chunk_frames)
        status = [frame.status for frame in frames]
        assert [frame.number for frame in frames] == list(range(N_FRAMES))
        assert status[15] == DECODE_ERROR
        assert set(status[16:24]) == {SUSPECT}
        assert set(status[:15] + status[24:]) == {OK}
        assert all(frame.detail for frame in frames if frame.status != OK)

    @pytest.mark.parametrize("bf", ["0", "2", "3"])
    @pytest.mark.parametrize("damaged_packet", [12, 13, 14, 15])
    @pytest.mark.parametrize("chunk_frames", [7, 1000])
    def test_what_is_called_ok_is_as_in_the_whole_file(
        self, tmp_path: Path, bf: str, damaged_packet: int, chunk_frames: int
    ):
        path = write_clip(tmp_path, "clip", Clip("mkv", "libx264", {"crf": "20", "bf": bf, "sc_threshold": "0"}))
        whole = dict(decode_all(path))
        zero_packet(path, damaged_packet)
        source = Source(path)
        frames = read_in_chunks(source, probe(source), chunk_frames)
        assert [frame.number for frame in frames] == list(range(N_FRAMES))
        assert any(frame.status == DECODE_ERROR for frame in frames)
        for frame in frames:
            if frame.status == OK and frame.image is not None:
                assert checksum(frame.image) == whole[frame.pts], f"frame {frame.number}"
        # Of five groups of frames at most two can be touched.
        assert sum(frame.status == OK for frame in frames) >= 36

    @pytest.mark.parametrize("name", UNORDERED)
    def test_counted_frames_that_are_lost_have_rows(self, tmp_path: Path, name: str):
        path = write_clip(tmp_path, name, UNORDERED[name])
        source = Source(path)
        index = probe(source)
        zero_packet(path, N_FRAMES - 1)
        frames = read_in_chunks(source, index, 1000)
        assert [frame.number for frame in frames] == list(range(N_FRAMES))
        assert {SUSPECT, DECODE_ERROR} & {frame.status for frame in frames}

    def test_a_clock_set_back_is_no_order(self, tmp_path: Path):
        """Two files joined, the second beginning earlier: no two time stamps alike, but their order is not that of
        the frames."""
        write_video(tmp_path / "a.ts", blotches(20), pts=list(range(1000, 1020)))
        write_video(tmp_path / "b.ts", blotches(20), pts=list(range(20)))
        joined = tmp_path / "joined.ts"
        joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
        source = Source(joined)
        frames = read_in_chunks(source, probe(source), 10)
        assert [picture for _, picture in as_decoded(frames)] == [picture for _, picture in decode_all(joined)]
        assert (np.diff([frame.pts for frame in frames]) > 0).all()

    def test_a_file_that_goes_away_is_no_damage(self, tmp_path: Path):
        source = Source(write_clip(tmp_path, "clip", ORDERED["h264-bframes"]))
        index = probe(source)
        source.path.unlink()
        with pytest.raises(InputLost, match=r"clip-?.*mp4: no such file or directory; it could be read when"):
            read_in_chunks(source, index, 50)

    def test_a_file_that_is_replaced_is_noticed(self, tmp_path: Path):
        source = Source(write_clip(tmp_path, "clip", ORDERED["h264-bframes"]))
        index = probe(source)
        chunk = PlanChunk("key", 0, N_FRAMES)
        planned = frame_range(VideoPlan(source, index, (chunk,), N_FRAMES), chunk, EVERY_FRAME)
        check_unchanged(planned)
        shutil.copy(source.path, other := tmp_path / "other.mp4")
        other.replace(source.path)
        with pytest.raises(InputLost, match="changed or went away while the job ran"):
            check_unchanged(planned)


def zero_packet(path: Path, number: int) -> None:
    """Overwrite a packet, in order of decoding, with zeros."""
    with av.open(str(path)) as container:
        packet = [bytes(packet) for packet in container.demux(video=0) if packet.size][number]
    data = path.read_bytes()
    if packet in data:
        path.write_bytes(data.replace(packet, bytes(len(packet))))
    else:  # A multiplex breaks packets up; the middle of the largest part will do.
        part = packet[: len(packet) // 2][-64:]
        assert part in data
        path.write_bytes(data.replace(part, bytes(len(part))))


@contextmanager
def nobody() -> Iterator[None]:
    """As a user who may not do everything, if root runs the tests."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


class TestWhatCannotBeOpened:
    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"", r"empty file \(0 bytes\); copy or record it again"),
            (b"this is a text\n" * 100, r"not a video that can be read \(invalid data found"),
            (b"#EXTM3U\n#EXTINF:1,\nother.mp4\n", r"not a video that can be read"),
            (b"ffconcat version 1.0\nfile other.mp4\n", r"not a video that can be read"),
        ],
        ids=["empty", "text", "playlist", "concat"],
    )
    def test_the_problem_is_named(self, tmp_path: Path, content: bytes, problem: str):
        (path := tmp_path / "a.mp4").write_bytes(content)
        write_clip(tmp_path, "other", ORDERED["h264-bframes"], n_frames=3)
        with pytest.raises(VideoOpenError, match=f"a.mp4: {problem}"):
            probe(Source(path))

    def test_a_pipe_does_not_hang(self, tmp_path: Path):
        os.mkfifo(path := tmp_path / "pipe.mp4")
        with pytest.raises(VideoOpenError, match="not a regular file"):
            probe(Source(path))

    def test_a_link_to_nothing(self, tmp_path: Path):
        (path := tmp_path / "a.mp4").symlink_to(tmp_path / "nowhere.mp4")
        with pytest.raises(VideoOpenError, match="a link to a file that is not there"):
            probe(Source(path))

    def test_what_the_user_may_not_look_into(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """A link into a folder that is somebody else's, and a folder that may be listed and no more."""
        for name, mode in (("home", 0o000), ("listed", 0o644)):
            (folder := tmp_path / name).mkdir()
            (folder / "a.mp4").write_bytes(b"video")
            folder.chmod(mode)
        (tmp_path / "link.mp4").symlink_to("home/a.mp4")
        tmp_path.chmod(0o755)
        monkeypatch.chdir(tmp_path)
        with nobody():
            for path in (Path("link.mp4"), Path("listed/a.mp4")):
                with pytest.raises(VideoOpenError, match=f"{path}: permission denied"):
                    probe(Source(path))
            found = discover(["listed/*"], Path("out"))
        assert [source.path for source in found.sources] == [tmp_path / "listed" / "a.mp4"]

    def test_a_link_to_a_name_longer_than_any(self, tmp_path: Path):
        (path := tmp_path / "a.mp4").symlink_to("n" * 300 + ".mp4")
        with pytest.raises(VideoOpenError, match="a link to a file that is not there"):
            probe(Source(path))

    def test_a_title_that_is_not_utf8_is_nobodys_business(self, tmp_path: Path):
        path = tmp_path / "a.avi"
        with av.open(str(path), "w") as container:
            container.metadata["title"] = "Geraet"
            stream = container.add_stream("mjpeg", rate=25)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
            for picture in blotches(3):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        data = path.read_bytes()
        assert b"Geraet" in data
        path.write_bytes(data.replace(b"Geraet", b"Ger\xe4t\0"))
        assert len(probe(Source(path))) == 3

    def test_sound_alone(self, tmp_path: Path):
        path = tmp_path / "sound.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        with pytest.raises(VideoOpenError, match="no video stream in it, only audio"):
            probe(Source(path))

    def test_an_enormous_picture_is_refused(self, tmp_path: Path):
        """The header claims 65535 x 65535 pixels: 12 GB."""
        path = write_clip(tmp_path, "a", Clip("avi", "mjpeg", pix_fmt="yuvj420p"), n_frames=3)
        # Start of frame: marker, length, precision, height, width.
        data = bytearray(path.read_bytes())
        at = data.find(b"\xff\xc0")
        while at >= 0:
            data[at + 5 : at + 9] = b"\xff\xff\xff\xff"
            at = data.find(b"\xff\xc0", at + 1)
        path.write_bytes(data)
        with pytest.raises(VideoOpenError, match="none of its 3 frames can be decoded"):
            probe(Source(path))


def test_names_of_any_bytes_are_read(tmp_path: Path):
    stored = write_clip(tmp_path, "clip", ORDERED["h264-bframes"], n_frames=3)
    for name in (b"no utf8 \xff\xfe.mp4", b"two\nlines.mp4", b"-dash 'quote' %20 \xe2\x98\x83.mp4", b"file:http:x.mp4"):
        path = tmp_path / os.fsdecode(name)
        shutil.copy(stored, path)
        assert len(probe(Source(path))) == 3


class TestFingerprint:
    def test_is_that_of_the_content(self, tmp_path: Path):
        path = write_clip(tmp_path, "clip", ORDERED["h264-bframes"])
        copy = tmp_path / "copy.mp4"
        shutil.copy(path, copy)
        assert probe(Source(path)).fingerprint == probe(Source(copy)).fingerprint

    def test_changes_with_one_bit_of_a_packet(self, tmp_path: Path):
        path = write_clip(tmp_path, "clip", ORDERED["ffv1"], n_frames=5)
        before = probe(Source(path)).fingerprint
        with av.open(str(path)) as container:
            packet = bytes(next(container.demux(video=0)))
        data = bytearray(path.read_bytes())
        data[data.index(packet) + len(packet) // 2] ^= 1
        path.write_bytes(data)
        assert probe(Source(path)).fingerprint != before


class TestPictures:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Source:
        for name, size in (("b.png", (40, 30)), ("a.jpg", (20, 50))):
            cv2.imwrite(str(tmp_path / name), blotches(1, size)[0])
        (tmp_path / "c.png").write_bytes(b"no picture")
        return Source(tmp_path, ("a.jpg", "b.png", "c.png"))

    def test_are_frames_in_name_order_without_time(self, folder: Source):
        index = probe(folder)
        frames = read_in_chunks(folder, index, 2)
        assert [frame.source for frame in frames] == ["a.jpg", "b.png", "c.png"]
        assert [frame.image.shape[:2] for frame in frames[:2] if frame.image is not None] == [(50, 20), (30, 40)]
        assert np.isnan(index.time_s).all()

    def test_one_that_is_replaced_is_noticed_by_the_range_that_reads_it(self, folder: Source):
        chunks = (PlanChunk("first", 0, 1), PlanChunk("rest", 1, 3))
        plan = VideoPlan(folder, probe(folder), chunks, 3)
        first, rest = (frame_range(plan, chunk, EVERY_FRAME) for chunk in chunks)
        (folder.path / "b.png").write_bytes((folder.path / "a.jpg").read_bytes())
        check_unchanged(first)
        with pytest.raises(InputLost, match=r"b\.png: changed or went away while the job ran"):
            check_unchanged(rest)

    def test_one_that_cannot_be_read_is_a_row(self, folder: Source):
        last = read_in_chunks(folder, probe(folder), 100)[-1]
        assert (last.status, last.detail) == (DECODE_ERROR, "not a picture that OpenCV can read")


@pytest.mark.skipif(not real_clips(), reason="POSEJOB_TEST_DATA names no folder with codec/ and videos/")
@pytest.mark.parametrize("path", real_clips(), ids=lambda path: path.name)
def test_real_clips_in_chunks_are_as_decoded_from_the_start(path: Path):
    source = Source(path)
    index = probe(source)
    frames = read_in_chunks(source, index, 40)
    assert as_decoded(frames, index.rotation) == decode_all(path)
