"""The demo: `python -m examples.demo FOLDER`, or `make demo`.

Makes a short video of real people, runs `posejob submit` on it, prints the first rows. Where the network can neither be
found nor fetched, it says so and runs the same job on drawn figures with the tests' own network.
"""

import subprocess
import sys
from pathlib import Path

from posecore import read_poses

COLUMNS = ["frame", "time_s", "person", "score", "nose_x", "nose_y", "left_shoulder_x", "left_shoulder_y"]


def main() -> None:
    """Run the demo in the folder named on the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "out"
    fetched = _posejob("models", "fetch")
    if fetched.returncode == 0:
        from examples.make_demo_video import make_video

        video = folder / "people.mp4"
        make_video(video)
        arguments: list[str] = []
    else:
        print(fetched.stderr.strip(), file=sys.stderr)
        print("The real network is not to be had here; the demo goes on with drawn figures and a toy network.\n")
        video, arguments = _drawn(folder)
    command = ["submit", str(video), "--out", str(out), "--min-score", "0.15", "--overwrite", *arguments]
    print("$ posejob", *command, flush=True)
    if _posejob(*command, quiet=False).returncode:
        sys.exit(1)
    print(f"\n>>> read_poses({str(out)!r}, columns=[...], to='pandas').head(8)")
    print(read_poses(out, columns=COLUMNS, to="pandas").head(8).to_string(index=False, float_format="%.2f"))


def _posejob(*arguments: str, quiet: bool = True) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "posejob", *arguments], capture_output=quiet, text=True, check=False)


def _drawn(folder: Path) -> tuple[Path, list[str]]:
    from tests.fixtures.colour_network import write_network
    from tests.fixtures.stick_figures import crossing, write_video

    manifest = write_network(folder)
    video = folder / "figures.mp4"
    write_video(video, crossing(75, size=(640, 480)).pictures())
    return video, ["--model", str(manifest.with_suffix(".xml"))]


if __name__ == "__main__":
    main()
