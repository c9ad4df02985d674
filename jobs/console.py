"""What is printed must never end a job: whoever read it may be gone, the disk that a log lies on may be full."""

import os
import sys


def tell(text: str) -> None:
    """Print to stderr, or nowhere if that cannot be written to."""
    try:
        if sys.stderr is not None:  # closed before the start
            print(text, file=sys.stderr, flush=True)
    except OSError:
        _give_up(2)


def say(text: str) -> bool:
    """Print to stdout. False if it cannot be written to, unless it is a pipe that nobody reads any more (`| head`)."""
    try:
        print(text, flush=True)
    except OSError as error:
        _give_up(1)
        return isinstance(error, BrokenPipeError)
    return True


def _give_up(descriptor: int) -> None:
    """Let what is still buffered, and all that follows, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
