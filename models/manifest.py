"""Manifests: a network described as data, in TOML.

name = "human-pose-estimation-0001"
description = "one line"
license = "Apache-2.0"
skeleton = "coco18"              # posecore.skeleton.SKELETONS

[input]
color = "BGR"                    # or "RGB": channel order the network expects
mean = [0.0, 0.0, 0.0]           # subtracted, per channel in that order, from 0..255
scale = [1.0, 1.0, 1.0]          # then divided by
stride = 8                       # network-input pixels per cell of the output
height = 256                     # default network height, a multiple of the stride
pad = [128, 128, 128]            # letterbox padding, in that order

[output]
heatmaps = "tensor name"         # (1, K or K+1, H/stride, W/stride), background last
pafs = "tensor name"             # (1, 2L, H/stride, W/stride)

[[variants]]                     # none for a manifest that stands beside a network file of its own
name = "FP16-INT8"               # the first is the default
  [[variants.files]]             # the first is the one OpenVINO opens
  path = "x.xml"
  bytes = 426156
  sha384 = "..."
  url = "https://..."
"""

import hashlib
import json
import math
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.errors import ManifestError
from posecore.skeleton import SKELETONS, Skeleton


@dataclass(frozen=True)
class ModelFile:
    """One file of a network. sha384: hex digest. url: where it is published, or none."""

    path: str
    bytes: int
    sha384: str
    url: str | None = None


@dataclass(frozen=True)
class Variant:
    """One precision of a network."""

    name: str
    files: tuple[ModelFile, ...]


@dataclass(frozen=True)
class Manifest:
    """What is needed to call a network. See the module's text for the meaning and units of each field."""

    name: str
    description: str
    license: str
    skeleton: Skeleton
    color: str
    mean: tuple[float, float, float]
    scale: tuple[float, float, float]
    stride: int
    height: int
    pad: tuple[int, int, int]
    heatmaps: str
    pafs: str
    variants: tuple[Variant, ...]

    def variant(self, name: str | None) -> Variant:
        """The named variant, or the default. Raises ManifestError."""
        for variant in self.variants:
            if name in (None, variant.name):
                return variant
        raise ManifestError(self.name, f"no variant {name}; there are {', '.join(v.name for v in self.variants)}")

    def digest(self, files: tuple[ModelFile, ...]) -> str:
        """Hex digest of everything that decides the network's answer: how it is called and the bytes of `files`."""
        call = {
            k: v for k, v in asdict(self).items() if k not in ("name", "description", "license", "variants", "height")
        }
        identity = {"call": call, "files": [file.sha384 for file in files]}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def read_manifest(text: str, origin: str) -> Manifest:
    """Parse and check a manifest. origin: the file's name, for messages. Raises ManifestError."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(origin, f"not TOML: {error}") from error
    table = _Table(data, origin)
    input_, output = table.section("input"), table.section("output")
    skeleton = table.text("skeleton")
    if skeleton not in SKELETONS:
        raise ManifestError(origin, f"unknown skeleton {skeleton!r}; known: {', '.join(SKELETONS)}")
    color = input_.text("color")
    if color not in ("BGR", "RGB"):
        raise ManifestError(origin, f"input.color is {color!r}, expected 'BGR' or 'RGB'")
    mean, scale, pad = input_.numbers("mean", 3), input_.numbers("scale", 3), input_.numbers("pad", 3)
    stride, height = input_.positive("stride"), input_.positive("height")
    if height % stride:
        raise ManifestError(origin, f"input.height {height} is not a multiple of input.stride {stride}")
    if 0 in scale:
        raise ManifestError(origin, "input.scale divides the pixels and cannot be 0")
    return Manifest(
        name=table.text("name"),
        description=table.text("description"),
        license=table.text("license"),
        skeleton=SKELETONS[skeleton],
        color=color,
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        scale=(float(scale[0]), float(scale[1]), float(scale[2])),
        stride=stride,
        height=height,
        pad=(int(pad[0]), int(pad[1]), int(pad[2])),
        heatmaps=output.text("heatmaps"),
        pafs=output.text("pafs"),
        variants=tuple(_variant(variant) for variant in table.tables("variants")),
    )


def _variant(table: "_Table") -> Variant:
    files = []
    for file in table.tables("files"):
        path = file.text("path")
        # A manifest must not be able to name a file outside its model's folder.
        if not _is_plain(path):
            raise ManifestError(table.origin, f"file path {path!r} must be a plain file name")
        url = file.text("url") if "url" in file.data else None
        files.append(ModelFile(path, file.positive("bytes"), file.text("sha384"), url))
    if not files:
        raise ManifestError(table.origin, f"variant {table.text('name')} has no files")
    name = table.text("name")
    if not _is_plain(name):
        raise ManifestError(table.origin, f"variant name {name!r} must be a plain name")
    return Variant(name, tuple(files))


@dataclass(frozen=True)
class _Table:
    """A TOML table whose entries are asked for by type, with messages that name the entry."""

    data: dict[str, Any]
    origin: str
    prefix: str = ""

    def _get(self, key: str, kind: type | tuple[type, ...], expected: str) -> Any:
        value = self.data.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            found = "missing" if value is None else repr(value)
            raise ManifestError(self.origin, f"{self.prefix}{key} is {found}, expected {expected}")
        return value

    def section(self, key: str) -> "_Table":
        return _Table(self._get(key, dict, "a table"), self.origin, f"{key}.")

    def tables(self, key: str) -> list["_Table"]:
        """An array of tables, empty if there is none."""
        value = self.data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise ManifestError(self.origin, f"{self.prefix}{key} is {value!r}, expected tables")
        return [_Table(entry, self.origin) for entry in value]

    def text(self, key: str) -> str:
        return str(self._get(key, str, "a text"))

    def positive(self, key: str) -> int:
        value = self._get(key, int, "a positive whole number")
        if value < 1:
            raise ManifestError(self.origin, f"{self.prefix}{key} is {value}, expected a positive whole number")
        return int(value)

    def numbers(self, key: str, count: int) -> list[float]:
        value: list[float] = self._get(key, list, f"a list of {count} numbers")
        if len(value) != count or not all(_is_number(v) for v in value):
            raise ManifestError(self.origin, f"{self.prefix}{key} is {value!r}, expected {count} numbers")
        return value


def _is_plain(name: str) -> bool:
    return name == Path(name).name and name not in ("", ".", "..") and name.isprintable()


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    return (isinstance(value, int) and abs(value) < 1 << 53) or (isinstance(value, float) and math.isfinite(value))
