"""What moves the limit: the network alone in other settings of OpenVINO, in turn, each against the default.

python -m benchmarks.limit [--model NAME] [--size 456x256] [--rounds 5] [--seconds 5]
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import openvino as ov

from models.registry import DEFAULT_MODEL, Network, find_network
from models.runtime import PoseRuntime

CPUS = len(os.sched_getaffinity(0))
HINT: dict[str, object] = {"PERFORMANCE_HINT": "THROUGHPUT"}


def alone(
    properties: dict[str, object], batch: int = 1, inputs: str = "f32"
) -> Callable[[Network, tuple[int, int]], ov.AsyncInferQueue]:
    """A queue on a network compiled with these properties. inputs: f32 planes, or u8 as pictures are, converted in the
    graph."""

    def prepare(network: Network, size: tuple[int, int]) -> ov.AsyncInferQueue:
        core = ov.Core()
        model = core.read_model(network.path)
        width, height = size
        model.reshape([batch, 3, height, width])
        shape, element = (batch, 3, height, width), np.float32
        if inputs == "u8":
            steps = ov.preprocess.PrePostProcessor(model)
            steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
            steps.input().model().set_layout(ov.Layout("NCHW"))
            steps.input().preprocess().convert_element_type(ov.Type.f32)
            model = steps.build()
            shape, element = (batch, height, width, 3), np.uint8
        queue = ov.AsyncInferQueue(core.compile_model(model, "CPU", properties | {"INFERENCE_NUM_THREADS": CPUS}))
        noise = np.random.default_rng(0).uniform(0, 255, shape).astype(element)
        for request in queue:
            request.set_input_tensor(ov.Tensor(noise.copy()))
            request.infer()
        return queue

    return prepare


SETTINGS: dict[str, tuple[int, Callable[[Network, tuple[int, int]], ov.AsyncInferQueue]]] = {
    "throughput hint (the limit)": (1, alone(HINT)),
    "a stream per CPU": (1, alone({"NUM_STREAMS": CPUS})),
    "one stream of all CPUs": (1, alone({"NUM_STREAMS": 1})),
    "f32 where the default is bf16": (1, alone(HINT | {"INFERENCE_PRECISION_HINT": "f32"})),
    "pictures converted in the graph": (1, alone(HINT, inputs="u8")),
    "batches of 2": (2, alone(HINT, batch=2)),
    "batches of 8": (8, alone(HINT, batch=8)),
    "denormals taken for zero": (1, alone(HINT | {"CPU_DENORMALS_OPTIMIZATION": True})),
    "pinned threads": (1, alone(HINT | {"ENABLE_CPU_PINNING": True})),
}


def frames_per_s(queue: ov.AsyncInferQueue, batch: int, seconds: float) -> float:
    """Frames per second of a queue that is never empty."""
    began, frames = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        queue.start_async()
        frames += batch
    queue.wait_all()
    return frames / (time.perf_counter() - began)


def main() -> None:
    """Print each setting's median speed and its ratio to the first one's of the same round."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--size", default="456x256")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    asked = parser.parse_args()
    width, height = map(int, asked.size.split("x"))
    network = find_network(asked.model)
    PoseRuntime(network, "CPU", CPUS)  # says so if the network is none
    queues = {name: (batch, prepare(network, (width, height))) for name, (batch, prepare) in SETTINGS.items()}
    speeds: dict[str, list[float]] = {name: [] for name in queues}
    for _ in range(asked.rounds):
        for name, (batch, queue) in queues.items():
            speeds[name].append(frames_per_s(queue, batch, asked.seconds))
    first = next(iter(speeds.values()))
    for name, values in speeds.items():
        ratio = statistics.median(value / limit for value, limit in zip(values, first, strict=True))
        print(f"{name:34} {statistics.median(values):7.1f} frames/s  {ratio:.3f}")


if __name__ == "__main__":
    main()
