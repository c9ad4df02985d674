"""posecore: what pose is in these fields, and how to read posejob's results in a notebook.

>>> from posecore import read_poses
>>> read_poses("posejob-out", to="pandas")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posecore.results import read_frames, read_poses, tidy

__all__ = ["read_frames", "read_poses", "tidy"]


def __getattr__(name: str) -> Any:
    # The reader needs PyArrow, which takes longer to import than all the rest of posecore; decoding does not need it.
    if name in __all__:
        return getattr(import_module("posecore.results"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
