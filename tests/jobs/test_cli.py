import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs import __version__, cli
from jobs.run import StartExecutor
from models import registry
from models.manifest import Manifest, ModelFile, Variant, read_manifest
from tests.fixtures.colour_network import MANIFEST

ROOT = Path(__file__).parents[2]
STOPPED = "posejob: stopped; what is done is kept, run the same command again to go on"


@pytest.fixture(autouse=True)
def home(
    tmp_path: Path, walk: Path, colour_network: Path, serial: StartExecutor, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The user's working directory, with walk.mp4 (12 frames, one person) and net.xml in it. No Ray, no network cache,
    no POSEJOB_ variables but those of the test."""
    for name in os.environ:
        if name.startswith("POSEJOB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv(registry.MODEL_DIR_VARIABLE, str(tmp_path / "mirror"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cli, "_start_ray", serial)
    monkeypatch.setattr("jobs.estimate._MEASURE_S", 0.05)
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(walk, folder)
    for suffix in (".xml", ".bin", ".toml"):
        (folder / f"net{suffix}").symlink_to(colour_network.with_suffix(suffix))
    monkeypatch.chdir(folder)
    return folder


class Ended:
    """How a command ended."""

    def __init__(self, args: tuple[str, ...], env: dict[str, str] | None) -> None:
        result = CliRunner().invoke(cli.app, args, env=env, prog_name="posejob")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def posejob(*args: str, code: int = 0, env: dict[str, str] | None = None) -> Ended:
    ended = Ended(args, env)
    assert ended.code == code, ended.err
    return ended


def submit(*args: str, code: int = 0, env: dict[str, str] | None = None) -> Ended:
    """Submit with the test network, to out/, in chunks of four frames."""
    given = ("--model", "net.xml", "--out", "out", "--chunk-frames", "4")
    return posejob("submit", *given, *args, code=code, env=env)


def refused(*args: str) -> str:
    """Why a submission does nothing: the one line."""
    ended = submit(*args, code=2)
    (line,) = ended.err.splitlines()
    assert line.startswith("posejob: ")
    assert ended.out == ""
    return line.removeprefix("posejob: ")


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# Submit


def test_a_job_ends_with_what_was_found_and_where_it_is(home: Path):
    ended = submit("walk.mp4")
    counted, inferred, where, how = ended.out.splitlines()
    assert counted == "1 video, 12 frames, 12 people found"
    assert re.fullmatch(r"12 frames inferred in \d+\.\d s, \d+\.\d frames/s with start-up", inferred)
    assert where == "results in out"
    assert how == """python -c 'import posecore; print(posecore.read_poses("out", to="pandas"))'"""
    assert ended.err == "1 video, 12 frames in 3 chunks\n"
    assert everything(home / "out") >= {"_SUCCESS", "manifest.json", "plan.json"}


@pytest.mark.parametrize("out", ["it's $HOME", 'a "b" `c`', "日本 😀"])
def test_the_line_that_reads_the_results_works_as_it_stands(home: Path, out: str):
    *_, line = submit("walk.mp4", "--out", out).out.splitlines()
    interpreter, *args = shlex.split(line)
    assert interpreter == "python"
    done = subprocess.run(
        [sys.executable, *args], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert "[12 rows x 65 columns]" in done.stdout


def test_a_folders_name_is_one_line(home: Path):
    assert r"results in two\nlines" in submit("walk.mp4", "--out", "two\nlines").out.splitlines()
    assert posejob("verify", "two\nlines").out == "two\\nlines: whole\n"


def test_a_job_as_json(home: Path):
    ended = submit("walk.mp4", "nothing.mp4", "--json", code=1)
    totals = {"videos": 1, "ok": 1, "degraded": 0, "failed": 0, "frames": 12, "people": 12}
    assert {name: ended.json[name] for name in totals} == totals
    assert ended.json["out"] == "out"
    assert ended.json["frames_inferred"] == 12
    assert ended.json["seconds"] > 0
    assert ended.json["problems"] == [{"input": "nothing.mp4", "problem": "no such file or folder"}]
    (video,) = ended.json["details"]
    assert video["uri"] == (home / "walk.mp4").as_uri()
    assert video["status"] == "ok"
    assert all((home / "out" / file).is_file() for file in video["files"])


def test_options_reach_the_results(home: Path):
    submit("walk.mp4", "--from", "2", "--to", "0.4s", "--every", "3", "--height", "128", "--min-score", "0.1",
           "--max-people", "1", "--workers", "1", "--device", "cpu")  # fmt: skip
    (frames,) = (home / "out" / "frames").iterdir()
    options = json.loads(pq.read_schema(frames).metadata[b"posejob"])["options"]
    assert options == {"height": 128, "every": 3, "from": "2", "to": "0.4s", "min_score": 0.1, "max_people": 1}
    statuses = pq.read_table(frames)["status"].to_pylist()
    assert [frame for frame, status in enumerate(statuses) if status == "ok"] == [3, 6, 9]


def test_the_same_command_again_has_nothing_to_do(home: Path):
    submit("walk.mp4")
    before = {path: path.stat().st_mtime_ns for path in (home / "out").rglob("*")}
    counted, nothing, *_ = submit("walk.mp4").out.splitlines()
    assert (counted, nothing) == (
        "1 video, 12 frames, 12 people found",
        "all of it done by an earlier run, nothing to do",
    )
    assert {path: path.stat().st_mtime_ns for path in (home / "out").rglob("*")} == before
    again = submit("walk.mp4", "--json").json
    assert (again["frames_inferred"], again["frames"], again["people"]) == (0, 12, 12)


def test_how_chunks_are_cut_and_who_works_is_no_other_job(home: Path):
    submit("walk.mp4")
    assert "nothing to do" in submit("walk.mp4", "--chunk-frames", "5", "--workers", "1", "--device", "AUTO").out


def test_another_job_in_the_same_folder_is_refused_with_what_differs(home: Path):
    submit("walk.mp4")
    assert refused("walk.mp4", "--every", "2") == (
        f"output folder {home}/out: holds another job: --every was 1, is 2; "
        "use another folder, or --overwrite to start afresh"
    )


def test_overwrite_starts_afresh(home: Path):
    submit("walk.mp4")
    (home / "out" / "notes.txt").touch()
    ended = submit("walk.mp4", "--every", "2", "--overwrite")
    assert "6 frames inferred" in ended.out
    assert (home / "out" / "notes.txt").exists()
    assert posejob("verify", "out").out == "out: whole\n"


# Inputs that are none


def test_a_wrong_path_beside_a_good_video(home: Path):
    ended = submit("nothing.mp4", "walk.mp4", code=1)
    assert ended.err.splitlines()[0] == "not used: nothing.mp4: no such file or folder"
    assert ended.err.count("nothing.mp4") == 1
    assert ended.out.splitlines()[0] == "1 video, 12 frames, 12 people found"
    assert posejob("verify", "out").out == "out: whole\n"


@pytest.mark.parametrize(
    ("inputs", "line"),
    [
        (["nothing.mp4"], "nothing.mp4: no such file or folder"),
        (["*.avi"], "*.avi: no video or picture matches this pattern"),
        (["empty"], "empty: no videos or pictures in this folder"),
        (["a.mp4", "b.mp4"], "a.mp4: no such file or folder; b.mp4: no such file or folder"),
        (["a" * 300], "a" * 300 + ": no such file or folder"),
    ],
)
def test_nothing_but_wrong_paths(home: Path, inputs: list[str], line: str):
    (home / "empty").mkdir()
    assert refused(*inputs) == line
    assert not (home / "out").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", r"empty file \(0 bytes\); copy or record it again"),
        (b"Dear diary, today I filmed nothing.\n" * 20, r"not a video that can be read \(.+\)"),
    ],
    ids=["empty", "text"],
)
def test_a_file_that_is_no_video_fails_and_the_others_are_done(home: Path, content: bytes, problem: str):
    (home / "bad.mp4").write_bytes(content)
    ended = submit("bad.mp4", "walk.mp4", code=1)
    failed = f"failed: {re.escape((home / 'bad.mp4').as_uri())}: {problem}"
    assert len([line for line in ended.err.splitlines() if re.fullmatch(failed, line)]) == 1
    assert ended.out.splitlines()[0] == "2 videos (1 failed), 12 frames, 12 people found"
    again = submit("bad.mp4", "walk.mp4", code=1).out.splitlines()
    assert again[1] == "all of it done by an earlier run, nothing to do"
    assert re.fullmatch(failed, again[2])


def test_nothing_but_a_file_that_is_no_video(home: Path):
    (home / "bad.mp4").touch()
    ended = submit("bad.mp4", code=1)
    assert ended.out.splitlines()[0] == "1 video (1 failed), 0 frames, 0 people found"


# What stops a job before it starts


def test_a_model_that_is_not_there(home: Path):
    assert refused("walk.mp4", "--model", "nets/none.xml") == (
        f"model none.xml not found; looked in {home}/nets; no such file"
    )
    assert refused("walk.mp4", "--model", "none").startswith(
        "model none not found; looked in posejob's own list; known: human-pose-estimation-0001"
    )
    assert not (home / "out").exists()


def test_a_device_that_is_not_there(home: Path):
    assert re.fullmatch(
        r"--device ABACUS: not on this machine; OpenVINO finds .*CPU.*", refused("walk.mp4", "--device", "ABACUS")
    )


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--from", "soon"], "--from 'soon': expected a frame number (120), seconds (12.5s) or a time (00:01:23.5)"),
        (["--to", "12.5"], "--to '12.5': expected a frame number (120), seconds (12.5s) or a time (00:01:23.5)"),
        (["--from", "5", "--to", "5"], "--from 5 --to 5: nothing lies between them"),
        (["--every", "0"], "--every 0: expected a whole number from 1 up"),
        (["--height", "100"], "--height 100: must be a multiple of 8, try 96"),
        (["--height", "5"], "--height 5: must be a multiple of 8, try 8"),
        (["--min-score", "2"], "--min-score 2.0: expected a number between 0 and 1"),
        (["--workers", "0"], "--workers 0: expected a whole number from 1 up"),
        (["--chunk-frames", "0"], "--chunk-frames 0: expected a whole number from 1 up"),
        (["--max-people", "0"], "--max-people 0: expected a whole number from 1 up"),
    ],
)
def test_a_flag_that_cannot_be(home: Path, args: list[str], line: str):
    assert refused("walk.mp4", *args) == line
    assert not (home / "out").exists()


@pytest.mark.parametrize("args", [["--height", "tall"], ["--no-such-flag"], ["--every"]])
def test_a_flag_that_is_not_understood_is_named(home: Path, args: list[str]):
    ended = submit("walk.mp4", *args, code=2)
    assert args[0] in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    ("out", "line"),
    [
        ("/proc/posejob", "output folder /proc/posejob: cannot write there (no such file or directory); "
                          "choose a folder you can write to"),
        ("walk.mp4", "output folder {home}/walk.mp4: is a file, not a folder"),
        ("walk.mp4/out", "output folder {home}/walk.mp4/out: is a file, not a folder"),
        ("films", "output folder {home}/films: is not empty and holds no posejob job; choose another folder"),
    ],
)  # fmt: skip
def test_an_output_folder_that_cannot_be(home: Path, out: str, line: str, more: list[str]):
    (home / "films").mkdir()
    (home / "films" / "holiday.mp4").touch()
    before = everything(home)
    assert refused(str(home / "walk.mp4"), "--out", str(home / out), *more) == line.format(home=home)
    assert everything(home) == before


def test_an_output_folder_whose_name_is_no_utf8(home: Path):
    assert refused("walk.mp4", "--out", os.fsdecode(b"caf\xe9")) == (
        rf"output folder {home}/caf\xe9: "
        "its path is not UTF-8, and Parquet readers open no other; choose another folder"
    )
    assert everything(home) == {"walk.mp4", "net.xml", "net.bin", "net.toml"}


def test_overwrite_does_not_touch_pictures_that_lie_in_a_folder_called_frames(home: Path):
    (home / "film" / "frames").mkdir(parents=True)
    (home / "film" / "frames" / "1.png").touch()
    assert refused("walk.mp4", "--out", "film", "--overwrite") == (
        f"output folder {home}/film: is not empty and holds no posejob job; choose another folder"
    )
    assert everything(home / "film") == {"frames", "frames/1.png"}


def test_a_full_disk_stops_the_job_and_says_how_to_go_on(home: Path, monkeypatch: pytest.MonkeyPatch):
    link = os.link

    def full_disk(source: Path, target: Path) -> None:
        if target.name.endswith(".chunk"):
            raise OSError(28, os.strerror(28))
        link(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full_disk)
        ended = submit("walk.mp4", code=2)
    problem, advice = ended.err.splitlines()[-2:]
    assert re.fullmatch(
        rf"posejob: {home}/out/_chunks/\w+\.chunk: cannot be stored \(no space left on device\)", problem
    )
    assert advice == "posejob: what is done is kept; run the same command again when this is mended"
    assert "12 people found" in submit("walk.mp4").out


# Stopped


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(
    home: Path, stopping: StartExecutor, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(cli, "_start_ray", stopping)
        ended = submit("walk.mp4", code=130)
    assert ended.err.splitlines()[-1] == STOPPED
    assert ended.out == ""
    assert posejob("status", "out").out.splitlines()[-1] == (
        "not done: 1 of 3 chunks; run the same command again to go on"
    )
    assert refusal_of_verify("out") == "its job is not done; run the same `posejob submit` again"
    ended = submit("walk.mp4", "--json")
    assert ended.err == "1 video, 12 frames in 3 chunks, 4 of them done by an earlier run\n"
    assert (ended.json["frames_inferred"], ended.json["frames"]) == (8, 12)


def test_a_job_goes_on_when_the_network_is_named_by_another_path(
    home: Path, stopping: StartExecutor, monkeypatch: pytest.MonkeyPatch
):
    shutil.copy("walk.mp4", "again.mp4")
    with monkeypatch.context() as patch:
        patch.setattr(cli, "_start_ray", stopping)
        submit("walk.mp4", "again.mp4", "--chunk-frames", "12", code=130)
    assert len([*(home / "out" / "poses").iterdir()]) == 1
    submit("walk.mp4", "again.mp4", "--model", str(home / "net.xml"))
    assert posejob("verify", "out").out == "out: whole\n"
    stored = [pq.read_schema(file).metadata[b"posejob"] for file in (home / "out" / "poses").iterdir()]
    assert [json.loads(text)["model"]["name"] for text in stored] == ["net.xml", "net.xml"]


def test_ctrl_c_while_planning(home: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.run.prepare", stop)
    assert submit("walk.mp4", code=130).err.splitlines()[-1] == STOPPED
    assert not (home / "out").exists()


# What else the surroundings may do


def test_a_working_directory_that_is_gone(home: Path):
    (home / "gone").mkdir()
    os.chdir(home / "gone")
    (home / "gone").rmdir()
    line = "the working directory is not there any more; change to another one"
    assert refused(str(home / "walk.mp4")) == line
    assert refused(str(home / "walk.mp4"), "--out", str(home / "out")) == line
    ended = submit(str(home / "walk.mp4"), "--out", str(home / "out"), "--model", str(home / "net.xml"))
    assert "12 people found" in ended.out


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "/tmp/x"), "/tmp/x: no space left on device"),
        (OSError(18, "Invalid cross-device link", b"/a", None, "/b\n"), r"/a: /b\n: invalid cross-device link"),
        (OSError(24, "Too many open files"), "too many open files"),
        (OSError("a tale"), "a tale"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_error_that_nobody_foresaw_is_a_line(home: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, line: str):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("jobs.run.prepare", fail)
    assert refused("walk.mp4") == line


# Dry run


def test_a_dry_run_prints_the_plan_and_creates_nothing(home: Path):
    (home / "bad.mp4").touch()
    before = everything(home.parent)
    ended = submit("walk.mp4", "bad.mp4", "nothing.mp4", "--dry-run", "--every", "2")
    model, bad, walk, totals, estimate = ended.out.splitlines()
    assert model == "model net.xml, height 256"
    assert bad == f"  {(home / 'bad.mp4').as_uri()}: cannot be used: empty file (0 bytes); copy or record it again"
    assert walk == f"  {(home / 'walk.mp4').as_uri()}: 192x144, 6 of 12 frames, 3 chunks"
    assert totals == "2 videos, 6 frames, 3 chunks"
    assert re.fullmatch(r"estimated \d+\.\d s on this machine \(\d+ frames/s\)", estimate)
    assert ended.err == "not used: nothing.mp4: no such file or folder\n"
    assert everything(home.parent) == before


def test_a_dry_run_as_json_is_the_plan_that_would_be_made(home: Path):
    planned = submit("walk.mp4", "nothing.mp4", "--dry-run", "--json").json
    assert not (home / "out").exists()
    assert planned.pop("estimated_s") >= 0
    assert planned.pop("problems") == [["nothing.mp4", "no such file or folder"]]
    submit("walk.mp4")
    assert planned == json.loads((home / "out" / "plan.json").read_text())


def test_a_dry_run_with_nothing_to_look_at_estimates_nothing(home: Path):
    (home / "bad.mp4").touch()
    assert "estimated" not in submit("bad.mp4", "--dry-run").out
    assert submit("bad.mp4", "--dry-run", "--json").json["estimated_s"] is None


# Status and verify


def refusal_of_verify(out: str) -> str:
    ended = posejob("verify", out, code=2)
    (line,) = ended.err.splitlines()
    assert ended.out == ""
    return line.removeprefix(f"posejob: output folder {out}: ")


def test_status_of_a_finished_job(home: Path):
    (home / "bad.mp4").touch()
    submit("walk.mp4", "bad.mp4", code=1)
    status = posejob("status", "out", "--json").json
    assert {name: status[name] for name in ("done", "chunks_done", "chunks", "status")} == {
        "done": True,
        "chunks_done": 3,
        "chunks": 3,
        "status": {"ok": 1, "failed": 1},
    }
    bad, walk = status["videos"]
    assert walk == {"video_id": walk["video_id"], "chunks_done": 3, "chunks": 3, "frames": 12}
    assert posejob("status", "out").out.splitlines() == [
        f"{bad['video_id']}: 0/0 chunks, 0 frames",
        f"{walk['video_id']}: 3/3 chunks, 12 frames",
        "done: 1 failed, 1 ok",
    ]


def test_verify_proves_a_folder_whole_or_says_what_is_not(home: Path):
    submit("walk.mp4")
    assert posejob("verify", "out").out == "out: whole\n"
    assert posejob("verify", "out", "--json").json == {"whole": True, "problems": []}
    (home / "out" / "plan.json").unlink()
    assert posejob("verify", "out", code=1).out == "plan.json: missing\n"
    assert posejob("verify", "out", "--json", code=1).json == {"whole": False, "problems": ["plan.json: missing"]}


@pytest.mark.parametrize("command", ["status", "verify"])
def test_a_folder_without_a_job(home: Path, command: str):
    ended = posejob(command, "nowhere", code=2)
    assert ended.err == "posejob: output folder nowhere: no posejob job in it\n"
    assert ended.out == ""


# Models


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """The only network posejob knows, in two variants: FP32 is in the mirror, FP16 nowhere and not to be fetched."""
    file = ModelFile("tiny.xml", 6, hashlib.sha384(b"<net/>").hexdigest(), None)
    variants = (Variant("FP32", (file,)), Variant("FP16", (file,)))
    manifest = replace(read_manifest(MANIFEST, "tiny"), name="tiny", variants=variants)
    monkeypatch.setattr(registry, "known_manifests", lambda: [manifest])
    folder = tmp_path / "mirror" / "tiny" / "FP32"
    folder.mkdir(parents=True)
    (folder / "tiny.xml").write_bytes(b"<net/>")
    return manifest


def test_models_list_says_which_are_here(tmp_path: Path, tiny: Manifest):
    here = f"{tmp_path}/mirror/tiny/FP32"
    assert posejob("models", "list").out.splitlines() == [
        f"tiny/FP32  {here}",
        "tiny/FP16  not here: posejob models fetch tiny/FP16",
    ]
    common = {"license": tiny.license, "description": tiny.description}
    assert posejob("models", "list", "--json").json == {
        "models": [{"name": "tiny/FP32", "where": here} | common, {"name": "tiny/FP16", "where": ""} | common]
    }


def test_models_list_with_folders_of_somebody_else(tiny: Manifest, plain_user: Path, monkeypatch: pytest.MonkeyPatch):
    """As with `sudo -u` and the HOME of root."""
    monkeypatch.setenv(registry.MODEL_DIR_VARIABLE, str(plain_user / "mirror"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(plain_user / "cache"))
    for folder in ("mirror", "cache"):
        (plain_user / folder).mkdir(0)
    lines = posejob("models", "list").out.splitlines()
    assert [line.partition("  ")[2] for line in lines] == [
        f"not here: posejob models fetch tiny/{variant}" for variant in ("FP32", "FP16")
    ]


def test_models_verify(tmp_path: Path, tiny: Manifest):
    assert posejob("models", "verify", "tiny", "net.xml").out == "tiny/FP32: whole\nnet.xml: whole\n"
    ended = posejob("models", "verify", "tiny/FP16", code=2)
    assert ended.err == (
        f"posejob: model tiny/FP16 not found; looked in {tmp_path}/mirror/tiny/FP16, "
        f"{tmp_path}/cache/posejob/models/tiny/FP16; run `posejob models fetch`\n"
    )
    (tmp_path / "mirror" / "tiny" / "FP32" / "tiny.xml").write_bytes(b"<nut/>")
    ended = posejob("models", "verify", "tiny", code=2)
    assert re.fullmatch(r"posejob: .*/tiny\.xml: SHA-384 is .+, the manifest says .+\n", ended.err)


def test_models_fetch_says_where_they_are(tmp_path: Path, tiny: Manifest):
    assert posejob("models", "fetch", "tiny").out == f"tiny/FP32  {tmp_path}/mirror/tiny/FP32\n"


# The environment


def test_a_flag_is_also_an_environment_variable(home: Path):
    env = {
        "POSEJOB_MODEL": "net.xml",
        "POSEJOB_OUT": "elsewhere",
        "POSEJOB_HEIGHT": "128",
        "POSEJOB_CHUNK_FRAMES": "4",
        "POSEJOB_FROM": "2",
        "POSEJOB_TO": "8",
        "POSEJOB_JSON": "1",
        "POSEJOB_DRY_RUN": "1",
    }
    planned = posejob("submit", "walk.mp4", env=env).json
    assert planned["model"]["name"] == "net.xml"
    assert planned["chunk_frames"] == 4
    assert {name: planned["options"][name] for name in ("height", "from", "to")} == {
        "height": 128,
        "from": "2",
        "to": "8",
    }
    posejob("submit", "walk.mp4", env=env | {"POSEJOB_DRY_RUN": "0"})
    assert (home / "elsewhere" / "_SUCCESS").exists()
    assert posejob("verify", "elsewhere", env={"POSEJOB_JSON": "1"}).json["whole"]


def test_flags_beat_the_environment(home: Path):
    planned = submit("walk.mp4", "--height", "64", "--dry-run", "--json", env={"POSEJOB_HEIGHT": "128"}).json
    assert planned["options"]["height"] == 64


def test_a_variable_that_cannot_be_is_named(home: Path):
    ended = submit("walk.mp4", code=2, env={"POSEJOB_HEIGHT": "tall"})
    assert "--height" in ended.err


def test_a_version_in_the_environment_is_not_ours(home: Path):
    """Images are built with POSEJOB_VERSION=1.2.3."""
    assert posejob("status", "nowhere", code=2, env={"POSEJOB_VERSION": "1.2.3"}).err.startswith("posejob: ")
    assert posejob("--version", env={"POSEJOB_VERSION": "1.2.3"}).out == f"{__version__}\n"


def test_a_forgotten_variable_does_not_discard_a_job(home: Path):
    submit("walk.mp4")
    assert "nothing to do" in submit("walk.mp4", env={"POSEJOB_OVERWRITE": "1"}).out


# Help


def commands(app: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for command in app.registered_commands:
        yield (*above, command.name or command.callback.__name__)
    for group in app.registered_groups:
        yield (*above, group.name)
        yield from commands(group.typer_instance, (*above, group.name))


@pytest.mark.parametrize("command", [(), *commands(cli.app)], ids=lambda command: " ".join(command) or "posejob")
def test_every_command_has_help(command: tuple[str, ...]):
    long, short = posejob(*command, "--help").out, posejob(*command, "-h").out
    assert long == short
    usage, _, sentence = long.splitlines()[:3]
    assert usage.startswith(" ".join(("Usage: posejob", *command)))
    assert re.fullmatch(r"  [A-Z].+", sentence)


def test_every_option_of_submit_says_what_it_does():
    text = " ".join(posejob("submit", "--help").out.split())
    for flag in ("out", "device", "model", "height", "every", "from", "to", "max-people", "min-score", "workers",
                 "chunk-frames", "overwrite", "dry-run", "json"):  # fmt: skip
        assert re.search(rf"--{flag} (<\w+> )?[A-Z]", text), flag


def test_without_a_command_there_is_help():
    ended = Ended((), None)
    assert ended.code == 2
    assert "submit" in ended.out + ended.err


def test_asking_for_help_imports_nothing_slow():
    code = (
        "import sys; from typer.testing import CliRunner; from jobs.cli import app;"
        "CliRunner().invoke(app, ['submit', '--help']);"
        "print(*sorted({'ray', 'openvino', 'pyarrow', 'av', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
