"""Damage at rest: `verify` finds it, and the same `submit` again mends just that."""

import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.errors import OutputError, SinkError
from jobs.events import Event, Note
from jobs.ledger import MANIFEST, PLAN, SUCCESS, Ledger
from jobs.run import JobReport, StartExecutor
from jobs.verify import verify
from tests.conftest import RunSerially
from tests.fixtures.stick_figures import walkers, write_video

# Flips over all files of a job; `make damage` makes thousands.
FLIPS = int(os.environ.get("POSEJOB_TEST_FLIPS", "150"))
CHUNK, FRAMES = 6, 12


class Job:
    """A finished job in a folder of its own, and the command that made it."""

    def __init__(self, out: Path, inputs: list[Path], run: RunSerially) -> None:
        self.out, self.inputs, self._run = out, inputs, run

    def submit(self, **more: Any) -> tuple[JobReport, list[str]]:
        """The same command again: how it ends, and the notes it makes on the way."""
        notes: list[str] = []

        def observe(event: Event) -> None:
            if isinstance(event, Note):
                notes.append(event.text)

        return self._run(self.inputs, self.out, observe, **{"chunk_frames": CHUNK} | more), notes

    def copy(self, out: Path) -> "Job":
        return Job(shutil.copytree(self.out, out), self.inputs, self._run)

    def file(self, name: str) -> Path:
        """A file by its name, or a table by kind and stem: `poses/walk`."""
        (path,) = self.out.glob(f"{name}-*.parquet" if "/" in name else name)
        return path

    def uri(self, file: Path) -> str:
        return next(path.as_uri() for path in self.inputs if file.name.startswith(path.stem))

    def files(self) -> list[Path]:
        return sorted(path for path in self.out.rglob("*") if path.is_file())

    def tables(self) -> dict[str, bytes]:
        return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in self.out.glob("*/*.parquet")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, walk: Path, run_serially: RunSerially) -> Job:
    """Two videos and one that cannot be opened. Not to be changed."""
    folder = tmp_path_factory.mktemp("repair")
    write_video(folder / "stroll.mp4", walkers(FRAMES, 2, (192, 144)).pictures(), gop=CHUNK, options={"bf": "0"})
    (folder / "empty.mp4").touch()
    job = Job(folder / "out", [walk, folder / "stroll.mp4", folder / "empty.mp4"], run_serially)
    job.submit()
    return job


@pytest.fixture
def job(whole: Job, tmp_path: Path) -> Job:
    """A copy to damage."""
    return whole.copy(tmp_path / "out")


def flip(path: Path, at: float = 0.5, bit: int = 0) -> None:
    """Flip one bit. at: of the way through the file, or a byte's number."""
    data = bytearray(path.read_bytes())
    data[at if isinstance(at, int) else int(at * len(data))] ^= 1 << bit
    path.write_bytes(data)


def accusations(job: Job) -> list[str]:
    """What is said to be damaged. Beside a damaged manifest there are also files that it no longer proves."""
    return [line for line in verify(Ledger(job.out)) if not line.endswith("the manifest no longer proves it")]


# Found


def test_every_flipped_bit_is_found_where_it_is(job: Job):
    assert verify(Ledger(job.out)) == []
    rng = random.Random(0)
    files = job.files()
    assert {file.name for file in files} >= {PLAN, MANIFEST, SUCCESS}
    unnoticed = []
    for file in files:
        data = file.read_bytes()
        flips = FLIPS // len(files) + 1
        for i in range(flips):
            at, bit = i * len(data) // flips + rng.randrange(max(1, len(data) // flips)), rng.randrange(8)
            flip(file, min(at, len(data) - 1), bit)
            lines = accusations(job)
            video = f" (of {job.uri(file)}): " if file.suffix == ".parquet" else ": "
            if len(lines) != 1 or not lines[0].startswith(f"{file.relative_to(job.out)}{video}"):
                unnoticed.append((file.name, at, bit, lines))
            file.write_bytes(data)
    assert unnoticed == []


def test_every_missing_file_is_found(job: Job):
    for file in job.files():
        data = file.read_bytes()
        file.unlink()
        if file.name == SUCCESS:
            with pytest.raises(OutputError, match="its job is not done"):
                verify(Ledger(job.out))
        else:
            (line,) = verify(Ledger(job.out))
            assert line.startswith(str(file.relative_to(job.out)))
            assert line.endswith(": missing")
            assert file.suffix == ".json" or job.uri(file) in line
        file.write_bytes(data)
    assert verify(Ledger(job.out)) == []


# Mended


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_in_a_digest(path: Path) -> None:
    """In the digest of the last table the manifest lists: poses or frames of `walk`, which is whole itself."""
    flip(path, path.read_bytes().rindex(b'"sha256": "') + 20)


def exchange(path: Path) -> None:
    """A whole table of another video under this one's name."""
    other = next(table for table in path.parent.iterdir() if table != path)
    path.write_bytes(other.read_bytes())


Damage = dict[str, Callable[[Path], None]]
DAMAGES: list[tuple[Damage, int]] = [
    ({"poses/walk": flip}, FRAMES),
    ({"frames/walk": flip}, FRAMES),
    ({"poses/walk": remove}, FRAMES),
    ({"frames/walk": truncate}, FRAMES),
    ({"poses/walk": flip, "frames/walk": remove}, FRAMES),
    ({"poses/walk": flip, "frames/stroll": flip}, 2 * FRAMES),
    ({"poses/walk": exchange}, FRAMES),
    ({SUCCESS: flip}, 0),
    ({SUCCESS: remove}, 0),
    ({SUCCESS: truncate, "poses/stroll": flip}, FRAMES),
    ({MANIFEST: flip}, 0),
    ({MANIFEST: truncate, SUCCESS: remove}, 0),
    ({MANIFEST: flip, "poses/stroll": remove}, FRAMES),
    ({MANIFEST: flip_in_a_digest}, FRAMES),
    # Whole tables, in the wrong place, and no manifest to say so.
    ({MANIFEST: flip, "poses/walk": exchange, "frames/walk": exchange}, FRAMES),
    ({MANIFEST: remove}, 2 * FRAMES),
    ({MANIFEST: remove, SUCCESS: remove, "poses/walk": flip}, 2 * FRAMES),
    ({PLAN: flip}, 0),
    ({PLAN: remove}, 0),
    ({PLAN: truncate, MANIFEST: flip, "poses/walk": flip}, FRAMES),
    ({PLAN: remove, SUCCESS: remove, "frames/stroll": remove}, FRAMES),
]


def in_words(damage: Any) -> str:
    return "+".join(f"{name} {strike.__name__}" for name, strike in damage.items()) if type(damage) is dict else ""


@pytest.mark.parametrize(("damage", "n_inferred"), DAMAGES, ids=in_words)
def test_the_same_command_mends_what_is_damaged_and_touches_nothing_else(
    whole: Job, job: Job, damage: Damage, n_inferred: int
):
    hurt = {}
    for name, strike in damage.items():
        hurt[name] = job.file(name)
        strike(hurt[name])
    inodes = {path: path.stat().st_ino for path in job.out.glob("*/*.parquet") if path not in hurt.values()}
    report, notes = job.submit()
    assert report.n_inferred == n_inferred
    assert job.tables() == whole.tables()
    assert {path: path.stat().st_ino for path in inodes} == inodes
    assert verify(Ledger(job.out)) == []
    assert {path.name for path in job.out.iterdir()} == {PLAN, MANIFEST, SUCCESS, "poses", "frames"}
    for file in hurt.values():
        name = str(file.relative_to(job.out))
        of = f" (of {job.uri(file)})" if file.suffix == ".parquet" else ""
        # Without a seal nobody knows that the manifest is not as it was.
        if not (MANIFEST in damage and SUCCESS in damage):
            assert len([note for note in notes if note.startswith(f"repairing {name}{of}: ")]) == 1, notes
    again, notes = job.submit(start=None)
    assert again.again
    assert notes == []
    assert again.videos == report.videos == whole.submit(start=None)[0].videos


def test_a_whole_job_is_not_written_to(job: Job):
    before = {path: path.stat() for path in (job.out, *job.out.rglob("*"))}
    assert job.submit(start=None)[0].again
    after = {path: path.stat() for path in (job.out, *job.out.rglob("*"))}
    assert [(s.st_ino, s.st_mtime_ns) for s in after.values()] == [(s.st_ino, s.st_mtime_ns) for s in before.values()]
    assert after.keys() == before.keys()


def test_a_repair_with_other_chunks_gives_the_same_tables(whole: Job, job: Job):
    flip(job.file("poses/walk"))
    assert job.submit(chunk_frames=5)[0].n_inferred == FRAMES
    assert job.tables() == whole.tables()


def test_a_plan_damaged_before_the_job_was_done_is_refused(job: Job):
    for name in (SUCCESS, MANIFEST):
        job.file(name).unlink()
    data = job.file(PLAN).read_bytes()
    for at in (data.index(b'"uri"') + 2, data.index(b"file:"), data.index(b"{")):
        for bit in (0, 7):
            flip(job.file(PLAN), at, bit)
            with pytest.raises(OutputError, match="use another folder, or --overwrite to start afresh"):
                job.submit()
            job.file(PLAN).write_bytes(data)


def test_a_table_from_another_kind_of_machine_is_no_dead_end(whole: Job, job: Job):
    """Whole and right, but of other bytes than this machine's, and no manifest to say so."""
    for kind in ("poses", "frames"):
        path = job.file(f"{kind}/walk")
        pq.write_table(pq.read_table(path), path)
    job.file(MANIFEST).unlink()
    job.submit()
    assert job.tables() == whole.tables()
    assert verify(Ledger(job.out)) == []


# Stopped while mending


class Killed(BaseException):
    """Nothing is done after it: not even what a `finally` would do."""


class Mortal:
    """Dies at the `at`-th change to the file system, before or after making it."""

    CALLS = ((os, "link"), (os, "replace"), (os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"))

    def __init__(self, patch: pytest.MonkeyPatch, at: int, after: bool) -> None:
        self.left, self.after, self.dead = at, after, False
        for owner, name in self.CALLS:
            patch.setattr(owner, name, self._mortal(getattr(owner, name)))

    def _mortal(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **kwargs: Any) -> Any:
            if self.dead:
                raise Killed
            self.left -= 1
            self.dead = self.left < 0
            if self.dead and not self.after:
                raise Killed
            result = call(*args, **kwargs)
            if self.dead:
                raise Killed
            return result

        return act


KILLS = int(os.environ.get("POSEJOB_TEST_KILLS", "8"))
WOUNDS: list[Damage] = [
    {"poses/walk": flip},
    {MANIFEST: flip, "frames/walk": remove},
    {SUCCESS: flip, PLAN: flip, "poses/walk": truncate},
]


@pytest.mark.parametrize("damage", WOUNDS, ids=in_words)
def test_killed_at_any_step_of_a_repair_the_next_run_ends_it(
    whole: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Damage
):
    """`stroll` is whole all the time: it is never computed again, whenever the repair of `walk` is stopped."""
    step = tried = 0
    stride = max(1, 60 // KILLS)
    while True:
        job = whole.copy(tmp_path / str(step))
        for name, strike in damage.items():
            strike(job.file(name))
        inode = job.file("poses/stroll").stat().st_ino
        with monkeypatch.context() as patch:
            mortal = Mortal(patch, step, after=bool(tried % 2))
            try:
                job.submit()
            except Killed:
                pass
            else:
                break
        assert mortal.dead
        report, _ = job.submit()
        assert report.n_inferred <= FRAMES, step
        assert job.tables() == whole.tables(), step
        assert job.file("poses/stroll").stat().st_ino == inode, step
        assert verify(Ledger(job.out)) == [], step
        assert {path.name for path in job.out.iterdir()} == {PLAN, MANIFEST, SUCCESS, "poses", "frames"}, step
        shutil.rmtree(job.out)
        step, tried = step + stride, tried + 1
    assert tried > 2


@pytest.mark.parametrize("damage", WOUNDS, ids=in_words)
def test_two_repairs_at_once(whole: Job, job: Job, serial: StartExecutor, damage: Damage):
    for name, strike in damage.items():
        strike(job.file(name))
    line_up = threading.Barrier(2)
    ends: list[Any] = []

    def repair() -> None:
        line_up.wait()
        try:
            ends.append(job.submit()[0].exit_code)
        except (SinkError, OutputError) as error:
            ends.append(error)

    threads = [threading.Thread(target=repair) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == [1, 1]
    assert job.tables() == whole.tables()
    assert verify(Ledger(job.out)) == []
