"""From what the user typed to a list of sources: video files, and folders of pictures."""

import glob
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.request import url2pathname

VIDEO_SUFFIXES = frozenset(
    [
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".divx",
        ".dv",
        ".f4v",
        ".flv",
        ".h264",
        ".h265",
        ".hevc",
        ".ivf",
        ".m1v",
        ".m2ts",
        ".m2v",
        ".m4v",
        ".mjpeg",
        ".mjpg",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".nut",
        ".obu",
        ".ogg",
        ".ogv",
        ".rm",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
        ".gif",
    ]
)
IMAGE_SUFFIXES = frozenset([".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"])

# What a `Source.video_id` looks like, and so the names of tables.
VIDEO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}-[0-9a-f]{12}")


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
    videos: set[Path] = set()
    images: dict[Path, set[str]] = {}
    problems: list[tuple[str, str]] = []
    excluded = Path(os.path.abspath(exclude))

    def take(path: Path, named: bool) -> bool:
        # Not resolved: a link is known by the name the user gave it.
        path = Path(os.path.abspath(path))
        if excluded in path.parents and not named:
            return False
        suffix = path.suffix.lower()
        # Pictures are read where they are found; a pipe would be waited for. What is no file is told of like a video.
        if suffix in IMAGE_SUFFIXES and os.path.isfile(path):
            images.setdefault(path.parent, set()).add(path.name)
        elif suffix in VIDEO_SUFFIXES | IMAGE_SUFFIXES or named:
            videos.add(path)
        else:
            return False
        return True

    def take_folder(folder: Path) -> bool:
        found = False
        for parent, folders, names in os.walk(folder, onerror=not_looked_into):
            for name in folders:
                if os.path.islink(os.path.join(parent, name)) and not name.startswith("."):
                    problems.append((shown(os.path.join(parent, name)), "a link to a folder; name the folder itself"))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            # Also what is no file, a link that leads nowhere say: a video that cannot be read is told of.
            found |= any([take(Path(parent, name), named=False) for name in names if not name.startswith(".")])
        return found

    def not_looked_into(error: OSError) -> None:
        problems.append((shown(error.filename), f"cannot be looked into ({(error.strerror or str(error)).lower()})"))

    for text in inputs:
        if text.startswith("file://"):
            text = url2pathname(text.removeprefix("file://"))
        elif "://" in text:
            problems.append((shown(text), "only files that this machine can see are read"))
            continue
        path = Path(text)
        if os.path.isdir(text):
            if not take_folder(path):
                problems.append((shown(text), "no videos or pictures in this folder"))
        elif os.path.lexists(text):
            take(path, named=True)
        elif glob.has_magic(text):
            matches = [Path(match) for match in glob.glob(text, recursive=True)]
            found = [take_folder(match) if os.path.isdir(match) else take(match, named=False) for match in matches]
            if not any(found):
                problems.append((shown(text), "no video or picture matches this pattern"))
        else:
            problems.append((shown(text), "no such file or folder"))
    sources = [Source(path) for path in videos]
    sources += [Source(folder, tuple(sorted(names))) for folder, names in images.items()]
    return Discovered(tuple(sorted(sources, key=lambda source: os.fsencode(source.path))), tuple(problems))


def shown(text: Path | str) -> str:
    """A path, or a text from a file, for one line of a message: other than printable characters are escaped."""
    return "".join(c if c.isprintable() else _escaped(c) for c in os.fspath(text))


def _escaped(c: str) -> str:
    # Bytes of a name that are no UTF-8 come as these.
    return f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c.encode("unicode_escape").decode()
