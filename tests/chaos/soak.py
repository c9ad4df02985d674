"""Jobs on a real Ray whose processes are killed: `python -m tests.chaos.soak --runs 500`.

First runs and repairs in one process that is killed before each call that changes the output folder, one after the
other. Then, on a real Ray, a run for each step of the commit path, with a process killed there. Then runs in which one
or two things are killed at random moments: the driver (the same command follows at once), a worker, a whole raylet;
four in five of the runs in a cluster of three nodes on this machine, the others with the Ray that the command starts
for itself. A reader looks at the output all the while. Prints a line for each run and what it comes to; exit code 1 if
anything was wrong.
"""

import argparse
import contextlib
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from tests.chaos.failpoints import DRIVER_STEPS, STEPS, Order, Step, environment
from tests.chaos.job import Job, make_job
from tests.chaos.real import ROOT, Nodes, Run, disturbed_run, nodes

TARGETS = ("driver", "worker", "raylet")


class Tally:
    """Counts runs, shows them, keeps what is left of those that went wrong."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.families: set[psutil.Process] = set()

    def count(self, name: str, killed: list[str], wrong: list[str]) -> None:
        self.counts.update(killed)
        self.counts["runs with a kill"] += bool(killed)
        self.counts["wrong"] += bool(wrong)
        print(name, "killed:", *killed, "-", "; ".join(wrong) or "right", flush=True)

    def add(self, run: Run, name: str, killed: list[str], wrong: list[str]) -> None:
        self.count(name, killed, wrong)
        self.families |= run.family
        if wrong:
            print(run.log.read_text(errors="replace")[-3000:], flush=True)
            shutil.copytree(run.out, Path("chaos-failures") / run.out.name, dirs_exist_ok=True)
        shutil.rmtree(run.out, ignore_errors=True)
        run.log.unlink()

    def nothing_left_running(self) -> None:
        """Ray's agents need up to a minute to notice that they are alone."""
        deadline = time.monotonic() + 120
        while (left := [process for process in self.families if _lives(process)]) and time.monotonic() < deadline:
            time.sleep(1)
        self.counts["wrong"] += bool(left)
        print(f"of {len(self.families)} processes of Rays whose parts were killed, left running:", *left or ["none"])


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def kill_at_each_call(job: Job, damaged: Path | None, tally: Tally) -> None:
    """Runs (or repairs of a copy of a damaged folder), each killed one call later than the one before."""
    out = job.folder / "called"
    for number in itertools.count(1):
        if damaged:
            shutil.copytree(damaged, out)
        order = Order(Step("*", "*", number), out, "kill", job.folder / f"call-{bool(damaged)}-{number}")
        code = job.run(out, order)
        seen = [] if damaged else list(job.faults_in_sight(out))
        wrong = seen + ([f"exit code {again}"] if code and (again := job.run(out)) else []) + job.faults(out)
        tally.count(f"{'repair' if damaged else 'run'}, call {number}", ["at a call"] if code else [], wrong)
        shutil.rmtree(out)
        if not order.happened():
            return


def damage(job: Job) -> Path:
    """A folder of the job with a table, the manifest and the plan damaged, each in one bit, and a table gone."""
    out = job.folder / "damaged"
    shutil.copytree(job.folder / "reference", out)
    a, b = sorted((out / "poses").iterdir())
    for path in (a, out / "manifest.json", out / "plan.json"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    (out / "frames" / b.name).unlink()
    return out


def kill_at_each_step(job: Job, tally: Tally) -> None:
    for number, name in enumerate(STEPS):
        run = Run(job, job.folder / f"step-{number}", None)
        order = Order(STEPS[name], run.out, "kill", job.folder / f"mark-{number}")
        run.environment = environment([order])
        with job.read_meanwhile(run.out) as seen:
            code = run.finish(run.start())
            expected = -signal.SIGKILL if name in DRIVER_STEPS else 0
            wrong = [] if code == expected else [f"exit code {code}, expected {expected}"]
            if order.happened() != 1:
                wrong.append("the step was never taken")
            wrong += run.final_faults(run.finish(run.start()) if code else code)
        tally.add(run, name, ["at a step"], wrong + seen)


def kill_at_random(job: Job, cluster: Nodes, runs: int, seed: int, tally: Tally) -> None:
    number = done = 0
    while done < runs:
        rng = random.Random(f"{seed} {number}")
        targets = [rng.choice(TARGETS) for _ in range(rng.choice([1, 1, 2]))]
        run = Run(job, job.folder / f"out-{seed}-{number}", cluster if rng.random() < 0.8 else None)
        began = time.monotonic()
        killed, wrong = disturbed_run(run, targets, rng, early=0.3)
        where = "cluster" if run.cluster else "own Ray"
        tally.add(run, f"{number} {where} {time.monotonic() - began:.1f} s", killed, wrong)
        cluster.mend()
        number += 1
        done += bool(killed)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=500, help="runs with a random kill")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    tally, began = Tally(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        (Path(folder) / "short").mkdir()
        short = make_job(Path(folder) / "short")
        for damaged in (None, damage(short)):
            kill_at_each_call(short, damaged, tally)
        kill_at_each_step(short, tally)
        (Path(folder) / "long").mkdir()
        with nodes() as cluster:
            kill_at_random(make_job(Path(folder) / "long", length=4), cluster, asked.runs, asked.seed, tally)
    tally.nothing_left_running()
    print(f"{time.monotonic() - began:.0f} s, seed {asked.seed}:", dict(tally.counts))
    sys.exit(bool(tally.counts["wrong"]))


if __name__ == "__main__":
    main()
