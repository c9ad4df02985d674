"""The examples run: the notebook on a job made here, with two walkers in one video and an empty room in another."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import av
import nbformat
import numpy as np
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from jobs.executors.base import Executor, Layout
from jobs.executors.serial import SerialExecutor
from jobs.run import run_job
from jobs.spec import RunSpec
from jobs.worker import WorkerSpec
from posecore import read_poses
from tests.fixtures.colour_network import write_network
from tests.fixtures.stick_figures import Scene, walkers, write_video

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "query.ipynb"
N_FRAMES = 16


@contextmanager
def serial(worker: WorkerSpec, layout: Layout) -> Iterator[Executor]:
    yield SerialExecutor(worker)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The apostrophe and the blank would end a string or an argument that is put together carelessly.
    folder = tmp_path_factory.mktemp("tom's job")
    videos = folder / "videos"
    videos.mkdir()
    write_video(videos / "walkers.mp4", walkers(N_FRAMES, 2).pictures())
    write_video(videos / "empty.mp4", Scene((640, 480), N_FRAMES, ()).pictures())
    network = write_network(folder).with_suffix(".xml")
    spec = RunSpec((str(videos),), folder / "out", str(network), chunk_frames=8)
    assert run_job(spec, serial, lambda event: None).exit_code == 0
    return folder / "out"


def execute(out: Path, monkeypatch: pytest.MonkeyPatch) -> nbformat.NotebookNode:
    """The notebook with its outputs, run as if started in its folder, without a display."""
    monkeypatch.setenv("POSEJOB_OUT", str(out))
    monkeypatch.delenv("DISPLAY", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    return notebook


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_the_notebook_answers_its_questions(out: Path, monkeypatch: pytest.MonkeyPatch):
    # The asserts in the notebook compare SQL with pandas.
    results = outputs(execute(out, monkeypatch))
    printed = "".join(output.text for output in results if output.get("name") == "stdout")
    (video,) = set(read_poses(out)["video"].to_pylist())
    assert printed in [
        f"{side}_wrist of person 0 in {video}: found in {N_FRAMES} of {N_FRAMES} frames\n" for side in ("left", "right")
    ]
    assert sum("image/png" in output.get("data", {}) for output in results) == 3
    assert [output for output in results if output.get("name") == "stderr"] == []


def test_the_notebook_sees_tables_that_disagree(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for file in out.glob("*/*.parquet"):
        copy = tmp_path / file.relative_to(out)
        copy.parent.mkdir(exist_ok=True)
        table = pq.read_table(file)
        pq.write_table(table.slice(1) if file.parent.name == "poses" else table, copy)
    with pytest.raises(CellExecutionError, match=r"(?s)LEFT JOIN poses.*AssertionError"):
        execute(tmp_path, monkeypatch)


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert outputs(notebook) == []
    assert {cell.execution_count for cell in notebook.cells if cell.cell_type == "code"} == {None}
    assert notebook.metadata.kernelspec.name == "python3"


def test_the_demo_video_is_three_slow_shots(tmp_path: Path):
    path = tmp_path / "demo.mp4"
    subprocess.run([sys.executable, EXAMPLES / "make_demo_video.py", path], check=True)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert (codec.name, codec.width, codec.height, stream.average_rate) == ("h264", 640, 480, 25)
        pictures = [frame.to_ndarray(format="gray")[::4, ::4].astype(int) for frame in container.decode(stream)]
    assert len(pictures) == 150
    change = np.array([np.abs(after - before).mean() for before, after in pairwise(pictures)])
    cuts = [49, 99]
    assert np.flatnonzero(change > 30).tolist() == cuts
    # Within a shot the camera moves, and never jumps.
    assert 1 < np.median(change) < np.delete(change, cuts).max() < 15
