"""The output folder: what is done, and the one way anything gets into it.

A file is written under `_tmp/` with a name of its own, flushed to disk, and published with one hard link, which fails
if the name is taken. Who comes second discards its copy. Nothing is appended to, nothing overwritten: a name either
is not there or is whole, unless the disk damages it; what is damaged is replaced by one rename.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from jobs.discover import VIDEO_ID, shown
from jobs.errors import OutputError, SinkError
from posecore.errors import reason

PLAN, MANIFEST, SUCCESS = "plan.json", "manifest.json", "_SUCCESS"
TABLES = ("poses", "frames")
_WORKING = ("_chunks", "_tmp")
_CHUNK_SUFFIX, _ASIDE_SUFFIX = ".chunk", ".manifest"
_PROBE = "_probe."

# A stranger's plan or manifest must not fill the memory, and parsing one takes four times its size. Ours are never so
# large: while one is written, nine times its size is in use.
_MAX_TEXT_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8


class Ledger:
    """An output folder. Cheap to make and to pickle; touches nothing until a method is called."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def prepare(self) -> None:
        """Make the folders and try the commit protocol once in each. Raises OutputError."""
        try:
            str(self.out).encode()
        except UnicodeEncodeError as error:
            problem = "its path is not UTF-8, and Parquet readers open no other; choose another folder"
            raise OutputError(shown(self.out), problem) from error
        self.refuse_links()
        try:
            for name in (*TABLES, *_WORKING):
                (self.out / name).mkdir(parents=True, exist_ok=True)
            with self._temporary("probe") as tmp:
                tmp.write_bytes(b"")
                for folder in (*TABLES, "_chunks", "."):
                    self._probe(tmp, folder)
        except (FileExistsError, NotADirectoryError) as error:
            raise self._no_folder() from error
        except OSError as error:
            raise OutputError(
                str(self.out), f"cannot write there ({reason(error)}); choose a folder you can write to"
            ) from error

    def _probe(self, tmp: Path, folder: str) -> None:
        """Link once from `_tmp` into a folder: what cannot be published there should be known before the work."""
        for left in (self.out / folder).glob(f"{_PROBE}*"):
            left.unlink(missing_ok=True)
        probe = self.out / folder / f"{_PROBE}{uuid.uuid4().hex}"
        try:
            os.link(tmp, probe)
        except OSError as error:
            if error.errno == errno.EXDEV:
                problem = f"{folder} is a mount of its own, and results are put there by a hard link; unmount it"
            elif error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                problem = "its file system makes no hard links, by which results are published"
            else:
                raise
            raise OutputError(str(self.out), f"{problem} or choose another folder") from error
        probe.unlink(missing_ok=True)

    def refuse_links(self) -> None:
        """Raise OutputError if anything of a job's is a symbolic link: what it leads to is not ours to read or remove.

        The output folder itself may be one.
        """
        names = [PLAN, MANIFEST, SUCCESS, *TABLES, *_WORKING]
        for folder in TABLES:
            with contextlib.suppress(OSError):
                entries = sorted(os.listdir(self.out / folder))
                names += [f"{folder}/{entry}" for entry in entries if entry.endswith(".parquet")]
        for name in names:
            if os.path.islink(self.out / name):
                raise OutputError(
                    str(self.out), f"{shown(name)} is a symbolic link, which posejob does not follow; remove the link"
                )

    def clear(self) -> None:
        """Remove a job's files, and nothing else, so that a new one can start. Raises OutputError.

        The plan, which says whose they are, goes last.
        """
        self.refuse_links()
        try:
            for name in (SUCCESS, MANIFEST):
                self.discard(name)
            self.clean()
            for folder in TABLES:
                for table in (self.out / folder).glob("*.parquet"):
                    if VIDEO_ID.fullmatch(table.stem):
                        table.unlink()
            self.discard(PLAN)
        except OSError as error:
            raise OutputError(str(self.out), f"cannot be cleared ({reason(error)})") from error

    def foreign(self) -> bool:
        """Whether the folder holds something of somebody else's and no job. Raises OutputError.

        A run that was stopped before there was a plan leaves folders with nothing in them, or with a probe.
        """
        with self._reading("the folder"):
            entries = {entry for entry in os.listdir(self.out) if not entry.startswith(_PROBE)}
            if PLAN in entries:
                return False
            filled = any(
                not entry.startswith(_PROBE) for name in entries & {*TABLES} for entry in os.listdir(self.out / name)
            )
            return filled or not entries <= {*TABLES, *_WORKING}
        return False

    # --- what is there ---

    def read_bytes(self, name: str) -> bytes | None:
        """Content of plan.json, manifest.json or _SUCCESS, None if it is not there. Raises OutputError."""
        return self._read(name, _MAX_TEXT_BYTES)

    def read_chunk(self, key: str) -> bytes | None:
        """Content of a chunk, None if it is not there. Raises OutputError.

        However large: its worker has held it in memory, and who merges it will.
        """
        return self._read(chunk_name(key), None)

    def _read(self, name: str, most: int | None) -> bytes | None:
        with self._reading(name), _opened(self.out / name) as file:
            size = os.fstat(file.fileno()).st_size
            if most is not None and size > most:
                problem = f"its {name} has {size:,} bytes, more than fits into this machine's memory"
                raise OutputError(str(self.out), problem)
            return file.read()
        return None

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Leave the block when `what` is not there; OutputError when it cannot be read."""
        try:
            yield
        except FileNotFoundError:
            pass
        except NotADirectoryError as error:
            raise self._no_folder() from error
        except ValueError as error:
            raise OutputError(str(self.out), f"is no path ({error})") from error
        except OSError as error:
            raise OutputError(str(self.out), f"cannot read {what} ({reason(error)})") from error

    def _no_folder(self) -> OutputError:
        for name in (*TABLES, *_WORKING):
            if os.path.lexists(self.out / name) and not os.path.isdir(self.out / name):
                problem = f"{name} in it is a file, not a folder; remove it or choose another folder"
                return OutputError(str(self.out), problem)
        return OutputError(str(self.out), "is a file, not a folder")

    def digest(self, name: str) -> str | None:
        """SHA-256 of a published file, None if it is not there or cannot be read to its end."""
        try:
            return sha256(self.out / name)
        except OSError:
            return None

    def digests(self) -> frozenset[str]:
        """The SHA-256 digests in this job's manifests, those set aside included. A file that has one of them is whole,
        whatever else has become of the manifest."""
        aside = [f"_chunks/{entry}" for entry in self._chunk_entries() if entry.endswith(_ASIDE_SUFFIX)]
        texts = (self.read_bytes(name) or b"" for name in (MANIFEST, *aside))
        return frozenset(found.decode() for text in texts for found in re.findall(rb"\b[0-9a-f]{64}\b", text))

    def path(self, name: str) -> Path:
        return self.out / name

    def sealed(self) -> bool:
        """Whether the job is done as far as `_SUCCESS` says."""
        return os.path.lexists(self.out / SUCCESS)

    def committed(self) -> set[str]:
        """Keys of the chunks that are done."""
        entries = self._chunk_entries()
        return {entry.removesuffix(_CHUNK_SUFFIX) for entry in entries if entry.endswith(_CHUNK_SUFFIX)}

    def _chunk_entries(self) -> list[str]:
        with self._reading("_chunks"):
            return os.listdir(self.out / "_chunks")
        return []

    # --- what gets in ---

    def publish_bytes(self, name: str, data: bytes) -> bool:
        """Publish `data` as `name`; False if the name was taken. Raises SinkError if storing fails."""
        with _storing(self.out / name), self._temporary(Path(name).name) as tmp:
            tmp.write_bytes(data)
            return self._publish(tmp, name)

    def commit_chunk(self, key: str, data: bytes) -> bool:
        """Publish a chunk's result; False if somebody else was first."""
        return self.publish_bytes(chunk_name(key), data)

    @contextlib.contextmanager
    def publishing(self, name: str) -> Iterator[Path]:
        """A temporary path to write to; published as `name` when the block ends.

        A name that is taken keeps its file if that has the same bytes, left by a run that was stopped after publishing
        it. One with other bytes is damaged, or from another kind of CPU than the chunks, and is replaced: SinkError if
        the job has been declared done meanwhile.
        """
        with _storing(self.out / name), self._temporary(Path(name).name) as tmp:
            yield tmp
            if self._publish(tmp, name) or self.digest(name) == sha256(tmp):
                return
            if self.sealed():
                raise SinkError(f"{self.out / name}: is there already with other content, in a job that is done")
            self._replace(tmp, name)

    # --- what goes out, because it is damaged or done with ---

    def mend(self, name: str, data: bytes) -> None:
        """Put `data` in place of a published file that is damaged. Raises SinkError."""
        with _storing(self.out / name), self._temporary(Path(name).name) as tmp:
            tmp.write_bytes(data)
            self._replace(tmp, name)

    def unseal(self, manifest: bytes | None, keep: bool) -> bool:
        """Declare a job not done: take `_SUCCESS` away, and the manifest if it is not to be kept. False, and nothing
        happens, if the manifest is not `manifest` any more.

        It goes first, to `_chunks/`, where its digests go on proving the tables that are whole. So a run that is
        stopped anywhere leaves a folder that is not done and has lost no proof. Raises SinkError.
        """
        if self.read_bytes(MANIFEST) != manifest:
            return False
        with _storing(self.out / MANIFEST):
            if manifest is not None and not keep:
                aside = self.out / "_chunks" / f"{uuid.uuid4().hex}{_ASIDE_SUFFIX}"
                with contextlib.suppress(FileNotFoundError):
                    os.rename(self.out / MANIFEST, aside)
                _flush(aside.parent)
            self.discard(SUCCESS)
            _flush(self.out)
        return True

    def discard(self, name: str) -> None:
        """Remove a file. Raises OSError."""
        (self.out / name).unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove the working folders of a job that is done. Raises OSError.

        A worker may still be at it that nobody waits for any more. Without `_tmp` under its name it can neither begin
        nor publish anything, so that goes first and in one step.
        """
        if os.path.lexists(self.out / "_tmp"):
            (self.out / "_chunks").mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.out / "_tmp", self.out / "_chunks" / f"tmp.{uuid.uuid4().hex}")
        _remove_tree(self.out / "_chunks")

    @contextlib.contextmanager
    def _temporary(self, stem: str) -> Iterator[Path]:
        tmp = self.out / "_tmp" / f"{stem}.{uuid.uuid4().hex}"
        try:
            yield tmp
        finally:
            with contextlib.suppress(OSError):
                tmp.unlink(missing_ok=True)

    def _publish(self, tmp: Path, name: str) -> bool:
        target = self.out / name
        try:
            _flush(tmp)
            os.link(tmp, target)
            _flush(target.parent)
        except FileExistsError:
            return False
        return True

    def _replace(self, tmp: Path, name: str) -> None:
        _flush(tmp)
        os.replace(tmp, self.out / name)
        _flush((self.out / name).parent)


def chunk_name(key: str) -> str:
    """Where a chunk's result is published, relative to the output folder."""
    return f"_chunks/{key}{_CHUNK_SUFFIX}"


def table_names(video_id: str) -> list[str]:
    """Where a video's tables are published, relative to the output folder: poses, frames."""
    return [f"{kind}/{video_id}.parquet" for kind in TABLES]


def seal(manifest: bytes) -> bytes:
    """Content of `_SUCCESS` over the bytes of a manifest."""
    return (json.dumps({"manifest_sha256": hashlib.sha256(manifest).hexdigest()}) + "\n").encode()


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes. Raises OSError, also for what is not a regular file."""
    with _opened(path) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """A file to read; links are not followed and pipes not waited for. Raises OSError."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise OSError("not a regular file")
        yield opened


def _remove_tree(folder: Path) -> None:
    """Remove a folder that others may be removing, or filling, at the same time; what outlasts that stays for the next
    run."""
    for _ in range(20):
        try:
            shutil.rmtree(folder)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise
        if not os.path.lexists(folder):
            return


@contextlib.contextmanager
def _storing(target: Path) -> Iterator[None]:
    """A full disk strikes while writing as well as while publishing; either is a SinkError."""
    try:
        yield
    except OSError as error:
        raise SinkError(f"{target}: cannot be stored ({reason(error)})") from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
