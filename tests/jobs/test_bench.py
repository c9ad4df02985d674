"""`posejob bench` on the drawn walk: that it measures what it says, not how fast this machine is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.bench import KINDS, LIMIT, STEADY, WHOLE, WORKER, Bench, Pace, measure
from jobs.errors import ConfigError
from jobs.report import bench_text
from jobs.spec import RunSpec


@pytest.mark.ray
def test_the_command_measures_every_kind(walk: Path, colour_network: Path):
    command = ["bench", walk, "--model", colour_network, "--height", "64", "--rounds", "1", "--seconds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "posejob", *map(str, command), "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert list(result["speeds"]) == list(KINDS)
    assert all(speed["frames_per_s"] > 0 for speed in result["speeds"].values())
    # Start-up belongs to the whole command alone.
    assert result["speeds"][WHOLE]["frames_per_s"] < result["speeds"][STEADY]["frames_per_s"]
    assert result["network_size"] == [88, 64]
    stages = result["cpu_ms_per_frame_by_stage"]
    assert list(stages) == ["decode", "resize", "infer", "peaks", "limbs", "group", "commit"]
    assert stages["infer"] > 0


def test_more_than_one_video_is_refused(walk: Path, colour_network: Path, tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(walk.read_bytes())
    (tmp_path / "b.mp4").write_bytes(walk.read_bytes())
    spec = RunSpec((str(tmp_path),), tmp_path / "out", str(colour_network))
    with pytest.raises(ConfigError, match=r"^posejob bench measures on one video that can be read$"):
        measure(spec, 1, 1.0, lambda line: None)


def bench(**paces: tuple[Pace, ...]) -> Bench:
    result = Bench("file:///v.mp4", (1280, 720), 25.0, "m", (456, 256), "CPU", 2)
    for kind in KINDS:
        result.paces[kind] = list(paces[kind.split()[0] if kind != WHOLE else "whole"])
    return result


def test_speeds_are_compared_within_their_round():
    """The machine was twice as fast in the first round; it still lost half."""
    result = bench(
        network=(Pace(200, 1, 2), Pace(100, 1, 2), Pace(100, 1, 2)),
        worker=(Pace(100, 1, 2), Pace(50, 1, 2), Pace(50, 1, 2)),
        **{"job,": (Pace(100, 1, 2), Pace(50, 1, 2), Pace(50, 1, 2))},
        whole=(Pace(100, 2, 4), Pace(100, 4, 4), Pace(100, 4, 4)),
    )
    assert result.of_the_limit(LIMIT) == 1
    assert result.of_the_limit(WORKER) == result.of_the_limit(STEADY) == 0.5
    assert result.cpu_ms_of(WORKER) == 40
    # 100 frames take 2 s in steady state, 4 s in all: 2 s of start-up, and 90,000 frames at 50 a second.
    assert result.hour_s == 2 + 1800
    assert bench_text(result).splitlines()[-1] == "an hour of this video takes 30 min 2 s on this machine"
