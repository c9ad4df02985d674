"""What a Ray of our own has around it: a folder, a working directory, an environment, the end by SIGTERM.

Nothing of this needs Ray.
"""

import contextlib
import fcntl
import glob
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator

from jobs.errors import WorkerError
from jobs.frames import MAX_PIXELS
from posecore.errors import reason

OURS = "the Ray of a posejob run; goes with it\n"
# Whatever TMPDIR says: the paths of Ray's sockets must stay below 108 characters.
_PLACE = "/tmp"


@contextlib.contextmanager
def folder_of_our_own() -> Iterator[str]:
    """A folder for Ray's sockets and logs that goes when the block ends; those of runs that were killed go now.

    A run holds a lock on its folder, and no process inherits it: a lock that is free is that of a dead run. Raises
    WorkerError if there can be no such folder.
    """
    _remove_those_of_the_dead()
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="posejob-ray-", dir=_PLACE, ignore_cleanup_errors=True)
            )
            # Not buffered: what a full disk does not take would be written once more when it is closed.
            lock = stack.enter_context(open(f"{folder}/lock.new", "wb", buffering=0))
            lock.write(OURS.encode())
            fcntl.flock(lock, fcntl.LOCK_EX)
            # There for others from now on, when it is locked.
            os.rename(f"{folder}/lock.new", f"{folder}/lock")
        except OSError as error:
            raise WorkerError(
                f"Ray cannot be started on this machine: it needs a folder in {_PLACE} ({reason(error)})"
            ) from error
        yield folder


def _remove_those_of_the_dead() -> None:
    for name in glob.glob(f"{_PLACE}/posejob-ray-*/lock"):
        # Not there any more, still held, or not ours.
        with contextlib.suppress(OSError), open(name, "rb", opener=_without_waiting) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock.fileno()).st_uid == os.geteuid() and lock.read() == OURS.encode():
                shutil.rmtree(os.path.dirname(name), ignore_errors=True)


def _without_waiting(name: str, flags: int) -> int:
    """Opens a file, but neither waits for a pipe nor follows a link: the folder is everybody's."""
    return os.open(name, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


@contextlib.contextmanager
def working_in(folder: str) -> Iterator[None]:
    """Another working directory for as long as the block lasts, and afterwards the one before, if there is a way back.

    It may be gone, or be somebody else's, as with `sudo -u`; nothing is worth losing over that by then.
    """
    before = None
    with contextlib.suppress(OSError):
        before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        # The folder goes next; "/" stays.
        for back in filter(None, ["/", before]):
            with contextlib.suppress(OSError):
                os.chdir(back)


@contextlib.contextmanager
def inherited(root: str) -> Iterator[None]:
    """What Ray's processes take over from this one: environment variables and sys.path."""
    wanted = {
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONSAFEPATH": "1",
        # As many pixels as of a video; OpenCV reads it when it is loaded.
        "OPENCV_IO_MAX_IMAGE_PIXELS": str(MAX_PIXELS),
        # The worker's CPUs are the network's; NumPy's small matrix products gain nothing from threads of their own.
        "OPENBLAS_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    before = {name: os.environ.get(name) for name in wanted}
    path = sys.path[:]
    os.environ.update(wanted)
    sys.path.insert(0, root)
    try:
        yield
    finally:
        sys.path[:] = path
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def stop_on_sigterm() -> None:
    """End as with Ctrl-C when docker, systemd or a batch system says so. After `ray.init`, which sets its own way."""
    if threading.current_thread() is threading.main_thread():
        # Not by way of SIGINT, which a shell has its background jobs ignore.
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
