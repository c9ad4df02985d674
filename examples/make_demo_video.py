"""Make a short video of real people, with nothing to download: `python examples/make_demo_video.py demo.mp4`.

A camera pans and zooms slowly over three photographs that come with Python packages (`pip install posejob[dev]`):

- Grace Hopper, computer scientist and naval officer: official portrait, US Navy, 1984, public domain. In matplotlib.
- Eileen Collins, the first woman to command a Space Shuttle: official portrait, NASA, public domain. In scikit-image.
- A photographer at work: by Lav Varshney, CC0. In scikit-image.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import skimage.data
from matplotlib.cbook import get_sample_data

WIDTH, HEIGHT, FPS = 640, 480, 25
SHOT_S = 2


@dataclass(frozen=True)
class View:
    """What the camera sees of a photograph, in its pixels: a 4:3 rectangle around (x, y), `width` wide."""

    x: float
    y: float
    width: float

    def towards(self, other: "View", along: float) -> "View":
        """The view a part of the way to another one. The width changes by factors, which is what even zooming is."""
        x, y = (1 - along) * self.x + along * other.x, (1 - along) * self.y + along * other.y
        return View(x, y, self.width ** (1 - along) * other.width**along)

    def picture(self, photograph: np.ndarray) -> np.ndarray:
        """(HEIGHT, WIDTH, 3) uint8, of a photograph of the same channels."""
        scale = WIDTH / self.width
        # Output pixel p, whose centre is at p + .5, shows the photograph at (p + .5 - size / 2) / scale + centre - .5.
        to_photograph = np.array(
            [
                [1 / scale, 0, self.x - 0.5 + (0.5 - WIDTH / 2) / scale],
                [0, 1 / scale, self.y - 0.5 + (0.5 - HEIGHT / 2) / scale],
            ]
        )
        return cv2.warpAffine(photograph, to_photograph, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)


def shots() -> Iterator[tuple[np.ndarray, View, View]]:
    """(photograph, first view, last view); photographs are (h, w, 3) uint8 BGR."""
    hopper = cv2.imread(get_sample_data("grace_hopper.jpg", asfileobj=False))
    assert hopper is not None
    yield hopper, View(256, 230, 510), View(256, 300, 490)
    yield cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR), View(230, 185, 420), View(256, 200, 510)
    yield cv2.cvtColor(skimage.data.camera(), cv2.COLOR_GRAY2BGR), View(256, 225, 510), View(220, 230, 430)


def frames() -> Iterator[np.ndarray]:
    """Every frame of the video, (HEIGHT, WIDTH, 3) uint8 BGR."""
    for photograph, first, last in shots():
        for time in np.linspace(0, 1, SHOT_S * FPS):
            # Starts and stops gently: no speed at either end.
            yield first.towards(last, time * time * (3 - 2 * time)).picture(photograph)


def make_video(path: Path) -> None:
    """Encode as H.264, in a form that any player and browser takes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a short video of real people, with nothing to download.")
    parser.add_argument("out", type=Path, help="the video to write, for example demo.mp4")
    make_video(parser.parse_args().out)
