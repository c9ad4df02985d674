"""The posejob command with what a user cannot say: a cluster that is there already, a shorter deadline.

POSEJOB_CHAOS_CLUSTER: address of a Ray, on which two workers run.
POSEJOB_CHAOS_DEADLINE: seconds that a chunk may take.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

import jobs.cli
import jobs.executors.ray
import posejob
from jobs.executors.base import Layout
from jobs.executors.ray import RayExecutor
from jobs.worker import WorkerSpec


@contextmanager
def _on_cluster(worker: WorkerSpec, layout: Layout) -> Iterator[RayExecutor]:
    address = os.environ["POSEJOB_CHAOS_CLUSTER"]
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield RayExecutor(worker, Layout(2, 1))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    if "POSEJOB_CHAOS_CLUSTER" in os.environ:
        jobs.cli._start_ray = _on_cluster
    if "POSEJOB_CHAOS_DEADLINE" in os.environ:
        seconds = float(os.environ["POSEJOB_CHAOS_DEADLINE"])
        jobs.executors.ray.deadline_s = lambda n_frames: seconds
    posejob.main()
