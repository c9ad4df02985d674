"""Jobs as a user starts them, on a real Ray, and the processes in which they run."""

import contextlib
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

from tests.chaos.job import PATIENCE_S, Job

ROOT = Path(__file__).resolve().parents[2]


class Nodes:
    """A Ray cluster on this machine: a head without CPUs and three nodes of one CPU each."""

    def __init__(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self._nodes = [self._add() for _ in range(3)]

    def _add(self) -> object:
        return self.cluster.add_node(num_cpus=1, object_store_memory=80 * 1024**2)

    @property
    def raylets(self) -> list[psutil.Process]:
        """Those that live."""
        raylets = (_process(node.all_processes["raylet"][0].process.pid) for node in self._nodes)
        return [raylet for raylet in raylets if raylet]

    def mend(self) -> None:
        """A new node for each that was killed."""
        for i, node in enumerate(self._nodes):
            if not _process(node.all_processes["raylet"][0].process.pid):
                self.cluster.remove_node(node, allow_graceful=False)
                self._nodes[i] = self._add()


@contextmanager
def nodes() -> Iterator[Nodes]:
    """A cluster for as long as the block lasts."""
    cluster = Nodes()
    try:
        yield cluster
    finally:
        cluster.cluster.shutdown()


@dataclass
class Run:
    """The command on a job.

    cluster: where it runs; None for a Ray of its own. deadline_s: of a chunk. family: processes of its own Ray that
    were there when something was killed.
    """

    job: Job
    out: Path
    cluster: Nodes | None = None
    deadline_s: float | None = None
    environment: dict[str, str] = field(default_factory=dict)
    family: set[psutil.Process] = field(default_factory=set)

    def start(self) -> psutil.Popen:
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | self.environment
        if self.cluster:
            environment["POSEJOB_CHAOS_CLUSTER"] = self.cluster.cluster.address
        if self.deadline_s:
            environment["POSEJOB_CHAOS_DEADLINE"] = str(self.deadline_s)
        command = [sys.executable, "-m", "tests.chaos.driver", *self.job.command(self.out)]
        with self.log.open("ab") as log:
            return psutil.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=environment)

    @property
    def log(self) -> Path:
        """What the command printed."""
        return self.out.with_name(f"{self.out.name}.log")

    def victims(self, driver: psutil.Popen, what: str) -> list[psutil.Process]:
        """Processes of a kind (driver, worker, raylet) as they are now."""
        if what == "driver":
            return [driver]
        with contextlib.suppress(psutil.NoSuchProcess):
            raylets = self.cluster.raylets if self.cluster else _called(driver.children(), "raylet")
            if what == "raylet":
                return raylets
            return [child for raylet in raylets for child in _called(raylet.children(), "ray::PoseWorker")]
        return []

    def finish(self, driver: psutil.Popen) -> int:
        """Exit code of a driver that must come to its end. Raises TimeoutExpired if it does not."""
        try:
            return int(driver.wait(PATIENCE_S))
        except psutil.TimeoutExpired:
            driver.kill()
            driver.wait()
            raise

    def final_faults(self, code: int) -> list[str]:
        """What is wrong after the command has ended with `code`, when all should be well."""
        faults = self.job.faults(self.out) + ([f"exit code {code}"] if code else [])
        return faults + (["a traceback"] if b"Traceback" in self.log.read_bytes() else [])


def disturbed_run(run: Run, targets: list[str], rng: random.Random, early: float = 0.0) -> tuple[list[str], list[str]]:
    """(what was killed, what is wrong) of a run in which `targets` are killed one after the other while chunks are
    being done, or, with the probability `early`, at any moment."""
    killed: list[str] = []
    with run.job.read_meanwhile(run.out) as seen:
        driver = run.start()
        try:
            for target in targets:
                if not (victim := _wait_for_victim(run, driver, target, rng, early)):
                    break
                if not run.cluster:
                    run.family.update(driver.children(recursive=True))
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
                    killed.append(target)
                if target == "driver":
                    driver.wait()
                    driver = run.start()
                if target == "raylet" and run.cluster:
                    run.cluster.mend()
            code = run.finish(driver)
            if code and "raylet" in killed and not run.cluster:
                # A Ray that is killed while it starts takes the driver along.
                code = run.finish(run.start())
        except psutil.TimeoutExpired:
            return killed, ["stuck"]
    return killed, seen + run.final_faults(code)


def _wait_for_victim(
    run: Run, driver: psutil.Popen, target: str, rng: random.Random, early: float
) -> psutil.Process | None:
    """None if the job has ended before. Raises TimeoutExpired if it neither ends nor comes so far."""
    deadline = time.monotonic() + PATIENCE_S
    later = rng.uniform(0, 5) if rng.random() < early else None
    while driver.poll() is None:
        if time.monotonic() > deadline:
            driver.kill()
            raise psutil.TimeoutExpired(PATIENCE_S, driver.pid)
        if later is None and any(run.out.glob("_chunks/*")):
            later = rng.uniform(0, 1.5)
        if later is not None:
            time.sleep(later)
            later = 0.0
            if victims := run.victims(driver, target):
                return rng.choice(victims)
        time.sleep(0.02)
    return None


def _process(pid: int) -> psutil.Process | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _called(processes: list[psutil.Process], name: str) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            if name == process.name() or process.cmdline()[0].startswith(name):
                found.append(process)
    return found
