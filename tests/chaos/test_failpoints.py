"""Every step of the commit path, with a process that is really killed, or frozen and thawed, there."""

import os
import signal
from pathlib import Path

import pytest

from tests.chaos.failpoints import STEPS, Order
from tests.chaos.job import PATIENCE_S, Job, wait_for_stop

TORN = [name for name, step in STEPS.items() if step.event == "flush" and step.path.startswith("_tmp")]


@pytest.mark.parametrize(("name", "act"), [(name, "kill") for name in STEPS] + [(name, "tear") for name in TORN])
def test_killed_at(name: str, act: str, job: Job, tmp_path: Path):
    order = Order(STEPS[name], tmp_path / "out", act, tmp_path / "mark")
    assert job.run(order.out, order) == -signal.SIGKILL
    assert list(job.faults_in_sight(order.out)) == []
    assert job.run(order.out) == 0
    assert job.faults(order.out) == []


@pytest.mark.parametrize("name", STEPS)
def test_frozen_at_and_thawed_when_another_has_done_the_job(name: str, job: Job, tmp_path: Path):
    order = Order(STEPS[name], tmp_path / "out", "stop", tmp_path / "mark")
    zombie = job.spawn(order.out, order)
    try:
        wait_for_stop(zombie)
        assert job.run(order.out) == 0
        assert job.faults(order.out) == []
        before = {path: path.stat() for path in order.out.rglob("*")}
        os.kill(zombie.pid, signal.SIGCONT)
        zombie.join(PATIENCE_S)
        assert zombie.exitcode == 0
    finally:
        zombie.kill()
    assert job.faults(order.out) == []
    assert {path: path.stat() for path in order.out.rglob("*") if path.is_file()} == {
        path: status for path, status in before.items() if path.is_file()
    }
