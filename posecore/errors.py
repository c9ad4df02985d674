"""The root of posejob's error tree and the branch that belongs to posecore.

    PosejobError
      PoseError      (posecore)  FieldShapeError, SkeletonError, GeometryError: a bug or a wrong model, stop
      ResultsError   (posecore)  the folder given to a reader is not a posejob output
      ModelError     (models)    see models/errors.py
      JobError       (jobs)      see jobs/errors.py

Every leaf takes positional arguments and hands all of them to `super().__init__`, because an exception that crosses
a process border is rebuilt from its `args`.
"""

import errno
import os


class PosejobError(Exception):
    """Anything posejob raises on purpose. Its text is one line that a user can act on."""


class PoseError(PosejobError):
    """Fields, skeleton or geometry do not fit together."""


class FieldShapeError(PoseError):
    """A network output has the wrong shape for the skeleton it claims."""

    def __init__(self, name: str, expected: str, found: tuple[int, ...]) -> None:
        super().__init__(name, expected, found)
        self.name, self.expected, self.found = name, expected, found

    def __str__(self) -> str:
        return (
            f"{self.name}: expected {self.expected}, found shape {self.found}; does the manifest name the right output?"
        )


class SkeletonError(PoseError):
    """A skeleton's limbs cannot be assembled into people."""


class GeometryError(PoseError):
    """A picture or network size that no transform can be made for."""


class ResultsError(PosejobError):
    """The folder given to a reader holds no posejob results, or not the ones asked for."""


def reason(error: OSError) -> str:
    """What the system says is wrong, as the end of a line: without the number and the path that Python adds."""
    # PyArrow has words of its own around the system's; what is no number of the system's has only words of its own.
    known = error.errno is not None and error.errno in errno.errorcode
    words = os.strerror(error.errno or 0) if known else error.strerror or str(error)
    return words.lower() or type(error).__name__
