"""Our steady state against another program on the same video, in turn.

    python -m benchmarks.peer VIDEO [--rounds 3] [--seconds 10] -- COMMAND ...

COMMAND does the video and prints `FPS: 12.3` of its own measuring, without start-up. For the Open Model Zoo demo, in
an environment of its own with openvino==2024.6.0 (the last it runs on), opencv-python-headless, scipy, numpy<2:

    git clone https://github.com/openvinotoolkit/open_model_zoo
    export PYTHONPATH=open_model_zoo/demos/common/python:open_model_zoo/demos/common/python/model_zoo
    ... -- python open_model_zoo/demos/human_pose_estimation_demo/python/human_pose_estimation_demo.py \
        -i VIDEO -at openpose -m human-pose-estimation-0001.xml --no_show
"""

import argparse
import re
import statistics
import subprocess
import sys
from pathlib import Path

from jobs.bench import LIMIT, STEADY, measure
from jobs.console import tell
from jobs.spec import RunSpec
from models.registry import DEFAULT_MODEL


def peer_fps(command: list[str]) -> float:
    """What the program says of itself."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.findall(r"FPS:\s*([\d.]+)", done.stdout + done.stderr)
    if not found:
        raise SystemExit("the command printed no `FPS: number`")
    return float(found[-1])


def main() -> None:
    """Measure both in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("video")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args()
    spec = RunSpec((asked.video,), Path("unused"), DEFAULT_MODEL)
    ratios = []
    for _ in range(asked.rounds):
        theirs = peer_fps(asked.command)
        ours = measure(spec, 1, asked.seconds, tell)
        ratios.append(ours.fps_of(STEADY) / theirs)
        print(
            f"peer {theirs:.1f}, posejob {ours.fps_of(STEADY):.1f}, network alone {ours.fps_of(LIMIT):.1f} frames/s: "
            f"{ratios[-1]:.2f}",
            flush=True,
        )
    print(f"median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    sys.exit(main())
