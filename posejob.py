"""The posejob command: `posejob ...` or `python -m posejob ...`."""

import sys
from pathlib import Path


def main() -> None:
    """Run the command line.

    `models` and `jobs` are common names. A user's folder or PYTHONPATH may hold others; ours come first.
    """
    root = str(Path(__file__).resolve().parent)
    sys.path[:] = [root, *(entry for entry in sys.path if entry != root)]
    from jobs.cli import app

    app(prog_name="posejob")


if __name__ == "__main__":
    main()
