import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import plan as planning
from jobs.discover import Source
from jobs.errors import OutputError
from jobs.frames import FrameIndex
from jobs.plan import Plan, check_same_job, frame_range, make_plan, plan_ranges, planned_chunk_frames
from jobs.spec import Moment, Options, Selection
from models.manifest import read_manifest
from models.registry import Network
from tests.fixtures.colour_network import MANIFEST

NETWORK = Network("tiny/FP32", read_manifest(MANIFEST, "tiny"), Path("/models/tiny.xml"), (), "0123abcd")
OPTIONS = Options(256)
A, B = Source(Path("/videos/a.mp4")), Source(Path("/videos/b.mp4"))
SHOTS = Source(Path("/shots"), ("1.png", "2.png", "3.png"))


def index(
    n_frames: int = 100, key: list[int] | range = range(0, 100, 10), no_entry: tuple[int, ...] = (), **fields: Any
) -> FrameIndex:
    """25 frames a second with a pts of 10 a frame, the first at 1000. key: key frames, of which `no_entry` are such
    that decoding them gives wrong frames at first."""
    keys = np.isin(np.arange(n_frames), list(key))
    values: dict[str, Any] = {
        "pts": 1000 + 10 * np.arange(n_frames),
        "key": keys,
        "entry": keys & ~np.isin(np.arange(n_frames), no_entry),
        "ordered": True,
        "stamped": True,
        "size": (640, 480),
        "rotation": 0,
        "time_base": Fraction(1, 250),
        "fps": 25.0,
        "codec": "h264",
        "fingerprint": "f00d",
        "states": (None,),
    }
    return FrameIndex(**values | fields)


def pictures(n: int = 3) -> FrameIndex:
    return index(n, range(n), pts=np.arange(n), size=None, time_base=Fraction(1), fps=None, codec="images")


def job(
    *videos: tuple[Source, FrameIndex | str], network: Network = NETWORK, options: Options = OPTIONS, chunk: int = 40
) -> Plan:
    return make_plan(videos or [(A, index())], network, options, chunk)


# Ranges


@st.composite
def sources(draw: st.DrawFn) -> tuple[FrameIndex, np.ndarray, int]:
    """An index, the frames wanted of it, frames a chunk."""
    n = draw(st.integers(1, 300))
    frames = st.sets(st.integers(0, n - 1))
    key, no_entry = draw(frames), draw(frames)
    few = st.sets(st.integers(0, n - 1), max_size=4)
    wanted = np.isin(np.arange(n), list(draw(few | frames)))
    return index(n, sorted(key), tuple(no_entry)), wanted, draw(st.integers(1, 120))


@given(sources())
def test_ranges_lead_from_the_first_wanted_frame_to_the_last_without_gap_or_overlap(
    source: tuple[FrameIndex, np.ndarray, int],
):
    frames = np.flatnonzero(source[1]).tolist()
    covered = [frame for first, stop in plan_ranges(*source) for frame in range(first, stop)]
    assert covered == (list(range(frames[0], frames[-1] + 1)) if frames else [])


def length_due(frames: FrameIndex, first: int, chunk: int) -> int:
    """A chunk is as long as asked for, or as its run-up where that is longer."""
    return max(chunk, first - (frames.anchor(first) or 0))


@given(sources())
def test_ranges_are_about_as_long_as_they_are_due(source: tuple[FrameIndex, np.ndarray, int]):
    frames, _, chunk = source
    ranges = plan_ranges(*source)
    assert all(1 <= stop - first <= 1.5 * length_due(frames, first, chunk) for first, stop in ranges)
    assert all(stop - first > length_due(frames, first, chunk) // 2 for first, stop in ranges[:-1])


def test_a_video_with_one_key_frame_is_decoded_a_few_times_over_not_hundreds():
    frames = index(108_000, key=[0])
    ranges = plan_ranges(frames, np.ones(108_000, dtype=bool), 128)
    decoded = sum(stop - (frames.anchor(first) or 0) for first, stop in ranges)
    assert decoded < 3 * 108_000


@given(sources())
def test_a_cut_is_on_an_entry_key_frame_if_one_is_near(source: tuple[FrameIndex, np.ndarray, int]):
    frames, _, chunk = source
    for first, cut in plan_ranges(*source)[:-1]:
        due = first + length_due(frames, first, chunk)
        near = np.flatnonzero(frames.entry[first:]) + first
        near = near[abs(near - due) < chunk / 2]
        assert abs(cut - due) == (abs(near - due).min() if len(near) else 0)
        assert frames.entry[cut] or not len(near)


@given(sources())
def test_a_source_known_by_counting_alone_is_read_in_one_go(source: tuple[FrameIndex, np.ndarray, int]):
    frames, wanted, chunk = source
    ranges = plan_ranges(replace(frames, ordered=False), wanted, chunk)
    assert ranges == ([(0, len(frames))] if wanted.any() else [])


def test_ranges_by_example():
    everything = np.ones(100, bool)
    assert plan_ranges(index(), everything, 40) == [(0, 40), (40, 100)]
    assert plan_ranges(index(), everything, 33) == [(0, 30), (30, 60), (60, 100)]
    assert plan_ranges(index(key=[0, 35, 80]), everything, 40) == [(0, 35), (35, 80), (80, 100)]
    assert plan_ranges(index(key=[0]), everything, 30) == [(0, 30), (30, 60), (60, 100)]
    assert plan_ranges(index(key=[0, 38, 41], no_entry=(41,)), everything, 40) == [(0, 38), (38, 78), (78, 100)]
    assert plan_ranges(index(), np.isin(np.arange(100), [7, 93]), 50) == [(7, 60), (60, 94)]
    assert plan_ranges(index(), everything, 1000) == [(0, 100)]


# Where decoding starts


def test_decoding_starts_at_the_last_entry_key_frame():
    assert [index().anchor(frame) for frame in (10, 11, 19, 20, 99)] == [10, 10, 10, 20, 90]


def test_a_key_frame_that_is_no_entry_needs_the_one_before_as_a_run_up():
    frames = index(no_entry=(20, 50, 60))
    assert [frames.anchor(frame) for frame in (19, 20, 25, 30, 55, 65, 70)] == [10, 10, 10, 30, 40, 50, 70]


def test_up_to_the_second_key_frame_decoding_starts_at_the_start_of_the_file():
    assert [index().anchor(frame) for frame in (0, 5, 9)] == [None] * 3
    # Frame 10 is no entry and its run-up is the first key frame.
    assert [index(no_entry=(10,)).anchor(frame) for frame in (10, 19)] == [None] * 2
    assert [index(key=[]).anchor(frame) for frame in (0, 99)] == [None] * 2
    assert index(key=[30]).anchor(50) is None
    assert index(key=[30, 40]).anchor(50) == 40


def test_what_a_worker_is_told():
    plan = job((A, index(no_entry=(50,))), options=Options(256, Selection(every=3, stop=Moment(None, 3.0))), chunk=20)
    video = plan.videos[0]
    assert video.n_selected == plan.n_selected == 25
    assert [(c.first, c.stop, c.n_frames) for c in video.chunks] == [
        (0, 20, 20),
        (20, 40, 20),
        (40, 60, 20),
        (60, 73, 13),
    ]
    told = frame_range(video, video.chunks[2], plan.options.selection)
    assert (told.source, told.first, told.anchor) == (A, 40, 1400)
    assert told.pts.tolist() == list(range(1400, 1600, 10))
    assert np.flatnonzero(told.key).tolist() == [0, 10]
    assert (np.flatnonzero(told.wanted) + told.first).tolist() == [42, 45, 48, 51, 54, 57]
    assert frame_range(video, video.chunks[0], plan.options.selection).anchor is None


# Keys


def keys(plan: Plan) -> list[str]:
    return [chunk.key for video in plan.videos for chunk in video.chunks]


def test_the_same_work_has_the_same_key():
    assert keys(job()) == keys(job())
    assert len(set(keys(job((A, index()), (B, index()))))) == 4
    # What the index says of the frames' look on screen, the order of videos and a network's name decide nothing.
    assert keys(job((A, index(fps=24.0, codec="hevc")))) == keys(job())
    assert keys(job(network=replace(NETWORK, name="again", path=Path("/elsewhere.xml")))) == keys(job())
    assert sorted(keys(job((B, index()), (A, index())))) == sorted(keys(job((A, index()), (B, index()))))
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys(job()))


def test_a_chunk_keeps_its_key_when_others_are_cut_differently():
    longer = keys(job((A, index(160, range(0, 160, 10)))))
    assert keys(job())[0] == longer[0]
    assert keys(job())[1] not in longer


@pytest.mark.parametrize(
    "other",
    [
        lambda: job((B, index())),
        lambda: job((A, index(fingerprint="beef"))),
        lambda: job(chunk=30),
        lambda: job(network=replace(NETWORK, digest="4567")),
        lambda: job(options=Options(264)),
        lambda: job(options=Options(256, max_people=1)),
        lambda: job(options=Options(256, min_score=0.1)),
        lambda: job(options=Options(256, Selection(every=2))),
        lambda: job(options=Options(256, Selection(start=Moment(0, None)))),
        lambda: job(options=Options(256, Selection(stop=Moment(100, None)))),
        lambda: job(options=Options(256, Selection(stop=Moment(None, 100.0)))),
    ],
    ids=["source", "content", "range", "network", "height", "max-people", "min-score", "every", "from", "to", "to-s"],
)
def test_other_work_has_other_keys(other: Callable[[], Plan]):
    made = keys(other())
    assert made
    assert not {*made} & {*keys(job())}


def test_another_posejob_has_other_keys(monkeypatch: pytest.MonkeyPatch):
    before = keys(job())
    monkeypatch.setattr(planning, "__version__", "99")
    assert not {*keys(job())} & {*before}


# The plan


MIXED = ((A, index()), (B, "empty file"), (SHOTS, pictures()))


def test_a_plan_counts_what_can_be_opened():
    plan = job(*MIXED)
    assert (plan.n_frames, plan.n_selected, plan.n_chunks) == (103, 103, 3)
    assert [(video.problem, len(video.chunks)) for video in plan.videos] == [(None, 2), ("empty file", 0), (None, 1)]


def test_nothing_wanted_is_a_video_without_chunks():
    plan = job(options=Options(256, Selection(start=Moment(100, None))))
    assert (plan.n_frames, plan.n_selected, plan.n_chunks) == (100, 0, 0)


def test_a_plan_is_a_text_that_can_be_read():
    plan = job(*MIXED)
    text = plan.text
    assert text == job(*MIXED).text
    assert text.endswith(b"}\n")
    data = json.loads(text)
    assert plan.digest == hashlib.sha256(text).hexdigest()
    assert replace(plan, model="x").digest != plan.digest
    assert data["model"] == {"name": "tiny/FP32", "digest": "0123abcd"}
    assert data["options"] == OPTIONS.to_json()
    assert data["chunk_frames"] == 40
    assert data["videos"] == [
        {
            "video_id": A.video_id,
            "uri": "file:///videos/a.mp4",
            "fingerprint": "f00d",
            "frames": 100,
            "selected": 100,
            "ordered": True,
            "size": [640, 480],
            "codec": "h264",
            "chunks": [[0, 40, keys(plan)[0]], [40, 100, keys(plan)[1]]],
        },
        {"video_id": B.video_id, "uri": "file:///videos/b.mp4", "problem": "empty file"},
        {
            "video_id": SHOTS.video_id,
            "uri": "file:///shots",
            "fingerprint": "f00d",
            "frames": 3,
            "selected": 3,
            "ordered": True,
            "size": None,
            "codec": "images",
            "chunks": [[0, 3, keys(plan)[2]]],
        },
    ]


def test_the_length_of_chunks_is_taken_from_the_earlier_plan():
    assert planned_chunk_frames(job(chunk=40).text) == 40


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "{}", '{"chunk_frames": 0}', '{"chunk_frames": "40"}'])
def test_an_earlier_plan_may_not_say(text: str):
    assert planned_chunk_frames(text.encode()) is None


# Is it the same job?


def refusal(old: Plan | bytes | str, new: Plan) -> str:
    text = old.text if isinstance(old, Plan) else old.encode() if isinstance(old, str) else old
    with pytest.raises(OutputError) as caught:
        check_same_job(text, new, "out")
    return str(caught.value)


def another_job(difference: str) -> str:
    return f"output folder out: holds another job: {difference}; use another folder, or --overwrite to start afresh"


def test_the_same_job_goes_on():
    check_same_job(job(*MIXED).text, job(*MIXED), "out")
    check_same_job(job().text, job(network=replace(NETWORK, name="/elsewhere/tiny.xml")), "out")


def test_another_model():
    other = replace(NETWORK, name="large/FP16", digest="4567")
    assert refusal(job(), job(network=other)) == another_job("model was tiny/FP32, is large/FP16")


def test_a_model_with_other_content():
    other = replace(NETWORK, digest="4567")
    assert refusal(job(), job(network=other)) == another_job("model was tiny/FP32, is tiny/FP32 with other content")


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (Options(128), "--height was 256, is 128"),
        (Options(256, max_people=2), "--max-people was not given, is 2"),
        (Options(256, min_score=0.5), "--min-score was 0.0, is 0.5"),
        (Options(256, Selection(every=2)), "--every was 1, is 2"),
        (Options(256, Selection(start=Moment(None, 0.0))), "--from was not given, is 0.0s"),
        (Options(256, Selection(stop=Moment(100, None))), "--to was not given, is 100"),
    ],
)
def test_another_option(options: Options, difference: str):
    assert refusal(job(), job(options=options)) == another_job(difference)


def test_a_video_that_changed():
    changed = job((A, index(fingerprint="beef")))
    assert refusal(job(), changed) == another_job("file:///videos/a.mp4 has changed")


def test_a_video_that_can_be_opened_now():
    assert refusal(job((A, "empty file")), job()) == another_job("file:///videos/a.mp4 has changed")


def test_a_video_more():
    assert refusal(job(), job((A, index()), (B, index()))) == another_job(
        "file:///videos/b.mp4 is new among the inputs"
    )


def test_a_video_less():
    assert refusal(job((A, index()), (B, index())), job()) == another_job(
        "file:///videos/b.mp4 is no longer among the inputs"
    )


def test_another_posejob(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(planning, "__version__", "0.0.1")
    old = job((A, "empty file"))
    assert old.text
    monkeypatch.setattr(planning, "__version__", "0.0.2")
    assert refusal(old, job((A, "empty file"))) == another_job("posejob was 0.0.1, is 0.0.2")


def test_many_differences_are_told_in_the_order_of_the_plan_and_cut_short():
    many = [(Source(Path(f"/videos/{i}.mp4")), index()) for i in range(9)]
    listed = "; ".join(f"file:///videos/{i}.mp4 is no longer among the inputs" for i in range(3)) + "; ..."
    assert refusal(job(*many), job((B, index()))) == another_job(listed)


DAMAGED = "output folder out: its plan.json is damaged; use another folder, or --overwrite to start afresh"


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "{}", '{"format": 1}'])
def test_a_damaged_plan(text: str):
    assert refusal(text, job()) == DAMAGED


def test_a_plan_that_is_no_text():
    assert refusal(b"\xff", job()) == DAMAGED
    assert planned_chunk_frames(b"\xff") is None


@pytest.mark.parametrize("part", ["format", "posejob", "model", "options", "videos"])
@pytest.mark.parametrize("value", [None, 7, "text", []])
def test_a_plan_with_a_damaged_part(part: str, value: Any):
    damaged = json.dumps(json.loads(job().text) | {part: value})
    assert re.match("output folder out: (holds another job|its plan.json is damaged)", refusal(damaged, job()))


@pytest.mark.parametrize("part", ["format", "posejob", "model", "options", "videos"])
def test_a_plan_that_lacks_a_part(part: str):
    damaged = json.loads(job().text)
    del damaged[part]
    assert refusal(json.dumps(damaged), job()) == DAMAGED


def test_a_plan_with_other_chunks_than_follow_from_it():
    text = job().text.decode()
    assert refusal(text.replace(keys(job())[1], "0" * 32), job()) == DAMAGED
    assert refusal(text.replace('"selected": 100', '"selected": 99'), job()) == DAMAGED
    assert refusal(job(chunk=30), job()) == DAMAGED
