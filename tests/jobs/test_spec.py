import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.errors import ConfigError
from jobs.frames import seconds
from jobs.spec import Moment, Options, RunSpec, Selection, parse_moment

ROOT = Path(__file__).parents[2]


def frame(number: int) -> Moment:
    return Moment(number, None)


def at(time_s: float) -> Moment:
    return Moment(None, time_s)


# Moments


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("0", frame(0)),
        ("120", frame(120)),
        ("007", frame(7)),
        ("0s", at(0.0)),
        ("12s", at(12.0)),
        ("12.5s", at(12.5)),
        ("12.s", at(12.0)),
        (".5s", at(0.5)),
        ("90s", at(90.0)),
        ("1:30", at(90.0)),
        ("01:23.5", at(83.5)),
        ("00:01:23.5", at(83.5)),
        ("2:00:00", at(7200.0)),
        ("100:00:00", at(360000.0)),
    ],
)
def test_a_moment_is_a_frame_seconds_or_a_clock_time(text: str, moment: Moment):
    assert parse_moment(text, "--from") == moment


@pytest.mark.parametrize(
    "text",
    ["", " ", "12.5", "-1", "-5s", "+3", "1e3s", "s", ".s", ".", "12 s", " 12", "12.5S", "5m", "1:2:3:4", ":30", "1:",
     "1:-5", "1.5:00", "nan", "nans", "inf", "12\n", "12s\n", "²", "start"],
)  # fmt: skip
@pytest.mark.parametrize("flag", ["--from", "--to"])
def test_what_is_no_moment_is_refused_by_the_name_of_its_flag(text: str, flag: str):
    with pytest.raises(ConfigError) as caught:
        parse_moment(text, flag)
    assert (
        str(caught.value) == f"{flag} {text!r}: expected a frame number (120), seconds (12.5s) or a time (00:01:23.5)"
    )


@pytest.mark.parametrize("n", [16, 400, 5000])
@pytest.mark.parametrize("text", ["{}", "{}s", "{}:00", "{}:00:00", "0:{}:00.5", "{}x"])
def test_a_number_of_many_digits_is_refused_in_one_line(text: str, n: int):
    with pytest.raises(ConfigError) as caught:
        parse_moment(text.format("9" * n), "--to")
    assert str(caught.value).startswith("--to '")
    assert str(caught.value).endswith("'...: expected numbers of no more than 15 digits")
    assert len(str(caught.value)) < 100


def test_numbers_of_as_many_digits_as_there_may_be():
    assert parse_moment("9" * 15, "--to") == frame(10**15 - 1)
    assert parse_moment("9" * 15 + ":00:00", "--to") == at((10**15 - 1) * 3600.0)
    assert parse_moment("0." + "3" * 5000 + "s", "--to") == at(1 / 3)


def test_a_moment_is_shown_as_it_can_be_typed():
    for text in ("120", "12.5s", "0.001s", "86400.0s"):
        assert str(parse_moment(text, "--from")) == text
    assert str(parse_moment("00:01:23.5", "--from")) == "83.5s"


# Which frames

FRAME = np.arange(10)
TIME_S = FRAME / 4


def wanted(every: int = 1, start: Moment | None = None, stop: Moment | None = None) -> list[int]:
    return np.flatnonzero(Selection(every, start, stop).wanted(FRAME, TIME_S)).tolist()


def test_everything_is_wanted_unless_said_otherwise():
    assert wanted() == list(range(10))


def test_every_nth_goes_by_frame_number_wherever_the_range_begins():
    assert wanted(every=3) == [0, 3, 6, 9]
    assert wanted(every=3, start=frame(1)) == [3, 6, 9]
    assert wanted(every=3, start=frame(4), stop=at(1.75)) == [6]
    assert wanted(every=20) == [0]
    later = Selection(every=3).wanted(FRAME + 100, TIME_S + 25)
    assert (FRAME + 100)[later].tolist() == [102, 105, 108]


@pytest.mark.parametrize(("start", "stop"), [(frame(2), frame(5)), (at(0.5), at(1.25)), (frame(2), at(1.25))])
def test_ranges_are_half_open(start: Moment, stop: Moment):
    assert wanted(start=start) == list(range(2, 10))
    assert wanted(stop=stop) == list(range(5))
    assert wanted(start=start, stop=stop) == [2, 3, 4]


def test_times_between_frames():
    assert wanted(start=at(0.51), stop=at(1.26)) == [3, 4, 5]


def test_beyond_the_end():
    assert wanted(start=frame(10)) == wanted(start=at(2.5)) == wanted(stop=frame(0)) == wanted(stop=at(0.0)) == []
    assert wanted(start=frame(0), stop=frame(10**30)) == wanted(start=at(0.0), stop=at(1e300)) == list(range(10))


@pytest.mark.parametrize("fps", [Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60)])
@pytest.mark.parametrize("time_base", [Fraction(1, 90000), Fraction(1, 1000), None])
def test_a_frames_own_time_however_it_is_rounded_begins_with_that_frame(fps: Fraction, time_base: Fraction | None):
    base = time_base or 1 / fps
    number = np.arange(5000)
    time_s = seconds(np.array([round(i / fps / base) for i in range(5000)]), 0, base)
    for i in (1, 2, 3, 10, 100, 1000, 4999):
        for text in (f"{time_s[i]:.6f}s", f"{float(time_s[i])!r}s"):
            moment = parse_moment(text, "--from")
            assert np.flatnonzero(Selection(start=moment).wanted(number, time_s))[0] == i
            assert np.flatnonzero(Selection(stop=moment).wanted(number, time_s))[-1] == i - 1


def test_pictures_have_no_time_and_are_selected_by_number_alone():
    def chosen(selection: Selection) -> list[int]:
        return np.flatnonzero(selection.wanted(FRAME, np.full(10, np.nan))).tolist()

    assert chosen(Selection(every=4)) == [0, 4, 8]
    assert chosen(Selection(1, frame(2), frame(4))) == [2, 3]
    assert chosen(Selection(1, at(0.5), at(1.0))) == list(range(10))
    assert chosen(Selection(1, frame(2), at(1.0))) == list(range(2, 10))


def test_selecting_changes_nothing_it_was_given():
    frames, times = FRAME.copy(), TIME_S.copy()
    frames.flags.writeable = times.flags.writeable = False
    Selection(2, frame(1), at(1.0)).wanted(frames, times)
    assert np.array_equal(frames, FRAME)


# The run


def spec(**fields: Any) -> RunSpec:
    return RunSpec(**{"inputs": ("a.mp4",), "out": Path("out"), "model": "tiny"} | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"workers": 0}, "--workers 0: expected a whole number from 1 up"),
        ({"chunk_frames": 0}, "--chunk-frames 0: expected a whole number from 1 up"),
        ({"chunk_frames": -5}, "--chunk-frames -5: expected a whole number from 1 up"),
        ({"selection": Selection(every=0)}, "--every 0: expected a whole number from 1 up"),
        ({"height": 0}, "--height 0: expected a whole number from 1 up"),
        ({"max_people": 0}, "--max-people 0: expected a whole number from 1 up"),
        ({"min_score": -0.1}, "--min-score -0.1: expected a number between 0 and 1"),
        ({"min_score": 1.5}, "--min-score 1.5: expected a number between 0 and 1"),
        ({"min_score": math.nan}, "--min-score nan: expected a number between 0 and 1"),
        ({"selection": Selection(1, frame(5), frame(5))}, "--from 5 --to 5: nothing lies between them"),
        ({"selection": Selection(1, frame(0), frame(0))}, "--from 0 --to 0: nothing lies between them"),
        ({"selection": Selection(1, at(2.0), at(1.5))}, "--from 2.0s --to 1.5s: nothing lies between them"),
    ],
)
def test_a_run_that_cannot_be_names_the_flag(fields: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        spec(**fields)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "fields",
    [
        {"workers": 1, "chunk_frames": 1, "height": 1, "max_people": 1, "selection": Selection(every=1)},
        {"min_score": 0.0},
        {"min_score": 1.0},
        {"selection": Selection(1, frame(4), frame(5))},
        {"selection": Selection(1, frame(5), at(0.1))},  # which is later depends on the video
    ],
)
def test_the_limits_themselves_are_allowed(fields: dict[str, Any]):
    made = spec(**fields)
    assert {name: getattr(made, name) for name in fields} == fields


# Options

OPTIONS = Options(256, Selection(2, at(1.5), frame(90)), max_people=3, min_score=0.25)


def test_options_are_flat_and_named_like_the_flags():
    assert OPTIONS.to_json() == {
        "height": 256,
        "max_people": 3,
        "min_score": 0.25,
        "every": 2,
        "from": "1.5s",
        "to": "90",
    }
    assert Options(256).to_json() == {
        "height": 256,
        "max_people": None,
        "min_score": 0.0,
        "every": 1,
        "from": None,
        "to": None,
    }


def test_the_same_moment_typed_in_other_ways_is_the_same_option():
    texts = ("83.5s", "83.50s", "1:23.5", "00:01:23.500")
    assert len({str(Options(256, Selection(1, parse_moment(text, "--from"))).to_json()) for text in texts}) == 1


def test_options_are_the_same_text_in_every_process():
    code = (
        "import json; from jobs.spec import *;"
        "print(json.dumps(Options(256, Selection(2, Moment(None, 1.5), Moment(90, None)), 3, 0.25).to_json()))"
    )
    for seed in ("1", "2"):
        printed = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert printed == json.dumps(OPTIONS.to_json()) + "\n"
