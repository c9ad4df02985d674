"""Both executors pass the same tests. Failure is scripted; invocations are counted in files, which cross processes."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.discover import Source
from jobs.errors import SinkError, WorkerError
from jobs.executors import base
from jobs.executors.base import MAX_ATTEMPTS, Executor, Layout, UnitFailure, Verdict, layout, verdict
from jobs.executors.ray import RayExecutor
from jobs.executors.serial import SerialExecutor
from jobs.executors.surroundings import OURS, folder_of_our_own, working_in
from jobs.frames import FrameRange
from jobs.worker import UnitReport, WorkUnit
from models.errors import DeviceError, InferenceError, ModelDamaged


@dataclass(frozen=True)
class Script:
    """What a scripted worker does. acts: per unit, one act an attempt; "ok" when they run out."""

    folder: Path
    acts: dict[str, list[str]] = field(default_factory=dict)
    setup: str = "ok"

    def count(self, what: str) -> int:
        return len(list(self.folder.glob(f"{what}.*")))

    def note(self, what: str) -> None:
        (self.folder / f"{what}.{uuid.uuid4().hex}").touch()


class ScriptedWorker:
    def __init__(self, script: Script) -> None:
        self.script = script

    def setup(self) -> None:
        self.script.note("setup")
        self._act(self.script.setup)

    def run(self, unit: WorkUnit) -> UnitReport:
        attempt = self.script.count(unit.key)
        self.script.note(unit.key)
        acts = self.script.acts.get(unit.key, [])
        self._act(acts[attempt] if attempt < len(acts) else "ok")
        return UnitReport(unit.key, 1, 1, 0, 0.0, "CPU")

    def _act(self, act: str) -> None:
        match act:
            case "inference":
                raise InferenceError("the network failed on a frame")
            case "bug":
                raise ValueError("a bug")
            case "disk full":
                raise SinkError("no space left on device")
            case "damaged":
                raise ModelDamaged("x.bin", "size", "2", "1")
            case "no device":
                raise DeviceError("GPU", ("CPU",))
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "work":
                time.sleep(0.3)
            case "work longer":
                time.sleep(2)
            case "hang":
                time.sleep(600)


def unit(key: str) -> WorkUnit:
    none = np.empty(0, dtype=np.int64)
    frames = FrameRange(Source(Path("/none")), 0, none, none, none, None, 0, (), 0, True, True, Fraction(1), None)
    return WorkUnit(key, "video", frames, None, None)


Make = Callable[..., Executor]


@pytest.fixture(params=["serial", pytest.param("ray", marks=pytest.mark.ray)])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "serial":
        return lambda script: SerialExecutor(script, ScriptedWorker)
    request.getfixturevalue("one_ray")
    return lambda script: RayExecutor(script, Layout(2, 1), ScriptedWorker)


def run(executor: Executor, keys: list[str]) -> dict[str, Any]:
    results = list(executor.run(unit(key) for key in keys))
    assert len({result.key for result in results}) == len(results), "a unit was answered twice"
    return {result.key: result for result in results}


KEYS = [f"unit{i}" for i in range(7)]


class TestEveryExecutor:
    def test_answers_each_unit_once(self, make: Make, tmp_path: Path):
        results = run(make(script := Script(tmp_path)), KEYS)
        assert sorted(results) == KEYS
        assert all(isinstance(result, UnitReport) for result in results.values())
        assert [script.count(key) for key in KEYS] == [1] * len(KEYS)

    @pytest.mark.parametrize("act", ["inference", "bug", "disk full"])
    def test_tries_again_what_failed(self, make: Make, tmp_path: Path, act: str):
        script = Script(tmp_path, {"unit2": [act, act]})
        assert isinstance(run(make(script), KEYS)["unit2"], UnitReport)
        assert script.count("unit2") == 3

    @pytest.mark.parametrize(("act", "reason"), [("inference", "the network failed on a frame"), ("bug", "a bug")])
    def test_gives_up_a_unit_that_keeps_failing_and_goes_on(self, make: Make, tmp_path: Path, act: str, reason: str):
        script = Script(tmp_path, {"unit2": [act] * 9})
        results = run(make(script), KEYS)
        assert isinstance(results["unit2"], UnitFailure)
        assert reason in results["unit2"].reason
        assert script.count("unit2") == MAX_ATTEMPTS
        assert sorted(results) == KEYS

    def test_stops_when_nothing_can_be_stored(self, make: Make, tmp_path: Path):
        with pytest.raises(SinkError, match="no space left on device"):
            run(make(Script(tmp_path, {"unit2": ["disk full"] * 9})), KEYS)

    def test_stops_at_once_when_the_network_is_damaged(self, make: Make, tmp_path: Path):
        script = Script(tmp_path, {"unit0": ["damaged"] * 9})
        with pytest.raises(ModelDamaged, match=r"x\.bin: size is 1, the manifest says 2"):
            run(make(script), KEYS)
        assert script.count("unit0") == 1

    def test_stops_when_a_worker_cannot_start(self, make: Make, tmp_path: Path):
        script = Script(tmp_path, setup="no device")
        with pytest.raises(DeviceError, match="--device GPU: not on this machine"):
            run(make(script), KEYS)
        assert script.count("unit0") == 0


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
class TestRayExecutor:
    def test_replaces_a_worker_that_dies(self, tmp_path: Path):
        script = Script(tmp_path, {"unit2": ["die"]})
        results = run(RayExecutor(script, Layout(2, 1), ScriptedWorker), KEYS)
        assert all(isinstance(result, UnitReport) for result in results.values())
        assert script.count("unit2") == 2

    def test_gives_up_a_unit_that_kills_its_workers_and_no_other(self, tmp_path: Path):
        script = Script(tmp_path, {"unit2": ["die"] * 9})
        results = run(RayExecutor(script, Layout(2, 1), ScriptedWorker), KEYS)
        assert [key for key in KEYS if isinstance(results[key], UnitFailure)] == ["unit2"]
        assert script.count("unit2") == MAX_ATTEMPTS

    def test_units_that_shared_a_worker_with_a_killer_are_done(self, tmp_path: Path):
        """A worker's reports may be lost when it dies at its next unit: many units, many deaths, one worker."""
        keys = [f"unit{i}" for i in range(12)]
        script = Script(tmp_path, {key: ["die"] * 9 for key in keys[1::4]})
        results = run(RayExecutor(script, Layout(1, 2), ScriptedWorker), keys)
        assert sorted(key for key in keys if isinstance(results[key], UnitFailure)) == sorted(keys[1::4])

    def test_stops_a_worker_that_hangs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("jobs.executors.ray.deadline_s", lambda n_frames: 3.0)
        script = Script(tmp_path, {"unit2": ["hang"] * 9})
        results = run(RayExecutor(script, Layout(2, 1), ScriptedWorker), KEYS)
        assert [key for key in KEYS if isinstance(results[key], UnitFailure)] == ["unit2"]
        assert "hung" in results["unit2"].reason

    def test_a_worker_that_answers_while_nobody_listens_does_not_hang(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """Whoever takes the answers may merge a long video meanwhile, or be stopped by Ctrl-Z."""
        monkeypatch.setattr("jobs.executors.ray.deadline_s", lambda n_frames: 4.0)
        keys = [*KEYS, "long", "short"]
        # The first ones are there so that both workers have begun before the last two.
        script = Script(tmp_path, {key: ["work"] for key in keys} | {"long": ["work longer"]})
        for result in RayExecutor(script, Layout(2, 1), ScriptedWorker).run(unit(key) for key in keys):
            assert isinstance(result, UnitReport)
            if result.key == "short":
                time.sleep(5)
        assert [script.count(key) for key in keys] == [1] * len(keys)

    def test_says_so_when_workers_die_while_starting(self, tmp_path: Path):
        with pytest.raises(WorkerError, match="workers die while starting"):
            run(RayExecutor(Script(tmp_path, setup="die"), Layout(1, 1), ScriptedWorker), KEYS)

    def test_takes_units_only_as_room_becomes_free(self, tmp_path: Path):
        taken = 0

        def source() -> Iterator[WorkUnit]:
            nonlocal taken
            for i in range(50):
                taken += 1
                yield unit(f"unit{i}")

        executor = RayExecutor(Script(tmp_path), Layout(2, 1), ScriptedWorker)
        for done, _ in enumerate(executor.run(source()), start=1):
            assert taken <= done + 2 * 2
        assert taken == 50


class TestPrivateRay:
    @pytest.mark.parametrize("content", [None, "somebody else's"])
    def test_leaves_folders_of_others_alone(self, content: str | None):
        with tempfile.TemporaryDirectory(prefix="posejob-ray-", dir="/tmp") as other:
            lock = Path(other) / "lock"
            # A pipe would be waited for.
            os.mkfifo(lock) if content is None else lock.write_text(content)
            with folder_of_our_own() as ours:
                assert Path(ours).is_dir()
                assert lock.exists()

    def test_removes_the_folder_of_a_run_that_was_killed(self):
        dead = Path(tempfile.mkdtemp(prefix="posejob-ray-", dir="/tmp"))
        (dead / "lock").write_text(OURS)
        with folder_of_our_own() as ours:
            assert not dead.exists()
            # A run that is alive keeps its own.
            with folder_of_our_own():
                assert Path(ours).is_dir()

    @pytest.mark.parametrize(
        ("place", "problem"),
        [("nowhere", "no such file or directory"), ("closed", "permission denied"), ("full", "file too large")],
    )
    def test_says_so_when_there_can_be_no_folder(
        self, plain_user: Path, monkeypatch: pytest.MonkeyPatch, place: str, problem: str
    ):
        for name, mode in (("closed", 0o500), ("full", 0o700)):
            (plain_user / name).mkdir(mode)
        monkeypatch.setattr("jobs.executors.surroundings._PLACE", str(plain_user / place))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if place == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            with pytest.raises(WorkerError) as caught, folder_of_our_own():
                pass
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert str(caught.value) == (
            f"Ray cannot be started on this machine: it needs a folder in {plain_user / place} ({problem})"
        )
        assert place == "nowhere" or not list((plain_user / place).iterdir())

    def test_what_goes_wrong_within_the_folder_is_not_about_the_folder(self):
        with pytest.raises(FileExistsError), folder_of_our_own():
            raise FileExistsError

    def test_comes_back_to_the_working_directory_if_there_is_a_way(
        self, plain_user: Path, monkeypatch: pytest.MonkeyPatch
    ):
        (plain_user / "home").mkdir()
        (plain_user / "gone").mkdir()
        monkeypatch.chdir(plain_user / "home")
        with working_in(str(plain_user)):
            assert Path.cwd() == plain_user
        assert Path.cwd() == plain_user / "home"
        with working_in(str(plain_user)):
            (plain_user / "home").chmod(0)
        assert Path.cwd() == Path("/")
        os.chdir(plain_user / "gone")
        (plain_user / "gone").rmdir()
        with working_in(str(plain_user)):
            assert Path.cwd() == plain_user
        assert Path.cwd() == Path("/")

    def test_sigterm_ends_it_where_a_shell_has_sigint_ignored(self):
        """As in `posejob submit ... &` in a script."""
        probe = """if True:
            import signal
            from jobs.executors.surroundings import stop_on_sigterm
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            stop_on_sigterm()
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt:
                print("stopped")
        """
        done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
        assert done.stdout == "stopped\n"


class TestDecisions:
    @pytest.mark.parametrize(
        ("error", "attempts", "expected"),
        [
            (InferenceError("x"), 1, Verdict.RETRY),
            (InferenceError("x"), 3, Verdict.GIVE_UP),
            (MemoryError(), 2, Verdict.RETRY),
            (MemoryError(), 3, Verdict.GIVE_UP),
            (SinkError("x"), 2, Verdict.RETRY),
            (SinkError("x"), 3, Verdict.STOP),
            (ModelDamaged("x", "size", "1", "2"), 1, Verdict.STOP),
        ],
    )
    def test_verdict(self, error: Exception, attempts: int, expected: Verdict):
        assert verdict(error, attempts) is expected

    @pytest.mark.parametrize(
        ("cpus", "workers", "expected"),
        [
            (1, None, Layout(1, 1)),
            (2, None, Layout(1, 2)),
            (8, None, Layout(2, 4)),
            (64, None, Layout(16, 4)),
            (8, 3, Layout(3, 2)),
            (2, 5, Layout(2, 1)),
        ],
    )
    def test_layout(self, cpus: int, workers: int | None, expected: Layout):
        assert layout(cpus, workers) == expected

    def test_the_deadline_grows_with_the_unit(self):
        assert base.deadline_s(0) < base.deadline_s(100) < base.deadline_s(1000)
