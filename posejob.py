"""The posejob command: `posejob ...` or `python -m posejob ...`."""

import io
import sys
from pathlib import Path


def main() -> None:
    """Run the command line.

    `models` and `jobs` are common names. A user's folder or PYTHONPATH may hold others; ours come first.
    """
    root = str(Path(__file__).resolve().parent)
    sys.path[:] = [root, *(entry for entry in sys.path if entry != root)]
    # A name that the terminal has no letters for is shown by their numbers.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    from jobs.cli import app

    app(prog_name="posejob")


if __name__ == "__main__":
    main()
