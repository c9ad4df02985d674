import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset13 as ops
import pytest

from models.errors import DeviceError, InferenceError, ManifestError, NetworkUnusable
from models.registry import Network, find_network
from models.runtime import PoseRuntime, check_device
from posecore.fields import Fields
from tests.fixtures.colour_network import HEIGHT, MANIFEST, NAME, STRIDE, WIDTH, build_network
from tests.fixtures.stick_figures import KEYPOINT_COLOURS

SIDE = 64
SHAPES = [(64, 64), (64, 128), (128, 64)]

# A picture and its answer share a number: the picture is all of one keypoint's colour, so that heatmap is the highest.
Numbered = tuple[int, np.ndarray]


def plain(number: int, shape: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """(H, W, 3) uint8 BGR, all of the colour of keypoint `number` % 18."""
    return np.broadcast_to(KEYPOINT_COLOURS[number % 18], (*shape, 3)).astype(np.uint8)


def keypoint_seen(fields: Fields) -> int:
    return int(fields.heatmaps.mean(axis=(1, 2)).argmax())


def noise(seed: int, shape: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """(H, W, 3) uint8, of colours among which there are those of limbs."""
    return np.random.default_rng(seed).integers(0, 201, (*shape, 3), dtype=np.uint8)


def answer(runtime: PoseRuntime, picture: np.ndarray) -> Fields:
    ((_, fields),) = runtime.infer([("only", picture)])
    return fields


def assert_equal_bits(a: Fields, b: Fields) -> None:
    assert a.heatmaps.tobytes() == b.heatmaps.tobytes()
    assert a.pafs.tobytes() == b.pafs.tobytes()


@pytest.fixture(scope="module")
def network(colour_network: Path) -> Network:
    return find_network(str(colour_network))


@pytest.fixture(scope="module")
def runtime(network: Network) -> PoseRuntime:
    return PoseRuntime(network, "CPU", threads=2)


@pytest.fixture
def called_otherwise(colour_network: Path, tmp_path: Path):
    """Makes a runtime for the colour network whose manifest has some lines replaced."""

    def make(**lines: str) -> PoseRuntime:
        manifest = MANIFEST
        for key, value in lines.items():
            manifest, n_replaced = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", manifest)
            assert n_replaced == 1
        folder = shutil.copytree(colour_network.parent, tmp_path / "otherwise")
        (folder / f"{NAME}.toml").write_text(manifest)
        return PoseRuntime(find_network(str(folder / colour_network.name)), "CPU", threads=1)

    return make


def test_fields_are_on_the_stride_grid_without_the_background(runtime: PoseRuntime):
    fields = answer(runtime, plain(0, (64, 128)))
    assert fields.heatmaps.shape == (18, 8, 16)
    assert fields.pafs.shape == (38, 8, 16)
    assert fields.stride == STRIDE
    assert fields.heatmaps.dtype == fields.pafs.dtype == np.float32


def test_every_picture_is_answered_in_order(runtime: PoseRuntime):
    answers = list(runtime.infer((number, plain(number)) for number in range(40)))
    assert [number for number, _ in answers] == list(range(40))
    assert [keypoint_seen(fields) for _, fields in answers] == [number % 18 for number in range(40)]


def test_pictures_of_several_shapes_are_answered_in_order(runtime: PoseRuntime):
    order = [0, 0, 1, 1, 1, 0, 2, 1, 2, 2, 2, 2, 0]
    pictures = ((number, plain(number, SHAPES[which])) for number, which in enumerate(order))
    for number, (tag, fields) in enumerate(runtime.infer(pictures)):
        assert tag == number
        assert keypoint_seen(fields) == number
        assert fields.heatmaps.shape[1:] == tuple(side // STRIDE for side in SHAPES[order[number]])
    assert number == len(order) - 1


def test_a_runtime_meets_more_shapes_than_it_keeps(network: Network, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("models.runtime._COMPILED_SHAPES", 2)
    runtime = PoseRuntime(network, "CPU", threads=1)
    pictures = [(number, plain(number, SHAPES[number % 3])) for number in range(6)]
    assert [keypoint_seen(fields) for _, fields in runtime.infer(pictures)] == list(range(6))


def test_no_pictures_no_answers(runtime: PoseRuntime):
    assert list(runtime.infer([])) == []


def test_pictures_are_taken_as_requests_become_free(runtime: PoseRuntime):
    taken = []
    answers = runtime.infer((taken.append(number), plain(number)) for number in range(100))
    next(answers)
    assert len(taken) < 20
    assert len(list(answers)) == 99
    assert taken == list(range(100))


def test_the_memory_of_a_picture_may_be_used_again(runtime: PoseRuntime):
    canvas = np.empty((SIDE, SIDE, 3), np.uint8)

    def drawn_over() -> Iterator[Numbered]:
        for number in range(18):
            canvas[:] = plain(number)
            yield number, canvas

    assert [keypoint_seen(fields) for _, fields in runtime.infer(drawn_over())] == list(range(18))


def test_answers_stay_when_the_next_come(runtime: PoseRuntime):
    first = answer(runtime, plain(3))
    before = first.heatmaps.copy()
    answer(runtime, plain(4))
    np.testing.assert_array_equal(first.heatmaps, before)


def test_a_read_only_picture_will_do(runtime: PoseRuntime):
    picture = plain(5)
    picture.flags.writeable = False
    assert keypoint_seen(answer(runtime, picture)) == 5


def test_pictures_that_break_off_break_off_nothing_else(runtime: PoseRuntime):
    def broken() -> Iterator[Numbered]:
        yield 0, noise(0, (256, 456))
        yield 1, noise(1, (256, 456))
        raise ValueError("the video ends here")

    with pytest.raises(ValueError, match="the video ends here"):
        list(runtime.infer(broken()))
    answers = runtime.infer((number, plain(number, (256, 456))) for number in range(6))
    assert [keypoint_seen(fields) for _, fields in answers] == list(range(6))


def test_answers_that_nobody_waits_for_are_no_harm(runtime: PoseRuntime):
    answers = runtime.infer((number, noise(number, (256, 456))) for number in range(6))
    next(answers)
    answers.close()
    assert keypoint_seen(answer(runtime, plain(7, (256, 456)))) == 7


def test_the_bits_do_not_depend_on_the_number_of_threads(network: Network, runtime: PoseRuntime):
    single = PoseRuntime(network, "CPU", threads=1)
    pictures = [(number, noise(number, SHAPES[number % 3])) for number in range(9)]
    for (_, one), (_, two) in zip(single.infer(pictures), runtime.infer(pictures), strict=True):
        assert np.ptp(one.pafs) > 0.1
        assert_equal_bits(one, two)


def test_the_bits_do_not_depend_on_the_pictures_before(runtime: PoseRuntime):
    alone = answer(runtime, noise(1))
    (_, behind) = list(runtime.infer([(0, noise(0)), (1, noise(1))]))
    assert_equal_bits(alone, behind[1])


def test_an_rgb_network_sees_blue_and_red_exchanged(runtime: PoseRuntime, called_otherwise):
    picture = noise(0)
    rgb = called_otherwise(color='"RGB"')
    assert_equal_bits(answer(rgb, picture), answer(runtime, picture[..., ::-1]))


@pytest.mark.parametrize("color", ["BGR", "RGB"])
def test_mean_and_scale_are_applied_in_the_networks_channel_order(runtime: PoseRuntime, called_otherwise, color: str):
    seen = 2 * (noise(0) // 2)  # what the network shall get to see: even, so that half of it is whole
    picture = seen * np.array([0.5, 1, 0.5]) + (10, 20, 30)
    if color == "RGB":
        picture = picture[..., ::-1]
    scaled = called_otherwise(color=f'"{color}"', mean="[10, 20, 30]", scale="[0.5, 1, 0.5]")
    assert_equal_bits(answer(scaled, picture.astype(np.uint8)), answer(runtime, seen))


@pytest.mark.parametrize(("asked", "name"), [("CPU", "CPU"), ("cpu", "CPU"), ("auto", "AUTO")])
def test_a_device_may_be_spelt_in_any_case(asked: str, name: str):
    assert check_device(asked) == name


def test_a_device_that_is_not_here_is_answered_with_those_that_are(network: Network):
    message = re.escape(f"--device tpu: not on this machine; OpenVINO finds {', '.join(ov.Core().available_devices)}")
    with pytest.raises(DeviceError, match=f"^{message}$"):
        PoseRuntime(network, "tpu", threads=1)


def test_a_runtime_says_what_it_runs_on(network: Network):
    runtime = PoseRuntime(network, "CPU", threads=1)
    runtime.prepare(SIDE, SIDE)
    assert runtime.execution_device == "CPU"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"heatmaps": '"heat"'}, f"{NAME}: output.heatmaps is 'heat', the network's outputs are heatmaps, pafs"),
        ({"pafs": '"fields"'}, f"{NAME}: output.pafs is 'fields', the network's outputs are heatmaps, pafs"),
        (
            {"heatmaps": '"pafs"', "pafs": '"heatmaps"'},
            f"{NAME}: output 'heatmaps' has shape [1, 19, 8, 8] for an input of 64x64, "
            "expected at least [1, 38, 8, 8]; are output.pafs and input.stride right?",
        ),
        (
            {"stride": "4"},
            f"{NAME}: output 'heatmaps' has shape [1, 19, 8, 8] for an input of 64x64, "
            "expected at least [1, 18, 16, 16]; are output.heatmaps and input.stride right?",
        ),
    ],
)
def test_outputs_that_are_not_as_the_manifest_says_are_named(called_otherwise, lines: dict[str, str], message: str):
    with pytest.raises(ManifestError, match=f"^{re.escape(message)}$"):
        called_otherwise(**lines).prepare(SIDE, SIDE)


def test_a_file_that_is_no_network_is_named_in_one_line(tmp_path: Path):
    broken = tmp_path / "broken.xml"
    broken.write_text("<net")
    broken.with_suffix(".toml").write_text(MANIFEST)
    with pytest.raises(NetworkUnusable, match=rf"^{re.escape(str(broken))}: OpenVINO cannot read it: .+$"):
        PoseRuntime(find_network(str(broken)), "CPU", threads=1)


def of_fixed_size(colour_network: Path, folder: Path, height: int, width: int) -> PoseRuntime:
    """The colour network for one input size alone."""
    model = build_network()
    model.reshape([1, 3, height, width])
    data = model.inputs[0].node
    fixed = ops.reshape(data, np.array([1, 3, height, width]), False)
    for reader in list(data.output(0).get_target_inputs()):
        if reader.get_node() != fixed:
            reader.replace_source_output(fixed.output(0))
    ov.save_model(model, folder / f"{NAME}.xml")
    shutil.copy(colour_network.with_suffix(".toml"), folder)
    return PoseRuntime(find_network(str(folder / f"{NAME}.xml")), "CPU", threads=1)


def test_a_network_that_suits_no_ordinary_input_is_unusable(colour_network: Path, tmp_path: Path):
    """No video is to blame, and none should be given up for it."""
    runtime = of_fixed_size(colour_network, tmp_path, 128, 128)
    with pytest.raises(NetworkUnusable, match=r"OpenVINO cannot use it on CPU for an input of 456x256: .+$"):
        runtime.prepare(SIDE, SIDE)


def test_a_size_that_a_usable_network_does_not_suit_is_that_pictures_fault(colour_network: Path, tmp_path: Path):
    runtime = of_fixed_size(colour_network, tmp_path, HEIGHT, WIDTH)
    with pytest.raises(InferenceError, match=r"OpenVINO cannot use it on CPU for an input of 64x64: .+$"):
        runtime.prepare(SIDE, SIDE)
    runtime.prepare(WIDTH, HEIGHT)


def test_openvino_reports_to_nobody():
    probe = "import sys, models.runtime; print(sys.modules['openvino_telemetry'])"
    told = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert told.stdout == "None\n"
