import errno
import itertools
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from jobs import ledger as ledger_module
from jobs.errors import OutputError, SinkError
from jobs.ledger import MANIFEST, PLAN, SUCCESS, Ledger, chunk_name, seal, sha256

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "out")
    made.prepare()
    return made


def temporaries(ledger: Ledger) -> list[str]:
    return os.listdir(ledger.out / "_tmp")


def write_half(path: Path, error: Exception) -> None:
    path.write_bytes(b"half")
    raise error


# Publishing


def test_what_is_published_is_there_and_nothing_else(ledger: Ledger):
    assert ledger.publish_bytes("plan.json", b"one")
    assert ledger.read_bytes("plan.json") == b"one"
    assert temporaries(ledger) == []
    assert (ledger.out / "plan.json").stat().st_nlink == 1


def test_who_comes_second_discards_its_copy(ledger: Ledger):
    assert ledger.publish_bytes("plan.json", b"one")
    assert not ledger.publish_bytes("plan.json", b"two")
    assert not ledger.publish_bytes("plan.json", b"one")
    assert ledger.read_bytes("plan.json") == b"one"
    assert temporaries(ledger) == []


def test_a_name_is_taken_by_whatever_bears_it(ledger: Ledger):
    (ledger.out / "plan.json").mkdir()
    os.symlink("nowhere", ledger.out / "manifest.json")
    assert not ledger.publish_bytes("plan.json", b"one")
    assert not ledger.publish_bytes("manifest.json", b"one")


def test_chunks_that_are_committed(ledger: Ledger):
    assert ledger.committed() == set()
    assert ledger.commit_chunk("k1", b"one")
    assert ledger.commit_chunk("k2", b"two")
    assert not ledger.commit_chunk("k1", b"other")
    assert ledger.committed() == {"k1", "k2"}
    assert ledger.path(chunk_name("k1")).read_bytes() == b"one"


def test_what_was_left_under_way_is_not_committed(ledger: Ledger):
    (ledger.out / "_tmp" / "k1.chunk.0123").write_bytes(b"half")
    (ledger.out / "_chunks" / "notes.txt").write_bytes(b"?")
    assert ledger.committed() == set()
    assert Ledger(ledger.out / "nowhere").committed() == set()


RACE = """
import sys
from pathlib import Path
from jobs.ledger import Ledger
ledger, name = Ledger(Path(sys.argv[1])), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
print(*[key for key in map(str, range(100)) if ledger.commit_chunk(key, f"{name} {key}".encode())])
"""


def test_of_several_processes_at_one_chunk_exactly_one_commits_it(ledger: Ledger):
    names = ["a", "b", "c", "d"]
    with ExitStack() as stack:
        racers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", RACE, str(ledger.out), name],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for name in names
        ]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        won = {name: racer.communicate()[0].split() for name, racer in zip(names, racers, strict=True)}
    assert all(racer.returncode == 0 for racer in racers)
    keys = [str(key) for key in range(100)]
    assert Counter(key for mine in won.values() for key in mine) == Counter(keys)
    for name, mine in won.items():
        assert [ledger.path(chunk_name(key)).read_text() for key in mine] == [f"{name} {key}" for key in mine]
    assert temporaries(ledger) == []


# Publishing what a block writes


def test_a_block_writes_a_file_that_appears_when_it_ends(ledger: Ledger):
    with ledger.publishing("poses/a.parquet") as tmp:
        tmp.write_bytes(b"one")
        assert not (ledger.out / "poses" / "a.parquet").exists()
    assert (ledger.out / "poses" / "a.parquet").read_bytes() == b"one"
    assert temporaries(ledger) == []


def test_the_same_bytes_once_more_are_welcome(ledger: Ledger):
    for _ in range(2):
        with ledger.publishing("poses/a.parquet") as tmp:
            tmp.write_bytes(b"one")
    assert (ledger.out / "poses" / "a.parquet").read_bytes() == b"one"
    assert temporaries(ledger) == []


@pytest.mark.parametrize("there", [lambda path: path.write_bytes(b"one"), lambda path: path.symlink_to("nowhere")])
def test_other_bytes_under_a_taken_name_are_replaced(ledger: Ledger, there: Callable[[Path], None]):
    there(ledger.out / "poses" / "a.parquet")
    with ledger.publishing("poses/a.parquet") as tmp:
        tmp.write_bytes(b"two")
    assert (ledger.out / "poses" / "a.parquet").read_bytes() == b"two"
    assert temporaries(ledger) == []


def test_other_bytes_in_a_job_that_is_done_are_an_error(ledger: Ledger):
    ledger.publish_bytes("poses/a.parquet", b"one")
    ledger.publish_bytes(SUCCESS, b"{}")
    with pytest.raises(SinkError) as caught, ledger.publishing("poses/a.parquet") as tmp:
        tmp.write_bytes(b"two")
    assert str(caught.value) == (
        f"{ledger.out}/poses/a.parquet: is there already with other content, in a job that is done"
    )
    assert (ledger.out / "poses" / "a.parquet").read_bytes() == b"one"
    assert temporaries(ledger) == []


def test_a_block_that_fails_publishes_nothing(ledger: Ledger):
    with pytest.raises(KeyError), ledger.publishing("poses/a.parquet") as tmp:
        write_half(tmp, KeyError("a bug"))
    assert not (ledger.out / "poses" / "a.parquet").exists()
    assert temporaries(ledger) == []


# Storage that fails


@pytest.mark.parametrize("step", ["write", "sync", "link"])
def test_a_full_disk_is_a_storage_error_and_leaves_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, step: str):
    def full_disk(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner, name = {"write": (Path, "write_bytes"), "sync": (os, "fsync"), "link": (os, "link")}[step]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full_disk)
        with pytest.raises(SinkError) as caught:
            ledger.commit_chunk("k1", b"one")
    assert str(caught.value) == f"{ledger.out}/_chunks/k1.chunk: cannot be stored (no space left on device)"
    assert temporaries(ledger) == []
    assert ledger.committed() == set()
    assert ledger.commit_chunk("k1", b"one")


def test_a_full_disk_in_a_block(ledger: Ledger):
    with pytest.raises(SinkError) as caught, ledger.publishing("poses/a.parquet") as tmp:
        write_half(tmp, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert str(caught.value) == f"{ledger.out}/poses/a.parquet: cannot be stored (no space left on device)"
    assert temporaries(ledger) == []


def test_an_output_folder_that_was_taken_away(ledger: Ledger):
    ledger.clear()
    with pytest.raises(SinkError, match=r"k1\.chunk: cannot be stored \(no such file or directory\)$"):
        ledger.commit_chunk("k1", b"one")


def test_a_worker_that_wakes_up_when_all_is_done_changes_nothing(finished: Ledger, monkeypatch: pytest.MonkeyPatch):
    """It had written its copy, and everybody else went on without it."""
    flush = ledger_module._flush

    def sleep_meanwhile(path: Path) -> None:
        finished.clean()
        flush(path)

    monkeypatch.setattr(ledger_module, "_flush", sleep_meanwhile)
    before = snapshot(finished.out)
    with pytest.raises(SinkError, match=r"k9\.chunk: cannot be stored \(no such file or directory\)$"):
        finished.commit_chunk("k9", b"late")
    assert snapshot(finished.out) == {name: data for name, data in before.items() if not name.startswith("_chunks")}


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name != "_tmp"
    }


# Preparing


def test_preparing_twice_is_fine(ledger: Ledger):
    ledger.commit_chunk("k1", b"one")
    ledger.prepare()
    assert sorted(os.listdir(ledger.out)) == ["_chunks", "_tmp", "frames", "poses"]
    assert [*(ledger.out / "poses").iterdir(), *(ledger.out / "frames").iterdir()] == []
    assert ledger.committed() == {"k1"}
    assert temporaries(ledger) == []


def test_making_a_ledger_touches_nothing(tmp_path: Path):
    made = pickle.loads(pickle.dumps(Ledger(tmp_path / "out")))
    assert made.out == tmp_path / "out"
    assert not made.foreign()
    assert made.read_bytes(PLAN) is None
    assert os.listdir(tmp_path) == []


def a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file"


def a_folder_with_a_file_in_the_way(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_chunks").touch()
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        (a_file, "is a file, not a folder"),
        (lambda tmp_path: a_file(tmp_path) / "out", "is a file, not a folder"),
        (
            a_folder_with_a_file_in_the_way,
            "_chunks in it is a file, not a folder; remove it or choose another folder",
        ),
        (
            lambda tmp_path: Path("/proc/posejob"),
            "cannot write there (no such file or directory); choose a folder you can write to",
        ),
        (
            lambda tmp_path: tmp_path / ("x" * 300),
            "cannot write there (file name too long); choose a folder you can write to",
        ),
    ],
    ids=["a file", "below a file", "a file in the way", "proc", "too long"],
)
def test_a_place_that_cannot_be_written_to(tmp_path: Path, place: Callable[[Path], Path], problem: str):
    out = place(tmp_path)
    with pytest.raises(OutputError) as caught:
        Ledger(out).prepare()
    assert str(caught.value) == f"output folder {out}: {problem}"


def test_a_place_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_links(*_: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(OutputError, match=r"its file system makes no hard links, .* or choose another folder$"):
        Ledger(tmp_path / "out").prepare()
    assert os.listdir(tmp_path / "out" / "_tmp") == []


@pytest.mark.parametrize("folder", ["poses", "frames", "_chunks"])
def test_a_folder_that_is_a_mount_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str):
    link = os.link

    def across(source: Path, target: Path) -> None:
        if target.parent.name == folder:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        link(source, target)

    monkeypatch.setattr(os, "link", across)
    with pytest.raises(OutputError, match=rf"out: {folder} is a mount of its own, .* or choose another folder$"):
        Ledger(tmp_path / "out").prepare()


def test_a_probe_that_was_left_behind_is_nobodys_and_goes_away(tmp_path: Path):
    (tmp_path / "poses").mkdir()
    for folder in (tmp_path, tmp_path / "poses"):
        (folder / "_probe.0123").touch()
    assert not Ledger(tmp_path).foreign()
    Ledger(tmp_path).prepare()
    assert not list(tmp_path.rglob("_probe*"))


# Reading


NO_FILES = [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(__file__)]


@pytest.mark.parametrize("make", NO_FILES, ids=["folder", "pipe", "device", "link"])
def test_what_is_no_regular_file_is_neither_followed_nor_waited_for(ledger: Ledger, make: Callable[[Path], Any]):
    make(ledger.out / PLAN)
    assert ledger.digest(PLAN) is None
    with pytest.raises(OutputError, match=r"cannot read plan\.json \("):
        ledger.read_bytes(PLAN)


def test_a_text_that_would_fill_the_memory_is_not_read(ledger: Ledger):
    with (ledger.out / MANIFEST).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(
        OutputError, match=r"its manifest\.json has 1,099,511,627,776 bytes, more than fits into this machine's memory"
    ):
        ledger.read_bytes(MANIFEST)


def test_a_chunk_is_read_however_large_it_is(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    ledger.commit_chunk("k1", b"a chunk")
    monkeypatch.setattr("jobs.ledger._MAX_TEXT_BYTES", 6)
    assert ledger.read_chunk("k1") == b"a chunk"
    assert ledger.read_chunk("k2") is None


@pytest.mark.parametrize("name", ["poses", "frames", "_chunks"])
def test_a_file_in_place_of_a_working_folder_is_named(tmp_path: Path, name: str):
    (tmp_path / name).touch()
    line = f"output folder {tmp_path}: {name} in it is a file, not a folder; remove it or choose another folder"
    look = Ledger(tmp_path).committed if name == "_chunks" else Ledger(tmp_path).foreign
    for attempt in (look, Ledger(tmp_path).prepare):
        with pytest.raises(OutputError) as caught:
            attempt()
        assert str(caught.value) == line


def test_a_reason_is_the_systems_words_alone(plain_user: Path):
    ledger = Ledger(plain_user)
    (plain_user / PLAN).touch(mode=0)
    with pytest.raises(OutputError, match=r"cannot read plan\.json \(permission denied\)$"):
        ledger.read_bytes(PLAN)
    (plain_user / SUCCESS).mkdir()
    with pytest.raises(OutputError, match=r"cannot be cleared \(is a directory\)$"):
        ledger.clear()


def test_a_text_that_is_not_there_is_none(ledger: Ledger):
    assert ledger.read_bytes(PLAN) is None
    assert Ledger(ledger.out / "nowhere").read_bytes(PLAN) is None


def test_texts_that_cannot_be_read(ledger: Ledger, tmp_path: Path):
    (ledger.out / MANIFEST).mkdir()
    with pytest.raises(OutputError, match=r"out: cannot read manifest\.json \("):
        ledger.read_bytes(MANIFEST)
    with pytest.raises(OutputError, match=r"file: is a file, not a folder$"):
        Ledger(a_file(tmp_path)).read_bytes(PLAN)


def test_digests(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert seal(b"abc") == b'{"manifest_sha256": "%b"}\n' % sha256(path).encode()


# Whose folder is it?


def test_an_empty_folder_is_nobodys(tmp_path: Path):
    assert not Ledger(tmp_path).foreign()
    assert not Ledger(tmp_path / "nowhere").foreign()


def test_a_run_that_was_stopped_before_it_had_a_plan_leaves_our_folder(ledger: Ledger):
    (ledger.out / "_tmp" / "plan.json.0123").touch()
    assert not ledger.foreign()


def test_a_job_is_ours_whatever_else_is_there(ledger: Ledger):
    ledger.publish_bytes(PLAN, b"{}")
    (ledger.out / "notes.txt").touch()
    assert not ledger.foreign()


@pytest.mark.parametrize("name", ["notes.txt", "frames/0001.png", "poses/mine.csv", ".git/config"])
def test_a_folder_with_somebodys_things_and_no_job_is_not_ours(tmp_path: Path, name: str):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert Ledger(tmp_path).foreign()


def test_a_file_is_no_folder(tmp_path: Path):
    with pytest.raises(OutputError, match=r"is a file, not a folder$"):
        Ledger(a_file(tmp_path)).foreign()


# Clearing


TABLE = "walk-0123456789ab.parquet"


@pytest.fixture
def finished(ledger: Ledger) -> Ledger:
    """A job that was done, and things of the user's beside it."""
    for name in (PLAN, MANIFEST, SUCCESS, f"poses/{TABLE}", f"frames/{TABLE}", "_chunks/k.chunk"):
        ledger.publish_bytes(name, b"{}")
    (ledger.out / "notes.txt").touch()
    (ledger.out / "rendered by me").mkdir()
    return ledger


def test_clearing_removes_the_job_and_leaves_what_is_the_users(finished: Ledger):
    mine = [finished.out / "poses" / name for name in ("analysis.csv", "analysis.parquet")]
    for path in mine:
        path.touch()
    finished.clear()
    assert sorted(os.listdir(finished.out)) == ["frames", "notes.txt", "poses", "rendered by me"]
    assert [*(finished.out / "frames").iterdir(), *sorted((finished.out / "poses").iterdir())] == mine


def test_clearing_a_folder_that_is_not_there(tmp_path: Path):
    Ledger(tmp_path / "nowhere").clear()
    assert os.listdir(tmp_path) == []


def test_stopped_while_clearing_it_is_still_our_folder_and_no_finished_job(
    finished: Ledger, monkeypatch: pytest.MonkeyPatch
):
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "clean", stop)
        with pytest.raises(KeyboardInterrupt):
            finished.clear()
    assert finished.read_bytes(SUCCESS) is None
    assert not finished.foreign()


def test_what_cannot_be_cleared_is_said(ledger: Ledger):
    (ledger.out / MANIFEST).mkdir()
    with pytest.raises(OutputError, match=r"out: cannot be cleared \("):
        ledger.clear()


LINKED = [PLAN, MANIFEST, SUCCESS, "poses", "frames", "_chunks", "_tmp", f"poses/{TABLE}", "frames/mine.parquet"]


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_nothing_is_done_in_a_folder_with_a_link_in_it(tmp_path: Path, name: str, target: str):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / TABLE).touch()
    (out / name).parent.mkdir(parents=True)
    (out / name).symlink_to(tmp_path / target)
    ledger = Ledger(out)
    for act in (ledger.refuse_links, ledger.prepare, ledger.clear):
        with pytest.raises(OutputError) as caught:
            act()
        assert str(caught.value) == (
            f"output folder {out}: {name} is a symbolic link, which posejob does not follow; remove the link"
        )
    assert os.listdir(elsewhere) == [TABLE]


def test_the_output_folder_itself_may_be_a_link(finished: Ledger):
    (link := finished.out.with_name("link")).symlink_to(finished.out)
    Ledger(link).prepare()
    Ledger(link).clear()
    assert not (finished.out / PLAN).exists()


# Declared not done


@pytest.mark.parametrize("keep", [True, False])
def test_a_job_declared_not_done_loses_no_proof(finished: Ledger, keep: bool):
    digest = "0123456789abcdef" * 4
    (finished.out / MANIFEST).write_text(f'"{digest}", "{digest}{digest[:32]}"')
    assert not finished.unseal(b"another manifest", keep)
    assert finished.read_bytes(SUCCESS) is not None
    assert finished.unseal(finished.read_bytes(MANIFEST), keep)
    assert finished.read_bytes(SUCCESS) is None
    assert (finished.read_bytes(MANIFEST) is not None) == keep
    assert finished.digests() == {digest}
    assert finished.committed() == {"k"}


def test_a_seal_without_a_manifest_is_taken_away(finished: Ledger):
    finished.discard(MANIFEST)
    assert finished.unseal(None, keep=False)
    assert finished.read_bytes(SUCCESS) is None


def test_a_damaged_file_is_mended_in_one_step(finished: Ledger):
    finished.mend(PLAN, b"new")
    finished.mend(f"poses/{TABLE}", b"new")
    assert finished.read_bytes(PLAN) == finished.read_bytes(f"poses/{TABLE}") == b"new"
    assert temporaries(finished) == []


# Cleaning


def test_cleaning_twice_or_at_once_is_fine(finished: Ledger):
    for i in range(200):
        (finished.out / "_chunks" / f"{i}.chunk").touch()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: finished.clean(), range(4)))
    assert not {"_chunks", "_tmp"} & {*os.listdir(finished.out)}


def test_cleaning_under_a_worker_that_goes_on_committing(finished: Ledger):
    """It must neither fail nor leave anything for ever."""
    stop = threading.Event()
    refused = []

    def commit() -> None:
        for i in itertools.count():
            if stop.is_set():
                return
            try:
                finished.commit_chunk(f"late{i}", b"late")
            except SinkError as error:
                refused.append(str(error))

    with ThreadPoolExecutor(2) as pool:
        workers = [pool.submit(commit) for _ in range(2)]
        time.sleep(0.05)
        finished.clean()
        left = {"_chunks", "_tmp"} & {*os.listdir(finished.out)}
        while not refused:
            time.sleep(0.01)
        stop.set()
        for worker in workers:
            worker.result()
    assert left == set()
    assert not {"_chunks", "_tmp"} & {*os.listdir(finished.out)}
    assert all("cannot be stored (no such file or directory)" in line for line in refused)


def test_stopped_while_cleaning_the_next_run_cleans_up(finished: Ledger, monkeypatch: pytest.MonkeyPatch):
    (finished.out / "_tmp" / "k.0123").touch()
    with monkeypatch.context() as patch:
        patch.setattr(ledger_module, "_remove_tree", lambda folder: None)
        finished.clean()
    assert os.listdir(finished.out / "_chunks") != []
    finished.clean()
    assert not {"_chunks", "_tmp"} & {*os.listdir(finished.out)}


def test_cleaning_keeps_the_results(finished: Ledger):
    finished.clean()
    left = {PLAN, MANIFEST, SUCCESS, "poses", "frames", "notes.txt", "rendered by me"}
    assert {*os.listdir(finished.out)} == left
