"""A source picture becomes what the network takes in."""

import cv2
import numpy as np

from posecore.geometry import Letterbox


def letterbox_image(image: np.ndarray, letterbox: Letterbox, pad_color: tuple[int, int, int]) -> np.ndarray:
    """Scale and pad a picture. image: (H, W, 3) uint8 of size `letterbox.src`. Returns (Hn, Wn, 3) uint8, contiguous.

    Bilinear without anti-aliasing, as Lightweight OpenPose trains and runs; channel order is the caller's.
    """
    # Given the scale, OpenCV rounds the canvas as `Letterbox.fit` does, but refuses a side that rounds to nothing.
    vanishes = min(letterbox.src) * letterbox.scale <= 0.5
    canvas = [max(1, round(side * letterbox.scale)) for side in letterbox.src] if vanishes else None
    scaled = cv2.resize(image, canvas, fx=letterbox.scale, fy=letterbox.scale, interpolation=cv2.INTER_LINEAR)
    height, width = scaled.shape[:2]
    if (width, height) == letterbox.net:
        return scaled
    left, top = letterbox.pad
    right, bottom = letterbox.net[0] - width - left, letterbox.net[1] - height - top
    return cv2.copyMakeBorder(scaled, top, bottom, left, right, cv2.BORDER_CONSTANT, value=pad_color)
