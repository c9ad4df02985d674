"""The only door to OpenVINO: pictures in, fields out."""

import sys
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

# OpenVINO would tell Google Analytics that it was imported: from a fork of this process, which may then hang and hold
# our pipes open. Without this package it takes a stub of its own.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino as ov

from models.errors import DeviceError, InferenceError, ManifestError, NetworkUnusable
from models.registry import Network
from posecore.fields import Fields

Tag = TypeVar("Tag")

# Pictures of many sizes each need a network compiled for their shape (0.3 s for the default one); videos need one.
_COMPILED_SHAPES = 16


def check_device(device: str) -> str:
    """The device's name as OpenVINO spells it. Raises DeviceError if it is not here.

    AUTO is refused nowhere: it always finds the CPU; `PoseRuntime.execution_device` says what it chose.
    """
    name = device.upper()
    available = tuple(ov.Core().available_devices)
    if name != "AUTO" and name not in available and not any(d.split(".")[0] == name for d in available):
        raise DeviceError(device, available)
    return name


def network_alone(
    network: Network, device: str, threads: int, size: tuple[int, int], seconds: float
) -> tuple[int, float, float]:
    """(frames, wall seconds, CPU seconds) of a network with nothing around it: what it could do at best.

    As OpenVINO's benchmark_app does it: the throughput hint, a queue of as many requests as the device likes, inputs
    filled once. size: (width, height) of the input.
    """
    core = ov.Core()
    model = core.read_model(network.path)
    model.reshape([1, 3, size[1], size[0]])
    properties: dict[str, object] = {"PERFORMANCE_HINT": "THROUGHPUT"}
    if device == "CPU":
        properties["INFERENCE_NUM_THREADS"] = threads
    queue = ov.AsyncInferQueue(core.compile_model(model, device, properties))
    noise = np.random.default_rng(0).uniform(0, 255, (1, 3, size[1], size[0])).astype(np.float32)
    for request in queue:
        request.set_input_tensor(ov.Tensor(noise.copy()))
        request.infer()
    began, cpu, frames = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        queue.start_async()
        frames += 1
    queue.wait_all()
    return frames, time.perf_counter() - began, time.process_time() - cpu


@dataclass(frozen=True)
class _Compiled:
    model: ov.CompiledModel
    requests: list[ov.InferRequest]


class PoseRuntime:
    """A network on a device, compiled per input shape, several frames in flight.

    threads: CPU threads for inference. Each is a stream of its own that runs one frame at a time: that gives the
             highest throughput, and the same bits whatever the number of threads.
    """

    def __init__(self, network: Network, device: str, threads: int) -> None:
        self.network = network
        self.device = check_device(device)
        self.threads = threads
        self.execution_device = ""
        self._core = ov.Core()
        self._check_outputs(self._read())
        self._compiled: OrderedDict[tuple[int, int], _Compiled] = OrderedDict()

    def prepare(self, width: int, height: int) -> None:
        """Compile for an input of this size. Raises InferenceError or ManifestError."""
        self._for_shape((height, width))

    def infer(self, pictures: Iterable[tuple[Tag, np.ndarray]]) -> Iterator[tuple[Tag, Fields]]:
        """Run pictures through the network, answers in the order of the questions.

        pictures: (tag, (H, W, 3) uint8 BGR), H and W multiples of the stride. Taken one by one, as requests become
                  free, so that whoever makes them works while others are inferred. An answer comes after the next
                  picture was taken.
        Raises InferenceError.
        """
        running: deque[tuple[Tag, ov.InferRequest]] = deque()
        current: _Compiled | None = None
        try:
            for tag, picture in pictures:
                compiled = self._for_shape(picture.shape[:2])
                if compiled is not current:
                    while running:
                        yield self._finish(*running.popleft())
                    current, turn = compiled, 0
                if len(running) == len(compiled.requests):
                    yield self._finish(*running.popleft())
                request = compiled.requests[turn % len(compiled.requests)]
                turn += 1
                # The request keeps its own copy: the caller may reuse the picture's memory.
                request.input_tensors[0].data[0] = picture
                request.start_async()
                running.append((tag, request))
            while running:
                yield self._finish(*running.popleft())
        finally:
            # Whoever makes the pictures may fail, whoever takes the answers may stop: a request that nobody waits for
            # stays busy for ever.
            for _, request in running:
                with suppress(RuntimeError):
                    request.wait()

    def _finish(self, tag: Tag, request: ov.InferRequest) -> tuple[Tag, Fields]:
        try:
            request.wait()
        except RuntimeError as error:
            raise InferenceError(
                f"{self.network.name} failed on {self.execution_device}: {_first_line(error)}"
            ) from error
        manifest = self.network.manifest
        k = len(manifest.skeleton.keypoints)
        heatmaps, pafs = (request.get_tensor(name).data for name in (manifest.heatmaps, manifest.pafs))
        # Copies, because the request's memory is written again by the next frame.
        return tag, Fields(heatmaps[0, :k].copy(), pafs[0].copy(), manifest.stride)

    def _for_shape(self, shape: tuple[int, int]) -> _Compiled:
        compiled = self._compiled.get(shape)
        if compiled is None:
            try:
                compiled = self._compiled[shape] = self._compile(shape)
            except InferenceError as error:
                if not self._compiled:
                    self._check_usable(shape, error)
                raise
            if len(self._compiled) > _COMPILED_SHAPES:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(shape)
        return compiled

    def _check_usable(self, failed: tuple[int, int], error: InferenceError) -> None:
        """Raise NetworkUnusable if not even an ordinary shape compiles: then it is not the picture's fault."""
        manifest = self.network.manifest
        ordinary = manifest.height, round(manifest.height * 16 / 9 / manifest.stride) * manifest.stride
        if failed == ordinary:
            raise NetworkUnusable(str(error)) from error
        try:
            self._compile(ordinary)
        except InferenceError as again:
            raise NetworkUnusable(str(again)) from again

    def _compile(self, shape: tuple[int, int]) -> _Compiled:
        manifest = self.network.manifest
        try:
            model = self._read()
            model.reshape([1, 3, *shape])
            model = _with_preprocessing(model, manifest.color, manifest.mean, manifest.scale)
            compiled = self._core.compile_model(model, self.device, self._properties())
            # One more than the streams: while one answer is read, no stream waits for work.
            n_requests = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") + 1
            self.execution_device = ",".join(compiled.get_property("EXECUTION_DEVICES"))
            requests = [compiled.create_infer_request() for _ in range(n_requests)]
        except RuntimeError as error:
            raise InferenceError(
                f"{self.network.path}: OpenVINO cannot use it on {self.device} for an input of {shape[1]}x{shape[0]}: "
                f"{_first_line(error)}"
            ) from error
        self._check_shapes(compiled, shape)
        return _Compiled(compiled, requests)

    def _read(self) -> ov.Model:
        try:
            return self._core.read_model(self.network.path)
        except RuntimeError as error:
            raise NetworkUnusable(f"{self.network.path}: OpenVINO cannot read it: {_first_line(error)}") from error

    def _properties(self) -> dict[str, object]:
        if self.device != "CPU":
            return {"PERFORMANCE_HINT": "THROUGHPUT"}
        return {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": self.threads,
            # Processes know nothing of each other: two that pin one thread each pin it to CPU 0.
            "ENABLE_CPU_PINNING": False,
            # bfloat16 is the default where the CPU has it; it makes answers differ between CPUs and, with the INT8
            # network, nothing faster (120 against 120 frames/s).
            "INFERENCE_PRECISION_HINT": "f32",
        }

    def _check_outputs(self, model: ov.Model) -> None:
        names = [name for output in model.outputs for name in output.names]
        manifest = self.network.manifest
        for key, name in (("heatmaps", manifest.heatmaps), ("pafs", manifest.pafs)):
            if name not in names:
                raise ManifestError(
                    manifest.name, f"output.{key} is {name!r}, the network's outputs are {', '.join(sorted(names))}"
                )

    def _check_shapes(self, compiled: ov.CompiledModel, shape: tuple[int, int]) -> None:
        manifest = self.network.manifest
        k, n_pafs = len(manifest.skeleton.keypoints), int(manifest.skeleton.paf_channels.max()) + 1
        grid = [side // manifest.stride for side in shape]
        for key, name, least in (("heatmaps", manifest.heatmaps, k), ("pafs", manifest.pafs, n_pafs)):
            found = list(compiled.output(name).shape)
            if len(found) != 4 or found[1] < least or found[2:] != grid:
                raise ManifestError(
                    manifest.name,
                    f"output {name!r} has shape {found} for an input of {shape[1]}x{shape[0]}, "
                    f"expected at least [1, {least}, {grid[0]}, {grid[1]}]; are output.{key} and input.stride right?",
                )


def _with_preprocessing(model: ov.Model, color: str, mean: tuple[float, ...], scale: tuple[float, ...]) -> ov.Model:
    """Put conversion from interleaved BGR bytes into the graph, where it fuses with the first convolution."""
    steps = ov.preprocess.PrePostProcessor(model)
    picture = steps.input()
    picture.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC")).set_color_format(
        ov.preprocess.ColorFormat.BGR
    )
    picture.model().set_layout(ov.Layout("NCHW"))
    picture.preprocess().convert_element_type(ov.Type.f32)
    if color == "RGB":
        picture.preprocess().convert_color(ov.preprocess.ColorFormat.RGB)
    if any(mean):
        picture.preprocess().mean(list(mean))
    if any(s != 1 for s in scale):
        picture.preprocess().scale(list(scale))
    return steps.build()


def _first_line(error: Exception) -> str:
    """The line of an OpenVINO message that says what happened; the others name OpenVINO's source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (told or lines or ["unknown error"])[0][:200]
