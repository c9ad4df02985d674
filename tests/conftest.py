"""What more than one package's tests need: a network, a video, and a whole job without Ray."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from jobs.events import Observer
from jobs.executors.base import Layout, UnitFailure
from jobs.executors.serial import SerialExecutor
from jobs.run import JobReport, StartExecutor, run_job
from jobs.spec import RunSpec
from jobs.worker import UnitReport, WorkerSpec, WorkUnit
from tests.fixtures.colour_network import write_network
from tests.fixtures.stick_figures import walkers, write_video

# A slow machine is no failure.
settings.register_profile("posejob", settings.default, deadline=None)
settings.load_profile("posejob")

RunSerially = Callable[..., JobReport]


@pytest.fixture(scope="session")
def colour_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .xml of a network that answers colours, its .bin and .toml beside it. Not to be changed."""
    return write_network(tmp_path_factory.mktemp("colour")).with_suffix(".xml")


@pytest.fixture(scope="session")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """walk.mp4: 12 frames of 192 x 144 with one person in each, a key frame every 6. Not to be changed."""
    path = tmp_path_factory.mktemp("walk") / "walk.mp4"
    # Without a threshold the encoder would put key frames where the scene changes.
    options = {"crf": "10", "sc_threshold": "0", "bf": "0"}
    write_video(path, walkers(12, 1, (192, 144)).pictures(), gop=6, options=options)
    return path


@pytest.fixture
def plain_user() -> Iterator[Path]:
    """Runs the test, from here on, as somebody whom permissions bind, which root is not. A folder of theirs."""
    nobody, root = 65534, os.geteuid() == 0
    # Not in pytest's own, which nobody else can enter.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        if root:
            os.chown(folder, nobody, nobody)
            os.seteuid(nobody)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)


@pytest.fixture(scope="session")
def serial() -> StartExecutor:
    """Starts one worker in this process; stands in for `jobs.cli._start_ray`."""

    @contextmanager
    def start(worker: WorkerSpec, layout: Layout) -> Iterator[SerialExecutor]:
        yield SerialExecutor(worker)

    return start


@pytest.fixture(scope="session")
def stopping() -> StartExecutor:
    """Like `serial`, but after one chunk the user presses Ctrl-C."""

    class Stopping(SerialExecutor):
        def run(self, units: Iterable[WorkUnit]) -> Iterator[UnitReport | UnitFailure]:
            yield next(super().run(units))
            raise KeyboardInterrupt

    @contextmanager
    def start(worker: WorkerSpec, layout: Layout) -> Iterator[Stopping]:
        yield Stopping(worker)

    return start


@pytest.fixture(scope="session")
def run_serially(colour_network: Path, serial: StartExecutor) -> RunSerially:
    """`run_serially(inputs, out, observe=..., start=..., **spec)` does a job in this process and returns its JobReport.

    inputs: paths or texts; spec: any other field of RunSpec. The model is the colour network unless given.
    """

    def run(
        inputs: list[Path | str],
        out: Path,
        observe: Observer = lambda event: None,
        start: StartExecutor = serial,
        **spec: Any,
    ) -> JobReport:
        spec = {"model": str(colour_network)} | spec
        return run_job(RunSpec(inputs=tuple(map(str, inputs)), out=out, **spec), start, observe)

    return run


@pytest.fixture(scope="session")
def one_ray() -> Iterator[None]:
    """A private Ray with two CPUs. Starting one takes seconds, so there is one for the whole session."""
    from jobs.executors.ray import private_ray

    with private_ray(2):
        yield
