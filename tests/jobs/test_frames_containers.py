"""What a file promises and does not hold."""

import errno
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from jobs.discover import Source
from jobs.errors import InputLost
from jobs.frames import DECODE_ERROR, OK, SUSPECT, probe
from jobs.frames.containers import file_doubts
from jobs.frames.ffmpeg import Container, ReadError, Stream, open_video
from jobs.frames.ffmpeg import packets as packets_of
from jobs.frames.index import _lost_pts
from tests.conftest import RunSerially
from tests.fixtures.bad_media import (
    avi_counting,
    clip,
    cut_within,
    faststart,
    key_frames_listed_wrong,
    packets,
    picture,
    ts_frame_start,
)
from tests.fixtures.disks import FailingDisk
from tests.fixtures.media import ORDERED, UNORDERED, checksum, decode_all, write_clip
from tests.fixtures.reading import read_in_chunks, real_clips

EVERY_CLIP = ORDERED | UNORDERED


@pytest.mark.parametrize("name", EVERY_CLIP)
def test_healthy_clips_are_not_doubted(tmp_path: Path, name: str):
    assert probe(Source(write_clip(tmp_path, name, EVERY_CLIP[name]))).doubts == ()


@pytest.mark.skipif(not real_clips(), reason="POSEJOB_TEST_DATA names no folder with codec/ and videos/")
@pytest.mark.parametrize("path", real_clips(), ids=lambda path: path.name)
@pytest.mark.parametrize("chunk_frames", [7, 1000])
def test_real_clips_are_not_doubted(path: Path, chunk_frames: int):
    source = Source(path)
    index = probe(source)
    assert index.doubts == ()
    assert {frame.status for frame in read_in_chunks(source, index, chunk_frames)} == {OK}


def doubts(folder: Path, data: bytes, container: str, stream_id: int = 0x100) -> tuple[str, ...]:
    (path := folder / "a").write_bytes(data)
    return file_doubts(path, container, stream_id)


class TestMatroska:
    def test_what_is_missing_is_counted(self, tmp_path: Path):
        assert doubts(tmp_path, clip("mkv")[:-10], "matroska,webm") == (
            "the file ends 10 bytes before the end that its header gives",
        )

    def test_a_segment_of_unknown_length_promises_nothing(self, tmp_path: Path):
        """As browsers record: without going back to the header."""
        data = self.live(clip("webm", "libvpx"))
        frames = packets(data)
        assert doubts(tmp_path, data, "matroska,webm") == ()
        at, size = frames[8]
        assert doubts(tmp_path, data[: data.index(b"\xa3", at)], "matroska,webm") == ()
        assert doubts(tmp_path, data[: at + size // 2], "matroska,webm")[0].startswith("the file ends")

    @staticmethod
    def live(data: bytes) -> bytes:
        segment, cluster = data.index(b"\x18\x53\x80\x67"), data.index(b"\x1f\x43\xb6\x75")
        data = data[: segment + 4] + b"\x01" + b"\xff" * 7 + data[segment + 12 :]
        size_bytes = 9 - data[cluster + 4].bit_length()
        unknown = bytes([(1 << 9 - size_bytes) - 1]) + b"\xff" * (size_bytes - 1)
        return data[: cluster + 4] + unknown + data[cluster + 4 + size_bytes :]

    def test_a_changed_byte_is_seen_by_the_checksum(self, tmp_path: Path):
        data = clip("mkv", "ffv1")
        at = packets(data)[5][0] + 20
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        (line,) = doubts(tmp_path, changed, "matroska,webm")
        assert line.startswith("the checksum of bytes ")

    def test_so_is_one_in_the_header(self, tmp_path: Path):
        data = clip("mkv")
        at = data.index(b"V_MPEG4/ISO/AVC")
        (line,) = doubts(tmp_path, data[:at] + b"v" + data[at + 1 :], "matroska,webm")
        assert line.startswith("the checksum of bytes ")

    def test_many_places_are_summed_up(self, tmp_path: Path):
        data = bytearray(clip("mkv", "ffv1", size=(640, 480), n=60))
        clusters = [at for at in range(len(data)) if data.startswith(b"\x1f\x43\xb6\x75", at)]
        assert len(clusters) >= 6
        for at in clusters:
            data[at + 100] ^= 1
        lines = doubts(tmp_path, bytes(data), "matroska,webm")
        assert (len(lines), lines[-1]) == (5, f"and {len(clusters) - 4} more places")


class TestTransportStream:
    def test_packets_of_192_bytes(self, tmp_path: Path):
        data = clip("ts")
        wide = b"".join(b"\0\0\0\0" + data[at : at + 188] for at in range(0, len(data), 188))
        assert doubts(tmp_path, wide, "mpegts") == ()
        assert doubts(tmp_path, wide[:-92], "mpegts") == (
            "the file ends in the middle of a packet, after 96 of 188 bytes",
        )

    def test_bytes_before_the_first_packet_are_no_damage(self, tmp_path: Path):
        assert doubts(tmp_path, b"\0" * 50 + clip("ts"), "mpegts") == ()

    @pytest.mark.parametrize(("n", "lines"), [(0, 0), (1, 1), (15, 1), (16, 0)])
    def test_lost_packets_break_the_count(self, tmp_path: Path, n: int, lines: int):
        """The count has four bits: sixteen packets are lost unseen."""
        packets_of_video = [
            b"\x47\x01\x00" + bytes([0x10 | i & 15, i]) + bytes([i] * 183) for i in range(100) if not 40 <= i < 40 + n
        ]
        found = doubts(tmp_path, b"".join(packets_of_video), "mpegts")
        assert len(found) == lines
        assert not lines or f"breaks at byte {40 * 188:,}: packets are lost" in found[0]

    def test_a_packet_sent_twice_and_a_new_count_that_is_announced_are_right(self, tmp_path: Path):
        plain = [b"\x47\x01\x00" + bytes([0x10 | i & 15]) + bytes([i] * 184) for i in range(40)]
        # An adaptation field of one byte with the discontinuity indicator.
        announced = b"\x47\x01\x00\x39\x01\x80" + bytes(182)
        twice = [*plain[:20], plain[19], *plain[20:25], announced, b"\x47\x01\x00\x1a" + bytes(184)]
        assert doubts(tmp_path, b"".join(twice), "mpegts") == ()

    def test_packets_of_other_streams_have_counts_of_their_own(self, tmp_path: Path):
        data = clip("ts")
        sound = b"\x47\x01\x01\x15" + bytes(184)
        at = ts_frame_start(4)
        assert doubts(tmp_path, data[:at] + sound + data[at:], "mpegts") == ()

    def test_packets_marked_by_the_receiver(self, tmp_path: Path):
        data = bytearray(clip("ts"))
        data[ts_frame_start(4) + 1] |= 0x80
        assert "1 of the video's packets were marked as damaged" in doubts(tmp_path, bytes(data), "mpegts")[0]

    def test_inserted_bytes_are_found_and_passed(self, tmp_path: Path):
        data, at = clip("ts"), ts_frame_start(4)
        assert doubts(tmp_path, data[:at] + b"\x11" * 77 + data[at:], "mpegts") == (
            f"bytes {at:,} to {at + 77:,} are not a transport stream",
        )


@pytest.mark.parametrize(
    ("data", "container"),
    [
        (lambda: clip("mkv"), "matroska,webm"),
        (lambda: clip("webm", "libvpx"), "matroska,webm"),
        (lambda: clip("flv", "flv"), "flv"),
        (lambda: clip("wmv", "wmv2"), "asf"),
        (lambda: clip("gif", "gif", pix_fmt="rgb8"), "gif"),
        (lambda: clip("avi", "mpeg4"), "avi"),
        (lambda: clip("mp4"), "mov,mp4,m4a,3gp,3g2,mj2"),
        (lambda: faststart(clip("mp4")), "mov,mp4,m4a,3gp,3g2,mj2"),
    ],
    ids=["mkv", "webm", "flv", "wmv", "gif", "avi", "mp4", "mp4-faststart"],
)
def test_one_byte_less_is_noticed_and_bytes_behind_the_end_are_not(
    tmp_path: Path, data: Callable[[], bytes], container: str
):
    assert doubts(tmp_path, data(), container) == ()
    assert doubts(tmp_path, data()[:-1], container)
    if container != "flv":
        assert doubts(tmp_path, data() + bytes(8), container) == ()


def test_a_file_of_which_nothing_is_known_is_not_doubted(tmp_path: Path):
    assert doubts(tmp_path, b"anything", "h264") == ()


@pytest.mark.parametrize(
    ("suffix", "codec", "options", "pix_fmt"),
    [
        ("avi", "mpeg4", (("bf", "2"),), "yuv420p"),
        ("avi", "libx264", (("crf", "20"), ("bf", "2")), "yuv420p"),
        ("avi", "mjpeg", (), "yuvj420p"),
        ("gif", "gif", (), "rgb8"),
    ],
)
def test_wherever_a_file_without_times_is_cut_what_is_called_ok_is_right(
    tmp_path: Path, suffix: str, codec: str, options: tuple[tuple[str, str], ...], pix_fmt: str
):
    """FFmpeg gives the last frames before a cut other places, and the last one without its end."""
    data = clip(suffix, codec, options, pix_fmt)
    source = Source(tmp_path / f"a.{suffix}")
    source.path.write_bytes(data)
    whole = {f.number: checksum(f.image) for f in read_in_chunks(source, probe(source), 100) if f.image is not None}
    assert len(whole) == 12
    for at, size in packets(data)[2:]:
        # 22 bytes are the head of a GIF's picture, behind which its decoder does not miss anything.
        for cut in (
            at,
            at + 1,
            min(at + 22, at + size - 1),
            *(at + size * part // 6 for part in range(1, 6)),
            at + size - 1,
        ):
            source.path.write_bytes(data[:cut])
            for frame in read_in_chunks(source, probe(source), 100):
                assert frame.status != OK or checksum(frame.image) == whole[frame.number], (cut, frame.number)


class TestFramesThatAreListedAndLost:
    @pytest.mark.parametrize("bf", ["0", "2"])
    @pytest.mark.parametrize("chunk_frames", [5, 100])
    def test_have_rows_with_the_times_they_would_have_had(self, tmp_path: Path, bf: str, chunk_frames: int):
        data = faststart(clip("mp4", options=(("crf", "20"), ("bf", bf)), n=40))
        (tmp_path / "whole.mp4").write_bytes(data)
        (tmp_path / "cut.mp4").write_bytes(cut_within(data, 20))
        whole, cut = (Source(tmp_path / f"{name}.mp4") for name in ("whole", "cut"))
        index = probe(cut)
        assert index.pts.tolist() == probe(whole).pts.tolist()
        frames = read_in_chunks(cut, index, chunk_frames)
        lost = [frame for frame in frames if frame.detail == "its data is not in the file"]
        assert len(lost) == 19
        assert {frame.status for frame in lost} == {DECODE_ERROR}
        assert not any(frame.key for frame in lost)

    def test_a_damaged_file_is_another_than_the_whole_one(self, tmp_path: Path):
        data = faststart(clip("mp4"))
        (at, _), *_ = packets(data)[8:]
        prints = set()
        for n, stop in enumerate((at, len(data))):
            (tmp_path / f"{n}.mp4").write_bytes(data[:stop])
            prints.add(probe(Source(tmp_path / f"{n}.mp4")).fingerprint)
        assert len(prints) == 2

    def test_times_are_reckoned_where_decoding_times_do_not_tell_them(self):
        assert _lost_pts([0, 30, 10, 20], [-10, 0, 10, 20], [30, 40], 10) == [40, 50]
        assert _lost_pts([0, 40, 20], [-20, -10, 0], [10, 20], 10) == [10, 30]
        assert _lost_pts([0, 7, 31], [-5, 0, 5], [10, 15], 10) == [41, 51]

    @pytest.mark.parametrize(("count", "believed"), [(12, True), (100_099, True), (100_100, False), (1 << 31, False)])
    def test_are_not_believed_in_any_number(self, tmp_path: Path, count: int, believed: bool):
        """Of nine frames, one of them in part, there is something left."""
        (tmp_path / "a.avi").write_bytes(cut_within(avi_counting(count), 8))
        index = probe(Source(tmp_path / "a.avi"))
        assert len(index) == (count if believed else 9)
        line = f"the header counts {count:,} frames, the last one is number 9"
        assert (line in index.doubts) is not believed

    @pytest.mark.parametrize("chunk_frames", [4, 100])
    def test_in_the_middle_of_an_avi_shift_nothing(self, tmp_path: Path, chunk_frames: int):
        """FFmpeg counts the packets of an AVI as it finds them, but seeks by the index."""
        data = clip("avi", "mjpeg", pix_fmt="yuvj420p", n=20)
        (tmp_path / "whole.avi").write_bytes(data)
        source = Source(tmp_path / "whole.avi")
        whole = {f.number: checksum(f.image) for f in read_in_chunks(source, probe(source), 100) if f.image is not None}
        first, last = packets(data)[8], packets(data)[9]
        start, stop = first[0] - 8, last[0] + last[1]
        (tmp_path / "hole.avi").write_bytes(data[:start] + bytes(stop - start) + data[stop:])
        source = Source(tmp_path / "hole.avi")
        frames = read_in_chunks(source, probe(source), chunk_frames)
        assert [frame.number for frame in frames if frame.status == DECODE_ERROR] == [8, 9]
        pictures = {f.number: checksum(f.image) for f in frames if f.image is not None}
        assert pictures == {number: whole[number] for number in whole if number not in (8, 9)}


class TestSeeking:
    @pytest.mark.parametrize("chunk_frames", [5, 7, 1000])
    def test_that_fails_loses_nothing(self, tmp_path: Path, chunk_frames: int):
        """FFmpeg refuses to seek in a file whose list of key frames makes no sense."""
        (path := tmp_path / "a.mov").write_bytes(key_frames_listed_wrong(36))
        frames = read_in_chunks(Source(path), probe(Source(path)), chunk_frames)
        assert {frame.status for frame in frames} == {OK}
        assert [(frame.pts, checksum(frame.image)) for frame in frames] == decode_all(path)

    @pytest.mark.parametrize("last_way", [False, True], ids=["by-reading-packets", "by-decoding-all"])
    @pytest.mark.parametrize("name", ORDERED)
    def test_is_not_needed(self, tmp_path: Path, name: str, last_way: bool, monkeypatch: pytest.MonkeyPatch):
        path = write_clip(tmp_path, name, ORDERED[name])
        index = probe(Source(path))
        monkeypatch.setattr("jobs.frames.decoding.seek", lambda container, stream, pts: False)
        if last_way:
            monkeypatch.setattr("jobs.frames.decoding._passed_over", lambda container, stream, anchor: None)
        frames = read_in_chunks(Source(path), index, 17)
        assert [(frame.status, frame.pts, checksum(frame.image)) for frame in frames] == [
            (OK, pts, picture) for pts, picture in decode_all(path)
        ]

    def test_that_always_lands_too_late_loses_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        path = write_clip(tmp_path, "a", ORDERED["h264-bframes"])
        index = probe(Source(path))
        sought = []

        def seek_to_the_end(container: Container, stream: Stream, pts: int) -> bool:
            sought.append(pts)
            container.seek(int(index.pts[-1]), stream=stream)
            return True

        monkeypatch.setattr("jobs.frames.decoding.seek", seek_to_the_end)
        assert {frame.status for frame in read_in_chunks(Source(path), index, 17)} == {OK}
        assert sought


class TestInputErrors:
    """FFmpeg's "input/output error" may mean the disk or the content; and the disk may fail for a while or for good."""

    @pytest.fixture
    def video(self, tmp_path: Path) -> tuple[Path, int]:
        """An MP4 with its header in front, and where its frame 8 begins."""
        (path := tmp_path / "a.mp4").write_bytes(faststart(clip("mp4")))
        return path, packets(path.read_bytes())[8][0]

    @pytest.mark.parametrize("there", [True, False])
    def test_are_damage_if_the_file_can_be_read(
        self, video: tuple[Path, int], there: bool, monkeypatch: pytest.MonkeyPatch
    ):
        path, at = video
        FailingDisk(path, at, monkeypatch)
        if there:
            monkeypatch.setattr("jobs.frames.ffmpeg.can_be_read", lambda path: True)
        with open_video(path) as (container, stream), pytest.raises(ReadError) as caught:
            list(packets_of(container, stream))
        assert caught.value.lost is not there

    @pytest.mark.parametrize("chunk_frames", [6, 100])
    def test_are_damage_if_it_could_not_be_read_when_it_was_planned(
        self, video: tuple[Path, int], chunk_frames: int, monkeypatch: pytest.MonkeyPatch
    ):
        FailingDisk(*video, monkeypatch)
        source = Source(video[0])
        index = probe(source)
        assert index.doubts == ("4 of 12 frames cannot be read (input/output error)",)
        frames = read_in_chunks(source, index, chunk_frames)
        assert [frame.status for frame in frames] == [OK] * 8 + [DECODE_ERROR] * 4
        assert {frame.detail for frame in frames[8:]} == {"the file cannot be read further (input/output error)"}

    def test_of_one_video_do_not_stop_the_others(
        self, video: tuple[Path, int], tmp_path: Path, run_serially: RunSerially, monkeypatch: pytest.MonkeyPatch
    ):
        (good := tmp_path / "b.mp4").write_bytes(video[0].read_bytes())
        FailingDisk(*video, monkeypatch)
        report = run_serially([video[0], good], tmp_path / "out", height=64)
        assert report.exit_code == 1
        assert [video.status for video in report.videos] == ["degraded", "ok"]
        assert [dict(video.statuses) for video in report.videos] == [{"ok": 8, "decode_error": 4}, {"ok": 12}]

    @pytest.mark.parametrize("opens", [True, False])
    def test_that_come_later_are_no_damage(self, video: tuple[Path, int], opens: bool, monkeypatch: pytest.MonkeyPatch):
        """Nothing is recorded of what another attempt may read."""
        path, at = video
        index = probe(Source(path))
        disk = FailingDisk(path, at if opens else 0, monkeypatch)
        with pytest.raises(InputLost, match=r"input/output error\)?; it could be read when the job was planned"):
            read_in_chunks(Source(path), index, 6)
        disk.mend()
        assert {frame.status for frame in read_in_chunks(Source(path), index, 6)} == {OK}

    @pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE, errno.ESTALE])
    def test_nor_is_what_the_machine_lacks(self, video: tuple[Path, int], number: int, monkeypatch: pytest.MonkeyPatch):
        index = probe(Source(video[0]))
        monkeypatch.setattr(av, "open", lambda name, **options: av.error.err_check(-number))
        with pytest.raises(InputLost, match="it could be read when the job was planned"):
            read_in_chunks(Source(video[0]), index, 100)

    def test_of_pictures(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        for name in ("a.png", "b.png"):
            (tmp_path / name).write_bytes(picture(".png"))
        source = Source(tmp_path, ("a.png", "b.png"))
        index = probe(source)
        disk = FailingDisk(tmp_path / "b.png", 0, monkeypatch)
        with pytest.raises(InputLost, match=r"b\.png: cannot be read \(input/output error\); it could be read when"):
            read_in_chunks(source, index, 100)
        index = probe(source)
        frames = read_in_chunks(source, index, 100)
        assert [(f.status, f.detail) for f in frames] == [
            (OK, None),
            (DECODE_ERROR, "cannot be read (input/output error)"),
        ]
        disk.mend()


class TestWhatTheDecoderSays:
    def test_a_concealed_error_is_heard(self, tmp_path: Path):
        """FFV1 replaces a slice whose checksum does not fit by that of the frame before, and logs it."""
        data = bytearray(clip("avi", "ffv1", (("level", "3"), ("slicecrc", "1"))))
        at, size = packets(bytes(data))[7]
        data[at + size // 3] ^= 16
        (tmp_path / "a.avi").write_bytes(data)
        source = Source(tmp_path / "a.avi")
        frames = read_in_chunks(source, probe(source), 100)
        assert [frame.status for frame in frames] == [OK] * 7 + [SUSPECT] * 5
        assert frames[7].image is not None
        assert "slice CRC mismatch" in (frames[7].detail or "")

    def test_picture_hashes_are_checked(self, tmp_path: Path):
        """HEVC may carry a hash of each picture: no change of a picture goes unnoticed."""
        data = faststart(clip("mp4", "libx265", (("x265-params", "log-level=none:hash=1"),)))
        whole, _ = self.pictures_and_statuses(tmp_path, data)
        at, size = packets(data)[3]
        n_changed = 0
        for place in range(at, at + size):
            changed = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
            pictures, statuses = self.pictures_and_statuses(tmp_path, changed)
            n_changed += pictures != whole
            assert pictures == whole or statuses != {OK}
        assert n_changed > 10

    @staticmethod
    def pictures_and_statuses(folder: Path, data: bytes) -> tuple[list[int], set[str]]:
        (folder / "a.mp4").write_bytes(data)
        source = Source(folder / "a.mp4")
        frames = read_in_chunks(source, probe(source), 100)
        return [checksum(frame.image) for frame in frames if frame.image is not None], {f.status for f in frames}

    def test_nobody_elses_log_is_heard_and_ours_is_not_printed(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
        (tmp_path / "a.mp4").write_bytes(cut_within(faststart(clip("mp4")), 8))
        source = Source(tmp_path / "a.mp4")
        read_in_chunks(source, probe(source), 100)
        av.logging.log(av.logging.ERROR, "elsewhere", "not ours")
        assert capfd.readouterr() == ("", "")


def test_doubts_are_no_more_than_lines(tmp_path: Path):
    """They travel in plan.json and in the tables' metadata."""
    (tmp_path / "a.mkv").write_bytes(clip("mkv")[:-300])
    index = probe(Source(tmp_path / "a.mkv"))
    assert isinstance(index.doubts, tuple)
    assert all(isinstance(line, str) and line.isprintable() for line in index.doubts)
    assert len(index.doubts) == 2
    assert np.all(np.diff(index.pts) > 0)
