"""From source pixels to network pixels and back.

Three spaces, three suffixes: `xy_src` (source picture, upright), `xy_net` (network input), `xy_cell` (stride grid).
In all three the centre of the first pixel or cell is at (0.5, 0.5) and the picture spans [0, width] x [0, height], so
that a change of scale is one multiplication: xy_net = xy_cell * stride. Array index i is coordinate i + 0.5.
"""

from dataclasses import dataclass

import numpy as np

from posecore.errors import GeometryError


@dataclass(frozen=True)
class Letterbox:
    """Fits a picture into the network's input: one scale for both directions, padded evenly where it does not fill.

    The scaled picture rarely ends on a whole pixel. Its canvas is rounded, the scale is not: stretching the picture to
    the rounded size instead moves the sampling points enough to cost OKS 0.1 against the reference decoder on the
    small people of a 720p video.

    src, net: (width, height) of the picture and of the network's input.
    scale:    network pixels per source pixel.
    pad:      (left, top) network pixels before the picture.
    """

    src: tuple[int, int]
    net: tuple[int, int]
    scale: float
    pad: tuple[int, int]

    @classmethod
    def fit(cls, src: tuple[int, int], net: tuple[int, int]) -> "Letterbox":
        """The largest centred placement of `src` in `net`, both (width, height). An odd pixel goes right or below."""
        if min(*src, *net) < 1:
            raise GeometryError(f"cannot fit a picture of {src[0]}x{src[1]} into {net[0]}x{net[1]}")
        scale = min(net[0] / src[0], net[1] / src[1])
        width, height = (max(1, round(side * scale)) for side in src)
        return cls(src, net, scale, ((net[0] - width) // 2, (net[1] - height) // 2))

    def to_net(self, xy_src: np.ndarray) -> np.ndarray:
        """(..., 2) source pixels to network pixels, float64."""
        return np.asarray(xy_src, dtype=np.float64) * self.scale + self.pad

    def to_src(self, xy_net: np.ndarray) -> np.ndarray:
        """(..., 2) network pixels to source pixels, float64. The inverse of `to_net`."""
        return (np.asarray(xy_net, dtype=np.float64) - self.pad) / self.scale


_WIDEST = 8


def network_size(src: tuple[int, int], height: int, multiple: int) -> tuple[int, int]:
    """The network input (width, height) for pictures of `src` (width, height) at a network height.

    The width follows the picture's aspect ratio, rounded up to `multiple`, so that at most `multiple - 1` columns of
    compute go into padding; but it is at most `_WIDEST` times the height: a strip of one row must not take gigabytes.
    Raises GeometryError if `height` is no positive multiple of `multiple`.
    """
    if height < multiple or height % multiple:
        raise GeometryError(f"network height {height} is not a positive multiple of {multiple}")
    if min(src) < 1:
        raise GeometryError(f"a picture of {src[0]}x{src[1]} has no pixels")
    width = min(max(1, round(src[0] * height / src[1])), _WIDEST * height)
    return -(-width // multiple) * multiple, height
