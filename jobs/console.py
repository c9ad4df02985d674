"""What is printed must never end a job: whoever read it may be gone, the disk that a log lies on may be full."""

import contextlib
import os
import sys
from collections.abc import Iterator


def tell(text: str) -> None:
    """Print to stderr, or nowhere if that cannot be written to."""
    # None if it was closed before the start.
    if sys.stderr is not None:
        with _giving_up(2):
            print(text, file=sys.stderr, flush=True)


def say(text: str) -> bool:
    """Print to stdout. False if it cannot be written to, unless it is a pipe that nobody reads any more (`| head`)."""
    try:
        print(text, flush=True)
    except OSError as error:
        _give_up(1)
        return isinstance(error, BrokenPipeError)
    return True


class Stderr:
    """stderr for those who print by themselves, as a progress bar does: what cannot be written goes nowhere."""

    def __init__(self) -> None:
        # The bar puts something of its own in its place.
        self._stream = sys.stderr
        self.encoding = self._stream.encoding

    def write(self, text: str) -> int:
        with _giving_up(2):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _giving_up(2):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


@contextlib.contextmanager
def _giving_up(descriptor: int) -> Iterator[None]:
    try:
        yield
    except OSError:
        _give_up(descriptor)


def _give_up(descriptor: int) -> None:
    """Let what is still buffered, and all that follows, go nowhere."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
