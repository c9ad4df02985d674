"""Peak memory of each process of a job on four minutes and on one hour of 1080p video.

    python -m benchmarks.memory [--minutes 4 60] [--fps 6] [--json]

Both videos repeat the same ten seconds of three people walking. The network is the tests' colour network: what is
measured is all around it. Takes minutes at 6 frames a second, and the better part of an hour at 30. Exit code 1 if a
process needs more than 1.1 times as much for the longer one.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import psutil

from tests.fixtures.colour_network import write_network
from tests.fixtures.stick_figures import walkers, write_video

LIMIT = 1.1
SIZE = (1920, 1080)
CLIP_S = 10  # before it is repeated


def write_repeated(clip: Path, path: Path, times: int) -> None:
    """Write the packets of a clip one after the other `times` times, without decoding them."""
    with av.open(str(clip)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        out = target.add_stream_from_template(stream)
        packets = [
            (packet.pts, packet.dts, packet.is_keyframe, bytes(packet))
            for packet in source.demux(stream)
            if packet.size
        ]
        length = round(CLIP_S / Fraction(stream.time_base))
        for i in range(times):
            for pts, dts, key, data in packets:
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.is_keyframe = out, stream.time_base, key
                packet.pts, packet.dts = pts + i * length, dts + i * length
                target.mux(packet)


def peaks_mb(command: list[str]) -> dict[str, float]:
    """Run a command to its end; peak resident memory by kind of process, that of the largest one."""
    driver = psutil.Popen(command, stdout=subprocess.DEVNULL)
    seen: dict[int, tuple[str, float]] = {}
    while driver.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [driver, *driver.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess, OSError):
                    kind = "driver" if process.pid == driver.pid else process.name().removesuffix(".run")
                    # A worker goes by another name until it is given something to do.
                    # One that has just ended has no peak any more.
                    seen[process.pid] = kind, max(_peak_mb(process.pid), seen.get(process.pid, (kind, 0.0))[1])
        time.sleep(0.2)
    if driver.returncode:
        raise SystemExit(f"the job ended with exit code {driver.returncode}")
    peaks: dict[str, float] = {}
    for kind, peak in seen.values():
        peaks[kind] = max(peaks.get(kind, 0.0), peak)
    return peaks


def _peak_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    """Measure both and print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=int, nargs=2, default=[4, 60], help="lengths of the two videos")
    parser.add_argument("--fps", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memory-") as name:
        folder = Path(name)
        write_network(folder)
        clip = folder / "clip.mp4"
        pictures = walkers(asked.fps * CLIP_S, 3, SIZE).pictures()
        write_video(clip, pictures, asked.fps, gop=asked.fps, options={"preset": "ultrafast", "crf": "30", "bf": "0"})
        results = []
        for minutes in asked.minutes:
            video = folder / f"{minutes}-minutes.mp4"
            write_repeated(clip, video, minutes * 60 // CLIP_S)
            out, network = folder / f"out-{minutes}", folder / "colour-network.xml"
            command = [
                sys.executable,
                "-m",
                "posejob",
                "submit",
                str(video),
                "--out",
                str(out),
                "--model",
                str(network),
            ]
            results.append(peaks_mb([str(word) for word in command]))
            video.unlink()
    short, long = results
    ratios = {kind: long[kind] / short[kind] for kind in sorted(short.keys() & long.keys())}
    if asked.json:
        print(json.dumps({"minutes": asked.minutes, "short_mb": short, "long_mb": long, "ratios": ratios}))
    else:
        for kind, ratio in ratios.items():
            print(f"{kind:24} {short[kind]:6.0f} MB {long[kind]:6.0f} MB  {ratio:.3f}")
    sys.exit(any(ratio > LIMIT for kind, ratio in ratios.items()))


if __name__ == "__main__":
    main()
