import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posecore.errors import GeometryError
from posecore.geometry import Letterbox, network_size
from posecore.preprocess import letterbox_image

PAD = (1, 2, 3)

sizes = st.tuples(st.integers(1, 8000), st.integers(1, 8000))
small_sizes = st.tuples(st.integers(1, 300), st.integers(1, 300))


def blob(size: tuple[int, int], centre: tuple[float, float], spread: float) -> np.ndarray:
    """(H, W, 3) uint8, black but for a round light at `centre`, in pixels with their centres at .5."""
    x, y = np.arange(size[0]) + 0.5 - centre[0], np.arange(size[1]) + 0.5 - centre[1]
    light = np.rint(255 * np.exp(-(x**2 + y[:, None] ** 2) / (2 * spread**2)))
    return np.repeat(light[..., None], 3, axis=2).astype(np.uint8)


def centre_of_light(image: np.ndarray) -> np.ndarray:
    """(2,) xy, pixel centres at .5."""
    light = image[..., 0].astype(np.float64)
    ys, xs = np.indices(light.shape) + 0.5
    return np.array([(xs * light).sum(), (ys * light).sum()]) / light.sum()


@given(src=sizes, net=sizes, x=st.floats(-10, 10_000), y=st.floats(-10, 10_000))
def test_there_and_back_is_the_identity(src: tuple[int, int], net: tuple[int, int], x: float, y: float):
    letterbox = Letterbox.fit(src, net)
    back = letterbox.to_src(letterbox.to_net(np.array([x, y])))
    # The way through network pixels costs the digits that the padding takes.
    np.testing.assert_allclose(back, [x, y], atol=1e-11 * max(net) / letterbox.scale, rtol=1e-11)


@given(src=sizes, net=sizes)
def test_the_picture_is_as_large_as_fits(src: tuple[int, int], net: tuple[int, int]):
    letterbox = Letterbox.fit(src, net)
    filled = np.array(src) * letterbox.scale / net
    assert filled.max() == pytest.approx(1)


@given(src=sizes, net=sizes)
def test_the_picture_is_in_the_middle_to_a_pixel(src: tuple[int, int], net: tuple[int, int]):
    letterbox = Letterbox.fit(src, net)
    (left, top), (right, bottom) = letterbox.to_net([0, 0]), net - letterbox.to_net(src)
    assert left >= 0
    assert top >= 0
    # The odd pixel, and the part of a pixel that rounding the canvas took or gave: a whole one is given to a thin side.
    assert -0.5 - 1e-6 <= right - left < 2
    assert -0.5 - 1e-6 <= bottom - top < 2


def test_an_odd_pixel_goes_right_or_below():
    assert Letterbox.fit((10, 10), (15, 10)).pad == (2, 0)
    assert Letterbox.fit((10, 10), (10, 15)).pad == (0, 2)


def test_points_keep_their_shape_and_get_float64():
    points = np.zeros((4, 18, 2), np.float32)
    letterbox = Letterbox.fit((1280, 720), (456, 256))
    for moved in (letterbox.to_net(points), letterbox.to_src(points)):
        assert moved.shape == points.shape
        assert moved.dtype == np.float64


def test_a_keypoint_that_was_not_found_stays_so():
    assert np.isnan(Letterbox.fit((1280, 720), (456, 256)).to_src([np.nan, np.nan])).all()


@pytest.mark.parametrize(
    ("src", "net", "message"),
    [
        ((0, 5), (8, 8), "cannot fit a picture of 0x5 into 8x8"),
        ((5, 5), (8, -8), "cannot fit a picture of 5x5 into 8x-8"),
    ],
)
def test_nothing_cannot_be_fitted(src: tuple[int, int], net: tuple[int, int], message: str):
    with pytest.raises(GeometryError, match=message):
        Letterbox.fit(src, net)


@pytest.mark.parametrize(
    ("src", "net"),
    [
        ((640, 480), (344, 256)),  # smaller, padded right by a pixel or two
        ((1280, 720), (456, 256)),  # fits but for a fraction of a pixel
        ((720, 1280), (144, 256)),
        ((200, 150), (456, 256)),  # larger, padded left and right
        ((333, 77), (256, 256)),  # padded above and below
        ((456, 256), (456, 256)),  # as it is
    ],
)
@pytest.mark.parametrize("at", [(0.2, 0.3), (0.5, 0.5), (0.85, 0.8)])
def test_a_light_and_a_keypoint_move_together(src: tuple[int, int], net: tuple[int, int], at: tuple[float, float]):
    letterbox = Letterbox.fit(src, net)
    keypoint = (src[0] * at[0], src[1] * at[1])
    moved = letterbox_image(blob(src, keypoint, spread=min(src) / 40 + 1), letterbox, (0, 0, 0))
    # Stretching the canvas to whole pixels would move the light by up to a tenth of a pixel.
    np.testing.assert_allclose(centre_of_light(moved), letterbox.to_net(keypoint), atol=0.02)


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_a_lit_pixel_and_a_keypoint_move_together(factor: int):
    image = np.zeros((6, 8, 3), np.uint8)
    image[2, 5] = 240
    letterbox = Letterbox.fit((8, 6), (8 * factor + 5, 6 * factor))
    moved = letterbox_image(image, letterbox, (0, 0, 0))
    np.testing.assert_allclose(centre_of_light(moved), letterbox.to_net([5.5, 2.5]), atol=1e-3)


@given(src=small_sizes, net=small_sizes)
def test_the_picture_gets_the_network_size_and_whole_memory(src: tuple[int, int], net: tuple[int, int]):
    moved = letterbox_image(np.zeros((src[1], src[0], 3), np.uint8), Letterbox.fit(src, net), PAD)
    assert moved.shape == (net[1], net[0], 3)
    assert moved.dtype == np.uint8
    assert moved.flags.c_contiguous


def test_padding_has_its_colour_and_the_picture_keeps_its_own():
    image = np.full((4, 4, 3), 200, np.uint8)
    moved = letterbox_image(image, Letterbox.fit((4, 4), (9, 4)), PAD)
    assert (moved[:, 2:6] == 200).all()
    assert (moved[:, :2] == PAD).all()
    assert (moved[:, 6:] == PAD).all()


@given(src=sizes, height=st.integers(1, 64), multiple=st.sampled_from([1, 8, 32]))
def test_the_network_is_wide_enough_for_the_aspect_ratio_and_no_wider(src: tuple[int, int], height: int, multiple: int):
    width, found_height = network_size(src, height * multiple, multiple)
    # A strip is not followed for ever.
    natural = min(max(1, round(src[0] * found_height / src[1])), 8 * found_height)
    assert found_height == height * multiple
    assert width % multiple == 0
    assert natural <= width < natural + multiple


@pytest.mark.parametrize(
    ("src", "height", "expected"),
    [
        ((1920, 1080), 256, (456, 256)),
        ((640, 480), 256, (344, 256)),
        ((1080, 1920), 256, (144, 256)),
        ((1, 1), 8, (8, 8)),
    ],
)
def test_network_sizes_of_common_pictures(src: tuple[int, int], height: int, expected: tuple[int, int]):
    assert network_size(src, height, 8) == expected


@pytest.mark.parametrize("height", [0, -8, 4, 257])
def test_a_network_height_must_be_a_multiple(height: int):
    with pytest.raises(GeometryError, match=f"network height {height} is not a positive multiple of 8"):
        network_size((640, 480), height, 8)


def test_a_picture_without_pixels_has_no_network_size():
    with pytest.raises(GeometryError, match="a picture of 640x0 has no pixels"):
        network_size((640, 0), 256, 8)
