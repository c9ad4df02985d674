import errno
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.discover import Discovered, Source, discover, shown


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's working directory."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def touch(*paths: Path | str) -> None:
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def find(*inputs: str, out: str = "out") -> Discovered:
    return discover(inputs, exclude=Path(out))


def names(found: Discovered) -> list[str]:
    """Sources relative to the working directory, pictures after a colon."""
    return [
        os.path.relpath(source.path) + ("" if source.images is None else ": " + " ".join(source.images))
        for source in found.sources
    ]


# Files


def test_a_file_is_a_source_with_an_absolute_path(home: Path):
    touch("walk.mp4")
    assert find("walk.mp4") == Discovered((Source(home / "walk.mp4"),), ())


def test_a_file_named_outright_is_a_video_whatever_it_is_called(home: Path):
    touch("walk", "walk.txt", "WALK.MP4", "-walk.mp4", ".walk.mp4")
    assert names(find("walk", "walk.txt", "WALK.MP4", "-walk.mp4", ".walk.mp4")) == [
        "-walk.mp4", ".walk.mp4", "WALK.MP4", "walk", "walk.txt",
    ]  # fmt: skip


def test_sources_are_sorted_and_each_is_there_once(home: Path):
    touch("b.mp4", "a.mp4", "sub/c.mp4")
    inputs = ["b.mp4", "a.mp4", "./a.mp4", "sub/../a.mp4", str(home / "a.mp4"), "*.mp4", ".", "sub"]
    assert names(find(*inputs)) == ["a.mp4", "b.mp4", "sub/c.mp4"]
    assert find(*inputs) == find(*reversed(inputs))


def test_a_link_is_known_by_its_own_name(home: Path):
    touch("real/a.mp4")
    os.symlink(home / "real" / "a.mp4", "holiday.mp4")
    assert names(find("holiday.mp4")) == ["holiday.mp4"]
    assert find("holiday.mp4").sources[0].video_id.startswith("holiday-")
    assert names(find("holiday.mp4", "real/a.mp4")) == ["holiday.mp4", "real/a.mp4"]


def test_a_link_to_nowhere_is_left_to_whoever_opens_it(home: Path):
    os.symlink("nowhere.mp4", "link.mp4")
    assert find("link.mp4") == Discovered((Source(home / "link.mp4"),), ())


@pytest.mark.parametrize("typed", ["x.jpg", "*.jpg"])
def test_a_picture_that_is_no_file_is_left_to_whoever_opens_it(home: Path, typed: str):
    """Reading a pipe would wait for ever."""
    os.mkfifo("x.jpg")
    assert find(typed) == Discovered((Source(home / "x.jpg"),), ())


# Folders


def test_folders_are_searched_to_the_bottom(home: Path):
    touch("v/a.mp4", "v/x/b.MKV", "v/x/y/c.webm", "v/x/y/notes.txt", "v/x/y/no_suffix", "v/mp4")
    assert names(find("v")) == ["v/a.mp4", "v/x/b.MKV", "v/x/y/c.webm"]


def test_what_is_hidden_in_a_folder_is_not_meant(home: Path):
    touch("v/.a.mp4", "v/.cache/b.mp4", "v/x/.y/z/c.mp4", "v/d.mp4")
    assert names(find("v")) == ["v/d.mp4"]


def test_a_hidden_folder_named_outright_is_meant(home: Path):
    touch(".videos/a.mp4")
    assert names(find(".videos")) == [".videos/a.mp4"]


def test_what_has_a_videos_name_is_not_passed_over_in_silence(home: Path):
    """A pipe and a link that leads nowhere are videos that cannot be read; a link to a folder is not followed."""
    touch("v/a.mp4", "elsewhere/b.mp4")
    Path("v/folder.mp4").mkdir()
    os.mkfifo("v/pipe.mp4")
    Path("v/lost.mp4").symlink_to("nowhere.mp4")
    Path("v/away").symlink_to(home / "elsewhere")
    found = find("v")
    assert names(found) == ["v/a.mp4", "v/lost.mp4", "v/pipe.mp4"]
    assert found.problems == (("v/away", "a link to a folder; name the folder itself"),)


def test_a_folder_that_cannot_be_looked_into_is_told_of(home: Path, monkeypatch: pytest.MonkeyPatch):
    touch("v/a.mp4", "v/sub/b.mp4")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("sub"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find("v").problems == (("v/sub", "cannot be looked into (permission denied)"),)


@pytest.mark.parametrize("out", ["out", "./out", "v/../out", "v/out"])
def test_the_output_folder_is_no_input(home: Path, out: str):
    touch("v/a.mp4", Path(out, "rendered", "a.mp4"), Path(out, "b.png"))
    assert names(find(".", out=out)) == ["v/a.mp4"]
    assert names(find("**/*.mp4", out=out)) == ["v/a.mp4"]


def test_a_file_in_the_output_folder_that_is_named_outright_is_meant(home: Path):
    touch("out/a.mp4")
    assert names(find("out/a.mp4")) == ["out/a.mp4"]


# Patterns


def test_patterns(home: Path):
    touch("a1.mp4", "a2.mp4", "b.mp4", "a.txt", ".a.mp4", "x/y/a3.mp4", "folder_a/c.mp4", "folder_a/deep/d.mp4")
    assert names(find("a*")) == ["a1.mp4", "a2.mp4"]
    assert names(find("a[2-9].mp4")) == ["a2.mp4"]
    assert names(find("?.mp4")) == ["b.mp4"]
    assert names(find("**/a?.mp4")) == ["a1.mp4", "a2.mp4", "x/y/a3.mp4"]
    assert names(find("folder_*")) == ["folder_a/c.mp4", "folder_a/deep/d.mp4"]


def test_a_name_that_looks_like_a_pattern_is_first_of_all_a_name(home: Path):
    touch("a[1].mp4", "a1.mp4")
    assert names(find("a[1].mp4")) == ["a[1].mp4"]


def test_any_number_of_folders_in_a_pattern(home: Path):
    touch("a.mp4", "x/b.mp4", "x/y/c.mp4", "x/y/z/d.mp4", "x/.h/e.mp4", "x/[1]/f.mp4")
    every = ["a.mp4", "x/[1]/f.mp4", "x/b.mp4", "x/y/c.mp4", "x/y/z/d.mp4"]
    for pattern in ("**", "**/", "**/*", "**/*.mp4", "**/**/*.mp4", "./**", f"{home}/**/*.mp4"):
        assert names(find(pattern)) == every, pattern
    assert names(find("x/**/*.mp4")) == names(find("x/**")) == names(find("?/**//*.mp4")) == every[1:]
    assert names(find("x/y/../**/?.mp4")) == every[1:]
    assert names(find("**/y/**/*.mp4")) == every[3:]
    assert names(find("**/*/?.mp4")) == every[1:]
    assert names(find("x/y**/*.mp4")) == ["x/y/c.mp4"]
    assert find("nowhere/**").problems == (("nowhere/**", "no video or picture matches this pattern"),)


@pytest.mark.parametrize("pattern", ["v/**", "v/**/*", "v/**/*.mp4", "**/*.mp4", "v*/**/**/*", "**/*/**/*.mp4"])
def test_links_that_lead_upwards_have_no_end_and_are_not_followed(home: Path, pattern: str):
    touch("v/sub/a.mp4")
    for link in ("v/one", "v/two", "v/sub/three"):
        Path(link).symlink_to(home / "v")
    found = find(pattern)
    assert names(found) == ["v/sub/a.mp4"]
    told = {text.removeprefix("./"): problem for text, problem in found.problems}
    assert told == dict.fromkeys(["v/one", "v/sub/three", "v/two"], "a link to a folder; name the folder itself")
    assert len(found.problems) == 3


# Pictures


def test_pictures_are_one_video_a_folder_in_name_order(home: Path):
    touch("shots/b/10.png", "shots/b/9.jpg", "shots/b/A.JPEG", "shots/a/1.webp", "shots/a/clip.mp4", "shots/0.tif")
    assert names(find("shots")) == [
        "shots: 0.tif",
        "shots/a: 1.webp",
        "shots/a/clip.mp4",
        "shots/b: 10.png 9.jpg A.JPEG",
    ]


def test_pictures_named_outright_are_those_and_no_others(home: Path):
    touch("shots/1.png", "shots/2.png", "shots/3.png")
    assert names(find("shots/3.png", "shots/1.png", "shots/3.png")) == ["shots: 1.png 3.png"]
    assert names(find("shots/[23].png")) == ["shots: 2.png 3.png"]


# Problems


def test_each_input_that_is_none_is_told_with_what_was_typed(home: Path):
    touch("empty/notes.txt", "a.mp4", "notes.txt")
    found = find("missing.mp4", "a.mp4", "empty", "*.avi", "n*.txt", "missing/*", "a.mp4/b.mp4")
    assert names(found) == ["a.mp4"]
    assert found.problems == (
        ("missing.mp4", "no such file or folder"),
        ("empty", "no videos or pictures in this folder"),
        ("*.avi", "no video or picture matches this pattern"),
        ("n*.txt", "no video or picture matches this pattern"),
        ("missing/*", "no video or picture matches this pattern"),
        ("a.mp4/b.mp4", "no such file or folder"),
    )


def test_a_folder_with_nothing_but_results_in_it_has_no_videos(home: Path):
    touch("out/a.mp4")
    assert find("out") == Discovered((), (("out", "no videos or pictures in this folder"),))


@pytest.mark.parametrize("typed", ["vids", "vids/*", "vids/**", "vids/**/*", "v*/"])
def test_a_link_into_a_folder_that_is_closed_to_this_user_is_told_of(
    plain_user: Path, monkeypatch: pytest.MonkeyPatch, typed: str
):
    monkeypatch.chdir(plain_user)
    touch("vids/a.mp4", "theirs/films/b.mp4")
    Path("vids/films").symlink_to(plain_user / "theirs" / "films")
    Path("theirs").chmod(0)
    found = find(typed, "theirs/**")
    assert names(found) == ["vids/a.mp4"]
    assert {text.removeprefix("./") for text, _ in found.problems} >= {"vids/films"}
    assert ("theirs", "cannot be looked into (permission denied)") in found.problems
    assert {problem for text, problem in found.problems if "vids" in text} == {
        "cannot be looked into (permission denied)"
    }


@pytest.mark.parametrize("text", ["file:///x/%00/*.mp4", "a\0*.mp4", "**/a\0*"])
def test_a_pattern_that_cannot_be_matches_nothing(home: Path, text: str):
    touch("a.mp4")
    ((_, problem),) = find(text).problems
    assert problem == "no such file or folder"


@pytest.mark.parametrize("text", ["a" * 300 + ".mp4", "a\0b.mp4", ""])
def test_a_name_that_cannot_be_is_no_file(home: Path, text: str):
    touch("a.mp4")
    assert find(text) == Discovered((), ((shown(text), "no such file or folder"),))


def test_problems_are_one_printable_line(home: Path):
    texts = ["two\nlines.mp4", os.fsdecode(b"caf\xe9.mp4"), "tab\t.mp4", "\x1b[31mred.mp4", "日本.mp4"]
    assert [text for text, _ in find(*texts).problems] == [
        r"two\nlines.mp4",
        r"caf\xe9.mp4",
        r"tab\t.mp4",
        r"\x1b[31mred.mp4",
        "日本.mp4",
    ]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_shown_is_printable_and_what_is_printable_is_unchanged(text: str):
    assert shown(text).isprintable()
    if text.isprintable():
        assert shown(text) == text


# Identity


def test_a_video_id_is_the_stem_and_the_start_of_the_uris_sha256():
    source = Source(Path("/videos/My walk.mp4"))
    assert source.uri == "file:///videos/My%20walk.mp4"
    assert source.video_id == "My_walk-" + hashlib.sha256(b"file:///videos/My%20walk.mp4").hexdigest()[:12]


def test_pictures_are_called_like_their_folder():
    source = Source(Path("/shots/day.1"), ("a.png",))
    assert source.video_id == "day.1-" + hashlib.sha256(b"file:///shots/day.1").hexdigest()[:12]
    assert Source(Path("/"), ("a.png",)).video_id.startswith("video-")


def test_a_name_that_is_no_utf8_is_a_video_like_any_other(home: Path):
    latin = os.fsdecode(b"caf\xe9.mp4")
    touch(latin, "café.mp4")
    sources = find(".").sources
    assert [source.uri for source in sources] == [home.as_uri() + "/caf%C3%A9.mp4", home.as_uri() + "/caf%E9.mp4"]
    assert [source.video_id[:-13] for source in sources] == ["caf_", "caf_"]
    assert len({source.video_id for source in sources}) == 2


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("walk.mp4", "walk"),
        ("Walk.tar.mp4", "Walk.tar"),
        ("my walk (2).mp4", "my_walk_2_"),
        ("прыжок 7.mp4", "7"),
        ("прыжок.mp4", "video"),
        ("a\nb\tc.mp4", "a_b_c"),
        ("_private.mp4", "private"),
        ("-rf.mp4", "rf"),
        (".hidden.mp4", "hidden"),
        ("._-._-x.mp4", "x"),
        (".mp4", "mp4"),
        ("___.mp4", "video"),
        ("a" * 200 + ".mp4", "a" * 80),
        ("a/b", "b"),
        ("a-b_c.d.mp4", "a-b_c.d"),
    ],
)
def test_a_video_id_is_a_safe_file_name(name: str, stem: str):
    assert Source(Path("/videos", name)).video_id[:-13] == stem


NAMES = st.binary(min_size=1, max_size=120).filter(
    lambda name: not {0, ord("/")} & {*name} and name not in (b".", b"..")
)


@given(NAMES.map(os.fsdecode), st.booleans())
def test_any_name_gives_a_safe_video_id(name: str, pictures: bool):
    source = Source(Path("/videos") / name, ("1.png",) if pictures else None)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}-[0-9a-f]{12}", source.video_id)
    assert source.uri.isascii()


@given(st.lists(NAMES.map(os.fsdecode), min_size=2, max_size=2, unique=True))
def test_two_names_never_share_a_video_id(two: list[str]):
    assert len({Source(Path("/videos") / name).video_id for name in two}) == 2


def test_two_files_of_one_name_do_not_collide(home: Path):
    touch("monday/walk.mp4", "tuesday/walk.mp4", "walk.mkv", "walk.mp4")
    ids = [source.video_id for source in find(".").sources]
    assert len(set(ids)) == 4
    assert {video_id[:-13] for video_id in ids} == {"walk"}
