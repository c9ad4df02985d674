"""The command on a real Ray, with workers and whole nodes that die, hang, freeze and thaw."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from posecore import read_frames
from tests.chaos.failpoints import WORKER_STEPS, Order, Step, environment
from tests.chaos.job import PATIENCE_S, Job
from tests.chaos.real import Run, disturbed_run, nodes

pytestmark = pytest.mark.ray

DEADLINE_S = 10.0


def at_chunk(job: Job, run: Run, number: int, act: str, times: int = 1, step: str = "chunk: before link") -> Order:
    """An order for the chunk of this number among all of the job."""
    chunks = [chunk for video in job.plan["videos"] for chunk in video["chunks"]]
    path = WORKER_STEPS[step].path.replace("*", chunks[number][2], 1)
    return Order(Step(WORKER_STEPS[step].event, path), run.out, act, run.out.with_name(f"{act}-{number}"), times, True)


def test_workers_killed_and_frozen_at_each_step(job: Job, tmp_path: Path):
    run = Run(job, tmp_path / "out", deadline_s=DEADLINE_S)
    about_a_chunk = [name for name, step in WORKER_STEPS.items() if "*" in step.path]
    orders = [at_chunk(job, run, i, "kill", step=name) for i, name in enumerate(about_a_chunk)]
    orders.append(Order(WORKER_STEPS["chunk: after link"], run.out, "kill", tmp_path / "linked"))
    orders.append(at_chunk(job, run, 11, "stop"))
    run.environment = environment(orders)
    with job.read_meanwhile(run.out) as seen:
        code = run.finish(run.start())
    assert seen + run.final_faults(code) == []
    assert [order.happened() for order in orders] == [1] * len(orders)


def test_chunks_that_kill_or_hang_every_worker(job: Job, tmp_path: Path):
    """Three attempts each; then their frames, and no others, are lost, and the report says which."""
    run = Run(job, tmp_path / "out", deadline_s=DEADLINE_S)
    orders = [at_chunk(job, run, i, act, times=9) for i, act in ((1, "segfault"), (3, "memory"), (9, "hang"))]
    run.environment = environment(orders)
    assert run.finish(run.start()) == 1
    assert [order.happened() for order in orders] == [3, 3, 3]

    lost = {("a", frame) for frame in (4, 5, 6, 7, 12, 13, 14, 15)} | {("b", frame) for frame in (4, 5, 6, 7)}
    expected = {(row["video"][0], row["frame"]): row for row in read_frames(job.folder / "reference").to_pylist()}
    rows = {(row["video"][0], row["frame"]): row for row in read_frames(run.out).to_pylist()}
    assert rows.keys() == expected.keys()
    assert {frame for frame, row in rows.items() if row["status"] == "decode_error"} == lost
    assert {frame: row for frame, row in rows.items() if frame not in lost} == {
        frame: row for frame, row in expected.items() if frame not in lost
    }
    log = run.log.read_text()
    assert "a.mp4: frame 4 and 3 more: decode_error: the worker died" in log
    assert "frame 12 and 3 more: decode_error: out of memory" in log
    assert "b.mkv: frame 4 and 3 more: decode_error: the worker hung" in log
    assert "Traceback" not in log


def test_a_node_frozen_past_its_deadline_and_thawed_when_others_have_done_its_work(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = Run(job, tmp_path / "out", deadline_s=DEADLINE_S)
    frozen = Order(WORKER_STEPS["chunk: before link"], run.out, "stop", tmp_path / "frozen")
    failed = Order(WORKER_STEPS["chunk: before its copy is removed"], run.out, "note", tmp_path / "failed", times=99)
    with monkeypatch.context() as patch:
        for name, value in environment([frozen, failed]).items():
            patch.setenv(name, value)
        with nodes() as run.cluster:
            driver = run.start()
            worker = wait_for_frozen(run, frozen)
            raylet = worker.parent()
            # Or it would notice that its worker is wanted dead.
            raylet.suspend()
            try:
                assert run.final_faults(run.finish(driver)) == []
                before = files(run.out)
                assert not failed.happened_in(worker.pid)
                worker.resume()
                wait_until(lambda: failed.happened_in(worker.pid))
            finally:
                raylet.resume()
            assert files(run.out) == before
            assert job.faults(run.out) == []


@pytest.mark.parametrize("target", ["raylet", "driver"])
def test_killed_at_a_random_moment(target: str, job: Job, tmp_path: Path):
    """Two of many; `make chaos` does hundreds, in a cluster too."""
    seed = random.randrange(10**6)
    _, wrong = disturbed_run(Run(job, tmp_path / "out"), [target], random.Random(seed))
    assert wrong == [], f"seed {seed}"


def wait_for_frozen(run: Run, order: Order) -> psutil.Process:
    found: list[psutil.Process] = []

    def look() -> bool:
        raylets = run.cluster.raylets if run.cluster else []
        workers = [worker for raylet in raylets for worker in raylet.children()]
        found[:] = [worker for worker in workers if worker.status() == psutil.STATUS_STOPPED]
        return order.happened() == 1 and bool(found)

    wait_until(look)
    return found[0]


def wait_until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


def files(out: Path) -> dict[str, os.stat_result]:
    return {str(path): path.stat() for path in out.rglob("*") if path.is_file()}
