"""Where networks are: the manifests posejob knows, the mirror, the cache, the origin.

A file is looked for as `<folder>/<model>/<variant>/<file>`, first in the folder POSEJOB_MODEL_DIR names, then in the
cache. What is in neither is fetched from its origin into the cache. Nothing is used before its size and SHA-384 have
been checked against the manifest.
"""

import hashlib
import http.client
import os
import stat
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from models.errors import ManifestError, ModelDamaged, ModelNotFound, ModelUnreadable
from models.manifest import Manifest, ModelFile, Variant, read_manifest
from posecore.errors import reason

DEFAULT_MODEL = "human-pose-estimation-0001"
MODEL_DIR_VARIABLE = "POSEJOB_MODEL_DIR"
_SUFFIXES = (".xml", ".onnx")
_TIMEOUT_S = 30


@dataclass(frozen=True)
class Network:
    """A network on this machine whose bytes were found to be the ones its manifest names.

    name:   "model/variant", or the file's path for a network of the user's own.
    path:   the file OpenVINO opens.
    files:  every file with its folder, so that another process can check them again.
    digest: hex, what decides the network's answer.
    """

    name: str
    manifest: Manifest
    path: Path
    files: tuple[ModelFile, ...]
    digest: str

    def check(self) -> None:
        """Raise ModelDamaged or ModelNotFound unless the files are still those that were found."""
        for file in self.files:
            check_file(self.path.parent / file.path, file)


def known_manifests() -> list[Manifest]:
    """The manifests that ship with posejob, by name."""
    folder = resources.files("models.manifests")
    texts = sorted((entry.name, entry.read_text()) for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return [read_manifest(text, name) for name, text in texts]


def cache_dir() -> Path:
    """Folder of fetched networks: $XDG_CACHE_HOME/posejob/models, or ~/.cache/posejob/models."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "posejob" / "models"


def find_network(name: str, *, fetch: bool = True, report: Callable[[str], None] = lambda line: None) -> Network:
    """The network called `name`: "model", "model/variant", or the path of an .xml or .onnx with a .toml beside it.

    fetch:  download what is neither in the mirror nor in the cache.
    report: called with one line before each download.
    Raises ManifestError, ModelNotFound, ModelUnreadable, ModelDamaged.
    """
    if name.endswith(_SUFFIXES):
        return _own_network(Path(name))
    manifest, variant = _known(name)
    folder = _find_variant(manifest, variant)
    if folder is None:
        folder = cache_dir() / manifest.name / variant.name
        if not fetch:
            raise _not_found(manifest, variant, "run `posejob models fetch`")
        _fetch(manifest, variant, folder, report)
    for file in variant.files:
        check_file(folder / file.path, file)
    path = folder / variant.files[0].path
    return Network(
        f"{manifest.name}/{variant.name}", manifest, path.absolute(), variant.files, manifest.digest(variant.files)
    )


def check_file(path: Path, file: ModelFile) -> None:
    """Raise ModelDamaged unless the file has the size and SHA-384 its manifest names, ModelNotFound if it is absent."""
    try:
        size = path.stat().st_size
        if size != file.bytes:
            raise ModelDamaged(str(path), "size", f"{file.bytes} bytes", f"{size} bytes")
        found = _sha384(path)
    except OSError as error:
        raise ModelNotFound(path.name, (str(path.parent),), f"cannot read it: {reason(error)}") from error
    if found != file.sha384:
        raise ModelDamaged(str(path), "SHA-384", f"{file.sha384[:16]}...", f"{found[:16]}...")


def _known(name: str) -> tuple[Manifest, Variant]:
    model, _, variant = name.partition("/")
    manifests = known_manifests()
    for manifest in manifests:
        if manifest.name == model:
            return manifest, manifest.variant(variant or None)
    known = ", ".join(manifest.name for manifest in manifests)
    raise ModelNotFound(
        name,
        ("posejob's own list",),
        f"known: {known}; a network of your own is given as a path ending in .xml or .onnx",
    )


def _own_network(path: Path) -> Network:
    toml, weights = path.with_suffix(".toml"), path.with_suffix(".bin")
    if not _is_file(path):
        raise ModelNotFound(path.name, (str(path.parent.absolute()),), "no such file")
    if not _is_file(toml):
        raise ManifestError(
            str(toml),
            f"missing; a network of your own needs a manifest beside it (docs/models.md), here for {path.name}",
        )
    paths = [path, weights] if path.suffix == ".xml" and _is_file(weights) else [path]
    try:
        text = toml.read_text(encoding="utf-8")
        files = tuple(ModelFile(p.name, p.stat().st_size, _sha384(p)) for p in paths)
    except UnicodeDecodeError as error:
        raise ManifestError(str(toml), "not UTF-8 text") from error
    except OSError as error:
        raise ModelUnreadable(str(error.filename or path), reason(error)) from error
    manifest = read_manifest(text, str(toml))
    return Network(str(path), manifest, path.absolute(), files, manifest.digest(files))


def _is_file(path: Path) -> bool:
    """Whether there is such a file. Raises ModelUnreadable where that is not for this user to know."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        raise ModelUnreadable(str(path), reason(error)) from error


def _places(manifest: Manifest, variant: Variant) -> list[Path]:
    mirror = os.environ.get(MODEL_DIR_VARIABLE)
    roots = ([Path(mirror)] if mirror else []) + [cache_dir()]
    return [root / manifest.name / variant.name for root in roots]


def _find_variant(manifest: Manifest, variant: Variant) -> Path | None:
    for folder in _places(manifest, variant):
        if all(os.path.isfile(folder / file.path) for file in variant.files):
            return folder
    return None


def _not_found(manifest: Manifest, variant: Variant, remedy: str) -> ModelNotFound:
    places = tuple(f"{folder}{_closed(folder)}" for folder in _places(manifest, variant))
    return ModelNotFound(f"{manifest.name}/{variant.name}", places, remedy)


def _closed(folder: Path) -> str:
    """That this user cannot see what is in a folder, or nothing."""
    try:
        os.stat(os.path.join(folder, "."))
    except PermissionError as error:
        return f" ({reason(error)})"
    except (OSError, ValueError):
        pass
    return ""


def _fetch(manifest: Manifest, variant: Variant, folder: Path, report: Callable[[str], None]) -> None:
    """Download a variant's files. Each is checked in a temporary file and then renamed: a name is never half a file."""
    for file in variant.files:
        target = folder / file.path
        if os.path.isfile(target):
            continue
        by_hand = (
            f"put {' and '.join(f.path for f in variant.files)} in <folder>/{manifest.name}/{variant.name}/ "
            f"and set {MODEL_DIR_VARIABLE}=<folder>"
        )
        if file.url is None:
            raise _not_found(manifest, variant, by_hand)
        report(f"fetching {manifest.name}/{variant.name}/{file.path} ({file.bytes / 1e6:.1f} MB) from {file.url}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".part") as part:
                _download(file, part.name)
                check_file(Path(part.name), file)
                os.chmod(part.name, 0o644)
                # A hard link is left behind when the temporary name goes; whoever fetched the same file meanwhile wins.
                with suppress(FileExistsError):
                    os.link(part.name, target)
        except (ModelDamaged, OSError, ValueError, http.client.HTTPException) as error:
            remedy = f"fetching {file.url} failed ({_reason(error)}); check the network, or {by_hand}"
            raise _not_found(manifest, variant, remedy) from error


def _reason(error: Exception) -> str:
    if isinstance(error, ModelDamaged):
        return f"{error.what} is {error.found}, the manifest says {error.expected}"
    # What urllib has to say of a connection: another error, or a text.
    cause = getattr(error, "reason", None) or error
    return reason(cause) if isinstance(cause, OSError) else str(cause)


def _download(file: ModelFile, target: str) -> None:
    """Write what the origin sends, at most a byte more than announced: a wrong answer cannot fill the disk."""
    with urllib.request.urlopen(file.url or "", timeout=_TIMEOUT_S) as answer, open(target, "wb") as out:
        left = file.bytes + 1
        while left and (block := answer.read(min(1 << 20, left))):
            out.write(block)
            left -= len(block)


def _sha384(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha384").hexdigest()
