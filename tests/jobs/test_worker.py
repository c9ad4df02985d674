from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.runtime import PoseRuntime
from posecore import read_poses
from tests.conftest import RunSerially
from tests.fixtures.stick_figures import walkers, write_video

# Which drawn picture each frame shows: as in a screen recording, and one that comes back later.
SHOWN = [0, 0, 0, 1, 2, 2, 0, 0, 3, 3, 3, 3]


@pytest.fixture
def still(tmp_path: Path) -> Path:
    """A video that stands still now and then, coded without loss."""
    pictures = list(walkers(4, 2, (192, 144)).pictures())
    path = tmp_path / "still.mp4"
    write_video(path, (pictures[i] for i in SHOWN), gop=1, options={"qp": "0", "bf": "0"})
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The pictures that networks are asked about."""
    asked: list[Any] = []
    infer = PoseRuntime.infer

    def watched(self: PoseRuntime, pictures: Any) -> Iterator[Any]:
        def noted() -> Iterator[Any]:
            for tag, picture in pictures:
                asked.append(picture.copy())
                yield tag, picture

        return infer(self, noted())

    monkeypatch.setattr(PoseRuntime, "infer", watched)
    return asked


def test_a_picture_that_stands_still_is_asked_about_once(
    still: Path, tmp_path: Path, run_serially: RunSerially, asked: list[Any]
):
    together = run_serially([still], tmp_path / "together", height=144)
    assert len(asked) == 5
    assert together.n_inferred == len(SHOWN)
    run_serially([still], tmp_path / "each-alone", height=144, chunk_frames=1)
    assert len(asked) == 5 + len(SHOWN)
    poses = read_poses(tmp_path / "together")
    assert poses == read_poses(tmp_path / "each-alone")
    assert set(poses["frame"].to_pylist()) == set(range(len(SHOWN)))
