"""The output folder: what is done, and the one way anything gets into it.

A file is written under `_tmp/` with a name of its own, flushed to disk, and published with one hard link, which fails
if the name is taken. Who comes second discards its copy. Nothing is appended to, nothing overwritten: a name either
is not there or is whole.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from jobs.discover import shown
from jobs.errors import OutputError, SinkError

PLAN, MANIFEST, SUCCESS = "plan.json", "manifest.json", "_SUCCESS"
_PUBLISHED = ("poses", "frames")
_WORKING = ("_chunks", "_tmp")
_CHUNK_SUFFIX = ".chunk"


class Ledger:
    """An output folder. Cheap to make and to pickle; touches nothing until a method is called."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def prepare(self) -> None:
        """Make the folders and try the commit protocol once. Raises OutputError."""
        try:
            str(self.out).encode()
        except UnicodeEncodeError as error:
            problem = "its path is not UTF-8, and Parquet readers open no other; choose another folder"
            raise OutputError(shown(self.out), problem) from error
        try:
            for name in (*_PUBLISHED, *_WORKING):
                (self.out / name).mkdir(parents=True, exist_ok=True)
            with self._temporary("probe") as tmp:
                tmp.write_bytes(b"")
                os.link(tmp, probe := tmp.with_suffix(".link"))
                probe.unlink()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise OutputError(
                str(self.out), f"cannot write there ({reason}); choose a folder you can write to"
            ) from error

    def clear(self) -> None:
        """Remove a job's files, and nothing else, so that a new one can start. Raises OutputError.

        The plan, which says whose they are, goes last.
        """
        try:
            for name in (SUCCESS, MANIFEST):
                (self.out / name).unlink(missing_ok=True)
            self.clean()
            for name in _PUBLISHED:
                for table in (self.out / name).glob("*.parquet"):
                    table.unlink()
            (self.out / PLAN).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(str(self.out), f"cannot be cleared ({error})") from error

    def foreign(self) -> bool:
        """Whether the folder holds something of somebody else's and no job. Raises OutputError.

        A run that was stopped before there was a plan leaves folders with nothing in them.
        """
        with self._reading("the folder"):
            entries = set(os.listdir(self.out))
            if PLAN in entries:
                return False
            filled = any(any((self.out / name).iterdir()) for name in entries & {*_PUBLISHED})
            return filled or not entries <= {*_PUBLISHED, *_WORKING}
        return False

    # --- what is there ---

    def read(self, name: str) -> str | None:
        """Text of a published file, None if it is not there. Raises OutputError."""
        data = self.read_bytes(name)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise OutputError(str(self.out), f"cannot read {name} ({error})") from error

    def read_bytes(self, name: str) -> bytes | None:
        """Content of a published file, None if it is not there. Raises OutputError."""
        with self._reading(name):
            return (self.out / name).read_bytes()
        return None

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Leave the block when `what` is not there; OutputError when it cannot be read."""
        try:
            yield
        except FileNotFoundError:
            pass
        except NotADirectoryError as error:
            raise OutputError(str(self.out), "is a file, not a folder") from error
        except OSError as error:
            raise OutputError(str(self.out), f"cannot read {what} ({error})") from error

    def size(self, name: str) -> int | None:
        """Bytes of a published file, None if it is not there."""
        try:
            return (self.out / name).stat().st_size
        except OSError:
            return None

    def path(self, name: str) -> Path:
        return self.out / name

    def committed(self) -> set[str]:
        """Keys of the chunks that are done."""
        try:
            entries = os.listdir(self.out / "_chunks")
        except FileNotFoundError:
            return set()
        return {entry.removesuffix(_CHUNK_SUFFIX) for entry in entries if entry.endswith(_CHUNK_SUFFIX)}

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

        A name that is taken must hold the same bytes, left by a run that was stopped after publishing it: SinkError if
        not.
        """
        with _storing(self.out / name), self._temporary(Path(name).name) as tmp:
            yield tmp
            if not self._publish(tmp, name) and sha256(tmp) != sha256(self.out / name):
                raise SinkError(f"{self.out / name}: is there already with other content; --overwrite to start afresh")

    def clean(self) -> None:
        """Remove the working folders of a job that is done."""
        for name in _WORKING:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.out / name)

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


def chunk_name(key: str) -> str:
    """Where a chunk's result is published, relative to the output folder."""
    return f"_chunks/{key}{_CHUNK_SUFFIX}"


def seal(manifest: bytes) -> bytes:
    """Content of `_SUCCESS` over the bytes of a manifest."""
    return (json.dumps({"manifest_sha256": hashlib.sha256(manifest).hexdigest()}) + "\n").encode()


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextlib.contextmanager
def _storing(target: Path) -> Iterator[None]:
    """A full disk strikes while writing as well as while publishing; either is a SinkError."""
    try:
        yield
    except OSError as error:
        raise SinkError(f"{target}: cannot be stored ({(error.strerror or str(error)).lower()})") from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
