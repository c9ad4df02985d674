"""From what the user typed to a list of sources: video files, and folders of pictures."""

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import url2pathname

from posecore.errors import reason

VIDEO_SUFFIXES = (
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264", ".h265", ".hevc", ".ivf", ".m1v",
    ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".obu",
    ".ogg", ".ogv", ".rm", ".ts", ".vob", ".webm", ".wmv", ".y4m",
)  # fmt: skip
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# What a `Source.video_id` looks like, and so the names of tables.
VIDEO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}-[0-9a-f]{12}")

# `**` as a part of a pattern: any number of folders.
_DEEP = re.compile(r"(?:^|/)(?:\*\*(?:/+|$))+")


@dataclass(frozen=True)
class Source:
    """One input that becomes one `video`.

    path:   the video file, or the folder of the pictures; absolute.
    images: the pictures' file names in name order; None for a video file.
    """

    path: Path
    images: tuple[str, ...] | None = None

    @property
    def uri(self) -> str:
        """The identity of a source, from its absolute path. Bytes that are no UTF-8 are percent-encoded."""
        return self.path.as_uri()

    @property
    def video_id(self) -> str:
        """A name for files and tables: the sanitised stem and 12 digits of the URI's SHA-256, so that two sources of
        one name never collide. Never starts with `_` or `.`, which Parquet readers skip."""
        stem = self.path.name if self.images is not None else self.path.stem
        clean = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).lstrip("._-")[:80]
        return f"{clean or 'video'}-{hashlib.sha256(self.uri.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Discovered:
    """sources: sorted by path, each once. problems: (what was typed, what is wrong with it)."""

    sources: tuple[Source, ...]
    problems: tuple[tuple[str, str], ...]


def discover(inputs: Iterable[str], exclude: Path) -> Discovered:
    """Resolve files, folders (with all below them) and globs. Nothing under `exclude`, the output folder, is an input.

    In folders and globs only names with a known suffix count; a file named outright is taken as a video whatever its
    name. Pictures are grouped by folder.
    """
    search = _Search(exclude)
    for text in inputs:
        search.look_for(text)
    return search.found()


class _Search:
    """What has been found so far, from input to input."""

    def __init__(self, exclude: Path) -> None:
        self._excluded = Path(os.path.abspath(exclude))
        self._videos: set[Path] = set()
        self._images: dict[Path, set[str]] = {}
        # In the order they came, each once: two patterns may lead to the same folder.
        self._problems: dict[tuple[str, str], None] = {}

    def found(self) -> Discovered:
        sources = [Source(path) for path in self._videos]
        sources += [Source(folder, tuple(sorted(names))) for folder, names in self._images.items()]
        return Discovered(tuple(sorted(sources, key=lambda source: os.fsencode(source.path))), tuple(self._problems))

    def look_for(self, text: str) -> None:
        """One input as it was typed."""
        if text.startswith("file://"):
            text = url2pathname(text.removeprefix("file://"))
        elif "://" in text:
            self._tell(text, "only files that this machine can see are read")
            return
        if os.path.isdir(text):
            if not self._take_folder(text):
                self._tell(text, "no videos or pictures in this folder")
        elif os.path.lexists(text):
            self._take(text, named=True)
        elif glob.has_magic(text) and "\0" not in text:
            # All of them, not up to the first that is one.
            if not any([self._take_match(match) for match in self._matches(text)]):
                self._tell(text, "no video or picture matches this pattern")
        else:
            self._tell(text, "no such file or folder")

    def _tell(self, text: str, problem: str) -> None:
        self._problems[shown(text), problem] = None

    def _take(self, name: str, named: bool) -> bool:
        # Not resolved: a link is known by the name the user gave it.
        path = Path(os.path.abspath(name))
        if self._excluded in path.parents and not named:
            return False
        suffix = path.suffix.lower()
        # Pictures are read where they are found; a pipe would be waited for. What is no file is told of like a video.
        if suffix in IMAGE_SUFFIXES and os.path.isfile(path):
            self._images.setdefault(path.parent, set()).add(path.name)
        elif suffix in VIDEO_SUFFIXES + IMAGE_SUFFIXES or named:
            self._videos.add(path)
        else:
            self._tell_if_closed(name)
            return False
        return True

    def _take_match(self, name: str) -> bool:
        return self._take_folder(name) if os.path.isdir(name) else self._take(name, named=False)

    def _take_folder(self, folder: str) -> bool:
        # Also what is no file, a link that leads nowhere say: a video that cannot be read is told of.
        names = [os.path.join(parent, name) for parent, names in self._walk(folder) for name in names]
        return any([self._take(name, named=False) for name in names])

    def _walk(self, folder: str) -> Iterator[tuple[str, list[str]]]:
        """A folder and all below it, each with the names of what is in it; without what is hidden.

        Links to folders are told of and not followed: one that leads upwards has no end.
        """
        for parent, folders, names in os.walk(folder, onerror=self._tell_of_closed):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in folders:
                self._is_link_to_folder(os.path.join(parent, name))
            yield parent, [name for name in names if not name.startswith(".")]

    def _matches(self, pattern: str) -> list[str]:
        """Like `glob.glob(recursive=True)`, but from the first `**` on no link to a folder is followed."""
        above, *rest = _DEEP.split(pattern)
        found = glob.glob(above or ("/" if pattern.startswith("/") else "."))
        for below in rest:
            found = [folder for folder in found if os.path.isdir(folder)]
            if below:
                parents = {parent for folder in found for parent, _ in self._walk(folder)}
                found = sorted({match for parent in sorted(parents) for match in self._matches_in(parent, below)})
        return sorted(found)

    def _matches_in(self, folder: str, pattern: str) -> Iterator[str]:
        for match in glob.glob(pattern, root_dir=folder):
            parts = Path(match).parts
            steps = (os.path.join(folder, *parts[: i + 1]) for i in range(len(parts)))
            if not any(map(self._is_link_to_folder, steps)):
                yield os.path.join(folder, match)

    def _is_link_to_folder(self, name: str) -> bool:
        if not (os.path.islink(name) and os.path.isdir(name)):
            return False
        self._tell(name, "a link to a folder; name the folder itself")
        return True

    def _tell_if_closed(self, name: str) -> None:
        """What has no video's name may be a folder that this user cannot see as one."""
        try:
            os.stat(name)
        except PermissionError as error:
            self._tell_of_closed(error)
        except OSError:
            pass

    def _tell_of_closed(self, error: OSError) -> None:
        self._tell(error.filename, f"cannot be looked into ({reason(error)})")


def shown(text: Path | str) -> str:
    """A path, or a text from a file, for one line of a message: other than printable characters are escaped."""
    return "".join(c if c.isprintable() else _escaped(c) for c in os.fspath(text))


def _escaped(c: str) -> str:
    # Bytes of a name that are no UTF-8 come as these.
    return f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c.encode("unicode_escape").decode()
